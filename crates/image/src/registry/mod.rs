//! Images from registries (the OCI's distribution-spec, which is Docker's
//! registry protocol).
//!
//! ```text
//! name ──reference──► manifest ─► configuration, layers ──partial/──verified──► blobs
//!            credentials ─┘            (several at a time, taken up again)
//! ```
//!
//! A registry is untrusted like a file: nothing of what it sends is taken
//! beyond its bound, and everything but what a name means is named by its
//! digest. That is why this speaks to it by an HTTP library and not by one for
//! registries: those at hand read manifests, tokens and words of failure
//! however long they are.
//!
//! The library's runtime lives within [`pull`] and [`log_in`].

mod client;
pub mod credentials;
mod download;
mod fault;

use std::path::PathBuf;

use oci_spec::distribution::Reference;

use crate::oci;
use crate::oci::manifest::{Described, LONGEST, Wanted, Way};
use crate::progress::Progress;
use crate::store::{Committed, Store};
use crate::{Digest, Error, forms, media};
use client::Client;
use credentials::Login;
use fault::Fault;

/// How to reach a registry.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Who asks; nobody where it is none.
    pub login: Option<Login>,
    /// A file with certificates, in PEM, that are trusted beside the system's.
    pub authorities: Option<PathBuf>,
    /// HTTP without TLS.
    pub insecure: bool,
}

/// The registry that has an image which people call this, as credentials are
/// kept for it: a host, with its port if it is not the usual one.
pub fn host_of(name: &str) -> Result<String, Error> {
    reference(name).map(|reference| reference.registry().to_owned())
}

fn reference(name: &str) -> Result<Reference, Error> {
    name.parse().map_err(|_| Error::Name {
        name: name.to_owned(),
        why: "a registry has none such, which are like 'debian', 'team/web:2', \
              'registry.example:5000/web' or 'web@sha256:...'",
    })
}

/// Gets an image. Its name is the whole one: with the registry and the tag or
/// digest.
pub fn pull(
    store: &Store,
    name: &str,
    access: &Access,
    progress: &mut dyn Progress,
    warn: &mut dyn FnMut(&str),
) -> Result<Committed, Error> {
    let reference = reference(name)?;
    let whole = reference.whole();
    crate::name::check(&whole)?;
    let failed = |fault: Fault| fault.about(&whole);
    let client = Client::new(reference.registry(), reference.repository(), access)?;
    let staging = store.stage()?;
    progress.phase(&format!("asking {}", reference.registry()));
    let application = runtime()?.block_on(async {
        let tag = reference.tag().unwrap_or("latest");
        let wanted = reference.digest();
        let (bytes, media_type) = client
            .manifest(wanted.unwrap_or(tag))
            .await
            .map_err(failed)?;
        if let Some(wanted) = wanted {
            let digest = wanted.strip_prefix("sha256:").and_then(Digest::parse);
            if digest != Some(Digest::of(&bytes)) {
                return Err(failed(Fault::Refused(
                    "the registry has sent something else than this digest".to_owned(),
                )));
            }
        }
        let refused = |why: String| failed(Fault::Refused(why));
        let mut way = Way::from(bytes, &media_type, &Wanted::default());
        while let Some(next) = way.ahead().map_err(refused)? {
            let (bytes, _) = client.manifest(&next.to_string()).await.map_err(failed)?;
            way.follow(&next, bytes).map_err(refused)?;
        }
        let (bytes, media_type) = way.end();
        let described = Described::parse(&bytes, &media_type).map_err(refused)?;
        let config = client
            .small(&described.config, LONGEST)
            .await
            .map_err(failed)?;
        let diffs = described.diffs(&config).map_err(refused)?;
        let missing = download::missing(store, &described.layers);
        let total = missing
            .iter()
            .fold(0u64, |sum, layer| sum.saturating_add(layer.length));
        forms::need_space(store.root(), total)?;
        progress.phase("downloading");
        let files = download::all(&client, store, missing, progress)
            .await
            .map_err(failed)?;
        for (file, digest) in &files {
            if !file.is_taken() {
                staging.place(file.path(), digest)?;
            }
        }
        staging.write(&config)?;
        staging.write(&bytes)?;
        Ok(described.application(&bytes, &media_type, diffs))
    })?;
    let origin = format!(
        "pulled from {}/{}",
        reference.registry(),
        reference.repository()
    );
    oci::commit(store, staging, application, origin, &whole, progress, warn)
}

/// Asks a registry whether it knows somebody.
pub fn log_in(host: &str, access: &Access) -> Result<(), Error> {
    // Any name does, since only the registry itself is asked.
    let client = Client::new(host, "library/none", access)?;
    runtime()?
        .block_on(client.check())
        .map_err(|fault| fault.about_host(host))
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Unfit(format!("cannot speak to a registry: {error}")))
}

/// What manifests this understands, in the words of HTTP.
fn accepted() -> String {
    [
        media::MANIFEST,
        media::INDEX,
        media::DOCKER_MANIFEST,
        media::DOCKER_LIST,
    ]
    .join(", ")
}
