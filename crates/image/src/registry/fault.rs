//! Why a registry's image was not had, and what to do.

use std::error::Error as _;
use std::fmt::Write as _;

use crate::Error;

/// Why something was not had.
#[derive(Debug)]
pub enum Fault {
    /// There is none.
    NotFound,
    /// It is not for whoever asked. What the registry says of it.
    Denied(String),
    /// It has what makes no sense, or is too much.
    Refused(String),
    /// It could not be reached, or the connection was lost, each time.
    Lost {
        /// Bytes that were there when it was last lost.
        after: u64,
        /// The last words.
        why: String,
    },
    /// It cannot just now: its status.
    Busy(u16),
    /// It speaks HTTP without TLS.
    Plain,
    /// Something else went wrong here.
    Here(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Here(error)
    }
}

impl Fault {
    /// Of what the library says.
    pub fn of(mut error: reqwest::Error) -> Fault {
        // What stands for a right to a blob is in the query of its address
        // where a registry sends to a store of files.
        if let Some(url) = error.url_mut() {
            url.set_query(None);
        }
        let mut why = error.to_string();
        let mut source = error.source();
        // The causes say what a user can do something about.
        while let Some(cause) = source {
            let text = cause.to_string();
            if !why.contains(&text) {
                let _ = write!(why, ": {text}");
            }
            source = cause.source();
        }
        let why: String = why.chars().filter(|c| !c.is_control()).take(400).collect();
        if error.is_redirect() {
            return Fault::Refused(why);
        }
        // What a server without TLS answers looks like this (RFC 8446, 6.2).
        if why.contains("InvalidContentType") || why.contains("corrupt message") {
            return Fault::Plain;
        }
        if why.contains("certificate") {
            return Fault::Refused(format!(
                "its certificate is not trusted: {why}; if it has an authority of its own, name \
                 that authority's certificate with --ca-file"
            ));
        }
        Fault::Lost { after: 0, why }
    }

    /// Whether it may go better another time.
    pub fn is_passing(&self) -> bool {
        matches!(self, Fault::Lost { .. } | Fault::Busy(_))
    }

    fn words(self, what: &str) -> Result<String, Error> {
        Ok(match self {
            Fault::NotFound => format!("{what} is not there; check the name and the tag"),
            Fault::Denied(said) => format!(
                "access to {what} is denied{said}; check the name, and log in: croft image login"
            ),
            Fault::Refused(why) => why,
            Fault::Lost { after: 0, why } => {
                format!("the registry cannot be reached: {why}; check the name and the network")
            }
            Fault::Lost { after, why } => format!(
                "the connection was lost again and again, at last after {after} bytes: {why}; \
                 what is there stays for a week, so try again"
            ),
            Fault::Busy(status) => {
                format!("the registry answers with status {status} each time; try again later")
            }
            Fault::Plain => {
                "the registry speaks no TLS; --insecure takes HTTP without it".to_owned()
            }
            Fault::Here(error) => return Err(error),
        })
    }

    /// About an image.
    pub fn about(self, image: &str) -> Error {
        match self.words("it") {
            Ok(why) => Error::Registry {
                what: format!("image '{image}' cannot be pulled"),
                why,
            },
            Err(error) => error,
        }
    }

    /// About a registry.
    pub fn about_host(self, host: &str) -> Error {
        let fault = match self {
            Fault::Denied(said) => {
                Fault::Refused(format!("it knows no such user or password{said}"))
            }
            Fault::NotFound => Fault::Refused("there is no registry".to_owned()),
            other => other,
        };
        match fault.words("it") {
            Ok(why) => Error::Registry {
                what: format!("cannot log in to '{host}'"),
                why,
            },
            Err(error) => error,
        }
    }
}
