use super::*;

fn command(words: &str) -> Command {
    let (_, command) = parse(words.split(' ').map(OsString::from));
    command.unwrap_or_else(|error| panic!("{words}: {error}"))
}

fn refused(words: &str) -> String {
    match parse(words.split(' ').map(OsString::from)).1 {
        Ok(command) => panic!("{words}: {command:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn options_before_and_behind_the_name() {
    for words in [
        "create --bundle /b --pid-file /p box",
        "create box --bundle /b --pid-file=/p",
        "create -b /b box --pid-file /p --no-new-keyring",
    ] {
        let Command::Create(create) = command(words) else {
            panic!("{words}");
        };
        assert_eq!(create.id, "box");
        assert_eq!(create.bundle, Some("/b".into()));
        assert_eq!(create.pid_file, Some("/p".into()));
    }
}

#[test]
fn globals_stay_known_when_the_rest_is_wrong() {
    let words = ["--root", "/r", "--log=/l", "--log-format", "json", "creat"];
    let (globals, command) = parse(words.map(OsString::from));
    assert_eq!(globals.root, Some("/r".into()));
    assert_eq!(globals.log, Some("/l".into()));
    assert_eq!(globals.format, Format::Json);
    let error = command.unwrap_err().to_string();
    assert!(error.contains("'creat'"), "{error}");
}

#[test]
fn words_of_a_command_are_left_alone() {
    let Command::Exec(exec) = command("exec -t -u 5:6 -e A=b box ls -t --env --help") else {
        panic!("no exec");
    };
    assert!(exec.tty);
    assert_eq!(exec.user, Some((5, Some(6))));
    assert_eq!(exec.env, ["A=b"]);
    assert_eq!(exec.command, ["ls", "-t", "--env", "--help"]);
    let Command::Exec(exec) = command("exec --process /p --detach --tty=false box") else {
        panic!("no exec");
    };
    assert!(exec.detach && !exec.tty && exec.command.is_empty());
}

#[test]
fn signals() {
    let Command::Kill(kill) = command("kill --all box KILL") else {
        panic!("no kill");
    };
    assert!(kill.all && kill.signal == Signal(9));
    let Command::Kill(kill) = command("kill box") else {
        panic!("no kill");
    };
    assert!(!kill.all && kill.signal == Signal(15));
    assert!(refused("kill box MORE").contains("'MORE' is no signal"));
}

#[test]
fn words_for_ps() {
    for (words, expected) in [
        ("ps box", vec![]),
        ("ps box -ef", vec!["-ef"]),
        ("ps box -- -ef", vec!["-ef"]),
        ("ps -f json box", vec![]),
        ("ps box --format json", vec![]),
    ] {
        let Command::Ps(ps) = command(words) else {
            panic!("{words}");
        };
        assert_eq!(ps.options, expected, "{words}");
        let json = words.contains("json");
        assert_eq!(ps.format == Listing::Json, json, "{words}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (words, part) in [
        ("--systemd-cgroup create box", "systemd"),
        ("create", "name is missing"),
        ("create box two", "'two' is one word too many"),
        ("create --bundle", "--bundle"),
        ("create --what box", "no option --what"),
        ("exec box", "what to run is missing"),
        ("update --memory lots box", "'lots' is no number"),
        ("events --interval 0s box", "--interval"),
        ("exec -u me box true", "--user"),
        (
            "checkpoint --manage-cgroups-mode all box",
            "'all' is none of ignore",
        ),
    ] {
        let error = refused(words);
        assert!(error.contains(part), "{words}: {error}");
    }
}

#[test]
fn every_command_has_help() {
    for name in [
        "create",
        "start",
        "run",
        "exec",
        "state",
        "kill",
        "delete",
        "ps",
        "pause",
        "resume",
        "update",
        "list",
        "spec",
        "features",
        "events",
        "checkpoint",
        "restore",
    ] {
        let Command::Print(text) = command(&format!("{name} --help")) else {
            panic!("{name}");
        };
        assert!(text.contains(name), "{text}");
        assert!(overview().contains(&format!("\n  {name} ")), "{name}");
    }
}
