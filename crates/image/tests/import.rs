//! Files of other programs, and what comes of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use croft_image::export::{self, Form};
use croft_image::import::probe::Format;
use croft_image::import::{self, Source};
use croft_image::progress::Silent;
use croft_image::store::Image;
use croft_image::{DiskFormat, Error, Store};

struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("images")).unwrap();
        Fixture { directory, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A disk of 4 MiB with something at its beginning and end.
    fn raw(&self) -> PathBuf {
        let path = self.path("disk.raw");
        let mut bytes = vec![0; 4 << 20];
        bytes[510..512].copy_from_slice(b"\x55\xaa");
        bytes[(4 << 20) - 4..].copy_from_slice(b"tail");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn qemu_img(&self, arguments: &[&str]) {
        let mut command = Command::new("qemu-img");
        command.args(arguments).current_dir(self.directory.path());
        let output = command.output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {words}");
    }

    fn import(&self, file: &Path, backing: &[PathBuf]) -> Result<Image, Error> {
        self.import_as(file, None, backing)
    }

    fn import_as(
        &self,
        file: &Path,
        format: Option<Format>,
        backing: &[PathBuf],
    ) -> Result<Image, Error> {
        let source = Source {
            path: file.to_owned(),
            format,
            backing: backing.to_vec(),
            name: "web".to_owned(),
            wanted: None,
        };
        let committed = import::import(&self.store, &source, &mut Silent, &mut |_| ())?;
        self.store.verify("web", |_| ())?;
        Ok(committed.image)
    }

    fn refuse(&self, file: &Path, backing: &[PathBuf], word: &str) {
        let error = self.import(file, backing).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert!(self.store.list().unwrap().is_empty());
        let staged = fs::read_dir(self.store.root().join("staging")).unwrap();
        assert_eq!(staged.count(), 0);
    }

    /// What a guest would see of an image's disk.
    fn contents(&self, image: &Image) -> Vec<u8> {
        let target = self.path("exported.raw");
        let _ = fs::remove_file(&target);
        export::export(&self.store, image, &target, Form::Raw, &mut Silent).unwrap();
        fs::read(target).unwrap()
    }
}

fn without_qemu_img() -> bool {
    let missing = Command::new("qemu-img").arg("--version").output().is_err();
    if missing {
        eprintln!("skipped: qemu-img is missing");
    }
    missing
}

#[test]
fn a_raw_disk_goes_in_and_out() {
    let fixture = Fixture::new();
    let raw = fixture.raw();
    let image = fixture.import(&raw, &[]).unwrap();
    let disk = image.manifest.disk.as_ref().unwrap();
    assert_eq!((disk.format, disk.virtual_size), (DiskFormat::Raw, 4 << 20));
    assert_eq!(fixture.contents(&image), fs::read(&raw).unwrap());
    let again = export::export(&fixture.store, &image, &raw, Form::Raw, &mut Silent);
    assert!(again.unwrap_err().to_string().contains("exists already"));
    let tar = export::export(
        &fixture.store,
        &image,
        &fixture.path("x.tar"),
        Form::Tar,
        &mut Silent,
    );
    assert!(
        tar.unwrap_err()
            .to_string()
            .contains("has no root file system")
    );
}

#[test]
fn what_is_no_disk_is_refused() {
    let fixture = Fixture::new();
    let path = fixture.path("file");
    fs::write(&path, "just some text").unwrap();
    fixture.refuse(&path, &[], "no disk and no archive");
    fixture.refuse(fixture.directory.path(), &[], "directory");
    fixture.refuse(&fixture.path("nothing"), &[], "nothing");
    let odd = fixture.import_as(&path, Some(Format::Raw), &[]);
    assert!(odd.unwrap_err().to_string().contains("multiple of 512"));
    let raw = fixture.raw();
    let qcow2 = fixture.import_as(&raw, Some(Format::Qcow2), &[]);
    assert!(qcow2.unwrap_err().to_string().contains("no qcow2"));
}

#[test]
fn disks_of_all_formats_have_the_same_contents() {
    if without_qemu_img() {
        return;
    }
    let fixture = Fixture::new();
    let raw = fs::read(fixture.raw()).unwrap();
    for arguments in [
        &["-O", "qcow2"][..],
        &["-O", "qcow2", "-c"],
        &["-O", "qcow2", "-o", "compat=0.10"],
        &["-O", "qcow2", "-o", "cluster_size=512"],
        &["-O", "qcow2", "-o", "cluster_size=2M,extended_l2=on"],
        &["-O", "vmdk"],
        &["-O", "vmdk", "-o", "subformat=streamOptimized"],
        &["-O", "vdi"],
        &["-O", "vhdx"],
        &["-O", "vpc", "-o", "force_size=on"],
    ] {
        let mut all = vec!["convert", "-f", "raw", "disk.raw"];
        all.extend(arguments);
        all.push("other");
        fixture.qemu_img(&all);
        let image = fixture.import(&fixture.path("other"), &[]).unwrap();
        let disk = image.manifest.disk.as_ref().unwrap();
        assert_eq!(disk.format, DiskFormat::Qcow2);
        assert!(fixture.contents(&image) == raw, "{arguments:?}");
        fs::remove_file(fixture.path("other")).unwrap();
    }
}

#[test]
fn layers_are_taken_with_what_is_named_and_nothing_else() {
    if without_qemu_img() {
        return;
    }
    let fixture = Fixture::new();
    let raw = fixture.raw();
    let layer = |name: &str, below: &str, format: &str| {
        fixture.qemu_img(&[
            "create", "-q", "-f", "qcow2", "-b", below, "-F", format, name,
        ]);
        fixture.path(name)
    };
    let middle = layer("middle", "disk.raw", "raw");
    let top = layer("top", "middle", "qcow2");
    fixture.refuse(&top, &[], "--backing");
    fixture.refuse(&top, std::slice::from_ref(&middle), "one more --backing");
    fixture.refuse(&top, &[raw.clone(), raw.clone()], "only qcow2");
    // Another file than the header names, with other contents.
    let other = fixture.path("other.raw");
    let mut bytes = fs::read(&raw).unwrap();
    bytes[1000] = 1;
    fs::write(&other, &bytes).unwrap();
    fs::remove_file(&raw).unwrap();
    let image = fixture.import(&top, &[middle, other]).unwrap();
    assert!(fixture.contents(&image) == bytes);
}

#[test]
fn disks_that_leave_their_file_are_refused() {
    if without_qemu_img() {
        return;
    }
    let fixture = Fixture::new();
    fixture.raw();
    fixture.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=secret,data_file_raw=on",
        "a",
        "4M",
    ]);
    fixture.refuse(&fixture.path("a"), &[], "another file");
    fixture.qemu_img(&["convert", "-O", "vmdk", "disk.raw", "base.vmdk"]);
    fixture.qemu_img(&[
        "create",
        "-q",
        "-f",
        "vmdk",
        "-b",
        "base.vmdk",
        "-F",
        "vmdk",
        "b.vmdk",
    ]);
    fixture.refuse(&fixture.path("b.vmdk"), &[], "layer over another file");
    fixture.qemu_img(&["convert", "-O", "qcow2", "disk.raw", "c"]);
    let whole = fs::read(fixture.path("c")).unwrap();
    fs::write(fixture.path("c"), &whole[..100_000]).unwrap();
    fixture.refuse(&fixture.path("c"), &[], "cut off");
}

#[test]
fn archives_become_images_whatever_compresses_them() {
    let fixture = Fixture::new();
    let tree = fixture.path("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/os-release"), "ID=tiny\nVERSION_ID=\"1.0\"\n").unwrap();
    for flags in ["-c", "-cz", "-cj", "-cJ", "-c --zstd"] {
        let archive = fixture.path("archive");
        let mut command = Command::new("tar");
        command.args(flags.split(' ')).arg("-f").arg(&archive);
        command.arg("-C").arg(&tree).arg(".");
        if !command.output().is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: tar {flags} does not work here");
            continue;
        }
        let image = fixture.import(&archive, &[]).unwrap();
        let manifest = &image.manifest;
        assert_eq!((&*manifest.os, &*manifest.os_version), ("tiny", "1.0"));
        assert!(manifest.disk.is_none() && image.machine_disk().is_err());
        let target = fixture.path("out.tar");
        let _ = fs::remove_file(&target);
        export::export(&fixture.store, &image, &target, Form::Tar, &mut Silent).unwrap();
        let list = Command::new("tar")
            .arg("-tf")
            .arg(&target)
            .output()
            .unwrap();
        assert_eq!(list.stdout, b"./\netc/\netc/os-release\n");
    }
    let bad = fixture.path("bad.tar");
    let made = Command::new("tar")
        .args(["-cPf"])
        .arg(&bad)
        .arg("/etc/hostname")
        .status();
    assert!(made.unwrap().success());
    let fixture = Fixture::new();
    fixture.refuse(&bad, &[], "absolute");
}
