//! What an image says of its use: the `config` of the OCI's image
//! configuration (image-spec, `config.md`), and Docker's health check, which
//! the OCI left out.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Most arguments, variables, ports, volumes or labels that are taken of each.
const MOST: usize = 4096;
/// Longest text that is taken, in bytes.
const LONGEST: usize = 128 << 10;
/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// What an image says of its use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerConfig {
    /// Program and arguments that come before those of the user.
    pub entrypoint: Vec<String>,
    /// Arguments, or program and arguments, where the user gives none.
    pub cmd: Vec<String>,
    /// Variables, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Working directory, absolute; `/` where it is not given.
    pub working_dir: String,
    /// `user`, `user:group`, names or numbers; root where it is empty.
    pub user: String,
    /// Ports at which it can be reached.
    pub ports: Vec<Port>,
    /// Directories whose contents are to outlive the container, absolute.
    pub volumes: Vec<String>,
    /// The signal that asks it to end, by name or number; SIGTERM where it is
    /// not given.
    pub stop_signal: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// How to ask it whether it is well.
    pub healthcheck: Option<Healthcheck>,
}

/// A port, as `EXPOSE` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its number, or the first of a range.
    pub first: u16,
    /// The last of a range; the same number where it is none.
    pub last: u16,
    /// Of UDP; else of TCP.
    pub udp: bool,
}

/// How to ask a container whether it is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Healthcheck {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Time between two checks in nanoseconds.
    pub interval: u64,
    /// Time that a check may take in nanoseconds.
    pub timeout: u64,
    /// Time after the start in which failures do not count, in nanoseconds.
    pub start_period: u64,
    /// Failures in a row until it counts as unwell.
    pub retries: u32,
}

impl ContainerConfig {
    /// Reads an image's configuration; or what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<ContainerConfig, String> {
        let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let from = file.config.unwrap_or_default();
        let working_dir = from.working_dir.unwrap_or_default();
        let config = ContainerConfig {
            entrypoint: from.entrypoint.unwrap_or_default(),
            cmd: from.cmd.unwrap_or_default(),
            env: from.env.unwrap_or_default(),
            working_dir: match working_dir.strip_prefix('/') {
                Some(_) => working_dir,
                None => format!("/{working_dir}"),
            },
            user: from.user.unwrap_or_default(),
            ports: ports(from.ports.unwrap_or_default().keys())?,
            volumes: from.volumes.unwrap_or_default().into_keys().collect(),
            stop_signal: from.stop_signal.filter(|signal| !signal.is_empty()),
            labels: from.labels.unwrap_or_default(),
            healthcheck: from.healthcheck.and_then(Check::taken),
        };
        config.check()?;
        Ok(config)
    }

    /// Of a system, whose init needs no word of anybody's. Another command
    /// takes its place.
    pub fn system() -> ContainerConfig {
        ContainerConfig {
            cmd: vec!["/sbin/init".to_owned()],
            working_dir: "/".to_owned(),
            // What systemd takes as the wish to power off (systemd(1), Signals).
            stop_signal: Some("SIGRTMIN+3".to_owned()),
            ..ContainerConfig::default()
        }
    }

    /// Program and arguments when the user has given these: an entry point of
    /// the user's drops the image's arguments too, and arguments replace the
    /// image's.
    pub fn command(&self, entrypoint: Option<&[String]>, arguments: &[String]) -> Vec<String> {
        let mut command = entrypoint.unwrap_or(&self.entrypoint).to_vec();
        if !arguments.is_empty() {
            command.extend_from_slice(arguments);
        } else if entrypoint.is_none() {
            command.extend_from_slice(&self.cmd);
        }
        command
    }

    fn check(&self) -> Result<(), String> {
        let lists = [
            ("arguments", &self.entrypoint),
            ("arguments", &self.cmd),
            ("variables", &self.env),
            ("volumes", &self.volumes),
        ];
        let single = [&self.working_dir, &self.user];
        let texts = lists.iter().flat_map(|(_, list)| list.iter());
        for text in texts.chain(single).chain(&self.stop_signal) {
            if text.contains('\0') {
                return Err("a text in it has a zero byte".to_owned());
            }
            if text.len() > LONGEST {
                return Err(format!("a text in it is longer than {LONGEST} bytes"));
            }
        }
        for (what, count) in lists
            .iter()
            .map(|(what, list)| (*what, list.len()))
            .chain([("labels", self.labels.len()), ("ports", self.ports.len())])
        {
            if count > MOST {
                return Err(format!("it has more than {MOST} {what}"));
            }
        }
        if let Some(path) = self.volumes.iter().find(|path| {
            let mut parts = path.split('/');
            !path.starts_with('/') || parts.any(|part| part == "..")
        }) {
            return Err(format!(
                "its volume '{}' is no absolute path",
                path.escape_debug()
            ));
        }
        if let Some(variable) = self
            .env
            .iter()
            .find(|variable| variable.is_empty() || variable.starts_with('='))
        {
            return Err(format!(
                "its variable '{}' has no name",
                variable.escape_debug()
            ));
        }
        Ok(())
    }
}

/// The file, as far as it is looked at.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    config: Option<Fields>,
}

/// Every one of them may be missing or null.
#[derive(Default, Deserialize)]
struct Fields {
    #[serde(rename = "Entrypoint")]
    entrypoint: Option<Vec<String>>,
    #[serde(rename = "Cmd")]
    cmd: Option<Vec<String>>,
    #[serde(rename = "Env")]
    env: Option<Vec<String>>,
    #[serde(rename = "WorkingDir")]
    working_dir: Option<String>,
    #[serde(rename = "User")]
    user: Option<String>,
    #[serde(rename = "ExposedPorts")]
    ports: Option<BTreeMap<String, Value>>,
    #[serde(rename = "Volumes")]
    volumes: Option<BTreeMap<String, Value>>,
    #[serde(rename = "StopSignal")]
    stop_signal: Option<String>,
    #[serde(rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
    #[serde(rename = "Healthcheck")]
    healthcheck: Option<Check>,
}

#[derive(Deserialize)]
struct Check {
    #[serde(rename = "Test")]
    test: Option<Vec<String>>,
    #[serde(rename = "Interval")]
    interval: Option<u64>,
    #[serde(rename = "Timeout")]
    timeout: Option<u64>,
    #[serde(rename = "StartPeriod")]
    start_period: Option<u64>,
    #[serde(rename = "Retries")]
    retries: Option<u32>,
}

impl Check {
    /// What is to be run, and Docker's defaults for what is not said; nothing
    /// if nothing is to be run.
    fn taken(self) -> Option<Healthcheck> {
        let test = self.test.unwrap_or_default();
        let command = match test.split_first() {
            Some((kind, rest)) if kind == "CMD" => rest.to_vec(),
            Some((kind, rest)) if kind == "CMD-SHELL" => {
                let shell = ["/bin/sh".to_owned(), "-c".to_owned()];
                shell.into_iter().chain(rest.first().cloned()).collect()
            }
            _ => return None,
        };
        let given = |value: Option<u64>| value.filter(|value| *value > 0);
        (!command.is_empty()).then(|| Healthcheck {
            command,
            interval: given(self.interval).unwrap_or(30 * SECOND),
            timeout: given(self.timeout).unwrap_or(30 * SECOND),
            start_period: self.start_period.unwrap_or(0),
            retries: self.retries.filter(|count| *count > 0).unwrap_or(3),
        })
    }
}

/// Ports: `80`, `80/tcp`, `53/udp`, `8000-8010/tcp`. Other protocols are left
/// out.
fn ports<'a>(given: impl Iterator<Item = &'a String>) -> Result<Vec<Port>, String> {
    let mut ports = Vec::new();
    for text in given.take(MOST + 1) {
        let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        let (Ok(first), Ok(last)) = (first.parse(), last.parse()) else {
            return Err(format!("its port '{}' is none", text.escape_debug()));
        };
        if first == 0 || last < first {
            return Err(format!("its port '{}' is none", text.escape_debug()));
        }
        let udp = match protocol {
            "tcp" => false,
            "udp" => true,
            _ => continue,
        };
        ports.push(Port { first, last, udp });
    }
    ports.sort_unstable();
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ContainerConfig, String> {
        ContainerConfig::parse(json.as_bytes())
    }

    #[test]
    fn all_of_it_is_taken() {
        let config = parse(
            r#"{"architecture": "amd64", "os": "linux", "config": {
                "User": "www-data:www", "Env": ["PATH=/bin", "A="], "Entrypoint": ["/e", "x"],
                "Cmd": ["y"], "WorkingDir": "srv", "ExposedPorts": {"80": {}, "53/udp": {},
                "8000-8010/tcp": {}, "9/sctp": {}}, "Volumes": {"/data": {}},
                "StopSignal": "SIGQUIT", "Labels": {"a": "b"}, "Healthcheck":
                {"Test": ["CMD-SHELL", "curl x"], "Interval": 5000000000}, "ArgsEscaped": true}}"#,
        )
        .unwrap();
        assert_eq!(config.user, "www-data:www");
        assert_eq!(config.working_dir, "/srv");
        let port = |first, last, udp| Port { first, last, udp };
        assert_eq!(
            config.ports,
            [
                port(53, 53, true),
                port(80, 80, false),
                port(8000, 8010, false)
            ]
        );
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        let check = config.healthcheck.clone().unwrap();
        assert_eq!(check.command, ["/bin/sh", "-c", "curl x"]);
        assert_eq!((check.interval, check.retries), (5 * SECOND, 3));
        let words =
            |words: &[&str]| -> Vec<String> { words.iter().map(|w| w.to_string()).collect() };
        assert_eq!(config.command(None, &[]), ["/e", "x", "y"]);
        assert_eq!(config.command(None, &words(&["z"])), ["/e", "x", "z"]);
        assert_eq!(config.command(Some(&words(&["/n"])), &[]), ["/n"]);
        assert_eq!(config.command(Some(&[]), &words(&["/n"])), ["/n"]);
    }

    #[test]
    fn nothing_at_all_is_a_configuration_too() {
        for text in [
            "{}",
            r#"{"config": null}"#,
            r#"{"config": {"Cmd": null, "Env": null, "Volumes": null, "Healthcheck":
                {"Test": ["NONE"]}}}"#,
        ] {
            let config = parse(text).unwrap();
            assert_eq!(config.working_dir, "/");
            assert!(config.healthcheck.is_none() && config.command(None, &[]).is_empty());
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (json, word) in [
            ("7", "expected"),
            (r#"{"config": {"Env": ["=x"]}}"#, "variable"),
            (r#"{"config": {"Env": ["A=\u0000"]}}"#, "zero byte"),
            (r#"{"config": {"Volumes": {"data": {}}}}"#, "volume"),
            (r#"{"config": {"Volumes": {"/a/../..": {}}}}"#, "volume"),
            (r#"{"config": {"ExposedPorts": {"0": {}}}}"#, "port"),
            (r#"{"config": {"ExposedPorts": {"9-8": {}}}}"#, "port"),
            (r#"{"config": {"ExposedPorts": {"65536": {}}}}"#, "port"),
        ] {
            let error = parse(json).unwrap_err();
            assert!(error.contains(word), "{json}: {error}");
        }
        let many = format!(
            r#"{{"config": {{"Cmd": [{}"x"]}}}}"#,
            r#""x","#.repeat(MOST)
        );
        assert!(parse(&many).unwrap_err().contains("arguments"));
    }
}
