//! From packages to an archive of an installed system, by mmdebstrap.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Mode;
use super::recipe::Recipe;
use crate::progress::Progress;
use crate::store::Staging;
use crate::{Error, program};

/// What mkinitramfs is told before the kernel is installed: the modules that
/// lead to a disk of ours, and a compression that costs a boot little.
const INITRAMFS: &str = r#"set -e
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
printf 'MODULES=list\nCOMPRESS=lz4\n' >"$1/etc/initramfs-tools/conf.d/croft"
printf 'virtio_pci\nvirtio_blk\next4\n' >"$1/usr/share/initramfs-tools/modules.d/croft"
"#;

/// Installs a recipe's packages into an archive, `target`.
pub fn install(
    recipe: &Recipe,
    mode: Mode,
    staging: &Staging,
    target: &Path,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let mmdebstrap = program::need("mmdebstrap", "mmdebstrap")?;
    let packages = recipe.all_packages()?;
    let mut command = match mode {
        // In a namespace of its own, so that nothing of it outlives Croft.
        Mode::Root => match program::find("unshare") {
            Some(unshare) => {
                let mut command = program::command(unshare.as_os_str());
                command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
                command.arg(&mmdebstrap);
                command
            }
            None => program::command(mmdebstrap.as_os_str()),
        },
        Mode::Fakechroot => program::command(mmdebstrap.as_os_str()),
        // Only it can remove what it makes, so it is not killed with Croft.
        Mode::Unshare => {
            let mut command = Command::new(&mmdebstrap);
            command.env("LC_ALL", "C.UTF-8");
            command
        }
    };
    let file = File::create(target).map_err(Error::io("make", target))?;
    command
        .arg(format!("--mode={mode}"))
        .args(["--variant=minbase", "--format=tar", "--architectures=amd64"])
        .arg(format!("--setup-hook={INITRAMFS}"))
        .arg("--aptopt=Acquire::Retries \"3\"")
        .arg(format!(
            "--include={}",
            packages.into_iter().collect::<Vec<_>>().join(",")
        ))
        .args([recipe.release.suite, "-"])
        .args(archives(recipe))
        // As long as anything of it runs, the store is not swept.
        .stdin(staging.guard()?)
        .stdout(file);
    // A user namespace's root cannot enter this user's directories.
    if mode != Mode::Unshare {
        command.env("TMPDIR", staging.directory());
    }
    progress.phase("starting mmdebstrap");
    let run = program::run("mmdebstrap", command, |line| {
        if let Some(what) = line.strip_prefix("I: ") {
            // Its own words, except for what only its authors understand.
            let known = [
                "running apt-get",
                "downloading",
                "extracting",
                "installing",
                "creating",
            ];
            if known.iter().any(|word| what.starts_with(word)) {
                progress.phase(what.trim_end_matches('.'));
            }
        }
    });
    run.map_err(explain)
}

/// Adds what to do to the usual failures.
fn explain(error: Error) -> Error {
    let Error::Tool { program, why } = error else {
        return error;
    };
    let remedies = [
        (
            "Unable to locate package",
            "check the names given with --package",
        ),
        (
            "has no installation candidate",
            "check the names given with --package",
        ),
        (
            "No space left on device",
            "free some space, or set CROFT_DATA_DIR to a directory with more",
        ),
        (
            "apt-get update",
            "the archive cannot be reached or does not have the release; check the network, or \
             name another one with --mirror",
        ),
        (
            "Failed to fetch",
            "the archive cannot be reached; try again, or name another with --mirror",
        ),
    ];
    let remedy = remedies.iter().find(|(sign, _)| why.contains(sign));
    let why = match remedy {
        Some((_, remedy)) => format!("{why}\n  {remedy}"),
        None => why,
    };
    Error::Tool { program, why }
}

/// The archives as mmdebstrap takes them: those that were named, or those of
/// this host's apt, or Debian's own.
fn archives(recipe: &Recipe) -> Vec<String> {
    if !recipe.mirrors.is_empty() {
        return recipe.mirrors.clone();
    }
    let known = host_archives();
    let suite = recipe.release.suite;
    // Every archive of Debian has all supported releases.
    let pick = |security: bool| {
        known
            .iter()
            .find(|(name, _)| {
                !name.ends_with("-updates") && name.ends_with("-security") == security
            })
            .map(|(_, uri)| uri.as_str())
    };
    let main = pick(false).unwrap_or("http://deb.debian.org/debian");
    let security = pick(true).unwrap_or("http://deb.debian.org/debian-security");
    vec![
        format!("deb {main} {suite} main"),
        format!("deb {main} {suite}-updates main"),
        format!("deb {security} {suite}-security main"),
    ]
}

/// Codenames and addresses of the Debian archives that this host's apt uses.
fn host_archives() -> Vec<(String, String)> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format"])
        .arg("$(ORIGIN) $(CODENAME) $(REPO_URI)")
        .arg("Created-By: Packages")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let text = output.map_or_else(|_| Vec::new(), |output| output.stdout);
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("Debian ")?.split(' ');
            Some((words.next()?.to_owned(), words.next()?.to_owned()))
        })
        .collect()
}
