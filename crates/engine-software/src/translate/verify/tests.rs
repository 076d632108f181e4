//! Code that must not be accepted.

use std::mem::offset_of;

use iced_x86::code_asm::*;

use super::*;
use crate::cpu::Cpu;
use crate::tlb::AccessMode;
use crate::translate::hot;
use crate::translate::region::{ATTENTION, TABLES};
use crate::translate::tables::{JUMPS, Jump, Mode, PAGES, Page, Tables};

const BASE: u64 = 0x10_0000;
/// Where the second part of code is.
const APART: usize = 0x80_0000;
const MODE: AccessMode = AccessMode::User;
const SCOPE: Scope = Scope {
    mode: MODE,
    switches: false,
};

fn thunks() -> Thunks {
    Thunks {
        enter: 0x1000,
        exit_link: 0x1010,
        exit_jump: [0x1020, 0x1024, 0x1028],
        exit_at: 0x1030,
        interpret: 0x1040,
        refill: [[0x1100, 0x1110], [0x1120, 0x1130], [0x1140, 0x1150]],
        repeated: std::array::from_fn(|mode| {
            let routine = |kind, shift| 0x1300 + 0x80 * mode + 0x40 * kind + 0x10 * shift;
            std::array::from_fn(|kind| std::array::from_fn(|shift| routine(kind, shift)))
        }),
        load_xmm: 0x1200,
        load_ymm: 0x1210,
    }
}

fn table(mode: AccessMode, within: usize) -> i32 {
    let modes = TABLES + offset_of!(Tables, modes) + mode as usize * size_of::<Mode>();
    (modes + within) as i32
}

fn reads() -> i32 {
    table(MODE, offset_of!(Mode, read))
}

fn writes() -> i32 {
    table(MODE, offset_of!(Mode, write))
}

/// The refusal of what `build` assembles; what it leaves open at its end is
/// closed by an exit.
fn refusal(build: impl FnOnce(&mut CodeAssembler)) -> Option<String> {
    let mut a = CodeAssembler::new(64).unwrap();
    build(&mut a);
    leave(&mut a);
    let bytes = a.assemble(BASE).unwrap();
    verify_in(&bytes, SCOPE).err().map(|refusal| {
        assert!(refusal.listing.contains("=>"), "{refusal}");
        refusal.why
    })
}

fn verify_in(bytes: &[u8], scope: Scope) -> Result<(), Box<Refusal>> {
    verify_parts(bytes, (bytes.len(), APART), scope)
}

fn verify_parts(bytes: &[u8], apart: (usize, usize), scope: Scope) -> Result<(), Box<Refusal>> {
    let rules = Rules {
        base: BASE as usize,
        apart,
        thunks: &thunks(),
        scope,
        ops: &[],
        exits: &[],
    };
    verify(bytes, &rules)
}

fn leave(a: &mut CodeAssembler) {
    a.mov(r11d, 4).unwrap();
    a.jmp(0x1030).unwrap();
}

fn accepted(build: impl FnOnce(&mut CodeAssembler)) {
    assert_eq!(refusal(build), None);
}

#[track_caller]
fn refused(why: &str, build: impl FnOnce(&mut CodeAssembler)) {
    let refusal = refusal(build).expect("this is not isolated");
    assert!(refusal.contains(why), "{refusal}");
}

const INDEX: i32 = ((PAGES - 1) * size_of::<Page>()) as i32;

/// R10 becomes a host address for `size` bytes by the table at `tag`.
fn check(a: &mut CodeAssembler, tag: i32, size: i32) {
    let mut miss = a.create_label();
    let mut hit = a.create_label();
    a.rorx(r11, r10, 8).unwrap();
    a.and(r11d, INDEX).unwrap();
    a.sub(r10, qword_ptr(rsp + r11 + tag)).unwrap();
    a.cmp(r10, 4096 - size).unwrap();
    a.jbe(hit).unwrap();
    a.set_label(&mut miss).unwrap();
    leave(a);
    a.set_label(&mut hit).unwrap();
    a.add(r10, qword_ptr(rsp + r11 + tag + 8)).unwrap();
}

fn address(a: &mut CodeAssembler) {
    a.lea(r10, qword_ptr(r15 - 8)).unwrap();
}

#[test]
fn a_checked_access_is_accepted() {
    accepted(|a| {
        address(a);
        check(a, reads(), 8);
        a.mov(rcx, qword_ptr(r10)).unwrap();
    });
    accepted(|a| {
        address(a);
        check(a, writes(), 8);
        a.add(qword_ptr(r10), rcx).unwrap();
    });
}

/// One check for several accesses.
#[test]
fn accesses_beside_each_other_are_accepted_within_what_was_checked() {
    let run = |last: i32| {
        refusal(|a| {
            address(a);
            check(a, writes(), 24);
            a.mov(qword_ptr(r10 + 16), rcx).unwrap();
            a.lea(r10, qword_ptr(r10 + 8)).unwrap();
            a.mov(qword_ptr(r10 - 8), rdx).unwrap();
            a.mov(qword_ptr(r10 + last), rdx).unwrap();
        })
    };
    assert_eq!(run(8), None);
    assert!(run(9).unwrap().contains("offsets 17 to"));
    assert!(run(-9).unwrap().contains("offsets -1 to"));
}

#[test]
fn an_unchecked_access_is_caught() {
    refused("unchecked address", |a| {
        a.mov(rcx, qword_ptr(rdx)).unwrap();
    });
    refused("unchecked address", |a| {
        address(a);
        a.mov(rcx, qword_ptr(r10)).unwrap();
    });
    refused("unchecked address", |a| {
        a.mov(rcx, qword_ptr(rsp + r11 + reads())).unwrap();
    });
    refused("unchecked address", |a| {
        a.mov(rcx, qword_ptr(0x1000)).unwrap();
    });
}

#[test]
fn a_check_without_its_jump_is_caught() {
    refused("unchecked address", |a| {
        address(a);
        a.rorx(r11, r10, 8).unwrap();
        a.and(r11d, INDEX).unwrap();
        a.sub(r10, qword_ptr(rsp + r11 + reads())).unwrap();
        a.cmp(r10, 4088).unwrap();
        a.add(r10, qword_ptr(rsp + r11 + reads() + 8)).unwrap();
        a.mov(rcx, qword_ptr(r10)).unwrap();
    });
}

#[test]
fn a_signed_comparison_is_caught() {
    refused("unchecked address", |a| {
        let mut hit = a.create_label();
        address(a);
        a.rorx(r11, r10, 8).unwrap();
        a.and(r11d, INDEX).unwrap();
        a.sub(r10, qword_ptr(rsp + r11 + reads())).unwrap();
        a.cmp(r10, 4088).unwrap();
        a.jle(hit).unwrap();
        leave(a);
        a.set_label(&mut hit).unwrap();
        a.add(r10, qword_ptr(rsp + r11 + reads() + 8)).unwrap();
        a.mov(rcx, qword_ptr(r10)).unwrap();
    });
}

#[test]
fn a_store_checked_for_loads_is_caught() {
    refused("checked for loads", |a| {
        address(a);
        check(a, reads(), 8);
        a.mov(qword_ptr(r10), rcx).unwrap();
    });
}

#[test]
fn a_table_of_another_mode_is_caught() {
    refused("unchecked address", |a| {
        address(a);
        let other = table(AccessMode::Supervisor, offset_of!(Mode, read));
        check(a, other, 8);
        a.mov(rcx, qword_ptr(r10)).unwrap();
    });
}

#[test]
fn two_tables_in_one_check_are_caught() {
    refused("unchecked address", |a| {
        let mut hit = a.create_label();
        address(a);
        a.rorx(r11, r10, 8).unwrap();
        a.and(r11d, INDEX).unwrap();
        a.sub(r10, qword_ptr(rsp + r11 + reads())).unwrap();
        a.cmp(r10, 4088).unwrap();
        a.jbe(hit).unwrap();
        leave(a);
        a.set_label(&mut hit).unwrap();
        a.add(r10, qword_ptr(rsp + r11 + writes() + 8)).unwrap();
        a.mov(qword_ptr(r10), rcx).unwrap();
    });
}

#[test]
fn a_check_of_fewer_bytes_is_caught() {
    refused("16 bytes at offsets 0 to 4088", |a| {
        address(a);
        check(a, reads(), 8);
        a.movups(xmm1, xmmword_ptr(r10)).unwrap();
    });
}

#[test]
fn a_pointer_changed_after_its_check_is_caught() {
    refused("unchecked address", |a| {
        address(a);
        check(a, reads(), 8);
        a.add(r10, rcx).unwrap();
        a.mov(rcx, qword_ptr(r10)).unwrap();
    });
    refused("unchecked address", |a| {
        address(a);
        check(a, reads(), 8);
        a.mov(r10, rdx).unwrap();
        a.mov(rcx, qword_ptr(r10)).unwrap();
    });
    refused("unchecked address", |a| {
        address(a);
        check(a, reads(), 8);
        a.mov(rcx, qword_ptr(r10 + rdx)).unwrap();
    });
}

/// The index is another one by the time the page is added.
#[test]
fn an_index_changed_within_a_check_is_caught() {
    refused("unchecked address", |a| {
        let mut hit = a.create_label();
        address(a);
        a.mov(r11d, ecx).unwrap();
        a.and(r11d, INDEX).unwrap();
        a.sub(r10, qword_ptr(rsp + r11 + reads())).unwrap();
        a.cmp(r10, 4088).unwrap();
        a.jbe(hit).unwrap();
        leave(a);
        a.set_label(&mut hit).unwrap();
        a.and(r11d, 0x10).unwrap();
        a.add(r10, qword_ptr(rsp + r11 + reads() + 8)).unwrap();
        a.mov(rcx, qword_ptr(r10)).unwrap();
    });
}

/// The same instruction computes another index the second time around.
#[test]
fn an_index_from_another_round_is_caught() {
    refused("unchecked address", |a| {
        let (mut again, mut hit) = (a.create_label(), a.create_label());
        a.xor(edx, edx).unwrap();
        address(a);
        a.set_label(&mut again).unwrap();
        a.mov(r11d, ecx).unwrap();
        a.and(r11d, INDEX).unwrap();
        a.test(edx, edx).unwrap();
        a.jne(hit).unwrap();
        a.sub(r10, qword_ptr(rsp + r11 + reads())).unwrap();
        a.inc(edx).unwrap();
        a.add(ecx, 16).unwrap();
        a.cmp(r10, 4088).unwrap();
        a.jbe(again).unwrap();
        leave(a);
        a.set_label(&mut hit).unwrap();
        a.add(r10, qword_ptr(rsp + r11 + reads() + 8)).unwrap();
        a.mov(rcx, qword_ptr(r10)).unwrap();
    });
}

#[test]
fn a_pointer_dies_where_paths_meet() {
    refused("unchecked address", |a| {
        let mut around = a.create_label();
        address(a);
        a.test(ecx, ecx).unwrap();
        a.je(around).unwrap();
        check(a, reads(), 8);
        a.set_label(&mut around).unwrap();
        a.mov(rcx, qword_ptr(r10)).unwrap();
    });
}

#[test]
fn an_index_too_large_is_caught() {
    for mask in [INDEX + 16, INDEX | 8, INDEX | 1, -16] {
        refused("unchecked address", |a| {
            a.mov(r11d, ecx).unwrap();
            a.and(r11d, mask).unwrap();
            a.sub(r10, qword_ptr(rsp + r11 + reads())).unwrap();
        });
    }
}

#[test]
fn fields_that_are_not_translated_code_s_are_caught() {
    let fields = [
        hot::HOST_STACK,
        hot::RESUME,
        offset_of!(Cpu, tlb) as i32,
        offset_of!(Cpu, vector) as i32,
        offset_of!(Cpu, translator) as i32,
        -8,
        0x7FFF_0000,
    ];
    for field in fields {
        refused("load from the vCPU", |a| {
            a.mov(rcx, qword_ptr(rsp + field)).unwrap();
        });
        refused("store to the vCPU", |a| {
            a.mov(qword_ptr(rsp + field), rcx).unwrap();
        });
    }
    let constant = [hot::VECTOR, hot::VECTOR_OK, ATTENTION as i32];
    for field in constant {
        accepted(|a| {
            a.movzx(ecx, byte_ptr(rsp + field)).unwrap();
        });
        refused("store to the vCPU", |a| {
            a.mov(byte_ptr(rsp + field), cl).unwrap();
        });
    }
    refused("other than a load", |a| {
        a.mov(r11d, ecx).unwrap();
        a.and(r11d, INDEX).unwrap();
        a.mov(qword_ptr(rsp + r11 + reads()), rcx).unwrap();
    });
}

/// What says who the guest is can be changed where it may.
#[test]
fn fields_of_privilege_are_caught_in_other_code() {
    let run = |scope, field: usize, size: usize| {
        let mut a = CodeAssembler::new(64).unwrap();
        match size {
            1 => a.mov(byte_ptr(rsp + field as i32), cl).unwrap(),
            _ => a.mov(qword_ptr(rsp + field as i32), rcx).unwrap(),
        }
        leave(&mut a);
        let bytes = a.assemble(BASE).unwrap();
        verify_in(&bytes, scope).is_ok()
    };
    let supervisor = Scope {
        mode: AccessMode::Supervisor,
        switches: false,
    };
    let switches = Scope {
        mode: MODE,
        switches: true,
    };
    let cpl = offset_of!(Cpu, cpl);
    assert!(!run(SCOPE, cpl, 1) && !run(supervisor, cpl, 1) && run(switches, cpl, 1));
    let key = offset_of!(Cpu, tlb_key);
    assert!(!run(SCOPE, key, 8) && run(supervisor, key, 8) && run(switches, key, 8));
}

/// The first field, and what lies across its end.
#[test]
fn an_access_across_the_end_of_a_field_is_caught() {
    accepted(|a| {
        a.mov(qword_ptr(rsp + 120), rcx).unwrap();
    });
    refused("store to the vCPU", |a| {
        a.mov(qword_ptr(rsp + 121), rcx).unwrap();
    });
    refused("store to the vCPU", |a| {
        a.movups(xmmword_ptr(rsp + 120), xmm0).unwrap();
    });
}

#[test]
fn system_instructions_are_caught() {
    type Build = fn(&mut CodeAssembler);
    let builds: &[Build] = &[
        |a| a.syscall().unwrap(),
        |a| a.int(0x80).unwrap(),
        |a| a.int3().unwrap(),
        |a| a.hlt().unwrap(),
        |a| a.cli().unwrap(),
        |a| a.cpuid().unwrap(),
        |a| a.std().unwrap(),
        |a| a.popfq().unwrap(),
        |a| a.push(rcx).unwrap(),
        |a| a.ret().unwrap(),
        |a| a.mov(rsp, rcx).unwrap(),
        |a| a.mov(rcx, rsp).unwrap(),
        |a| a.lea(rsp, qword_ptr(rsp + 8)).unwrap(),
        |a| a.mov(ds, ecx).unwrap(),
        |a| a.wrfsbase(rcx).unwrap(),
        |a| a.ldmxcsr(dword_ptr(rsp)).unwrap(),
        |a| a.fninit().unwrap(),
        |a| a.fld1().unwrap(),
        |a| a.emms().unwrap(),
        |a| a.pxor(mm0, mm1).unwrap(),
        |a| a.movsb().unwrap(),
        |a| a.xgetbv().unwrap(),
        |a| a.in_(al, dx).unwrap(),
        |a| a.jmp(rcx).unwrap(),
        |a| a.call(rcx).unwrap(),
        |a| a.call(qword_ptr(rsp)).unwrap(),
    ];
    for (n, build) in builds.iter().enumerate() {
        assert!(refusal(build).is_some(), "number {n}");
    }
    refused("segment of the host's", |a| {
        a.mov(rcx, qword_ptr(rsp).fs()).unwrap();
    });
}

#[test]
fn bit_strings_are_caught() {
    refused("bit number", |a| {
        address(a);
        check(a, writes(), 8);
        a.bts(qword_ptr(r10), rcx).unwrap();
    });
}

#[test]
fn jumps_to_unknown_places_are_caught() {
    // Into the middle of an instruction, behind the end, into Rust.
    for target in [BASE + 1, BASE + 0x1000, 0x7777_0000] {
        refused("no code is known", |a| {
            a.jmp(target).unwrap();
        });
        refused("no code is known", |a| {
            a.je(target).unwrap();
        });
        refused("no routine is known", |a| {
            a.call(target).unwrap();
        });
    }
    // `enter` is not for translated code.
    refused("no code is known", |a| {
        a.jmp(0x1000).unwrap();
    });
}

#[test]
fn code_without_an_end_is_caught() {
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(rcx, rdx).unwrap();
    let bytes = a.assemble(BASE).unwrap();
    assert!(verify_in(&bytes, SCOPE).is_err());
    assert!(verify_in(&[], SCOPE).is_err());
}

#[test]
fn routines_get_what_they_expect() {
    for thunk in [0x1040, 0x1200, 0x1210, 0x1380, 0x13F0] {
        refused("not the block's", |a| {
            a.mov(r11, 0x1234_5678_9ABCu64).unwrap();
            a.call(thunk).unwrap();
        });
        refused("not the block's", |a| {
            a.mov(r11, rcx).unwrap();
            a.call(thunk).unwrap();
        });
    }
    refused("an exit that is not the block's", |a| {
        a.mov(r11, rcx).unwrap();
        a.jmp(0x1010).unwrap();
    });
    let [supervisor, own, smap] = thunks().exit_jump;
    for (jump, why) in [
        (supervisor, "another mode's table"),
        (own, "an exit that is not the block's"),
        (smap, "another mode's table"),
    ] {
        refused(why, |a| {
            a.mov(r11, rcx).unwrap();
            a.jmp(jump as u64).unwrap();
        });
    }
    refused("without an offset", |a| {
        a.mov(r11d, 4096).unwrap();
        a.jmp(0x1030).unwrap();
    });
    refused("refill without an entry", |a| {
        a.mov(r11, rcx).unwrap();
        a.call(0x1120).unwrap();
    });
    refused("another mode's table", |a| {
        a.mov(r11d, ecx).unwrap();
        a.and(r11d, INDEX).unwrap();
        a.call(0x1100).unwrap();
    });
}

#[test]
fn repetitions_use_their_own_mode_s_tables() {
    for thunk in [0x1300, 0x1370, 0x1400] {
        refused("a repetition by another mode's table", |a| {
            a.mov(r11, rcx).unwrap();
            a.call(thunk).unwrap();
        });
    }
}

#[test]
fn nothing_is_known_after_a_call() {
    refused("unchecked address", |a| {
        address(a);
        check(a, reads(), 8);
        a.mov(r11d, ecx).unwrap();
        a.and(r11d, INDEX).unwrap();
        a.call(0x1120).unwrap();
        a.mov(rcx, qword_ptr(r10)).unwrap();
    });
}

fn jump(a: &mut CodeAssembler, mask: i32, compares: bool, field: usize) {
    let entry = table(MODE, offset_of!(Mode, jumps));
    let mut miss = a.create_label();
    address(a);
    a.imul_3(r11d, r10d, 0x1234_5677).unwrap();
    a.shr(r11d, 8).unwrap();
    a.and(r11d, mask).unwrap();
    a.cmp(r10, qword_ptr(rsp + r11 + entry)).unwrap();
    if compares {
        a.jne(miss).unwrap();
    }
    a.jmp(qword_ptr(rsp + r11 + entry + field as i32)).unwrap();
    a.set_label(&mut miss).unwrap();
    a.nop().unwrap();
}

#[test]
fn jumps_by_the_table_need_its_tag() {
    let mask = ((JUMPS - 1) * size_of::<Jump>()) as i32;
    let code = offset_of!(Jump, code);
    accepted(|a| jump(a, mask, true, code));
    for (mask, compares, field) in [
        (mask, false, code),
        (mask, true, offset_of!(Jump, page)),
        (mask, true, offset_of!(Jump, tag)),
        (mask * 2 + 32, true, code),
        (mask | 16, true, code),
    ] {
        assert!(refusal(|a| jump(a, mask, compares, field)).is_some());
    }
}

#[test]
fn host_addresses_stay_among_themselves() {
    type Build = fn(&mut CodeAssembler);
    let leaks: &[Build] = &[
        |a| a.mov(rcx, r10).unwrap(),
        |a| a.mov(ecx, r10d).unwrap(),
        |a| a.lea(rcx, qword_ptr(r10 + rdx)).unwrap(),
        |a| a.add(rcx, r10).unwrap(),
        |a| a.mov(qword_ptr(r10), r10).unwrap(),
        |a| a.mov(qword_ptr(rsp), r10).unwrap(),
        |a| a.xchg(rcx, r10).unwrap(),
        |a| a.xchg(r10, rcx).unwrap(),
        |a| a.movq(xmm0, r10).unwrap(),
        |a| {
            a.mov(r11, r10).unwrap();
            a.xor(r11, rcx).unwrap();
            a.mov(rcx, r11).unwrap();
        },
    ];
    for (n, leak) in leaks.iter().enumerate() {
        let why = refusal(|a| {
            address(a);
            check(a, writes(), 8);
            leak(a);
        });
        let why = why.unwrap_or_else(|| panic!("number {n}"));
        assert!(why.contains("host address"), "{why}");
    }
    // From a table; and from before the block.
    refused("host address", |a| {
        a.mov(r11d, ecx).unwrap();
        a.and(r11d, INDEX).unwrap();
        a.mov(rcx, qword_ptr(rsp + r11 + reads() + 8)).unwrap();
    });
    refused("host address", |a| {
        a.mov(rcx, r10).unwrap();
    });
}

/// Two parts, of which the first jumps to the second, and back.
#[test]
fn code_in_two_parts() {
    let part = |base: u64, build: &dyn Fn(&mut CodeAssembler)| {
        let mut a = CodeAssembler::new(64).unwrap();
        build(&mut a);
        a.assemble(base).unwrap()
    };
    let apart = APART as u64;
    let whole = part(BASE, &|a| {
        a.jmp(apart).unwrap();
        leave(a);
    });
    let open = part(BASE, &|a| a.mov(r11d, 4).unwrap());
    let back = part(apart, &|a| a.jmp(BASE + 5).unwrap());
    let wrong = part(apart, &|a| a.jmp(BASE + 6).unwrap());
    let verdict = |first: &[u8], second: &[u8], at| {
        let bytes = [first, second].concat();
        let verdict = verify_parts(&bytes, (first.len(), at), SCOPE);
        verdict.err().map(|refusal| refusal.why)
    };
    assert_eq!(verdict(&whole, &back, APART), None);
    // Not to the middle of an instruction, nor to where the part is not.
    assert!(verdict(&whole, &wrong, APART).is_some());
    assert!(verdict(&whole, &back, APART + 0x1000).is_some());
    assert!(verdict(&whole, &back, BASE as usize - 0x1000).is_some());
    let why = verdict(&open, &back, APART).unwrap();
    assert!(why.contains("behind its end"), "{why}");
}
