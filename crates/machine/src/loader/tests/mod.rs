mod fixtures;

use std::io::Write;

use croft_memory::GuestRam;
use proptest::prelude::*;

use self::fixtures::*;
use super::*;
use crate::boot::Mode;

fn load(bytes: &[u8], ram: &GuestRam) -> Result<Image, Problem> {
    let source: &[u8] = bytes;
    load_image(&Bytes(source), ram)
}

/// `&[u8]` as a `dyn Source`.
struct Bytes<'a>(&'a [u8]);

impl Source for Bytes<'_> {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read(&self, offset: u64, data: &mut [u8], part: &'static str) -> Result<(), Problem> {
        self.0.read(offset, data, part)
    }
    fn copy_to(
        &self,
        offset: u64,
        len: u64,
        ram: &GuestRam,
        address: u64,
        part: &'static str,
    ) -> Result<(), Problem> {
        self.0.copy_to(offset, len, ram, address, part)
    }
}

fn named(name: &str, bytes: &[u8]) -> NamedFile {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    NamedFile {
        file,
        name: name.to_owned(),
    }
}

fn payload(kernel: &[u8]) -> Payload {
    with_initrd(kernel, None)
}

fn with_initrd(kernel: &[u8], initrd: Option<NamedFile>) -> Payload {
    Payload {
        boot: BootFrom::Files {
            kernel: named("vmlinuz", kernel),
            initrd,
        },
        append: String::new(),
    }
}

/// The body was loaded and the memory behind it is zero.
fn assert_loaded(ram: &GuestRam, from: usize) {
    let mut there = vec![0; BODY_LEN];
    ram.read(BASE, &mut there).unwrap();
    assert!(there[from..] == body()[from..]);
    let mut bss = vec![1; BSS_LEN as usize];
    ram.read(BASE + BODY_LEN as u64, &mut bss).unwrap();
    assert!(bss.iter().all(|byte| *byte == 0));
}

/// RAM as a guest leaves it: nothing is zero.
fn used_ram() -> GuestRam {
    let ram = ram();
    ram.write(BASE, &vec![0xAA; 1 << 20]).unwrap();
    ram
}

#[test]
fn elf_files_enter_by_their_pvh_note() {
    for file in [elf64(true), elf32(true, false), elf32(true, true)] {
        let ram = used_ram();
        let image = load(&file, &ram).unwrap();
        assert_eq!(image.protocol, Protocol::Pvh { entry: ENTRY });
        assert_eq!(image.start, BASE);
        assert_eq!(image.end, BASE + BODY_LEN as u64 + BSS_LEN);
        assert_loaded(&ram, 12);
    }
}

#[test]
fn every_packing_of_a_bzimage_is_unpacked() {
    for (name, packed) in packings(&elf64(true)) {
        let ram = used_ram();
        let image = load(&bzimage(&packed), &ram).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(image.protocol, Protocol::Pvh { entry: ENTRY }, "{name}");
        assert_eq!(image.initrd_max, 0x7FFF_FFFF);
        assert_eq!(image.command_line_max, 2047);
        assert_loaded(&ram, 0);
    }
}

#[test]
fn a_truncated_or_altered_payload_is_refused() {
    for (name, packed) in packings(&elf64(true)) {
        if name == "uncompressed" {
            continue;
        }
        let half = join(&[&packed[..packed.len() / 2], &packed[packed.len() - 4..]]);
        let error = load(&bzimage(&half), &ram()).unwrap_err();
        assert!(matches!(error, Problem::Payload { .. }), "{name}: {error}");
    }
}

#[test]
fn kernels_without_pvh_use_the_64_bit_protocol() {
    for inner in [packings(&elf64(false)).remove(5).1, b"unheard of".to_vec()] {
        let ram = used_ram();
        let file = bzimage(&inner);
        let image = load(&file, &ram).unwrap();
        assert_eq!(image.start, 0x100_0000);
        assert_eq!(image.end, 0x110_0000);
        let Protocol::Linux64 { entry, header } = image.protocol else {
            panic!("{:?}", image.protocol);
        };
        assert_eq!(entry, 0x100_0200);
        assert_eq!(header, file[0x1F1..0x202 + 0x6A]);
        let mut body = vec![0; file.len() - 2048];
        ram.read(0x100_0000, &mut body).unwrap();
        assert!(body == file[2048..]);
    }
}

#[test]
fn multiboot_kernels_load() {
    let ram = used_ram();
    let image = load(&elf32(false, true), &ram).unwrap();
    assert_eq!(image.protocol, Protocol::Multiboot { entry: ENTRY });
    assert_loaded(&ram, 12);
    let ram = used_ram();
    let image = load(&flat_multiboot(), &ram).unwrap();
    assert_eq!(image.protocol, Protocol::Multiboot { entry: ENTRY });
    assert_eq!(image.end, BASE + BODY_LEN as u64 + BSS_LEN);
    assert_loaded(&ram, 32);
}

#[test]
fn a_bomb_does_not_go_off() {
    let zeros = vec![0; 8 << 20];
    for (name, packed) in packings(&zeros) {
        if name == "uncompressed" {
            continue;
        }
        // Says that it is small, or says what it is: neither fits 4 MiB.
        let honest = bzimage(&packed);
        let small = GuestRam::new(&[croft_memory::Range {
            start: 0,
            len: 4 << 20,
        }])
        .unwrap();
        assert!(load(&honest, &small).is_err(), "{name}");
        let mut lying = packed.clone();
        let at = lying.len() - 4;
        lying[at..].copy_from_slice(&1000u32.to_le_bytes());
        let error = load(&bzimage(&lying), &small).unwrap_err();
        let refused = matches!(error, Problem::Bomb { .. } | Problem::Payload { .. });
        assert!(refused, "{name}: {error}");
    }
}

#[test]
fn every_error_is_short_and_names_the_remedy() {
    let head_only = |mut bytes: Vec<u8>, len| {
        bytes.truncate(len);
        bytes
    };
    let mut arm = elf64(true);
    arm[18] = 183;
    let mut big_endian = elf64(true);
    big_endian[5] = 2;
    let mut no_64 = bzimage(&packings(&elf64(false)).remove(1).1);
    no_64[0x236] = 0;
    let cases: [(&str, Vec<u8>, &str); 16] = [
        ("empty", vec![], "is empty"),
        ("text", b"hello".to_vec(), "is not a kernel"),
        ("zeros", vec![0; 100_000], "format is unknown"),
        ("cpio", b"070701abcdef".to_vec(), "--initrd takes it"),
        (
            "elf head",
            head_only(elf64(true), 40),
            "ends inside its ELF header",
        ),
        (
            "elf table",
            head_only(elf64(true), 100),
            "ELF program headers",
        ),
        ("elf data", head_only(elf64(true), 5000), "truncated"),
        ("elf note", head_only(elf64(true), 20_190), "ELF notes"),
        ("aarch64", arm, "64-bit ARM"),
        ("order", big_endian, "big-endian"),
        ("no note", elf64(false), "without a PVH note"),
        (
            "setup",
            head_only(bzimage(b"x"), 0x230),
            "ends inside its setup",
        ),
        (
            "code",
            head_only(bzimage(b"x"), 0x700),
            "ends inside its setup code",
        ),
        (
            "payload",
            head_only(bzimage(&[7; 9999]), 9000),
            "ends inside its payload",
        ),
        ("32 bit", no_64, "32-bit kernel"),
        (
            "32 bit payload",
            bzimage(&packings(&elf32(false, false)).remove(1).1),
            "32-bit kernel",
        ),
    ];
    for (what, bytes, expected) in cases {
        let error = payload(&bytes)
            .load(&ram(), 0, None)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("vmlinuz: "), "{what}: {error}");
        assert!(error.contains(expected), "{what}: {error}");
        assert!(error.lines().count() == 1 && error.len() < 240, "{error}");
    }
}

#[test]
fn kernels_larger_than_memory_are_refused() {
    let ram = GuestRam::new(&[croft_memory::Range {
        start: 0,
        len: 1 << 20,
    }])
    .unwrap();
    for file in [elf64(true), elf32(false, true), flat_multiboot()] {
        let error = load(&file, &ram).unwrap_err();
        assert!(matches!(error, Problem::NoRoom { .. }), "{error}");
    }
}

#[test]
fn a_directory_a_device_and_a_missing_file_are_named() {
    let error = |path: &str| match NamedFile::open(path) {
        Ok(file) => file.checked_len().unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    assert!(error("/").contains("/: is a directory"));
    assert!(error("/dev/zero").contains("is not a regular file"));
    assert!(error("/does/not/exist").contains("/does/not/exist: cannot be read"));
    let sparse = tempfile::tempfile().unwrap();
    sparse.set_len(FILE_LIMIT + 1).unwrap();
    let file = NamedFile {
        file: sparse,
        name: "sparse".to_owned(),
    };
    let error = file.checked_len().unwrap_err();
    assert!(matches!(error.problem, Problem::TooLarge { .. }));
}

#[test]
fn the_initrd_goes_high_and_whole() {
    let ram = ram();
    let content: Vec<u8> = (0..300_001u32).map(|i| i as u8).collect();
    let payload = with_initrd(&elf64(true), Some(named("initrd", &content)));
    let boot = payload.load(&ram, 0, None).unwrap();
    assert_eq!(boot.mode, Mode::Protected);
    let mut module = [0; 8];
    ram.read(crate::memory_map::BOOT_MODULES, &mut module)
        .unwrap();
    let start = u64::from_le_bytes(module);
    assert_eq!(start % 4096, 0);
    assert!(start + content.len() as u64 + 4096 > 32 << 20);
    let mut there = vec![0; content.len()];
    ram.read(start, &mut there).unwrap();
    assert!(there == content);
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(31 << 20).unwrap();
    let name = "initrd".to_owned();
    let payload = with_initrd(&elf64(true), Some(NamedFile { file, name }));
    let error = payload.load(&ram(), 0, None).unwrap_err();
    assert!(matches!(error.problem, Problem::InitrdTooLarge { .. }));
    assert_eq!(error.name, "initrd");
}

#[test]
fn command_lines_are_bounded_by_the_kernel() {
    let mut payload = payload(&bzimage(&packings(&elf64(true)).remove(6).1));
    payload.append = "x".repeat(2047);
    payload.load(&ram(), 0, None).unwrap();
    payload.append.push('x');
    let error = payload.load(&ram(), 0, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--append: 2048 bytes are more than the 2047 this kernel takes; shorten it"
    );
    payload.append = "a\0b".to_owned();
    assert!(payload.load(&ram(), 0, None).is_err());
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let kernel = named("vmlinuz", &elf64(true));
    let source = FileSource::new(&kernel).unwrap();
    kernel.file.set_len(300).unwrap();
    assert!(matches!(
        load_image(&source, &ram()),
        Err(Problem::Truncated { .. })
    ));
}

#[test]
fn every_truncation_is_answered() {
    let ram = ram();
    let mut files = vec![
        elf64(true),
        elf32(true, true),
        elf32(false, true),
        flat_multiboot(),
    ];
    files.extend(packings(&elf64(true)).into_iter().map(|(_, p)| bzimage(&p)));
    for file in files {
        let structured = (0..file.len().min(700)).chain((700..file.len()).step_by(1009));
        for len in structured {
            assert!(load(&file[..len], &ram).is_err(), "cut to {len}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn corruption_never_panics(
        which in 0usize..12,
        changes in prop::collection::vec((0usize..1 << 16, any::<u8>()), 1..6),
        early in any::<bool>(),
    ) {
        let mut file = match which {
            0 => elf64(true),
            1 => elf32(true, false),
            2 => elf32(false, true),
            3 => flat_multiboot(),
            packed => bzimage(&packings(&elf64(true)).remove(packed - 4).1),
        };
        // Most of what matters is in the headers.
        let range = if early { file.len().min(0x300) } else { file.len() };
        for (at, value) in changes {
            let at = at % range;
            file[at] = value;
        }
        let _ = load(&file, &ram());
    }

    #[test]
    fn random_payloads_never_panic(
        magic in 0usize..8,
        data in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let packed = &packings(b"x").remove(magic).1;
        let start = packed.len().min(6);
        let _ = load(&bzimage(&join(&[&packed[..start], &data])), &ram());
    }
}
