//! Kernels of a few bytes, for what no Linux does. They are ELF files with a
//! PVH note, so they start in 32-bit protected mode with flat segments.

/// Where they are loaded, and start.
pub const BASE: u32 = 0x10_0000;

/// Interrupts off, then the same instruction for ever.
pub const SPIN: &[u8] = &[
    0xFA, // cli
    0xEB, 0xFE, // jmp itself
];

/// Waits for an interrupt that never comes.
pub const HALT: &[u8] = &[
    0xFA, // cli
    0xF4, // hlt
    0xEB, 0xFD, // jmp to the hlt
];

/// What [`TRIPLE_FAULT`] has in EAX when it faults.
pub const TRIPLE_FAULT_EAX: u32 = 0x0C0F_FEE0;

/// An invalid instruction without an interrupt table.
pub const TRIPLE_FAULT: &[u8] = &[
    0xB8, 0xE0, 0xFE, 0x0F, 0x0C, // mov eax, TRIPLE_FAULT_EAX
    0x0F, 0x01, 0x1D, 0x0E, 0x00, 0x10, 0x00, // lidt [BASE + 14]
    0x0F, 0x0B, // ud2
    0, 0, 0, 0, 0, 0, // BASE + 14: no table
];

/// Writes 0x10 to the debug-exit port (0xF4); other code can follow.
pub const TO_DEBUG_EXIT: &[u8] = &[
    0xB0, 0x10, // mov al, 0x10
    0xE6, 0xF4, // out 0xF4, al
];

/// Writes "tiny\n" to the first serial port (0x3F8) and then halts.
pub const HELLO: &[u8] = &[
    0x66, 0xBA, 0xF8, 0x03, // mov dx, 0x3F8
    0xB0, b't', 0xEE, // mov al, 't'; out dx, al
    0xB0, b'i', 0xEE, //
    0xB0, b'n', 0xEE, //
    0xB0, b'y', 0xEE, //
    0xB0, b'\n', 0xEE, //
    0xFA, // cli
    0xF4, // hlt
    0xEB, 0xFD, // jmp to the hlt
];

/// ELF's number for x86-64.
pub const X86_64: u16 = 62;

/// ELF's number for 64-bit Arm.
pub const AARCH64: u16 = 183;

/// An ELF kernel with this code, for this architecture.
pub fn kernel(machine: u16, code: &[u8]) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    let mut note = Vec::new();
    // Length of the owner's name and of the value; XEN_ELFNOTE_PHYS32_ENTRY.
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(BASE.to_le_bytes());
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let note_len = note.len() as u64;
    let code_at = note_at + note_len;
    let code_len = code.len() as u64;

    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend(2u16.to_le_bytes());
    elf.extend(machine.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    for word in [u64::from(BASE), HEADER, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, at: u64, address: u32, len: u64| {
        elf.extend(kind.to_le_bytes());
        elf.extend(7u32.to_le_bytes());
        let address = u64::from(address);
        for word in [at, address, address, len, len, 4] {
            elf.extend(word.to_le_bytes());
        }
    };
    segment(1, code_at, BASE, code_len);
    segment(4, note_at, 0, note_len);
    elf.extend(note);
    elf.extend(code);
    elf
}
