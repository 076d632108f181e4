//! One repository of a registry, over HTTP.
//!
//! ```text
//! request ─► 401, challenge ─┬ Basic ──────────────────────► name and password
//!                            └ Bearer ─ asks for a token ──► token
//!                              the request again, once, with either
//! ```

use std::cell::RefCell;
use std::fs;
use std::sync::Once;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Certificate, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use super::credentials::Login;
use super::{Access, Fault, accepted};
use crate::oci::manifest::{Descriptor, LONGEST};
use crate::{Digest, Error};

/// Time to connect.
const CONNECT: Duration = Duration::from_secs(20);
/// Time in which nothing comes.
const SILENCE: Duration = Duration::from_secs(30);
/// Most redirections of one request.
const REDIRECTIONS: usize = 5;
/// Longest token, and longest word of a failure, in bytes.
const TOKEN: u64 = 1 << 20;
const WORDS: u64 = 64 << 10;
/// Longest file of certificates in bytes.
const AUTHORITIES: u64 = 4 << 20;
/// How often something small that may go better is tried.
const TRIES: u32 = 3;

/// A repository of a registry.
pub struct Client {
    http: reqwest::Client,
    base: Url,
    repository: String,
    login: Option<Login>,
    insecure: bool,
    /// What requests say of who asks. One thread has all of them.
    authorization: RefCell<Option<HeaderValue>>,
}

/// A token, as the registry's token server has it.
#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Client {
    /// Of a repository; nothing is sent yet.
    pub fn new(host: &str, repository: &str, access: &Access) -> Result<Client, Error> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // It fails only where another one is there already.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let unfit = |why: String| Error::Unfit(format!("cannot speak to '{host}': {why}"));
        let insecure = access.insecure;
        let policy = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > REDIRECTIONS {
                attempt.error("it sends from one address to the next")
            } else if attempt.url().scheme() != "https" && !insecure {
                attempt.error("it sends to an address without TLS")
            } else {
                attempt.follow()
            }
        });
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .user_agent(concat!("croft/", env!("CARGO_PKG_VERSION")))
            .redirect(policy);
        if let Some(path) = &access.authorities {
            let about = fs::metadata(path).map_err(Error::io("look at", path))?;
            if about.len() > AUTHORITIES {
                return Err(unfit(format!("'{}' is too long", path.display())));
            }
            let bytes = fs::read(path).map_err(Error::io("read", path))?;
            let certificates = Certificate::from_pem_bundle(&bytes)
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .ok_or_else(|| unfit(format!("'{}' has no certificate in PEM", path.display())))?;
            builder = builder.tls_certs_merge(certificates);
        }
        let http = builder
            .build()
            .map_err(|error| unfit(format!("{error}: {:?}", std::error::Error::source(&error))))?;
        // Docker's hub has its registry elsewhere.
        let server = match host {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let scheme = if insecure { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{server}/v2/"))
            .map_err(|error| unfit(error.to_string()))?;
        Ok(Client {
            http,
            base,
            repository: repository.to_owned(),
            login: access.login.clone(),
            insecure,
            authorization: RefCell::new(None),
        })
    }

    /// A manifest by its tag or digest: its bytes and what the registry says
    /// that it is.
    pub async fn manifest(&self, reference: &str) -> Result<(Vec<u8>, String), Fault> {
        let url = self.url(&format!("{}/manifests/{reference}", self.repository))?;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.manifest_once(&url).await {
                Err(fault) if fault.is_passing() && tries < TRIES => pause(tries).await,
                done => return done,
            }
        }
    }

    async fn manifest_once(&self, url: &Url) -> Result<(Vec<u8>, String), Fault> {
        let response = self.get(url, Some(&accepted()), 0).await?;
        let kind = response.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = whole(response, LONGEST).await?;
        Ok((bytes, kind))
    }

    /// A small blob, with its digest checked.
    pub async fn small(&self, blob: &Descriptor, most: u64) -> Result<Vec<u8>, Fault> {
        let mut tries = 0;
        loop {
            tries += 1;
            let done = match self.blob(blob, 0).await {
                Ok(response) => whole(response, blob.length.min(most)).await,
                Err(fault) => Err(fault),
            };
            match done {
                Err(fault) if fault.is_passing() && tries < TRIES => pause(tries).await,
                Ok(bytes) if Digest::of(&bytes) != blob.digest => {
                    return Err(Fault::Refused(format!(
                        "the registry has sent other contents for {blob}"
                    )));
                }
                done => return done,
            }
        }
    }

    /// Asks for a blob from a place in it on.
    pub async fn blob(&self, blob: &Descriptor, from: u64) -> Result<Response, Fault> {
        let url = self.url(&format!("{}/blobs/{blob}", self.repository))?;
        self.get(&url, None, from).await
    }

    /// Whether the registry knows who asks.
    pub async fn check(&self) -> Result<(), Fault> {
        let base = self.base.clone();
        self.get(&base, None, 0).await.map(drop)
    }

    fn url(&self, path: &str) -> Result<Url, Fault> {
        let url = self.base.join(path);
        url.map_err(|error| Fault::Refused(format!("no address can be made of it: {error}")))
    }

    async fn get(&self, url: &Url, accept: Option<&str>, from: u64) -> Result<Response, Fault> {
        let response = self.send(url, accept, from).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return good(response).await;
        }
        let authorization = self.authorize(&response).await?;
        *self.authorization.borrow_mut() = Some(authorization);
        good(self.send(url, accept, from).await?).await
    }

    async fn send(&self, url: &Url, accept: Option<&str>, from: u64) -> Result<Response, Fault> {
        let mut request = self.http.get(url.clone());
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let authorization = self.authorization.borrow().clone();
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.send().await.map_err(Fault::of)
    }

    /// What a request must say after this answer (RFC 9110, 11; Docker's
    /// "Token Authentication Specification").
    async fn authorize(&self, response: &Response) -> Result<HeaderValue, Fault> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let mut basic = false;
        for header in headers {
            let Some(challenges) = header
                .to_str()
                .ok()
                .and_then(|text| http_auth::parse_challenges(text).ok())
            else {
                continue;
            };
            for challenge in challenges {
                let parameter = |name: &str| {
                    let mut all = challenge.params.iter();
                    all.find(|(own, _)| own.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let realm = parameter("realm").ok_or_else(|| {
                        Fault::Refused("it asks for a token of nobody".to_owned())
                    })?;
                    return self.token(&realm, parameter("service")).await;
                }
                basic |= challenge.scheme.eq_ignore_ascii_case("basic");
            }
        }
        match &self.login {
            Some(Login::Password { user, password }) if basic => {
                header("Basic", &credentials(user, password))
            }
            _ => Err(Fault::Denied(String::new())),
        }
    }

    async fn token(&self, realm: &str, service: Option<String>) -> Result<HeaderValue, Fault> {
        let realm = Url::parse(realm)
            .map_err(|error| Fault::Refused(format!("its token server has no address: {error}")))?;
        // A password does not go where everybody can read it.
        if realm.scheme() != "https" && !self.insecure {
            return Err(Fault::Refused(
                "its token server has no TLS; --insecure takes HTTP without it".to_owned(),
            ));
        }
        let scope = format!("repository:{}:pull", self.repository);
        let mut fields = vec![("scope", scope)];
        fields.extend(service.map(|service| ("service", service)));
        let request = match &self.login {
            Some(Login::Token(token)) => {
                fields.push(("grant_type", "refresh_token".to_owned()));
                fields.push(("client_id", "croft".to_owned()));
                fields.push(("refresh_token", token.clone()));
                self.http.post(realm).form(&fields)
            }
            Some(Login::Password { user, password }) => {
                let authorization = header("Basic", &credentials(user, password))?;
                let request = self.http.get(realm).query(&fields);
                request.header(AUTHORIZATION, authorization)
            }
            None => self.http.get(realm).query(&fields),
        };
        let response = request.send().await.map_err(Fault::of)?;
        let bytes = whole(good(response).await?, TOKEN).await?;
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|error| Fault::Refused(format!("its token server: {error}")))?;
        let token = token.token.or(token.access_token).unwrap_or_default();
        header("Bearer", &token)
    }
}

fn credentials(user: &str, password: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
}

fn header(scheme: &str, value: &str) -> Result<HeaderValue, Fault> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {value}"))
        .map_err(|_| Fault::Refused("its token has control characters".to_owned()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// An answer that is one; else why not.
async fn good(response: Response) -> Result<Response, Fault> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    Err(match status {
        StatusCode::NOT_FOUND => Fault::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Fault::Denied(said(response).await),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Fault::Busy(status.as_u16()),
        _ if status.is_server_error() => Fault::Busy(status.as_u16()),
        _ => Fault::Refused(format!(
            "the registry answers with status {}{}",
            status.as_u16(),
            said(response).await
        )),
    })
}

/// What a registry says of a failure, in brackets; nothing if it says nothing.
async fn said(response: Response) -> String {
    let bytes = whole(response, WORDS).await.unwrap_or_default();
    let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let message = value.pointer("/errors/0/message").or(value.get("details"));
    let text = message
        .and_then(|message| message.as_str())
        .unwrap_or_default();
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    if text.is_empty() {
        text
    } else {
        format!(" ('{text}')")
    }
}

/// All of an answer, if it is not longer than `most` bytes.
async fn whole(mut response: Response, most: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes: Vec<u8> = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Fault::of)? {
        if (bytes.len() as u64).saturating_add(chunk.len() as u64) > most {
            return Err(Fault::Refused(format!(
                "the registry sends more than the {most} bytes that are allowed"
            )));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Waits before another try: half a second, and twice as long each time.
pub async fn pause(tries: u32) {
    let wait = 250u64.saturating_mul(1 << tries.min(6));
    tokio::time::sleep(Duration::from_millis(wait)).await;
}
