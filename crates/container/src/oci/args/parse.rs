//! From words to a [`Command`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use lexopt::{Arg, Parser};

use super::{
    CGROUP_MODES, Checkpoint, Command, Create, Delete, Events, Exec, Globals, Images, Kill, List,
    Listing, Name, Ps, Restore, Run, Signal, Spec, Update, for_command, overview,
};
use crate::oci::error::Error;
use crate::oci::log::Format;

/// Takes the words apart: the options before the command, and the command, or
/// what is wrong. The options are known then too, so that the error goes to the
/// log that they name.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> (Globals, Result<Command, Error>) {
    let mut words = Words {
        parser: Parser::from_args(words),
        command: String::new(),
    };
    let mut globals = Globals::default();
    let command = words.all(&mut globals);
    (globals, command)
}

struct Words {
    parser: Parser,
    /// For messages; empty before it is known.
    command: String,
}

/// One word, or option.
enum Word {
    /// An option, by its long name, or the letter if it is a short one.
    Option(String),
    Value(OsString),
}

impl Words {
    fn all(&mut self, globals: &mut Globals) -> Result<Command, Error> {
        while let Some(word) = self.next()? {
            match word {
                Word::Option(option) => match option.as_str() {
                    "root" => globals.root = Some(self.path(&option)?),
                    "log" => globals.log = Some(self.path(&option)?),
                    "log-format" => {
                        let format = self.text(&option)?;
                        globals.format = Format::parse(&format).ok_or_else(|| {
                            Error::Usage(format!("--log-format is text or json, not '{format}'"))
                        })?;
                    }
                    "debug" => globals.debug = true,
                    "criu" => globals.criu = Some(self.path(&option)?),
                    "cgroup-manager" => match self.text(&option)?.as_str() {
                        "cgroupfs" | "disabled" => {}
                        _ => return Err(Error::SystemdCgroup),
                    },
                    "systemd-cgroup" => return Err(Error::SystemdCgroup),
                    "rootless" => {
                        self.text(&option)?;
                    }
                    "v" | "version" => return Ok(Command::Print(version())),
                    "h" | "help" => return Ok(Command::Print(overview())),
                    _ => return Err(self.unknown(&option)),
                },
                Word::Value(command) => {
                    self.command = utf8(command, "a command")?;
                    return self.command();
                }
            }
        }
        Err(Error::Usage(
            "a command is missing; croft-oci --help lists them".to_owned(),
        ))
    }

    fn command(&mut self) -> Result<Command, Error> {
        match self.command.as_str() {
            "create" => self.create(),
            "start" => self.name().map(help_or(Command::Start)),
            "run" => self.run(),
            "exec" => self.exec(),
            "state" => self.name().map(help_or(Command::State)),
            "kill" => self.kill(),
            "delete" => self.delete(),
            "ps" => self.ps(),
            "pause" => self.name().map(help_or(Command::Pause)),
            "resume" => self.name().map(help_or(Command::Resume)),
            "update" => self.update(),
            "list" => self.list(),
            "spec" => self.spec(),
            "features" => self.nothing(),
            "events" => self.events(),
            "checkpoint" => self.checkpoint(),
            "restore" => self.restore(),
            "help" => Ok(Command::Print(overview())),
            other => Err(Error::Usage(format!(
                "there is no command '{other}'; croft-oci --help lists them"
            ))),
        }
    }

    /// The container's name alone; `None` for help.
    fn name(&mut self) -> Result<Result<Name, String>, Error> {
        let mut id = None;
        while let Some(word) = self.next()? {
            match word {
                Word::Option(option) if is_help(&option) => return Ok(Err(self.help())),
                Word::Option(option) => return Err(self.unknown(&option)),
                Word::Value(value) => self.id(&mut id, value)?,
            }
        }
        Ok(Ok(Name {
            id: self.named(id)?,
        }))
    }

    fn nothing(&mut self) -> Result<Command, Error> {
        match self.next()? {
            None => Ok(Command::Features),
            Some(Word::Option(option)) if is_help(&option) => Ok(Command::Print(self.help())),
            Some(Word::Option(option)) => Err(self.unknown(&option)),
            Some(Word::Value(value)) => Err(self.too_much(&value)),
        }
    }

    /// An option that `create`, `run` and `restore` share.
    fn creating(&mut self, option: &str, create: &mut Create) -> Result<bool, Error> {
        match option {
            "b" | "bundle" => create.bundle = Some(self.path(option)?),
            "console-socket" => create.console_socket = Some(self.path(option)?),
            "pid-file" => create.pid_file = Some(self.path(option)?),
            "no-pivot" => create.no_pivot = true,
            "no-new-keyring" => create.no_new_keyring = true,
            "preserve-fds" => create.preserve_fds = self.number(option)?,
            // Whose child a process becomes is for the kernel to say.
            "no-subreaper" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn create(&mut self) -> Result<Command, Error> {
        let (mut id, mut create) = (None, Create::default());
        while let Some(word) = self.next()? {
            match word {
                Word::Option(option) if is_help(&option) => {
                    return Ok(Command::Print(self.help()));
                }
                Word::Option(option) => {
                    if !self.creating(&option, &mut create)? {
                        return Err(self.unknown(&option));
                    }
                }
                Word::Value(value) => self.id(&mut id, value)?,
            }
        }
        create.id = self.named(id)?;
        Ok(Command::Create(create))
    }

    /// An option that `run` and `restore` share.
    fn running(&mut self, option: &str, run: &mut Run) -> Result<bool, Error> {
        match option {
            "d" | "detach" => run.detach = true,
            "keep" => run.keep = true,
            _ => return self.creating(option, &mut run.create),
        }
        Ok(true)
    }

    fn run(&mut self) -> Result<Command, Error> {
        let (mut id, mut run) = (None, Run::default());
        while let Some(word) = self.next()? {
            match word {
                Word::Option(option) if is_help(&option) => {
                    return Ok(Command::Print(self.help()));
                }
                Word::Option(option) => {
                    if !self.running(&option, &mut run)? {
                        return Err(self.unknown(&option));
                    }
                }
                Word::Value(value) => self.id(&mut id, value)?,
            }
        }
        run.create.id = self.named(id)?;
        Ok(Command::Run(run))
    }

    fn exec(&mut self) -> Result<Command, Error> {
        let (mut id, mut exec) = (None, Exec::default());
        while let Some(word) = self.next()? {
            let option = match word {
                Word::Option(option) => option,
                Word::Value(value) if id.is_none() => {
                    self.id(&mut id, value)?;
                    continue;
                }
                Word::Value(value) => {
                    exec.command.push(utf8(value, "a command's word")?);
                    for word in self.rest()? {
                        exec.command.push(utf8(word, "a command's word")?);
                    }
                    break;
                }
            };
            match option.as_str() {
                "h" | "help" => return Ok(Command::Print(self.help())),
                "p" | "process" => exec.process = Some(self.path(&option)?),
                "t" | "tty" => exec.tty = self.flag(),
                "cwd" => exec.cwd = Some(self.path(&option)?),
                "e" | "env" => exec.env.push(self.text(&option)?),
                "u" | "user" => exec.user = Some(self.user(&option)?),
                "g" | "additional-gids" => exec.additional_gids.push(self.number(&option)?),
                "c" | "cap" => exec.caps.push(self.text(&option)?),
                "apparmor" => exec.apparmor = Some(self.text(&option)?),
                "process-label" => exec.process_label = Some(self.text(&option)?),
                "no-new-privs" => exec.no_new_privs = self.flag(),
                "d" | "detach" => exec.detach = true,
                "ignore-paused" => exec.ignore_paused = true,
                "console-socket" => exec.console_socket = Some(self.path(&option)?),
                "pid-file" => exec.pid_file = Some(self.path(&option)?),
                "preserve-fds" => exec.preserve_fds = self.number(&option)?,
                "cgroup" => exec.cgroup = Some(self.text(&option)?),
                _ => return Err(self.unknown(&option)),
            }
        }
        exec.id = self.named(id)?;
        if exec.process.is_none() && exec.command.is_empty() {
            return Err(Error::Usage(
                "exec: what to run is missing; name a command, or a file with --process".to_owned(),
            ));
        }
        Ok(Command::Exec(Box::new(exec)))
    }

    fn kill(&mut self) -> Result<Command, Error> {
        let (mut id, mut all, mut signal) = (None, false, None);
        while let Some(word) = self.next()? {
            match word {
                Word::Option(option) => match option.as_str() {
                    "h" | "help" => return Ok(Command::Print(self.help())),
                    "a" | "all" => all = true,
                    _ => return Err(self.unknown(&option)),
                },
                Word::Value(value) if id.is_none() => self.id(&mut id, value)?,
                Word::Value(value) if signal.is_none() => {
                    let word = utf8(value, "a signal")?;
                    let known = Signal::parse(&word).ok_or_else(|| {
                        Error::Usage(format!(
                            "'{word}' is no signal; name one such as TERM, or a number from 1 to 64"
                        ))
                    })?;
                    signal = Some(known);
                }
                Word::Value(value) => return Err(self.too_much(&value)),
            }
        }
        Ok(Command::Kill(Kill {
            id: self.named(id)?,
            signal: signal.unwrap_or(Signal(libc::SIGTERM)),
            all,
        }))
    }

    fn delete(&mut self) -> Result<Command, Error> {
        let (mut id, mut force) = (None, false);
        while let Some(word) = self.next()? {
            match word {
                Word::Option(option) => match option.as_str() {
                    "h" | "help" => return Ok(Command::Print(self.help())),
                    "f" | "force" => force = true,
                    _ => return Err(self.unknown(&option)),
                },
                Word::Value(value) => self.id(&mut id, value)?,
            }
        }
        Ok(Command::Delete(Delete {
            id: self.named(id)?,
            force,
        }))
    }

    fn ps(&mut self) -> Result<Command, Error> {
        let (mut id, mut format, mut options) = (None, Listing::Table, Vec::new());
        while let Some(word) = self.next()? {
            match word {
                Word::Option(option) => match option.as_str() {
                    "h" | "help" => return Ok(Command::Print(self.help())),
                    "f" | "format" => format = self.listing(&option)?,
                    _ => return Err(self.unknown(&option)),
                },
                Word::Value(value) => {
                    self.id(&mut id, value)?;
                    for word in self.rest()? {
                        options.push(utf8(word, "a word for ps")?);
                    }
                    break;
                }
            }
        }
        // `ps ID -- -ef` is written as well as `ps ID -ef`.
        if options.first().is_some_and(|first| first == "--") {
            options.remove(0);
        }
        // What stands behind the name may still be our own option.
        if let [first, second] = options.as_slice()
            && (first == "--format" || first == "-f")
            && let Some(known) = listing(second)
        {
            format = known;
            options.clear();
        }
        Ok(Command::Ps(Ps {
            id: self.named(id)?,
            format,
            options,
        }))
    }

    fn list(&mut self) -> Result<Command, Error> {
        let mut list = List::default();
        while let Some(word) = self.next()? {
            match word {
                Word::Option(option) => match option.as_str() {
                    "h" | "help" => return Ok(Command::Print(self.help())),
                    "f" | "format" => list.format = self.listing(&option)?,
                    "q" | "quiet" => list.quiet = true,
                    _ => return Err(self.unknown(&option)),
                },
                Word::Value(value) => return Err(self.too_much(&value)),
            }
        }
        Ok(Command::List(list))
    }

    fn spec(&mut self) -> Result<Command, Error> {
        let mut spec = Spec::default();
        while let Some(word) = self.next()? {
            match word {
                Word::Option(option) => match option.as_str() {
                    "h" | "help" => return Ok(Command::Print(self.help())),
                    "b" | "bundle" => spec.bundle = Some(self.path(&option)?),
                    "rootless" => spec.rootless = true,
                    _ => return Err(self.unknown(&option)),
                },
                Word::Value(value) => return Err(self.too_much(&value)),
            }
        }
        Ok(Command::Spec(spec))
    }

    fn update(&mut self) -> Result<Command, Error> {
        let (mut id, mut update) = (None, Update::default());
        while let Some(word) = self.next()? {
            let option = match word {
                Word::Option(option) => option,
                Word::Value(value) => {
                    self.id(&mut id, value)?;
                    continue;
                }
            };
            match option.as_str() {
                "h" | "help" => return Ok(Command::Print(self.help())),
                "r" | "resources" => update.resources = Some(self.path(&option)?),
                "blkio-weight" => update.blkio_weight = Some(self.number(&option)?),
                "cpu-period" => update.cpu_period = Some(self.number(&option)?),
                "cpu-quota" => update.cpu_quota = Some(self.number(&option)?),
                "cpu-burst" => update.cpu_burst = Some(self.number(&option)?),
                "cpu-share" => update.cpu_share = Some(self.number(&option)?),
                "cpu-idle" => update.cpu_idle = Some(self.number(&option)?),
                "cpu-rt-period" => update.cpu_rt_period = Some(self.number(&option)?),
                "cpu-rt-runtime" => update.cpu_rt_runtime = Some(self.number(&option)?),
                "cpuset-cpus" => update.cpuset_cpus = Some(self.text(&option)?),
                "cpuset-mems" => update.cpuset_mems = Some(self.text(&option)?),
                "memory" => update.memory = Some(self.number(&option)?),
                "memory-reservation" => update.memory_reservation = Some(self.number(&option)?),
                "memory-swap" => update.memory_swap = Some(self.number(&option)?),
                "pids-limit" => update.pids_limit = Some(self.number(&option)?),
                // The kernel has no such limit any more (Linux 5.16).
                "kernel-memory" | "kernel-memory-tcp" => {
                    self.text(&option)?;
                }
                _ => return Err(self.unknown(&option)),
            }
        }
        update.id = self.named(id)?;
        Ok(Command::Update(Box::new(update)))
    }

    fn events(&mut self) -> Result<Command, Error> {
        let (mut id, mut interval, mut stats) = (None, 5, false);
        while let Some(word) = self.next()? {
            match word {
                Word::Option(option) => match option.as_str() {
                    "h" | "help" => return Ok(Command::Print(self.help())),
                    "interval" => {
                        let text = self.text(&option)?;
                        interval = seconds(&text).ok_or_else(|| {
                            Error::Usage(format!(
                                "--interval is a time such as 5s or 1m, not '{text}'"
                            ))
                        })?;
                    }
                    "stats" => stats = true,
                    _ => return Err(self.unknown(&option)),
                },
                Word::Value(value) => self.id(&mut id, value)?,
            }
        }
        Ok(Command::Events(Events {
            id: self.named(id)?,
            interval,
            stats,
        }))
    }

    /// An option that `checkpoint` and `restore` share.
    fn images(&mut self, option: &str, images: &mut Images) -> Result<bool, Error> {
        match option {
            "image-path" => images.image_path = Some(self.path(option)?),
            "work-path" => images.work_path = Some(self.path(option)?),
            "tcp-established" => images.tcp_established = true,
            "ext-unix-sk" => images.ext_unix_sk = true,
            "shell-job" => images.shell_job = true,
            "file-locks" => images.file_locks = true,
            "link-remap" => images.link_remap = true,
            "manage-cgroups-mode" => images.manage_cgroups = Some(self.cgroup_mode(option)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn checkpoint(&mut self) -> Result<Command, Error> {
        let (mut id, mut checkpoint) = (None, Checkpoint::default());
        while let Some(word) = self.next()? {
            match word {
                Word::Option(option) if is_help(&option) => {
                    return Ok(Command::Print(self.help()));
                }
                Word::Option(option) if option == "leave-running" => {
                    checkpoint.leave_running = true;
                }
                Word::Option(option) if option == "tcp-skip-in-flight" => {
                    checkpoint.skip_in_flight = true;
                }
                Word::Option(option) => {
                    if !self.images(&option, &mut checkpoint.images)? {
                        return Err(self.unknown(&option));
                    }
                }
                Word::Value(value) => self.id(&mut id, value)?,
            }
        }
        checkpoint.id = self.named(id)?;
        Ok(Command::Checkpoint(Box::new(checkpoint)))
    }

    fn restore(&mut self) -> Result<Command, Error> {
        let (mut id, mut restore) = (None, Restore::default());
        while let Some(word) = self.next()? {
            match word {
                Word::Option(option) if is_help(&option) => {
                    return Ok(Command::Print(self.help()));
                }
                Word::Option(option) => {
                    if !self.images(&option, &mut restore.images)?
                        && !self.running(&option, &mut restore.run)?
                    {
                        return Err(self.unknown(&option));
                    }
                }
                Word::Value(value) => self.id(&mut id, value)?,
            }
        }
        restore.run.create.id = self.named(id)?;
        Ok(Command::Restore(Box::new(restore)))
    }

    fn next(&mut self) -> Result<Option<Word>, Error> {
        let word = match self.parser.next().map_err(usage)? {
            None => return Ok(None),
            Some(Arg::Short(letter)) => Word::Option(letter.to_string()),
            Some(Arg::Long(name)) => Word::Option(name.to_owned()),
            Some(Arg::Value(value)) => Word::Value(value),
        };
        Ok(Some(word))
    }

    /// The words that are left, as they are.
    fn rest(&mut self) -> Result<Vec<OsString>, Error> {
        Ok(self.parser.raw_args().map_err(usage)?.collect())
    }

    fn id(&self, id: &mut Option<String>, value: OsString) -> Result<(), Error> {
        if id.is_some() {
            return Err(self.too_much(&value));
        }
        *id = Some(utf8(value, "a container's name")?);
        Ok(())
    }

    fn named(&self, id: Option<String>) -> Result<String, Error> {
        id.ok_or_else(|| Error::Usage(format!("{}: the container's name is missing", self.command)))
    }

    fn path(&mut self, option: &str) -> Result<PathBuf, Error> {
        let value = self.parser.value().map_err(usage)?;
        if value.is_empty() {
            return Err(Error::Usage(format!("{} is empty", dashed(option))));
        }
        Ok(value.into())
    }

    fn cgroup_mode(&mut self, option: &str) -> Result<&'static str, Error> {
        let text = self.text(option)?;
        let known = CGROUP_MODES.into_iter().find(|one| *one == text);
        known.ok_or_else(|| {
            let (option, all) = (dashed(option), CGROUP_MODES.join(", "));
            Error::Usage(format!("{option}: '{text}' is none of {all}"))
        })
    }

    fn text(&mut self, option: &str) -> Result<String, Error> {
        let value = self.parser.value().map_err(usage)?;
        utf8(value, &dashed(option))
    }

    /// An option alone, or with `=false` behind it.
    fn flag(&mut self) -> bool {
        self.parser
            .optional_value()
            .is_none_or(|value| value != "false")
    }

    fn number<T: FromStr>(&mut self, option: &str) -> Result<T, Error> {
        let text = self.text(option)?;
        text.parse().map_err(|_| {
            Error::Usage(format!(
                "{}: '{text}' is no number, or too large",
                dashed(option)
            ))
        })
    }

    fn user(&mut self, option: &str) -> Result<(u32, Option<u32>), Error> {
        let text = self.text(option)?;
        let parsed = match text.split_once(':') {
            None => text.parse().ok().map(|user| (user, None)),
            Some((user, group)) => user
                .parse()
                .ok()
                .zip(group.parse().ok())
                .map(|(user, group)| (user, Some(group))),
        };
        parsed.ok_or_else(|| {
            Error::Usage(format!("--user is UID or UID:GID in numbers, not '{text}'"))
        })
    }

    fn listing(&mut self, option: &str) -> Result<Listing, Error> {
        let text = self.text(option)?;
        listing(&text)
            .ok_or_else(|| Error::Usage(format!("--format is table or json, not '{text}'")))
    }

    fn help(&self) -> String {
        for_command(&self.command).unwrap_or_else(overview)
    }

    fn unknown(&self, option: &str) -> Error {
        let (of, command) = if self.command.is_empty() {
            ("", "")
        } else {
            (" ", self.command.as_str())
        };
        Error::Usage(format!(
            "there is no option {}; croft-oci{of}{command} --help lists them",
            dashed(option)
        ))
    }

    fn too_much(&self, value: &OsString) -> Error {
        Error::Usage(format!(
            "{}: '{}' is one word too many",
            self.command,
            value.to_string_lossy()
        ))
    }
}

/// Turns a parsed name into a command, or help into its print.
fn help_or(command: fn(Name) -> Command) -> impl Fn(Result<Name, String>) -> Command {
    move |parsed| parsed.map_or_else(Command::Print, command)
}

fn is_help(option: &str) -> bool {
    matches!(option, "h" | "help")
}

fn dashed(option: &str) -> String {
    let dashes = if option.chars().count() == 1 {
        "-"
    } else {
        "--"
    };
    format!("{dashes}{option}")
}

fn listing(text: &str) -> Option<Listing> {
    match text {
        "table" => Some(Listing::Table),
        "json" => Some(Listing::Json),
        _ => None,
    }
}

/// A time such as `5s`, `1m`, `5` (seconds); at least a second.
fn seconds(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix('s') {
        Some(digits) => (digits, 1),
        None => text
            .strip_suffix('m')
            .map_or((text, 1), |digits| (digits, 60)),
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(unit).filter(|seconds| *seconds > 0)
}

fn utf8(value: OsString, what: &str) -> Result<String, Error> {
    value.into_string().map_err(|value| {
        Error::Usage(format!(
            "{what} is not UTF-8: '{}'",
            value.to_string_lossy()
        ))
    })
}

fn usage(error: lexopt::Error) -> Error {
    Error::Usage(error.to_string())
}

/// What `--version` prints; the form is runc's, which callers look into.
fn version() -> String {
    format!(
        "croft-oci version {}\nspec: {}\n",
        env!("CARGO_PKG_VERSION"),
        crate::oci::SPEC_VERSION
    )
}

#[cfg(test)]
mod tests;
