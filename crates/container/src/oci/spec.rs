//! `spec`: a configuration to begin with.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use oci_spec::runtime::Spec;

use super::args;
use super::error::Error;

/// Writes `config.json`; one that is there stays.
pub fn spec(options: &args::Spec) -> Result<u8, Error> {
    let directory = options.bundle.as_deref().unwrap_or(Path::new("."));
    let path = directory.join("config.json");
    let mut text =
        serde_json::to_string_pretty(&begin(options.rootless)).map_err(|error| Error::Content {
            path: path.clone(),
            why: error.to_string(),
        })?;
    text.push('\n');
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Error::file("write", &path, error))?;
    Ok(0)
}

fn begin(rootless: bool) -> Spec {
    let mut spec = if rootless {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        Spec::rootless(user.as_raw(), group.as_raw())
    } else {
        Spec::default()
    };
    spec.set_version(super::SPEC_VERSION.to_owned());
    spec.set_hostname(Some("croft".to_owned()));
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(true));
        process.set_args(Some(vec!["sh".to_owned()]));
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let options = args::Spec {
            bundle: Some(directory.path().to_path_buf()),
            rootless: false,
        };
        spec(&options).unwrap();
        let path = directory.path().join("config.json");
        let read = Spec::load(&path).unwrap();
        assert_eq!(read.process().as_ref().unwrap().terminal(), Some(true));
        let error = spec(&options).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
    }

    #[test]
    fn without_privilege_ids_are_mapped() {
        let linux = begin(true).linux().clone().unwrap();
        assert!(linux.uid_mappings().is_some());
        assert!(linux.resources().is_none());
    }
}
