//! Inputs to begin with, and pseudo-random ones.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use croft_api::monitor;

/// A target.
#[derive(Clone, Copy)]
pub struct Target {
    /// As `cargo fuzz` calls it.
    pub name: &'static str,
    /// What it does.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longest pseudo-random input.
    pub longest: usize,
}

/// All targets.
pub const TARGETS: [Target; 16] = [
    Target {
        name: "execute",
        run: crate::execute::run,
        seeds: code,
        longest: 512,
    },
    Target {
        name: "loader",
        run: crate::loader::run,
        seeds: kernels,
        longest: 4096,
    },
    Target {
        name: "devices",
        run: crate::devices::run,
        seeds: || vec![vec![0; 64]],
        longest: 2048,
    },
    Target {
        name: "protocol",
        run: crate::protocol::run,
        seeds: messages,
        longest: 512,
    },
    Target {
        name: "virtqueue",
        run: crate::virtio::queue,
        seeds: crate::virtio::seeds,
        longest: 1024,
    },
    Target {
        name: "virtio",
        run: crate::virtio::registers,
        seeds: || vec![vec![0x0E; 64]],
        longest: 1024,
    },
    Target {
        name: "vsock",
        run: crate::sockets::vsock,
        seeds: crate::sockets::vsock_seeds,
        longest: 512,
    },
    Target {
        name: "console",
        run: crate::sockets::console,
        seeds: crate::sockets::console_seeds,
        longest: 512,
    },
    Target {
        name: "nic",
        run: crate::nic::nic,
        seeds: crate::nic::seeds,
        longest: 512,
    },
    Target {
        name: "qcow2",
        run: crate::qcow2::run,
        seeds: || vec![vec![0; 64]],
        longest: 256,
    },
    Target {
        name: "saved",
        run: crate::saved::run,
        seeds: crate::saved::seeds,
        longest: 256,
    },
    Target {
        name: "image",
        run: crate::image::run,
        seeds: crate::image::seeds,
        longest: 4096,
    },
    Target {
        name: "seccomp",
        run: crate::seccomp::run,
        seeds: crate::seccomp::seeds,
        longest: 4096,
    },
    Target {
        name: "layer",
        run: crate::layer::run,
        seeds: crate::layer::seeds,
        longest: 4096,
    },
    Target {
        name: "share",
        run: crate::share::run,
        seeds: crate::share::seeds,
        longest: 1024,
    },
    Target {
        name: "bootdisk",
        run: crate::bootdisk::run,
        seeds: crate::bootdisk::seeds,
        longest: 128,
    },
];

impl Target {
    /// The target called `name`.
    pub fn named(name: &str) -> Option<Target> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// Input number `index` of the sequence `seed`: random bytes, or a seed
    /// input with some bytes changed.
    pub fn input(&self, seeds: &[Vec<u8>], seed: u64, index: u64) -> Vec<u8> {
        let mut random = SmallRng::seed_from_u64(seed ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut bytes = match seeds.choose(&mut random) {
            Some(bytes) if random.random() => bytes.clone(),
            _ => {
                let len = random.random_range(0..=self.longest);
                (0..len).map(|_| random.random()).collect()
            }
        };
        for _ in 0..random.random_range(0..8) {
            let len = bytes.len();
            if let Some(byte) = bytes.get_mut(random.random_range(0..len.max(1))) {
                *byte = random.random();
            }
        }
        if random.random_ratio(1, 16) {
            bytes.truncate(random.random_range(0..=bytes.len()));
        }
        bytes
    }
}

/// Where the fixtures are linked, and entered.
const BASE: u32 = 0x10_0000;

/// A bzImage of boot protocol 2.15 around `payload`.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    const SECTORS: usize = 1;
    const SETUP: usize = (SECTORS + 1) * 512;
    let mut file = vec![0; SETUP];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[SECTORS as u8]);
    put(0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
    put(0x202, b"HdrS");
    put(0x206, &0x20Fu16.to_le_bytes());
    put(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x24C, &(payload.len() as u32).to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    file.extend_from_slice(payload);
    file
}

/// `body` behind an ELF64 header with one loaded segment and a PVH note,
/// whose program headers `body` begins with if it is long enough.
pub fn elf(body: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    // Entry, program headers, section headers.
    for value in [u64::from(BASE), 64, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend_from_slice(body);
    file
}

/// What [`elf`] makes a kernel of.
fn elf_body() -> Vec<u8> {
    let mut body = Vec::new();
    let mut header = |kind: u32, values: [u64; 6]| {
        body.extend(kind.to_le_bytes());
        body.extend(7u32.to_le_bytes());
        values
            .iter()
            .for_each(|value| body.extend(value.to_le_bytes()));
    };
    let (note_at, data_at) = (64 + 2 * 56, 64 + 2 * 56 + 20);
    header(1, [data_at, 0, u64::from(BASE), 64, 256, 4096]);
    header(4, [note_at, 0, 0, 20, 0, 4]);
    for word in [4u32, 4, 18] {
        body.extend(word.to_le_bytes());
    }
    body.extend(b"Xen\0");
    body.extend(BASE.to_le_bytes());
    body.extend([0xF4; 64]);
    body
}

/// A multiboot kernel of 64 bytes that halts at once.
pub fn kernel_that_halts() -> Vec<u8> {
    let mut multiboot = Vec::new();
    let magic = 0x1BAD_B002u32;
    let flags = 1u32 << 16;
    let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    for word in [magic, flags, sum, BASE, BASE, BASE + 64, BASE + 256, BASE] {
        multiboot.extend(word.to_le_bytes());
    }
    multiboot.resize(64, 0xF4);
    multiboot
}

fn kernels() -> Vec<Vec<u8>> {
    const RAW: u8 = 2;
    let kernel = elf(&elf_body());
    let gzip = {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let packed = encoder.write_all(&kernel).and_then(|()| encoder.finish());
        packed.unwrap_or_default()
    };
    let mut zstd = zstd::encode_all(&*kernel, 3).unwrap_or_default();
    zstd.extend((kernel.len() as u32).to_le_bytes());
    let multiboot = kernel_that_halts();
    let packed = |magic: &[u8]| [magic, &[0; 64]].concat();
    [
        (0, gzip),
        (0, zstd),
        (0, kernel.clone()),
        (0, packed(b"BZh9")),
        (0, packed(b"\x5d\x00\x00\x80\x00")),
        (0, packed(b"\xfd7zXZ\x00")),
        (0, packed(b"\x89LZO\x00\x0d\x0a\x1a\x0a")),
        (0, packed(&0x184C_2102u32.to_le_bytes())),
        (1, elf_body()),
        (RAW, kernel),
        (RAW, multiboot),
        (RAW, bzimage(&[0xF4; 64])),
    ]
    .into_iter()
    .map(|(kind, body)| [&[kind, 0], &*body].concat())
    .collect()
}

/// A header of zeros (no wild state) and instructions that random bytes
/// seldom make.
fn code() -> Vec<Vec<u8>> {
    let bodies: [&[u8]; 16] = [
        // mov cr3, rax; mov rax, cr4; mov cr4, rax; invlpg [rax]
        &[
            0x0F, 0x22, 0xD8, 0x0F, 0x20, 0xE0, 0x0F, 0x22, 0xE0, 0x0F, 0x01, 0x38,
        ],
        // xsave64 [rsp]; xrstor64 [rsp]; fxsave [rsp]; fxrstor [rsp]
        &[
            0x48, 0x0F, 0xAE, 0x24, 0x24, 0x48, 0x0F, 0xAE, 0x2C, 0x24, 0x0F, 0xAE, 0x04, 0x24,
            0x0F, 0xAE, 0x0C, 0x24,
        ],
        // rep movsb; rep stosq; repne scasb; repe cmpsd; rep insb; rep outsd
        &[
            0xF3, 0xA4, 0xF3, 0x48, 0xAB, 0xF2, 0xAE, 0xF3, 0xA7, 0xF3, 0x6C, 0xF3, 0x6F,
        ],
        // wrmsr; rdmsr; rdtscp; cpuid
        &[0x0F, 0x30, 0x0F, 0x32, 0x0F, 0x01, 0xF9, 0x0F, 0xA2],
        // syscall; sysretq; sysenter; sysexit
        &[0x0F, 0x05, 0x48, 0x0F, 0x07, 0x0F, 0x34, 0x0F, 0x35],
        // lgdt, lidt, lldt, ltr, lmsw
        &[
            0x0F, 0x01, 0x10, 0x0F, 0x01, 0x18, 0x0F, 0x00, 0xD0, 0x0F, 0x00, 0xD8, 0x0F, 0x01,
            0xF0,
        ],
        // iretq; retf; jmp far [rax]; call far [rax]
        &[0x48, 0xCF, 0xCB, 0xFF, 0x28, 0xFF, 0x18],
        // lock cmpxchg16b [rsp]; lock xadd [rax], ecx; xchg
        &[
            0xF0, 0x48, 0x0F, 0xC7, 0x0C, 0x24, 0xF0, 0x0F, 0xC1, 0x08, 0x87, 0x18,
        ],
        // vaddps; vgatherdps; vmaskmovps; vzeroupper
        &[
            0xC5, 0xFC, 0x58, 0x00, 0xC4, 0xE2, 0x6D, 0x92, 0x04, 0x08, 0xC4, 0xE2, 0x75, 0x2E,
            0x10, 0xC5, 0xF8, 0x77,
        ],
        // self-modifying: mov byte [rip+1], 0x90; nop; jmp back
        &[0xC6, 0x05, 0x01, 0, 0, 0, 0xF4, 0x90, 0x90, 0xEB, 0xF5],
        // fld [rax]; fstenv [rax]; fldenv; fnsave; frstor; fbstp
        &[
            0xD9, 0x00, 0xD9, 0x30, 0xD9, 0x20, 0xDD, 0x30, 0xDD, 0x20, 0xDF, 0x30,
        ],
        // Off the end of RAM, byte by byte: mov edi, 0x1FFF0; then
        // mov [rdi], rax; inc edi; jmp back
        &[
            0xBF, 0xF0, 0xFF, 0x01, 0, 0x48, 0x89, 0x07, 0xFF, 0xC7, 0xEB, 0xF9,
        ],
        // mov rax, [rdi]; inc edi; jmp back
        &[
            0xBF, 0xF0, 0xFF, 0x01, 0, 0x48, 0x8B, 0x07, 0xFF, 0xC7, 0xEB, 0xF9,
        ],
        // vmovups [rdi], ymm0; inc edi; jmp back
        &[
            0xBF, 0xDC, 0xFF, 0x01, 0, 0xC5, 0xFC, 0x11, 0x07, 0xFF, 0xC7, 0xEB, 0xF8,
        ],
        // mov ecx, 64; rep stosd
        &[0xBF, 0xE1, 0xFF, 0x01, 0, 0xB9, 0x40, 0, 0, 0, 0xF3, 0xAB],
        // sti; hlt; int3; int 0x80; ud2
        &[0xFB, 0xF4, 0xCC, 0xCD, 0x80, 0x0F, 0x0B],
    ];
    let mut inputs = Vec::new();
    for body in bodies {
        for mode in 0..8 {
            for switches in [0, 2, 6] {
                // Mode and switches; no changed entries; 16 registers, CR0,
                // CR4, RFLAGS, DR7, DR3, CR8, vectors.
                let mut input = vec![mode, switches, 0];
                input.extend([0xFF; 16]);
                input.extend([0; 8 + 8 + 4 + 8 + 8 + 1 + 32]);
                input.extend_from_slice(body);
                inputs.push(input);
            }
        }
    }
    inputs
}

fn messages() -> Vec<Vec<u8>> {
    let requests = [
        monitor::Request::PowerButton,
        monitor::Request::Stop,
        monitor::Request::Pause,
    ];
    let texts: [&[u8]; 3] = [
        br#"{"protocol":"croft-vmm","version":1,"croft":"0.1.0"}"#,
        br#"{"log":{"text":"a line"}}"#,
        br#"{"stopped":"power-off"}"#,
    ];
    let encoded = requests.iter().filter_map(|r| serde_json::to_vec(r).ok());
    encoded
        .chain(texts.iter().map(|text| text.to_vec()))
        .map(|body| [&[1, 7], &*body].concat())
        .collect()
}
