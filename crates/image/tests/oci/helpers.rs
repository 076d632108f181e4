//! Credential helpers: programs that know who asks a registry.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use croft_image::registry::{self, Access, credentials};
use serde_json::json;

use super::Fixture;
use super::make::{self, Packed};
use super::registry::{Registry, password};

/// A program as Docker's configuration names them: it knows `me` at one
/// registry, and says in a file what it was asked.
const HELPER: &str = r#"#!/bin/sh
[ "$1" = get ] || exit 1
read -r host || [ "$host" ] || exit 1
echo "$host" >> "${0%/*}/asked"
case $host in
    "$KNOWN") printf '{"ServerURL":"%s","Username":"me","Secret":"secret"}' "$host" ;;
    *) echo "credentials not found in native keychain"; exit 1 ;;
esac
"#;

#[test]
fn a_credential_helper_knows_who_asks() {
    const PLACE: &str = "CROFT_TEST_HELPERS";
    let Ok(place) = std::env::var(PLACE) else {
        // Once more, with programs of the test's own in the path.
        let place = tempfile::tempdir().unwrap();
        let path = format!(
            "{}:{}",
            place.path().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "helpers::a_credential_helper_knows_who_asks"])
            .arg("--nocapture")
            .env("PATH", path)
            .env("DOCKER_CONFIG", place.path())
            .env(PLACE, place.path())
            .output()
            .unwrap();
        println!("{}", String::from_utf8_lossy(&output.stdout));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        return;
    };
    let place = Path::new(&place);
    let Some(registry) = Registry::start(true) else {
        return;
    };
    let host = format!("localhost:{}", registry.port);
    for name in ["docker-credential-one", "docker-credential-all"] {
        let path = place.join(name);
        fs::write(&path, HELPER.replace("$KNOWN", &host)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let made = make::web(Packed::Gzip, false);
    registry.put("team/web", "1", &made, &made.bytes());
    let file = credentials::docker_file().unwrap();
    assert_eq!(file, place.join("config.json"));
    let asked = || fs::read_to_string(place.join("asked")).unwrap_or_default();
    // One for this registry alone, and one for all of which nothing else is
    // said.
    for config in [
        json!({"credHelpers": {&host: "one"}, "credsStore": "none-such"}),
        json!({"credsStore": "all", "auths": {"other.example": {"auth": "eDp5"}}}),
    ] {
        fs::write(&file, config.to_string()).unwrap();
        let files = [place.join("registries.json"), file.clone()];
        let login = credentials::find(&files, &host).unwrap();
        assert_eq!(login, password("me", "secret"), "{config}");
        let access = Access {
            login,
            authorities: Some(registry.authority()),
            insecure: false,
        };
        let fixture = Fixture::new();
        let image = fixture.pull(&registry.name("team/web:1"), &access);
        fixture.check(&image.unwrap().image);
        registry::log_in(&host, &access).unwrap();
    }
    assert_eq!(asked(), format!("{host}\n{host}\n"));
    // It knows nobody elsewhere, which is no fault; what is kept comes first.
    let files = [place.join("registries.json"), file.clone()];
    assert_eq!(credentials::find(&files, "another.example").unwrap(), None);
    credentials::keep(&files[0], &host, "me", "mine").unwrap();
    let login = credentials::find(&files, &host).unwrap();
    assert_eq!(login, password("me", "mine"));
    assert_eq!(asked(), format!("{host}\n{host}\nanother.example\n"));
}
