//! Registries: Debian's, with TLS and passwords, and one that misbehaves.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use croft_image::progress::Silent;
use croft_image::registry::credentials::Login;
use croft_image::registry::{self, Access};
use croft_image::store::{Committed, Store};
use croft_image::{Error, Image};
use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket, sockopt};
use serde_json::Value;

use super::Fixture;
use super::fake::{self, Answer, Request, answer};
use super::make::{self, Made, Packed, hex};

/// `me`, whose password is `secret`, as htpasswd writes it.
const PASSWORDS: &str = "me:$2y$05$PJ0zkieMTIlJmB7P1gi9QuxImTcgHdlpQgzHsEH5reGlIm20LsmUm\n";

impl Fixture {
    pub fn pull(&self, name: &str, access: &Access) -> Result<Committed, Error> {
        registry::pull(&self.store, name, access, &mut Silent, &mut |_| ())
    }

    fn fails(&self, name: &str, access: &Access, words: &[&str]) {
        let error = self.pull(name, access).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
        self.empty();
    }
}

/// Nothing here takes longer, on a slow and busy machine either.
const PATIENCE: Duration = Duration::from_secs(600);

/// Docker's registry on this host.
pub struct Registry {
    child: Child,
    pub port: u16,
    place: tempfile::TempDir,
    _kept: OwnedFd,
}

/// A port of the loopback interface where nobody listens, and what keeps the
/// kernel from giving it to anybody else. Who binds it by its number and lets
/// others reuse addresses, as servers do, can have it.
fn free_port() -> (u16, OwnedFd) {
    let kept = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_reuseaddr(&kept, true).unwrap();
    bind(&kept, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let at = SocketAddr::try_from(getsockname(&kept).unwrap()).unwrap();
    (at.port(), kept)
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn has(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    command
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok()
}

impl Registry {
    /// Starts it; none, with the reason, where it is missing.
    pub fn start(tls: bool) -> Option<Registry> {
        for (program, argument) in [("docker-registry", "--version"), ("openssl", "version")] {
            if !has(program, argument) {
                eprintln!("skipped: {program} is missing; scripts/install-deps test installs it");
                return None;
            }
        }
        let place = tempfile::tempdir().unwrap();
        let (port, kept) = free_port();
        let path = |name: &str| place.path().join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            path("data")
        );
        if tls {
            certificates(place.path());
            fs::write(path("passwords"), PASSWORDS).unwrap();
            config += &format!(
                "  tls:\n    certificate: {}\n    key: {}\nauth:\n  htpasswd:\n    realm: x\n    \
                 path: {}\n",
                path("server.pem"),
                path("server.key"),
                path("passwords")
            );
        }
        fs::write(path("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", &path("config.yml")])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        let registry = Registry {
            child,
            port,
            place,
            _kept: kept,
        };
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "docker-registry does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    pub fn name(&self, rest: &str) -> String {
        format!("localhost:{}/{rest}", self.port)
    }

    pub fn authority(&self) -> PathBuf {
        self.place.path().join("ca.pem")
    }

    /// Puts an image where the registry keeps them (docker/distribution,
    /// `registry/storage/paths.go`).
    pub fn put(&self, repository: &str, tag: &str, made: &Made, top: &[u8]) {
        let root = self.place.path().join("data/docker/registry/v2");
        let write = |path: String, bytes: &[u8]| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        let own = format!("repositories/{repository}");
        let mut blobs: BTreeMap<String, Vec<u8>> = made.blobs.clone();
        blobs.insert(hex(top), top.to_vec());
        for (name, bytes) in &blobs {
            let link = format!("sha256:{name}");
            write(format!("blobs/sha256/{}/{name}/data", &name[..2]), bytes);
            write(format!("{own}/_layers/sha256/{name}/link"), link.as_bytes());
            // Links of what is no manifest do no harm.
            write(
                format!("{own}/_manifests/revisions/sha256/{name}/link"),
                link.as_bytes(),
            );
        }
        let link = format!("sha256:{}", hex(top));
        write(
            format!("{own}/_manifests/tags/{tag}/current/link"),
            link.as_bytes(),
        );
        let index = format!("{own}/_manifests/tags/{tag}/index/sha256/{}/link", hex(top));
        write(index, link.as_bytes());
    }
}

/// An authority of the test's, and a certificate for localhost.
fn certificates(place: &Path) {
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        let output = command.args(arguments).current_dir(place).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words}");
    };
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    let mut authority = vec!["req", "-x509", "-subj", "/CN=test", "-days", "30"];
    authority.extend(["-keyout", "ca.key", "-out", "ca.pem"]);
    authority.extend(key);
    openssl(&authority);
    let mut request = vec!["req", "-subj", "/CN=localhost", "-keyout", "server.key"];
    request.extend(["-out", "server.csr"]);
    request.extend(key);
    openssl(&request);
    fs::write(
        place.join("extensions"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1\n",
    )
    .unwrap();
    openssl(&[
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "30",
        "-out",
        "server.pem",
        "-extfile",
        "extensions",
    ]);
}

pub fn password(user: &str, password: &str) -> Option<Login> {
    Some(Login::Password {
        user: user.to_owned(),
        password: password.to_owned(),
    })
}

#[test]
fn images_come_from_debians_registry() {
    let Some(registry) = Registry::start(true) else {
        return;
    };
    let fixture = Fixture::new();
    let made = make::web(Packed::Gzip, true);
    registry.put("team/web", "1", &made, &made.bytes());
    let oci = make::web(Packed::Zstd, false);
    let index = make::index(&[oci.descriptor(None, Some("amd64"))]);
    registry.put("team/web", "latest", &oci, index.to_string().as_bytes());
    let arm = make::of(
        vec![make::layer(&[("arm", b"")])],
        Packed::Gzip,
        false,
        "arm64",
    );
    let only = make::index(&[arm.descriptor(None, Some("arm64"))]);
    registry.put("team/web", "arm", &arm, only.to_string().as_bytes());

    let access = Access {
        login: password("me", "secret"),
        authorities: Some(registry.authority()),
        insecure: false,
    };
    let name = registry.name("team/web:1");
    // What can go wrong does, with its reason.
    let other = |login| Access {
        login,
        ..access.clone()
    };
    fixture.fails(&name, &other(None), &[&name, "denied", "croft image login"]);
    fixture.fails(&name, &other(password("me", "wrong")), &["denied"]);
    fixture.fails(
        &registry.name("team/web:2"),
        &access,
        &["not there", "manifest unknown"][..1],
    );
    fixture.fails(&registry.name("team/none"), &access, &["not there"]);
    fixture.fails(
        &registry.name("team/web:arm"),
        &access,
        &["no image for linux/amd64", "arm64"],
    );
    let unknown = Access {
        authorities: None,
        ..access.clone()
    };
    fixture.fails(&name, &unknown, &["certificate", "--ca-file"]);
    let digest = hex(&made.bytes());
    let wrong = registry.name(&format!("team/web@sha256:{}", hex(b"x")));
    fixture.fails(&wrong, &access, &["not there"]);
    for login in [None, password("me", "wrong")] {
        let error = registry::log_in(
            &registry.name("")[..registry.name("").len() - 1],
            &other(login),
        );
        assert!(error.unwrap_err().to_string().contains("no such user"));
    }
    registry::log_in(&format!("localhost:{}", registry.port), &access).unwrap();

    let image = fixture.pull(&name, &access).unwrap().image;
    assert_eq!(image.names, std::slice::from_ref(&name));
    fixture.check(&image);
    // The same again is the same image.
    assert_eq!(fixture.pull(&name, &access).unwrap().image.id, image.id);
    let by_digest = registry.name(&format!("team/web@sha256:{digest}"));
    let again = fixture.pull(&by_digest, &access).unwrap().image;
    assert_eq!((again.id, again.names.len()), (image.id, 2));
    // Docker's and the OCI's kinds, an index, no tag.
    let latest = fixture
        .pull(&registry.name("team/web"), &access)
        .unwrap()
        .image;
    assert_eq!(latest.names, [registry.name("team/web:latest")]);
    fixture.check(&latest);
    fixture.check(&fixture.store.resolve(&registry.name("team/web")).unwrap());
}

#[test]
fn http_without_tls_is_only_taken_when_it_is_asked_for() {
    let Some(registry) = Registry::start(false) else {
        return;
    };
    let fixture = Fixture::new();
    let made = make::web(Packed::Gzip, false);
    registry.put("web", "latest", &made, &made.bytes());
    let name = registry.name("web");
    fixture.fails(&name, &Access::default(), &["--insecure"]);
    let access = Access {
        insecure: true,
        ..Access::default()
    };
    fixture.check(&fixture.pull(&name, &access).unwrap().image);
}

const INSECURE: Access = Access {
    login: None,
    authorities: None,
    insecure: true,
};

/// What a good registry answers.
fn good(made: &Made, request: &Request) -> Answer {
    let path = request.path.as_str();
    let manifest = made.bytes();
    if path.starts_with("/v2/web/manifests/") {
        let kind = made.manifest["mediaType"].as_str().unwrap();
        return answer("200 OK", &format!("Content-Type: {kind}\r\n"), manifest);
    }
    let digest = path.strip_prefix("/v2/web/blobs/sha256:");
    let Some(bytes) = digest.and_then(|digest| made.blobs.get(digest)) else {
        return answer("404 Not Found", "", "");
    };
    let range = request.headers.get("range");
    let from = range.and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    });
    match from {
        Some(from) => {
            let end = bytes.len();
            let range = format!("Content-Range: bytes {from}-{}/{end}\r\n", end - 1);
            answer("206 Partial Content", &range, &bytes[from..])
        }
        None => answer("200 OK", "", bytes.clone()),
    }
}

/// An image whose layers do not fit into one packet.
fn large() -> Made {
    let mut noise = 1u32;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    })
    .take(1 << 20)
    .collect();
    make::of(
        vec![make::layer(&[("large", &bytes)])],
        Packed::Gzip,
        false,
        "amd64",
    )
}

fn check_large(fixture: &Fixture, image: &Image) {
    let container = fixture.container(image);
    let length = fs::metadata(container.lowers[0].join("large"))
        .unwrap()
        .len();
    assert_eq!(length, 1 << 20);
}

#[test]
fn what_is_lost_midway_is_taken_up_again() {
    let made = large();
    let layer = hex(&made.layers[0]);
    let bytes = made.layers[0].clone();
    let lost = AtomicUsize::new(0);
    let path = format!("/v2/web/blobs/sha256:{layer}");
    let own = path.clone();
    let fake = fake::serve(move |request| {
        // It ends early three times, and once begins anew.
        if request.path == own {
            match lost.fetch_add(1, Ordering::SeqCst) {
                0 => return fake::part("200 OK", "", &bytes[..300_000], bytes.len()),
                1 => {
                    assert_eq!(request.headers["range"], "bytes=300000-");
                    let range = "Content-Range: bytes 300000-\r\n";
                    let length = bytes.len() - 300_000;
                    let part = &bytes[300_000..600_000];
                    return fake::part("206 Partial Content", range, part, length);
                }
                2 => return answer("503 Service Unavailable", "", ""),
                3 => return fake::part("200 OK", "", &bytes[..100_000], bytes.len()),
                _ => {}
            }
        }
        good(&made, request)
    });
    let fixture = Fixture::new();
    let name = format!("{}/web", fake.address);
    let image = fixture.pull(&name, &INSECURE).unwrap().image;
    check_large(&fixture, &image);
    let asked = fake.asked.lock().unwrap();
    let asked = asked.iter().filter(|line| line.ends_with(&path)).count();
    assert_eq!(asked, 5);
}

#[test]
fn what_a_broken_pull_left_is_taken_up_by_the_next() {
    let made = large();
    let layer = hex(&made.layers[0]);
    let broken = made.clone();
    let own = layer.clone();
    let fake = fake::serve(move |request| {
        if request.path.ends_with(&own) && !request.headers.contains_key("range") {
            let bytes = &broken.layers[0];
            return fake::part("200 OK", "", &bytes[..400_000], bytes.len());
        }
        if request.path.ends_with(&own) {
            return fake::part(
                "206 Partial Content",
                "Content-Range: bytes 400000-\r\n",
                b"",
                9,
            );
        }
        good(&broken, request)
    });
    let fixture = Fixture::new();
    fixture.fails(
        &format!("{}/web", fake.address),
        &INSECURE,
        &["400000 bytes", "a week"],
    );
    let other = made.clone();
    let fake = fake::serve(move |request| {
        if request.path.ends_with(&layer) {
            assert_eq!(request.headers["range"], "bytes=400000-");
        }
        good(&other, request)
    });
    // Other commands leave it alone.
    drop(Store::open(fixture.store.root()).unwrap());
    let name = format!("{}/web", fake.address);
    check_large(&fixture, &fixture.pull(&name, &INSECURE).unwrap().image);
    let partial = fs::read_dir(fixture.store.root().join("partial")).unwrap();
    assert_eq!(partial.count(), 0);
    // What the store has is not asked for again.
    let before = fake.asked.lock().unwrap().len();
    fixture.pull(&format!("{name}:other"), &INSECURE).unwrap();
    assert_eq!(fake.asked.lock().unwrap().len() - before, 2);
}

#[test]
fn two_pulls_at_once_do_not_disturb_each_other() {
    let made = large();
    let layer = hex(&made.layers[0]);
    // The layer comes when both have asked for the configuration, so that both
    // are under way.
    let config = hex(made.config.to_string().as_bytes());
    let (asked, both) = (Mutex::new(0), Condvar::new());
    let fake = fake::serve(move |request| {
        let mut count = asked.lock().unwrap();
        if request.path.ends_with(&config) {
            *count += 1;
            both.notify_all();
        }
        if request.path.ends_with(&layer) {
            let (after, _) = both
                .wait_timeout_while(count, PATIENCE, |count| *count < 2)
                .unwrap();
            count = after;
        }
        drop(count);
        good(&made, request)
    });
    let fixture = Fixture::new();
    let root = fixture.store.root().to_owned();
    let pulls = ["one", "two"].map(|tag| {
        let (root, name) = (root.clone(), format!("{}/web:{tag}", fake.address));
        thread::spawn(move || {
            let store = Store::open(&root).unwrap();
            let pulled = registry::pull(&store, &name, &INSECURE, &mut Silent, &mut |_| ());
            pulled.unwrap().image.id
        })
    });
    let ids = pulls.map(|pull| pull.join().unwrap());
    assert_eq!(ids[0], ids[1]);
    check_large(
        &fixture,
        &fixture.store.resolve(&ids[0].to_string()).unwrap(),
    );
    let asked = fake.asked.lock().unwrap();
    assert_eq!(
        asked.iter().filter(|line| line.contains("/blobs/")).count(),
        3
    );
}

/// A registry of which one kind of answer is bad.
fn bad(
    which: &'static str,
    answer: impl Fn(&Made) -> Answer + Send + Sync + 'static,
    words: &[&str],
) {
    let made = make::web(Packed::Gzip, false);
    let fake = fake::serve(move |request| {
        let layer = which == "layer" && request.path.ends_with(&hex(&made.layers[0]));
        if layer || request.path.contains(which) {
            answer(&made)
        } else {
            good(&made, request)
        }
    });
    let fixture = Fixture::new();
    fixture.fails(&format!("{}/web", fake.address), &INSECURE, words);
}

#[test]
fn registries_that_misbehave_are_named_and_leave_nothing() {
    let manifest = "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n";
    bad(
        "/manifests/",
        move |_| fake::endless(manifest),
        &["more than the", "bytes"],
    );
    bad(
        "/blobs/",
        |_| fake::endless(""),
        &["more than the", "bytes"],
    );
    bad(
        "/manifests/",
        |_| answer("200 OK", "Content-Type: text/html\r\n", "<html>"),
        &["text/html"],
    );
    bad(
        "/manifests/",
        move |_| answer("200 OK", manifest, "{}"),
        &["its manifest"],
    );
    bad(
        "/blobs/",
        |_| answer("200 OK", "", "short"),
        &["other contents"],
    );
    bad(
        "/blobs/",
        |_| {
            answer(
                "403 Forbidden",
                "",
                r#"{"errors":[{"message":"go\u001b away"}]}"#,
            )
        },
        &["denied ('go away')"],
    );
    bad(
        "/manifests/",
        |_| answer("302 Found", "Location: ftp://127.0.0.1/\r\n", ""),
        &["ftp"],
    );
    bad(
        "/manifests/",
        |_| answer("302 Found", "Location: /v2/web/manifests/latest\r\n", ""),
        &["from one address to the next"],
    );
    bad(
        "/manifests/",
        |_| answer("418 Teapot", "", ""),
        &["status 418"],
    );
    // Of the right length and with other contents: the configuration, a layer.
    bad(
        "/blobs/",
        |made| answer("200 OK", "", vec![0; made.config.to_string().len()]),
        &["other contents"],
    );
    bad(
        "layer",
        |made| answer("200 OK", "", vec![0; made.layers[0].len()]),
        &["other contents"],
    );
    bad("layer", |_| fake::endless(""), &["more than the", "bytes"]);
    let fixture = Fixture::new();
    let (closed, _kept) = free_port();
    let name = format!("127.0.0.1:{closed}/web");
    fixture.fails(&name, &INSECURE, &["cannot be reached"]);
    for bad in ["", "Web", "a b", "x@sha256:1", "/web"] {
        assert!(
            fixture.pull(bad, &INSECURE).unwrap_err().is_usage(),
            "{bad}"
        );
    }
}

#[test]
fn tokens_are_asked_for_where_the_registry_says() {
    for (login, wanted) in [
        (None, None),
        (password("me", "secret"), Some("Basic bWU6c2VjcmV0")),
        (Some(Login::Token("identity".to_owned())), None),
    ] {
        let made = make::web(Packed::Gzip, false);
        let by_token = matches!(login, Some(Login::Token(_)));
        let fake = fake::serve(move |request| {
            if request.path.starts_with("/token") {
                assert_eq!(
                    request.headers.get("authorization").map(String::as_str),
                    wanted
                );
                let asked = if by_token {
                    request.body.as_str()
                } else {
                    request.path.as_str()
                };
                assert!(asked.contains("scope=repository%3Aweb%3Apull"), "{asked}");
                assert!(asked.contains("service=a+b"), "{asked}");
                assert_eq!(asked.contains("refresh_token=identity"), by_token);
                return answer("200 OK", "", r#"{"access_token": "abc"}"#);
            }
            if request.headers.get("authorization").map(String::as_str) != Some("Bearer abc") {
                let host = &request.headers["host"];
                let challenge = format!(
                    "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"a b\"\r\n"
                );
                return answer("401 Unauthorized", &challenge, "");
            }
            good(&made, request)
        });
        let fixture = Fixture::new();
        let access = Access { login, ..INSECURE };
        let image = fixture
            .pull(&format!("{}/web", fake.address), &access)
            .unwrap()
            .image;
        fixture.check(&image);
        let asked = fake.asked.lock().unwrap();
        let tokens = asked.iter().filter(|line| line.contains("/token")).count();
        assert_eq!(tokens, 1, "{asked:?}");
    }
    let fixture = Fixture::new();
    let fake = fake::serve(|request| match request.path.starts_with("/token") {
        true => answer("200 OK", "", Value::from("x".repeat(2 << 20)).to_string()),
        false => {
            let host = &request.headers["host"];
            let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\"\r\n");
            answer("401 Unauthorized", &challenge, "")
        }
    });
    let name = format!("{}/web", fake.address);
    fixture.fails(&name, &INSECURE, &["more than the 1048576 bytes"]);
}
