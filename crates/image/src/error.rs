//! What can go wrong with images, each with what to do.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why something with an image was not done. Nothing is half done then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory would not do what was needed.
    #[error("cannot {what} '{}': {source}{}", .path.display(), remedy(.source))]
    Io {
        /// As in "cannot `what` 'path'".
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A name that an image cannot have.
    #[error(
        "'{}' cannot name an image: {why}; names are like 'debian:12' or 'team/web'", .name.escape_debug()
    )]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No image by that name or id.
    #[error("there is no image '{}'; {hint}", .reference.escape_debug())]
    NotFound {
        /// What was asked for.
        reference: String,
        /// Where to get one.
        hint: String,
    },
    /// The beginning of more than one id.
    #[error("'{reference}' begins the ids of {count} images; give more of it")]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// How many fit.
        count: usize,
    },
    /// A name that another image has.
    #[error("image '{name}' exists already; delete or rename it first")]
    Exists {
        /// The name.
        name: String,
    },
    /// Instances live on the image.
    #[error("image '{image}' is in use by {}; delete these first", .instances.join(", "))]
    InUse {
        /// The image as it was called.
        image: String,
        /// Who uses it.
        instances: Vec<String>,
    },
    /// A blob is not what its name says.
    #[error("image '{image}' is damaged: {why}; delete it and build or import it again")]
    Damaged {
        /// The image as it was called.
        image: String,
        /// What is wrong.
        why: String,
    },
    /// The store's own files are not what this version of Croft writes.
    #[error("the image store '{}' cannot be read: {why}", .path.display())]
    Store {
        /// The file in question.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// An image lacks what was asked of it.
    #[error("image '{image}' has no {what}; {remedy}")]
    Lacks {
        /// The image as it was called.
        image: String,
        /// The missing thing.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A file that is no image, or one that is refused.
    #[error("'{}' is refused: {why}", .path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// A program that Croft uses is missing or failed.
    #[error("{program}: {why}")]
    Tool {
        /// The program.
        program: String,
        /// What went wrong and what to do.
        why: String,
    },
    /// A registry did not give what was asked of it.
    #[error("{what}: {why}")]
    Registry {
        /// What was not done.
        what: String,
        /// Why not and what to do.
        why: String,
    },
    /// Something that was asked for cannot be had.
    #[error("{0}")]
    Unfit(String),
}

impl Error {
    /// For `map_err`: an error of the system about a path.
    pub(crate) fn io<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Error {
        move |source| Error::Io {
            what,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Whether the user asked for something that cannot be, and nothing was
    /// begun.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Error::Name { .. }
                | Error::NotFound { .. }
                | Error::Ambiguous { .. }
                | Error::Exists { .. }
                | Error::InUse { .. }
                | Error::Lacks { .. }
                | Error::Unfit(_)
        )
    }
}

/// What to do about errors of the system that have a usual cause.
fn remedy(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT) => {
            "; free some space there, or set CROFT_DATA_DIR to a directory with more"
        }
        Some(Errno::FBIG) => "; the file system or a limit (ulimit -f) allows no file that large",
        Some(Errno::ROFS) => "; set CROFT_DATA_DIR to a directory that can be written",
        Some(Errno::ACCESS | Errno::PERM) => "; check its owner and mode",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_with_what_to_do() {
        let error = Error::io("write", Path::new("/x/y"))(Errno::NOSPC);
        let text = error.to_string();
        assert!(
            text.contains("/x/y") && text.contains("CROFT_DATA_DIR"),
            "{text}"
        );
    }
}
