//! Layers on their way here: several at a time, each taken up where it was
//! lost, in this pull or in a later one.
//!
//! ```text
//! partial/DIGEST: locked ─► hashed as far as it is there ─► rest asked for ─► whole ─► blob
//!                    ▲                                          │ lost
//!                    └──────────────────────────────────────────┘
//! ```

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;

use super::Fault;
use super::client::{Client, pause};
use crate::digest::Hasher;
use crate::oci::manifest::Descriptor;
use crate::progress::Progress;
use crate::store::{Lock, Store};
use crate::{Digest, Error};

/// How often in a row a layer is tried without a byte more of it.
const TRIES: u32 = 5;
/// Layers at a time.
const AT_A_TIME: usize = 3;
/// Time between two words about progress.
const WORD: Duration = Duration::from_millis(100);
/// Bytes that are hashed at a time.
const CHUNK: usize = 1 << 18;

/// A file with a whole blob. Nobody else touches it until it is dropped.
pub struct Whole {
    path: PathBuf,
    taken: bool,
    _lock: File,
}

impl Whole {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the store has the blob already: another pull was faster.
    pub fn is_taken(&self) -> bool {
        self.taken
    }
}

/// The layers that the store does not have, each once.
pub fn missing(store: &Store, layers: &[Descriptor]) -> Vec<Descriptor> {
    let mut missing: Vec<Descriptor> = Vec::new();
    for layer in layers {
        let known = missing.iter().any(|other| other.digest == layer.digest);
        if !known && !store.has_blob(&layer.digest, layer.length) {
            missing.push(layer.clone());
        }
    }
    missing
}

/// Downloads all of them.
pub async fn all(
    client: &Client,
    store: &Store,
    layers: Vec<Descriptor>,
    progress: &mut dyn Progress,
) -> Result<Vec<(Whole, Digest)>, Fault> {
    let total = layers
        .iter()
        .fold(0u64, |sum, layer| sum.saturating_add(layer.length));
    let done = Cell::new(0u64);
    let mut waiting = layers.into_iter();
    let mut running = Vec::new();
    let mut files = Vec::new();
    loop {
        while running.len() < AT_A_TIME
            && let Some(layer) = waiting.next()
        {
            running.push(Box::pin(one(client, store, layer, &done)));
        }
        if running.is_empty() {
            return Ok(files);
        }
        let next = first(&mut running);
        match tokio::time::timeout(WORD, next).await {
            Ok((place, file)) => {
                drop(running.swap_remove(place));
                files.push(file?);
            }
            Err(_) => progress.bytes(done.get(), total),
        }
    }
}

/// Waits for the first of some futures to end: its place and what it gives.
async fn first<F: Future + Unpin>(running: &mut [F]) -> (usize, F::Output) {
    std::future::poll_fn(|context| {
        for (place, future) in running.iter_mut().enumerate() {
            if let std::task::Poll::Ready(output) = std::pin::Pin::new(future).poll(context) {
                return std::task::Poll::Ready((place, output));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// Downloads one; `done` counts the bytes of all.
async fn one(
    client: &Client,
    store: &Store,
    layer: Descriptor,
    done: &Cell<u64>,
) -> Result<(Whole, Digest), Fault> {
    let path = store.partial(&layer.digest);
    let file = lock(&path).await?;
    if store.has_blob(&layer.digest, layer.length) {
        done.set(done.get().saturating_add(layer.length));
        let whole = Whole {
            path,
            taken: true,
            _lock: file,
        };
        return Ok((whole, layer.digest));
    }
    let mut partial = Partial::open(path, file)?;
    let mut resumed = partial.length > 0;
    done.set(done.get().saturating_add(partial.length));
    let mut tries = 0;
    loop {
        let before = partial.length;
        match rest(client, &layer, &mut partial, done).await {
            Ok(()) => {
                if partial.digest() == layer.digest {
                    break;
                }
                let length = partial.length;
                partial.clear()?;
                done.set(done.get().saturating_sub(length));
                // What was there may be another registry's fault.
                if !resumed {
                    return Err(Fault::Refused(format!(
                        "the registry has sent other contents for {layer}"
                    )));
                }
                resumed = false;
            }
            Err(fault) if fault.is_passing() => {
                if partial.length > before {
                    tries = 0;
                }
                tries += 1;
                if tries >= TRIES {
                    return Err(match fault {
                        Fault::Lost { why, .. } => Fault::Lost {
                            after: partial.length,
                            why,
                        },
                        other => other,
                    });
                }
                pause(tries).await;
            }
            Err(fault) => return Err(fault),
        }
    }
    let whole = Whole {
        path: partial.path,
        taken: false,
        _lock: partial.file,
    };
    Ok((whole, layer.digest))
}

/// Asks for what is not there yet and writes it.
async fn rest(
    client: &Client,
    layer: &Descriptor,
    partial: &mut Partial,
    done: &Cell<u64>,
) -> Result<(), Fault> {
    if partial.length > layer.length {
        let length = partial.length;
        partial.clear()?;
        done.set(done.get().saturating_sub(length));
    }
    if partial.length == layer.length {
        return Ok(());
    }
    let mut response = client.blob(layer, partial.length).await?;
    if partial.length > 0 && !continues(&response, partial.length) {
        // It begins anew.
        let length = partial.length;
        partial.clear()?;
        done.set(done.get().saturating_sub(length));
        if response.status() == StatusCode::PARTIAL_CONTENT {
            response = client.blob(layer, 0).await?;
        }
    }
    while let Some(chunk) = response.chunk().await.map_err(Fault::of)? {
        if partial.length.saturating_add(chunk.len() as u64) > layer.length {
            partial.clear()?;
            return Err(Fault::Refused(format!(
                "the registry sends more than the {} bytes that {layer} has",
                layer.length
            )));
        }
        partial.write(&chunk)?;
        done.set(done.get().saturating_add(chunk.len() as u64));
    }
    if partial.length < layer.length {
        return Err(Fault::Lost {
            after: partial.length,
            why: "it ended too early".to_owned(),
        });
    }
    Ok(())
}

/// Whether an answer goes on where it was asked to (RFC 9110, 14.4).
fn continues(response: &reqwest::Response, from: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE);
    let range = range
        .and_then(|range| range.to_str().ok())
        .unwrap_or_default();
    response.status() == StatusCode::PARTIAL_CONTENT && range.starts_with(&format!("bytes {from}-"))
}

/// Opens a file and waits until nobody else has it locked.
async fn lock(path: &Path) -> Result<File, Error> {
    loop {
        let Some(lock) = Lock::try_exclusive(path)? else {
            tokio::time::sleep(WORD).await;
            continue;
        };
        let file = lock.into_file();
        // It may have become a blob while somebody was waited for.
        let own = file.metadata().map_err(Error::io("look at", path))?;
        if fs::metadata(path).is_ok_and(|there| there.ino() == own.ino()) {
            return Ok(file);
        }
    }
}

/// A file on its way, with the digest of what is there.
struct Partial {
    path: PathBuf,
    file: File,
    hasher: Hasher<std::io::Sink>,
    length: u64,
}

impl Partial {
    fn open(path: PathBuf, mut file: File) -> Result<Partial, Error> {
        let mut hasher = Hasher::new(std::io::sink());
        let mut buffer = vec![0; CHUNK];
        let mut length = 0u64;
        loop {
            let count = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::io("read", &path)(error)),
            };
            let bytes = buffer.get(..count).unwrap_or_default();
            hasher.write_all(bytes).map_err(Error::io("read", &path))?;
            length = length.saturating_add(count as u64);
        }
        Ok(Partial {
            path,
            file,
            hasher,
            length,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file
            .write_all(bytes)
            .and_then(|()| self.hasher.write_all(bytes))
            .map_err(Error::io("write", &self.path))?;
        self.length = self.length.saturating_add(bytes.len() as u64);
        Ok(())
    }

    fn clear(&mut self) -> Result<(), Error> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)).map(drop))
            .map_err(Error::io("write", &self.path))?;
        self.hasher = Hasher::new(std::io::sink());
        self.length = 0;
        Ok(())
    }

    /// The digest of all of it.
    fn digest(&mut self) -> Digest {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(std::io::sink()));
        hasher.finish().0
    }
}
