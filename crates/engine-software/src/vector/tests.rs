//! Against the host's own FXSAVE, XSAVE and x87 environment instructions.

use std::arch::asm;

use iced_x86::code_asm::*;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::*;
use crate::cpu::{CodeSize, Cpu, gpr};
use crate::fault::vector as exception;
use crate::stub::tests::{cpu, ok, raises};

const AT: u64 = 0x4000;

#[repr(C, align(64))]
#[derive(Clone)]
struct Area([u8; 4096]);

/// A random legacy region that can be loaded.
fn random_area(rng: &mut SmallRng) -> Area {
    let mut area = Area([0; 4096]);
    rng.fill_bytes(&mut area.0[..LEGACY]);
    area.0[at::MXCSR..at::ST].fill(0);
    area.0[at::MXCSR..at::MXCSR + 2].copy_from_slice(&[0x80, 0x1F]);
    // Registers that are zero, special and unnormal, too.
    let n = rng.next_u32() as usize % 8;
    area.0[at::ST + 16 * n..][..10].fill(0);
    area.0[at::ST + 16 * ((n + 3) % 8) + 8..][..2].fill(0xFF);
    // Pointers as instructions leave them.
    for pointer in [at::FIP, at::FDP] {
        area.0[pointer + 4..pointer + 8].fill(0);
    }
    area
}

fn put(cpu: &mut Cpu, bytes: &[u8]) {
    cpu.write_bytes(AT, bytes).ok().unwrap();
    cpu.regs[gpr::RBX] = AT;
}

fn taken(cpu: &mut Cpu, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    cpu.read_bytes(AT, &mut bytes).ok().unwrap();
    bytes
}

#[test]
fn fxsave_is_what_the_host_saves() {
    let mut rng = SmallRng::seed_from_u64(1);
    for _ in 0..50 {
        let area = random_area(&mut rng);
        let mut native = Area([0xCC; 4096]);
        // SAFETY: both areas are aligned and large enough; the registers are
        // declared clobbered and the x87 state is left initial.
        unsafe {
            asm!("fxrstor64 [{a}]", "fxsave64 [{b}]", "fninit",
                a = in(reg) area.0.as_ptr(), b = in(reg) native.0.as_mut_ptr(),
                clobber_abi("sysv64"));
        }
        let mut cpu = cpu();
        put(&mut cpu, &area.0);
        ok(&mut cpu, |a| a.fxrstor64(ptr(rbx)));
        put(&mut cpu, &[0xCC; 512]);
        ok(&mut cpu, |a| a.fxsave64(ptr(rbx)));
        assert_eq!(taken(&mut cpu, 512), native.0[..512]);
    }
}

/// Runs an instruction on `[memory]` between FXRSTOR64 and FXSAVE64.
macro_rules! native {
    ($insn:literal, $area:expr, $memory:expr) => {{
        let mut out = Area([0; 4096]);
        // SAFETY: as above; the instruction accesses `memory` only.
        unsafe {
            asm!("fxrstor64 [{a}]", concat!($insn, " [{m}]"), "fxsave64 [{b}]", "fninit",
                a = in(reg) $area.0.as_ptr(), b = in(reg) out.0.as_mut_ptr(),
                m = in(reg) $memory.0.as_mut_ptr(), clobber_abi("sysv64"));
        }
        out
    }};
}

#[test]
fn environments_are_what_the_host_makes() {
    let mut rng = SmallRng::seed_from_u64(2);
    for round in 0..200 {
        // No pending exception: FLDENV and FRSTOR would report it.
        let mut area = random_area(&mut rng);
        area.0[at::FCW] |= 0x3F;
        let mut environment = Area([0; 4096]);
        rng.fill_bytes(&mut environment.0[..108]);
        let mut memory = environment.clone();
        let mut cpu = cpu();
        put(&mut cpu, &area.0);
        ok(&mut cpu, |a| a.fxrstor64(ptr(rbx)));
        put(&mut cpu, &environment.0);
        // Each kind with 32-bit and 16-bit fields.
        let out = match round % 8 {
            0 => {
                ok(&mut cpu, |a| a.fnstenv(ptr(rbx)));
                native!("fnstenv", area, memory)
            }
            1 => {
                ok(&mut cpu, |a| a.fldenv(ptr(rbx)));
                native!("fldenv", area, memory)
            }
            2 => {
                ok(&mut cpu, |a| a.fnsave(ptr(rbx)));
                native!("fnsave", area, memory)
            }
            3 => {
                ok(&mut cpu, |a| a.frstor(ptr(rbx)));
                native!("frstor", area, memory)
            }
            4 => {
                raw(&mut cpu, &[0x66, 0xD9, 0x33]);
                native!("data16 fnstenv", area, memory)
            }
            5 => {
                raw(&mut cpu, &[0x66, 0xD9, 0x23]);
                native!("data16 fldenv", area, memory)
            }
            6 => {
                raw(&mut cpu, &[0x66, 0xDD, 0x33]);
                native!("data16 fnsave", area, memory)
            }
            _ => {
                raw(&mut cpu, &[0x66, 0xDD, 0x23]);
                native!("data16 frstor", area, memory)
            }
        };
        assert_eq!(
            taken(&mut cpu, 108),
            memory.0[..108],
            "memory, form {}",
            round % 8
        );
        let head = cpu.vector.legacy_head(true);
        assert_eq!(head[..at::MXCSR], out.0[..at::MXCSR], "form {}", round % 8);
        assert_eq!(head[at::ST..], out.0[at::ST..at::XMM], "form {}", round % 8);
    }
}

fn raw(cpu: &mut Cpu, bytes: &[u8]) {
    let db = bytes.to_vec();
    ok(cpu, move |a| a.db(&db));
}

#[test]
fn xsave_and_xrstor_are_the_hosts() {
    if !std::is_x86_feature_detected!("avx") {
        return;
    }
    let mut rng = SmallRng::seed_from_u64(3);
    for round in 0..64u64 {
        let mut area = random_area(&mut rng);
        rng.fill_bytes(&mut area.0[AVX_OFFSET..AVX_OFFSET + AVX_SIZE]);
        area.0[LEGACY] = (round & 7) as u8;
        let loaded = round >> 3 & 7;
        let mut native = Area([0xCC; 4096]);
        native.0[LEGACY..LEGACY + 64].fill(0);
        // All components initial.
        let mut initial = Area([0; 4096]);
        initial.0[at::MXCSR..at::MXCSR + 2].copy_from_slice(&[0x80, 0x1F]);
        // SAFETY: aligned areas; only x87, SSE and AVX state is loaded, which
        // is declared clobbered; MXCSR in the area is the default.
        unsafe {
            asm!("mov r8d, eax", "mov eax, 7", "xrstor64 [{i}]", "mov eax, r8d",
                "xrstor64 [{a}]", "mov eax, 7", "xsave64 [{b}]", "fninit", "vzeroupper",
                i = in(reg) initial.0.as_ptr(), a = in(reg) area.0.as_ptr(), b = in(reg) native.0.as_mut_ptr(),
                inout("eax") loaded as u32 => _, inout("edx") 0 => _,
                out("r8") _, clobber_abi("sysv64"));
        }
        let mut cpu = cpu();
        put(&mut cpu, &area.0);
        cpu.regs[gpr::RAX] = loaded;
        ok(&mut cpu, |a| a.xrstor64(ptr(rbx)));
        let mut before = vec![0xCC; 1024];
        before[LEGACY..LEGACY + 64].fill(0);
        put(&mut cpu, &before);
        cpu.regs[gpr::RAX] = 7;
        ok(&mut cpu, |a| a.xsave64(ptr(rbx)));
        let ours = taken(&mut cpu, 1024);
        // What XINUSE says of initial state is the processor's choice.
        assert_eq!(ours[..LEGACY], native.0[..LEGACY], "round {round}");
        assert_eq!(
            ours[LEGACY + 1..],
            native.0[LEGACY + 1..1024],
            "round {round}"
        );
        assert_eq!(ours[LEGACY] & !native.0[LEGACY], 0);
        let kept = cpu.vector.clone();
        for compact in [false, true] {
            put(&mut cpu, &[0; 1024]);
            if compact {
                ok(&mut cpu, |a| a.xsavec64(ptr(rbx)));
            } else {
                ok(&mut cpu, |a| a.xsaveopt64(ptr(rbx)));
            }
            cpu.vector.reset();
            ok(&mut cpu, |a| a.xrstor64(ptr(rbx)));
            assert_eq!(cpu.vector.to_xsave(7), kept.to_xsave(7));
        }
    }
}

#[test]
fn bad_areas_are_refused() {
    let mut cpu = cpu();
    cpu.regs[gpr::RAX] = 7;
    let good = cpu.vector.to_xsave(7);
    put(&mut cpu, &good);
    ok(&mut cpu, |a| a.xrstor(ptr(rbx)));
    for (at, value) in [
        (LEGACY, 8u8),       // a component that XCR0 does not have
        (LEGACY + 8, 1),     // XCOMP_BV without bit 63
        (LEGACY + 16, 1),    // reserved
        (at::MXCSR + 2, 1),  // reserved bit of MXCSR
        (LEGACY + 15, 0x40), // unknown bit of XCOMP_BV
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        put(&mut cpu, &bad);
        let raised = raises(&mut cpu, |a| a.xrstor(ptr(rbx)));
        assert_eq!(raised, exception::GP, "byte {at}");
    }
    // Compacted, and XSTATE_BV not in XCOMP_BV.
    let mut bad = good.clone();
    bad[LEGACY] = 4;
    bad[LEGACY + 8] = 3;
    bad[LEGACY + 15] = 0x80;
    put(&mut cpu, &bad);
    assert_eq!(raises(&mut cpu, |a| a.xrstor(ptr(rbx))), exception::GP);
    cpu.regs[gpr::RBX] = AT + 16;
    assert_eq!(raises(&mut cpu, |a| a.xsave(ptr(rbx))), exception::GP);
    cpu.regs[gpr::RBX] = AT + 8;
    assert_eq!(raises(&mut cpu, |a| a.fxsave(ptr(rbx))), exception::GP);
    cpu.write(AT, 0x1_0000u32).ok().unwrap();
    cpu.regs[gpr::RBX] = AT;
    assert_eq!(raises(&mut cpu, |a| a.ldmxcsr(ptr(rbx))), exception::GP);
}

#[test]
fn legacy_code_leaves_the_upper_registers_alone() {
    let mut cpu = cpu();
    cpu.code_size = CodeSize::Bits32;
    cpu.segs[3].attr = 0x93;
    cpu.segs[3].limit = 0xFFFF_FFFF;
    cpu.vector.ymm = [[0x55; 32]; 16];
    cpu.regs[gpr::RBX] = AT;
    put(&mut cpu, &[0; 1024]);
    ok(&mut cpu, |a| a.fxrstor(ptr(rbx)));
    assert_eq!(cpu.vector.ymm[7][..16], [0; 16]);
    assert_eq!(cpu.vector.ymm[8], [0x55; 32]);
    ok(&mut cpu, |a| a.vzeroall());
    assert_eq!(cpu.vector.ymm[7], [0; 32]);
    assert_eq!(cpu.vector.ymm[8], [0x55; 32]);
    put(&mut cpu, &[0xCC; 512]);
    ok(&mut cpu, |a| a.fxsave(ptr(rbx)));
    assert_eq!(taken(&mut cpu, 512)[at::XMM + 128..], [0xCC; 224]);
}

#[test]
fn saved_state_round_trips_and_is_checked() {
    let mut rng = SmallRng::seed_from_u64(4);
    let mut state = VectorState::new();
    state.load_x87(&random_area(&mut rng).0, true);
    for ymm in &mut state.ymm {
        rng.fill_bytes(ymm);
    }
    state.mxcsr = 0x3F80;
    let image = state.to_xsave(component::ALL);
    let mut other = VectorState::new();
    other.from_xsave(&image).unwrap();
    assert_eq!(other.to_xsave(component::ALL), image);
    assert_eq!(other.mxcsr, 0x3F80);
    assert!(matches!(
        other.from_xsave(&image[..600]),
        Err(XsaveError::Short { .. })
    ));
    let mut bad = image.clone();
    bad[LEGACY + 1] = 1;
    assert_eq!(other.from_xsave(&bad), Err(XsaveError::Component(0x100)));
    bad = image.clone();
    bad[LEGACY + 15] = 0x80;
    assert_eq!(other.from_xsave(&bad), Err(XsaveError::Compacted));
    bad = image;
    bad[at::MXCSR + 3] = 0xFF;
    other.from_xsave(&bad).unwrap();
    assert_eq!(other.mxcsr, 0x3F80, "reserved bits are dropped");
}
