//! Capabilities that a description asks for and its container goes without:
//! those that no kernel interface has, and those that whoever makes the
//! container does not hold. Both are warnings, not errors (runtime-spec,
//! `config.md`, Linux process).

use std::borrow::Cow;

use oci_spec::runtime::{Capability, LinuxNamespaceType, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::log::Log;
use crate::init::rights;

/// Where the sets are in a bundle's configuration.
pub const OF_BUNDLE: &str = "/process/capabilities";
/// Where they are in the description of one process.
pub const OF_PROCESS: &str = "/capabilities";
/// Most of the unknown that are named, and the longest part of each, in
/// characters: a description may hold megabytes of them.
const NAMED: usize = 8;
const LONGEST: usize = 200;

/// A description that was read.
#[derive(Debug)]
pub struct Read<'a, T> {
    /// It, understood.
    pub value: T,
    /// Its text, without what was passed over.
    pub text: Cow<'a, [u8]>,
    /// What was passed over, for the log.
    pub unknown: Vec<String>,
}

/// Reads a description whose capabilities are at `place` (a JSON pointer),
/// without those that nobody knows.
///
/// # Errors
///
/// For all else that is wrong with it.
pub fn read<'a, T: DeserializeOwned>(
    text: &'a [u8],
    place: &str,
) -> Result<Read<'a, T>, serde_json::Error> {
    let error = match serde_json::from_slice(text) {
        Ok(value) => {
            return Ok(Read {
                value,
                text: text.into(),
                unknown: Vec::new(),
            });
        }
        Err(error) => error,
    };
    let Ok(mut whole) = serde_json::from_slice::<Value>(text) else {
        return Err(error);
    };
    let unknown = pass_over(whole.pointer_mut(place));
    if unknown.is_empty() {
        return Err(error);
    }
    let text = serde_json::to_vec(&whole)?;
    Ok(Read {
        value: serde_json::from_value(whole)?,
        text: text.into(),
        unknown,
    })
}

/// Takes the unknown out of all sets; what is wrong with each.
fn pass_over(sets: Option<&mut Value>) -> Vec<String> {
    let mut unknown: Vec<String> = Vec::new();
    let sets = sets.and_then(Value::as_object_mut).into_iter();
    for set in sets.flat_map(|sets| sets.values_mut().filter_map(Value::as_array_mut)) {
        set.retain(|one| {
            let Some(why) = why_unknown(one) else {
                return true;
            };
            if unknown.len() <= NAMED && !unknown.contains(&why) {
                unknown.push(why);
            }
            false
        });
    }
    if unknown.len() > NAMED {
        unknown.truncate(NAMED);
        unknown.push("and more".to_owned());
    }
    unknown
}

/// What is wrong with a name. What is no name at all is another error.
fn why_unknown(one: &Value) -> Option<String> {
    let name = one.as_str()?.to_owned();
    let error = serde_json::from_value::<Capability>(name.into()).err()?;
    Some(error.to_string().chars().take(LONGEST).collect())
}

/// Says what was passed over.
pub fn warn_unknown(log: &Log, unknown: &[String]) {
    if !unknown.is_empty() {
        let list = unknown.join(", ");
        log.warn(&format!("process.capabilities without the unknown: {list}"));
    }
}

/// Says which of those that a container is to have its maker does not hold,
/// and cannot give. In a user namespace of its own it has them all.
pub fn warn_missing(log: &Log, spec: &Spec) {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_deref());
    let is_user = |one: &oci_spec::runtime::LinuxNamespace| one.typ() == LinuxNamespaceType::User;
    if namespaces.unwrap_or_default().iter().any(is_user) {
        return;
    }
    let Some(process) = spec.process() else {
        return;
    };
    let missing = rights::not_held(process);
    if !missing.is_empty() {
        let list: Vec<String> = missing.iter().map(Capability::to_string).collect();
        log.warn(&format!(
            "process.capabilities without those that {} does not hold: {}",
            super::NAME,
            list.join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"ociVersion":"1.2.0","process":{"cwd":"/","user":{"uid":0,"gid":0},
        "capabilities":{"bounding":["CAP_KILL","CAP_FLY","TEST_CAP"],"effective":["CAP_FLY"]}}}"#;

    #[test]
    fn the_unknown_are_passed_over() {
        let read: Read<'_, Spec> = read(CONFIG.as_bytes(), OF_BUNDLE).unwrap();
        let all = read.unknown.join(" ");
        assert!(all.contains("CAP_FLY") && all.contains("TEST_CAP"), "{all}");
        assert_eq!(read.unknown.len(), 2);
        let process = read.value.process().as_ref().unwrap();
        let sets = process.capabilities().as_ref().unwrap();
        let bounding = sets.bounding().as_ref().unwrap();
        assert_eq!(
            bounding.iter().copied().collect::<Vec<_>>(),
            [Capability::Kill]
        );
        assert!(sets.effective().as_ref().unwrap().is_empty());
        // What is kept can be read without any of this.
        assert!(serde_json::from_slice::<Spec>(&read.text).is_ok());
    }

    #[test]
    fn other_faults_are_errors() {
        for (from, to) in [("\"CAP_KILL\"", "7"), ("\"cwd\":\"/\"", "\"cwd\":[]")] {
            let text = CONFIG.replace(from, to);
            assert!(
                read::<Spec>(text.as_bytes(), OF_BUNDLE).is_err(),
                "{from} as {to}"
            );
        }
        // Known ones are as they were, to the byte.
        let text = CONFIG.replace(",\"CAP_FLY\",\"TEST_CAP\"", "");
        let text = text.replace("CAP_FLY", "CAP_KILL");
        let read: Read<'_, Spec> = read(text.as_bytes(), OF_BUNDLE).unwrap();
        assert!(matches!(read.text, Cow::Borrowed(_)) && read.unknown.is_empty());
    }

    #[test]
    fn warnings_have_an_end() {
        let names: Vec<String> = (0..10_000)
            .map(|n| format!("{n}{}", "X".repeat(500)))
            .collect();
        let mut sets = serde_json::json!({ "bounding": names });
        let unknown = pass_over(Some(&mut sets));
        assert_eq!(unknown.len(), NAMED + 1);
        assert!(unknown.iter().all(|one| one.chars().count() <= LONGEST));
    }
}
