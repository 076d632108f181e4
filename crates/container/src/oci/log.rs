//! Where messages go: standard error, and the file that the caller named, in
//! the form that callers read there (a JSON object a line, as runc's).

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use jiff::Timestamp;

use super::args::Globals;

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `time=… level=… msg=…`.
    #[default]
    Text,
    /// JSON.
    Json,
}

impl Format {
    /// From the option's value.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "text" => Some(Format::Text),
            "json" => Some(Format::Json),
            _ => None,
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For who looks for a fault.
    Debug,
    /// It goes on, without something that was asked for.
    Warning,
    /// It does not go on.
    Error,
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// The places for messages. The file is opened when there is one: most runs
/// have none.
#[derive(Debug)]
pub struct Log {
    path: Option<PathBuf>,
    format: Format,
    debug: bool,
}

impl Log {
    /// As the options say.
    pub fn new(globals: &Globals) -> Self {
        Log {
            path: globals.log.clone(),
            format: globals.format,
            debug: globals.debug,
        }
    }

    /// Something for who looks for a fault.
    pub fn debug(&self, message: impl FnOnce() -> String) {
        if self.debug {
            self.say(Level::Debug, &message());
        }
    }

    /// Something that the container goes without.
    pub fn warn(&self, message: &str) {
        self.say(Level::Warning, message);
    }

    /// The end.
    pub fn error(&self, message: &str) {
        self.say(Level::Error, message);
    }

    fn say(&self, level: Level, message: &str) {
        // Where there is a file, a warning on standard error would be in the
        // way of who takes whatever is there for a failure, or shows it as the
        // container's.
        let aloud = match level {
            Level::Debug => self.debug,
            Level::Warning => self.debug || self.path.is_none(),
            Level::Error => true,
        };
        if aloud {
            let level = level.word();
            let _ = writeln!(io::stderr(), "croft-oci: {level}: {message}");
        }
        let Some(path) = &self.path else {
            return;
        };
        let line = self.line(level, message, Timestamp::now());
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o644)
            .open(path);
        // One write: others append to the same file.
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            let _ = writeln!(
                io::stderr(),
                "croft-oci: cannot write to {}: {error}",
                path.display()
            );
        }
    }

    fn line(&self, level: Level, message: &str, time: Timestamp) -> String {
        let level = level.word();
        match self.format {
            Format::Json => {
                let line = serde_json::json!({
                    "level": level,
                    "msg": message,
                    "time": time.to_string(),
                });
                format!("{line}\n")
            }
            Format::Text => format!("time=\"{time}\" level={level} msg={message:?}\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(format: Format) -> Log {
        Log {
            path: None,
            format,
            debug: false,
        }
    }

    #[test]
    fn a_line_is_one_object() {
        let line = log(Format::Json).line(
            Level::Error,
            "cannot \"do\"\nthat",
            Timestamp::from_second(1_700_000_000).unwrap(),
        );
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "cannot \"do\"\nthat");
        assert_eq!(value["time"], "2023-11-14T22:13:20Z");
    }

    #[test]
    fn text_is_one_line_too() {
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        let line = log(Format::Text).line(Level::Warning, "a\nb", time);
        assert_eq!(
            line,
            "time=\"2023-11-14T22:13:20Z\" level=warning msg=\"a\\nb\"\n"
        );
    }

    #[test]
    fn a_file_gets_line_after_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = Log {
            path: Some(path.clone()),
            format: Format::Json,
            debug: false,
        };
        log.warn("one");
        log.debug(|| "not asked for".to_owned());
        log.warn("two");
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains("asked"));
    }
}
