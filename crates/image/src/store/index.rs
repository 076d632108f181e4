//! Which images there are, and their names.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;

use serde::{Deserialize, Serialize};

use super::durable;
use super::layout::Layout;
use crate::{Digest, Error, name};

/// The version of the store that this Croft writes and reads.
const VERSION: u32 = 1;

/// The index, in its file as JSON. What is not in it is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    version: u32,
    /// Images by id, with their names in the order they got them.
    images: BTreeMap<Digest, Vec<String>>,
}

impl Default for Index {
    fn default() -> Self {
        Index {
            version: VERSION,
            images: BTreeMap::new(),
        }
    }
}

impl Index {
    /// Reads the index; a store without one is empty.
    pub fn read(layout: &Layout) -> Result<Index, Error> {
        let path = layout.index();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Index::default()),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let index = serde_json::from_slice::<Index>(&bytes).map_err(|error| Error::Store {
            path: path.clone(),
            why: format!(
                "{error}; move the file away and the next command empties the store, or restore \
                 the file from a backup"
            ),
        })?;
        if index.version != VERSION {
            return Err(Error::Store {
                path,
                why: format!(
                    "it is of version {}, this Croft knows {VERSION}; use a newer Croft",
                    index.version
                ),
            });
        }
        Ok(index)
    }

    /// Writes the index. The caller holds the index's lock.
    pub fn write(&self, layout: &Layout) -> Result<(), Error> {
        let path = layout.index();
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|error| Error::Store {
            path: path.clone(),
            why: error.to_string(),
        })?;
        bytes.push(b'\n');
        let temporary = layout
            .staging()
            .join(format!("index.{}", std::process::id()));
        durable::replace(&path, &temporary, &bytes)
    }

    /// Images and their names.
    pub fn images(&self) -> impl Iterator<Item = (&Digest, &Vec<String>)> {
        self.images.iter()
    }

    /// The names of an image, if it is there.
    pub fn names(&self, id: &Digest) -> Option<&[String]> {
        self.images.get(id).map(Vec::as_slice)
    }

    /// The image that has a name, or whose id is or begins with it.
    pub fn find(&self, reference: &str) -> Result<Digest, Error> {
        let named = |wanted: &str| {
            let has = |names: &Vec<String>| names.iter().any(|name| name == wanted);
            let mut images = self.images.iter();
            images.find_map(|(id, names)| has(names).then_some(*id))
        };
        if let Some(id) = named(reference) {
            return Ok(id);
        }
        let mut fitting: Vec<&Digest> = Vec::new();
        if name::is_id(reference) {
            fitting.extend(
                self.images
                    .keys()
                    .filter(|id| id.to_string().starts_with(reference)),
            );
        }
        match fitting.as_slice() {
            [id] => Ok(**id),
            // What is a registry's, by what people call it.
            [] => name::whole(reference)
                .and_then(|whole| named(&whole))
                .ok_or_else(|| self.not_found(reference)),
            many => Err(Error::Ambiguous {
                reference: reference.to_owned(),
                count: many.len(),
            }),
        }
    }

    fn not_found(&self, reference: &str) -> Error {
        let hint = if crate::name::check(reference).is_err() {
            "'croft image list' lists all".to_owned()
        } else if reference.starts_with("debian:") {
            format!("'croft image build {reference}' makes it")
        } else {
            let names: Vec<&str> = self.images.values().flatten().map(String::as_str).collect();
            match names.as_slice() {
                [] => "there are none; 'croft image build debian:12' makes one".to_owned(),
                [first, rest @ ..] if rest.len() < 8 => rest
                    .iter()
                    .fold(format!("there is {first}"), |text, name| text + ", " + name),
                _ => "'croft image list' lists all".to_owned(),
            }
        };
        Error::NotFound {
            reference: reference.to_owned(),
            hint,
        }
    }

    /// Adds an image, and gives it a name, which the image that had it loses.
    /// That image, if it is another.
    pub fn add(&mut self, id: Digest, name: &str) -> Option<Digest> {
        let former = self.take_name(name);
        self.images.entry(id).or_default().push(name.to_owned());
        former.filter(|former| *former != id)
    }

    /// Takes a name from the image that has it.
    fn take_name(&mut self, name: &str) -> Option<Digest> {
        self.images.iter_mut().find_map(|(id, names)| {
            let place = names.iter().position(|other| other == name)?;
            names.remove(place);
            Some(*id)
        })
    }

    /// Gives the image that `from` refers to the name `to`, in place of the
    /// name `from` if it is one.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<Digest, Error> {
        name::check(to)?;
        let id = self.find(from)?;
        if self.images.values().flatten().any(|name| name == to) {
            return Err(Error::Exists {
                name: to.to_owned(),
            });
        }
        self.take_name(&self.called(from));
        self.images.entry(id).or_default().push(to.to_owned());
        Ok(id)
    }

    /// The name by which a reference calls an image: itself, or a registry's
    /// whole name.
    fn called(&self, reference: &str) -> String {
        let has = |wanted: &str| self.images.values().flatten().any(|name| name == wanted);
        match name::whole(reference) {
            Some(whole) if !has(reference) && has(&whole) => whole,
            _ => reference.to_owned(),
        }
    }

    /// Gives the image that `from` refers to one more name.
    pub fn tag(&mut self, from: &str, to: &str) -> Result<Digest, Error> {
        name::check(to)?;
        let id = self.find(from)?;
        if self.images.values().flatten().any(|name| name == to) {
            return Err(Error::Exists {
                name: to.to_owned(),
            });
        }
        self.images.entry(id).or_default().push(to.to_owned());
        Ok(id)
    }

    /// Takes a name from an image that has others too; otherwise, and where
    /// `reference` is an id, removes the image. Whether it did.
    pub fn remove(&mut self, reference: &str, id: &Digest) -> bool {
        let reference = self.called(reference);
        if let Some(names) = self.images.get_mut(id)
            && names.len() > 1
            && let Some(place) = names.iter().position(|name| *name == reference)
        {
            names.remove(place);
            return false;
        }
        self.images.remove(id).is_some()
    }
}
