use super::*;
use croft_engine::CpuState;
use croft_engine::state::{MpState, MsrState};

use crate::memory_map::{BOOT_INFO, BOOT_MODULES, PAGE_TABLES, ZERO_PAGE};

const RSDP: u64 = 0xE_0000;

fn ram() -> GuestRam {
    GuestRam::new(&[Range {
        start: 0,
        len: 64 << 20,
    }])
    .unwrap()
}

fn info(line: &str) -> Info<'_> {
    Info {
        command_line: line,
        initrd: Some(Range {
            start: 0x300_0000,
            len: 5000,
        }),
        rsdp: RSDP,
    }
}

fn u32_at(ram: &GuestRam, address: u64) -> u32 {
    let mut bytes = [0; 4];
    ram.read(address, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

fn u64_at(ram: &GuestRam, address: u64) -> u64 {
    let mut bytes = [0; 8];
    ram.read(address, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn text_at(ram: &GuestRam, address: u64) -> String {
    let mut bytes = vec![0; 64];
    ram.read(address, &mut bytes).unwrap();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

#[test]
fn pvh_describes_the_machine() {
    let ram = ram();
    let entry = 0x100_0000;
    let boot = prepare(&Protocol::Pvh { entry }, &info("quiet"), &ram).unwrap();
    let at = boot.rbx;
    assert_eq!(u32_at(&ram, at), 0x336E_C578);
    assert_eq!(u32_at(&ram, at + 12), 1);
    let module = u64_at(&ram, at + 16);
    assert_eq!(u64_at(&ram, module), 0x300_0000);
    assert_eq!(u64_at(&ram, module + 8), 5000);
    assert_eq!(text_at(&ram, u64_at(&ram, at + 24)), "quiet");
    assert_eq!(u64_at(&ram, at + 32), RSDP);
    let map = u64_at(&ram, at + 40);
    let entries = u32_at(&ram, at + 48);
    assert_eq!(u64_at(&ram, map), 0);
    assert_eq!(u32_at(&ram, map + 16), 1);
    assert!(BOOT_MEMORY_MAP_ROOM >= u64::from(entries) * 24);
}

/// Bytes between the memory map and the zero page.
const BOOT_MEMORY_MAP_ROOM: u64 = ZERO_PAGE - crate::memory_map::BOOT_MEMORY_MAP;

#[test]
fn the_zero_page_holds_header_initrd_and_map() {
    let ram = ram();
    // Longer than any header may be: the rest must not reach the map.
    let header = vec![0x5A; 0x300];
    let protocol = Protocol::Linux64 {
        entry: 0x100_0200,
        header,
    };
    let boot = prepare(&protocol, &info("quiet"), &ram).unwrap();
    let page = boot.rsi;
    assert_eq!(page, ZERO_PAGE);
    assert_eq!(u32_at(&ram, page + 0x1F1), 0x5A5A_5A5A);
    assert_eq!(u64_at(&ram, page + 0x70), RSDP);
    assert_eq!(u32_at(&ram, page + 0x218), 0x300_0000);
    assert_eq!(u32_at(&ram, page + 0x21C), 5000);
    assert_eq!(text_at(&ram, u32_at(&ram, page + 0x228).into()), "quiet");
    let count = u32_at(&ram, page + 0x1E8) & 0xFF;
    assert_eq!(count as usize, crate::memory_map::e820(&ram).len());
    assert_eq!(u64_at(&ram, page + 0x2D0), 0);
    assert_eq!(u32_at(&ram, page + 0x2D0 + 16), 1);
}

#[test]
fn the_page_tables_are_an_identity() {
    let ram = ram();
    let protocol = Protocol::Linux64 {
        entry: 0,
        header: Vec::new(),
    };
    prepare(&protocol, &info(""), &ram).unwrap();
    for address in [0u64, 0x20_0000, 0xBFFF_FFFF, 0xFFFF_FFFF] {
        let mut table = PAGE_TABLES;
        for level in [39, 30] {
            let entry = u64_at(&ram, table + (address >> level & 511) * 8);
            assert_eq!(entry & 0b11, 0b11);
            table = entry & !0xFFF;
        }
        let leaf = u64_at(&ram, table + (address >> 21 & 511) * 8);
        assert_eq!(leaf, address >> 21 << 21 | 0x83);
    }
}

#[test]
fn multiboot_describes_the_machine() {
    let ram = ram();
    let boot = prepare(
        &Protocol::Multiboot { entry: 0x10_0000 },
        &info("a=1"),
        &ram,
    )
    .unwrap();
    assert_eq!(boot.rax, 0x2BAD_B002);
    let at = boot.rbx;
    assert_eq!(u32_at(&ram, at), 0b10_0100_1101);
    assert_eq!(u32_at(&ram, at + 8), 63 * 1024);
    assert_eq!(text_at(&ram, u32_at(&ram, at + 16).into()), "kernel a=1");
    assert_eq!(u32_at(&ram, at + 20), 1);
    let module = u64::from(u32_at(&ram, at + 24));
    assert_eq!(module, BOOT_MODULES);
    assert_eq!(u32_at(&ram, module + 4) - u32_at(&ram, module), 5000);
    assert_eq!(text_at(&ram, u32_at(&ram, module + 8).into()), "initrd");
    assert_eq!(u32_at(&ram, u32_at(&ram, at + 48).into()), 20);
    assert_eq!(text_at(&ram, u32_at(&ram, at + 64).into()), "croft");
    // The texts lie behind the information, before the modules.
    const { assert!(BOOT_INFO + 0xA7 < BOOT_MODULES) };
}

#[test]
fn entry_states_follow_the_protocols() {
    let reset = CpuState {
        rip: 0xFFF0,
        cr0: 0x6000_0010,
        msrs: vec![
            MsrState {
                index: 0x10,
                value: 7,
            },
            MsrState {
                index: 0xC000_0081,
                value: 9,
            },
        ],
        mp_state: MpState::Halted,
        ..CpuState::default()
    };
    let boot = Boot {
        mode: Mode::Protected,
        entry: 0x1234,
        rax: 1,
        rbx: 2,
        rsi: 3,
    };
    let mut state = reset.clone();
    boot.apply(&mut state);
    assert_eq!((state.rip, state.cr0, state.rflags), (0x1234, 0x11, 2));
    assert_eq!(
        (
            state.registers[0],
            state.registers[3],
            state.registers[6],
            state.registers[4]
        ),
        (1, 2, 3, 0)
    );
    assert_eq!(state.segments[1].attributes, 0xC09B);
    assert_eq!(state.mp_state, MpState::Running);

    let mut state = reset;
    let boot = Boot {
        mode: Mode::Long,
        ..boot
    };
    boot.apply(&mut state);
    assert_eq!(state.cr0, 0x8000_0011);
    assert_eq!(state.cr4, 1 << 5);
    assert_eq!(state.segments[1].selector, 0x10);
    assert_eq!(state.segments[3].selector, 0x18);
    let indices: Vec<_> = state.msrs.iter().map(|msr| msr.index).collect();
    assert_eq!(indices, [0x10, 0xC000_0080, 0xC000_0081]);
    assert_eq!(state.msrs[1].value, 0x500);
}

#[test]
fn a_command_line_beyond_its_place_is_refused() {
    let ram = ram();
    let long = "x".repeat(COMMAND_LINE_SIZE);
    for protocol in [
        Protocol::Pvh { entry: 0 },
        Protocol::Multiboot { entry: 0 },
        Protocol::Linux64 {
            entry: 0,
            header: vec![],
        },
    ] {
        assert!(matches!(
            prepare(&protocol, &info(&long), &ram),
            Err(Problem::CommandLine { .. })
        ));
    }
}
