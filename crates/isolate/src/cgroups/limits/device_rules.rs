//! An OCI list of device rules, and what it comes to.
//!
//! The list is ordered: a later rule wins over an earlier one. Before the
//! first everything is denied, so that a list that forgets to say so is not
//! an open door.

use bitflags::bitflags;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::cgroups::Error;

/// How many rules a list may have: several times what a container with every
/// device of a host has.
const MOST: usize = 4096;

bitflags! {
    /// What is done to a device, with the bits of `BPF_DEVCG_ACC_*`
    /// (`linux/bpf.h`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Access: u32 {
        /// Its node is made.
        const MAKE = 1;
        /// It is read.
        const READ = 2;
        /// It is written.
        const WRITE = 4;
    }
}

/// Kinds of devices, with the numbers of `BPF_DEVCG_DEV_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A block device.
    Block = 1,
    /// A character device.
    Character = 2,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Block, Kind::Character];

    const fn letter(self) -> char {
        match self {
            Kind::Block => 'b',
            Kind::Character => 'c',
        }
    }
}

/// A rule for one kind of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Allowed or denied.
    pub allow: bool,
    /// Of which kind.
    pub kind: Kind,
    /// With this number, or any.
    pub major: Option<u32>,
    /// With this number, or any.
    pub minor: Option<u32>,
    /// What is allowed or denied.
    pub access: Access,
}

/// The rules of a list, in its order, with those for all kinds split in two.
pub fn rules(list: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, Error> {
    let wrong = |value: String, why: &str| Error::Value {
        what: "devices",
        value,
        why: why.to_owned(),
    };
    if list.len() > MOST {
        return Err(wrong(format!("{} rules", list.len()), "4096 are the most"));
    }
    let mut rules = Vec::with_capacity(list.len());
    for one in list {
        let kinds: &[Kind] = match one.typ() {
            None | Some(LinuxDeviceType::A) => &Kind::ALL,
            Some(LinuxDeviceType::B) => &[Kind::Block],
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => &[Kind::Character],
            Some(LinuxDeviceType::P) => {
                return Err(wrong("p".to_owned(), "a pipe has no device numbers"));
            }
        };
        let number = |number: Option<i64>| match number {
            None | Some(..0) => Ok(None),
            Some(number) => u32::try_from(number)
                .map(Some)
                .map_err(|_| wrong(number.to_string(), "a device number has 32 bits")),
        };
        let (major, minor) = (number(one.major())?, number(one.minor())?);
        let access = match one.access().as_deref() {
            None | Some("") => Access::all(),
            Some(letters) => letters
                .chars()
                .map(|letter| match letter {
                    'r' => Ok(Access::READ),
                    'w' => Ok(Access::WRITE),
                    'm' => Ok(Access::MAKE),
                    _ => Err(wrong(letters.to_owned(), "letters of rwm are wanted")),
                })
                .collect::<Result<Vec<Access>, Error>>()?
                .into_iter()
                .collect(),
        };
        rules.extend(kinds.iter().map(|kind| Rule {
            allow: one.allow(),
            kind: *kind,
            major,
            minor,
            access,
        }));
    }
    Ok(rules)
}

/// What may be done to all devices, and the exceptions from it: as version 1
/// keeps it (Linux `security/device_cgroup.c`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lists {
    /// Allowed unless there is an exception.
    pub allow: bool,
    /// No two for the same devices.
    pub exceptions: Vec<Exception>,
}

/// Devices that are not treated as all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exception {
    /// Of which kind.
    pub kind: Kind,
    /// With this number, or any.
    pub major: Option<u32>,
    /// With this number, or any.
    pub minor: Option<u32>,
    /// What the exception is for.
    pub access: Access,
}

impl Exception {
    /// As `devices.allow` and `devices.deny` take it.
    pub fn line(&self) -> String {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |one| one.to_string());
        let mut line = format!(
            "{} {}:{} ",
            self.kind.letter(),
            number(self.major),
            number(self.minor)
        );
        let letters = [
            (Access::READ, 'r'),
            (Access::WRITE, 'w'),
            (Access::MAKE, 'm'),
        ];
        let has = letters.iter().filter(|(one, _)| self.access.contains(*one));
        line.extend(has.map(|(_, letter)| letter));
        line
    }

    /// Whether the devices of `other` are all among these.
    fn covers(&self, other: &Exception) -> bool {
        self.kind == other.kind
            && (self.major.is_none() || self.major == other.major)
            && (self.minor.is_none() || self.minor == other.minor)
    }

    /// Whether some device is of both.
    fn meets(&self, other: &Exception) -> bool {
        let meet =
            |one: Option<u32>, two: Option<u32>| one.is_none() || two.is_none() || one == two;
        self.kind == other.kind && meet(self.major, other.major) && meet(self.minor, other.minor)
    }
}

impl Lists {
    /// What the rules come to.
    ///
    /// # Errors
    /// An exception from an exception, which version 1 cannot have: leaving
    /// it out would open what the list closes, or the other way round.
    pub fn of(rules: &[Rule]) -> Result<Self, Error> {
        let mut lists = Lists {
            allow: false,
            exceptions: Vec::new(),
        };
        let mut rest = rules;
        while let Some((rule, after)) = rest.split_first() {
            rest = after;
            let all = |rule: &Rule| {
                rule.major.is_none() && rule.minor.is_none() && rule.access == Access::all()
            };
            // A rule for all of both kinds starts anew.
            if let Some((second, after)) = rest.split_first()
                && all(rule)
                && all(second)
                && rule.kind != second.kind
                && rule.allow == second.allow
            {
                rest = after;
                lists = Lists {
                    allow: rule.allow,
                    exceptions: Vec::new(),
                };
                continue;
            }
            lists.add(rule)?;
        }
        Ok(lists)
    }

    fn add(&mut self, rule: &Rule) -> Result<(), Error> {
        let new = Exception {
            kind: rule.kind,
            major: rule.major,
            minor: rule.minor,
            access: rule.access,
        };
        if rule.allow != self.allow {
            let same = |one: &&mut Exception| one.covers(&new) && new.covers(one);
            match self.exceptions.iter_mut().find(same) {
                Some(one) => one.access |= new.access,
                None => self.exceptions.push(new),
            }
            return Ok(());
        }
        for one in &mut self.exceptions {
            if !new.meets(one) || !new.access.intersects(one.access) {
                continue;
            }
            if !new.covers(one) {
                return Err(Error::Value {
                    what: "devices",
                    value: new.line(),
                    why: format!(
                        "it takes back a part of {:?}, and control groups of version 1 cannot do that",
                        one.line()
                    ),
                });
            }
            one.access.remove(new.access);
        }
        self.exceptions.retain(|one| !one.access.is_empty());
        Ok(())
    }

    /// From `devices.list`; `None` if it is not understood. Of a group that
    /// allows all but some it does not tell which.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lists = Lists {
            allow: false,
            exceptions: Vec::new(),
        };
        for line in text.lines() {
            let mut words = line.split([' ', ':']);
            let kind = match words.next()? {
                "a" => {
                    lists.allow = true;
                    continue;
                }
                "b" => Kind::Block,
                "c" => Kind::Character,
                _ => return None,
            };
            let mut number = || match words.next()? {
                "*" => Some(None),
                number => number.parse().ok().map(Some),
            };
            let (major, minor) = (number()?, number()?);
            let letter = |letter: char| match letter {
                'r' => Some(Access::READ),
                'w' => Some(Access::WRITE),
                'm' => Some(Access::MAKE),
                _ => None,
            };
            let letters: Option<Vec<Access>> = words.next()?.chars().map(letter).collect();
            lists.exceptions.push(Exception {
                kind,
                major,
                minor,
                access: letters?.into_iter().collect(),
            });
        }
        Some(lists)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    fn rule(
        allow: bool,
        kind: LinuxDeviceType,
        numbers: (i64, i64),
        access: &str,
    ) -> LinuxDeviceCgroup {
        let builder = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind);
        let builder = builder.major(numbers.0).minor(numbers.1);
        builder.access(access).build().unwrap()
    }

    #[test]
    fn a_list_comes_to_exceptions() {
        use LinuxDeviceType::{A, B, C};
        let list = [
            rule(true, C, (9, 9), "rwm"),
            rule(false, A, (-1, -1), "rwm"),
            rule(true, C, (1, 3), "rw"),
            rule(true, C, (1, 3), "m"),
            rule(true, B, (8, -1), "rwm"),
            rule(false, B, (-1, -1), "w"),
        ];
        let lists = Lists::of(&rules(&list).unwrap()).unwrap();
        let lines: Vec<String> = lists.exceptions.iter().map(Exception::line).collect();
        assert!(!lists.allow);
        assert_eq!(lines, ["c 1:3 rwm", "b 8:* rm"]);
        assert_eq!(Lists::parse("c 1:3 rwm\nb 8:* rm\n"), Some(lists));
    }

    #[test]
    fn what_version_1_cannot_say_is_refused() {
        use LinuxDeviceType::{A, C, P};
        let list = [rule(true, C, (1, -1), "rwm"), rule(false, C, (1, 3), "w")];
        let error = Lists::of(&rules(&list).unwrap()).unwrap_err().to_string();
        assert!(
            error.contains("c 1:3 w") && error.contains("c 1:* rwm"),
            "{error}"
        );
        assert!(rules(&[rule(true, A, (1 << 40, 0), "r")]).is_err());
        assert!(rules(&[rule(true, C, (1, 1), "x")]).is_err());
        assert!(rules(&[rule(true, P, (1, 1), "r")]).is_err());
    }
}
