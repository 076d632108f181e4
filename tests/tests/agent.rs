//! The agent in a real guest, over vsock: ready, commands, files.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use croft_tests::Stage;
use croft_tests::files::{Kernel, program};
use croft_tests::guest::Act;
use croft_tests::modules::agent_initramfs;

fn croft(stage: &Stage, words: &[&str]) -> Command {
    let mut command = Command::new(program("croft"));
    command
        .args(words)
        .env("CROFT_DATA_DIR", stage.path("data"))
        .env_remove("CROFT_RUNTIME_DIR")
        .current_dir(stage.path("run"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `croft exec NAME -- sh -c SCRIPT`, with this input.
fn exec(stage: &Stage, script: &str, input: &[u8]) -> Output {
    let mut command = croft(stage, &["exec", stage.name(), "--", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    output
}

#[test]
fn a_guest_is_ready_runs_commands_and_takes_files() {
    let stage = Stage::new();
    let initrd = stage.file("initrd", &agent_initramfs());
    let mut create = croft(
        &stage,
        &["create", "--name", stage.name(), "--memory", "256M"],
    );
    create.arg("--kernel").arg(Kernel::Cloud.path());
    create.arg("--initrd").arg(initrd);
    create.args(["--append", &Act::Agent.command_line()]);
    succeed(create);
    succeed(croft(&stage, &["start", stage.name()]));
    succeed(croft(&stage, &["wait", stage.name()]));

    let told = exec(&stage, "uname -r; echo err >&2; exit 7", b"");
    assert_eq!(told.status.code(), Some(7), "{told:?}");
    assert_eq!(
        String::from_utf8_lossy(&told.stdout).trim(),
        Kernel::Cloud.release()
    );
    assert_eq!(told.stderr, b"err\n");
    let large: Vec<u8> = (0..500_000u32).map(|n| (n / 3) as u8).collect();
    let back = exec(&stage, "cat", &large);
    assert!(back.status.success() && back.stdout == large);
    let killed = exec(&stage, "kill -9 $$", b"");
    assert_eq!(killed.status.code(), Some(137), "{killed:?}");
    let none = croft(
        &stage,
        &["exec", stage.name(), "--", "nothing-of-this-name"],
    )
    .output();
    assert_eq!(none.unwrap().status.code(), Some(127));
    let deaf = [
        "exec",
        "-n",
        stage.name(),
        "--",
        "sh",
        "-c",
        "cat; echo end",
    ];
    assert_eq!(succeed(croft(&stage, &deaf)), "end\n");

    let tree = stage.path("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/large"), &large).unwrap();
    std::os::unix::fs::symlink("sub/large", tree.join("link")).unwrap();
    let there = format!("{}:/root/copied", stage.name());
    succeed(croft(&stage, &["cp", tree.to_str().unwrap(), &there]));
    let owner = exec(&stage, "stat -c %u:%g /root/copied/sub/large", b"");
    assert_eq!(owner.stdout, b"0:0\n");
    let back = stage.path("back");
    succeed(croft(&stage, &["cp", &there, back.to_str().unwrap()]));
    assert!(fs::read(back.join("sub/large")).unwrap() == large);
    assert_eq!(
        fs::read_link(back.join("link")).unwrap().to_str(),
        Some("sub/large")
    );
    // A pipe is not copied, and that is said.
    exec(&stage, "mknod /root/copied/pipe p", b"");
    let partly = croft(
        &stage,
        &["cp", &there, stage.path("partly").to_str().unwrap()],
    )
    .output();
    let partly = partly.unwrap();
    assert_eq!(partly.status.code(), Some(1), "{partly:?}");
    assert!(
        String::from_utf8_lossy(&partly.stderr).contains("pipe"),
        "{partly:?}"
    );
    let refused = croft(&stage, &["cp", &format!("{}:/none", stage.name()), "x"]).output();
    let refused = refused.unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");

    succeed(croft(&stage, &["stop", "--force", stage.name()]));
    let gone = croft(&stage, &["exec", stage.name(), "--", "true"])
        .output()
        .unwrap();
    assert_eq!(gone.status.code(), Some(125), "{gone:?}");
    succeed(croft(&stage, &["delete", stage.name()]));
}
