//! Long-mode paging: rights, error codes, accessed and dirty bits
//! (SDM vol. 3, chapter 5).

use croft_engine::Engine;
use iced_x86::code_asm::*;

use crate::layout::page::{A, D, NX, P, PS, U, W};
use crate::layout::*;
use crate::machine::Machine;
use crate::{Outcome, check, check_eq};

guests! { "paging":
    error_codes [Iret],
    write_protect [Iret],
    no_execute_disabled [Iret],
    reserved_bits [Iret],
    smep [Iret],
    smap [Iret],
    accessed_and_dirty [],
    accessed_and_dirty_of_faults [Iret],
    large_pages [],
    accesses_across_pages [Iret],
    read_modify_write_faults_as_a_write [Iret],
    rights_of_every_level [Iret],
}

/// A page whose mapping guests change.
const PAGE: u64 = 0x10_0000;
const NEXT: u64 = 0x10_1000;

fn error_codes(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.map(PAGE, 0)?;
    m.map(NEXT, NEXT | P)?;
    m.program(|p| {
        p.pf(0, PAGE + 4, |a| a.mov(eax, dword_ptr(PAGE + 4)))?;
        p.pf(2, PAGE + 4, |a| a.mov(dword_ptr(PAGE + 4), eax))?;
        p.pf(3, NEXT, |a| a.mov(byte_ptr(NEXT), al))?;
        p.mov(al, byte_ptr(NEXT))?;
        p.user(|p| {
            p.pf(4, PAGE, |a| a.mov(al, byte_ptr(PAGE)))?;
            p.pf(6, PAGE, |a| a.mov(byte_ptr(PAGE), al))?;
            p.pf(5, NEXT, |a| a.mov(al, byte_ptr(NEXT)))?;
            p.pf(7, NEXT, |a| a.mov(byte_ptr(NEXT), al))?;
            // Implicit accesses are the system's: the GDT is a kernel page.
            p.mov(eax, i32::from(USER_DS))?;
            p.mov(es, eax)
        })?;
        p.done()
    })?;
    m.run()
}

fn write_protect(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.map(PAGE, PAGE | P | U)?;
    m.program(|p| {
        p.pf(3, PAGE, |a| a.mov(byte_ptr(PAGE), al))?;
        p.mov(rax, cr0)?;
        p.btr(rax, 16)?;
        p.mov(cr0, rax)?;
        p.mov(dword_ptr(PAGE), 77)?;
        p.user(|p| p.pf(7, PAGE, |a| a.mov(byte_ptr(PAGE), al)))?;
        p.mov(rax, cr0)?;
        p.bts(rax, 16)?;
        p.mov(cr0, rax)?;
        p.pf(3, PAGE, |a| a.mov(byte_ptr(PAGE), al))?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.get(PAGE)?, 77, "store without WP");
    check_eq!(m.get(Machine::pte(PAGE))? & D, D, "dirty bit");
    Ok(())
}

fn no_execute_disabled(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.map(PAGE, PAGE | P | W | NX)?;
    m.ram.write(PAGE, &[0xC3])?;
    m.program(|p| {
        p.mov(ebx, PAGE as i32)?;
        p.mov(al, byte_ptr(PAGE))?;
        p.fault_at((vector::PF, 0x11), Some(PAGE), PAGE, |a| a.call(rbx))?;
        // Without NXE the bit is reserved, and fetches are not told apart.
        p.rdmsr_value(crate::machine::EFER)?;
        p.btr(rax, 11)?;
        p.xor(edx, edx)?;
        p.wrmsr()?;
        p.mov(rax, cr3)?;
        p.mov(cr3, rax)?;
        p.pf(9, PAGE, |a| a.mov(al, byte_ptr(PAGE)))?;
        p.done()
    })?;
    m.run()
}

fn reserved_bits(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let beyond = 1u64 << m.profile.physical_bits;
    let far = 0x40_0000_0000u64;
    let farther = 0x80_0000_0000u64;
    m.map(PAGE, PAGE | P | W | beyond)?;
    // A 2 MiB page whose address is not a multiple of 2 MiB.
    m.put(PD + 8 * 3, 0x60_0000 | 0x2000 | PS | P | W)?;
    // PS in a PDPT entry with an unaligned address; PS in the PML4.
    m.put(PDPT + 8 * 256, 0x20_0000 | PS | P | W)?;
    m.put(PML4 + 8, PDPT | PS | P | W)?;
    m.program(|p| {
        p.pf(9, PAGE, |a| a.mov(al, byte_ptr(PAGE)))?;
        p.pf(0xB, PAGE, |a| a.mov(byte_ptr(PAGE), al))?;
        p.pf(9, 0x60_0000, |a| a.mov(al, byte_ptr(0x60_0000)))?;
        p.mov(rbx, far)?;
        p.pf(9, far, |a| a.mov(al, byte_ptr(rbx)))?;
        p.mov(rbx, farther)?;
        p.pf(0xB, farther, |a| a.mov(byte_ptr(rbx), al))?;
        // A not-present entry may have any bits.
        p.mov(rax, beyond | PS)?;
        p.mov(qword_ptr(Machine::pte(PAGE)), rax)?;
        p.invlpg(byte_ptr(PAGE))?;
        p.pf(0, PAGE, |a| a.mov(al, byte_ptr(PAGE)))?;
        p.done()
    })?;
    m.run()
}

fn smep(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    if m.profile
        .leaf(7, 0)
        .is_none_or(|leaf| leaf.ebx & 1 << 7 == 0)
    {
        return Ok(());
    }
    m.map(PAGE, PAGE | P | W | U)?;
    m.ram.write(PAGE, &[0xC3])?;
    m.program(|p| {
        p.mov(ebx, PAGE as i32)?;
        p.call(rbx)?;
        p.mov(rax, cr4)?;
        p.bts(rax, 20)?;
        p.mov(cr4, rax)?;
        p.fault_at((vector::PF, 0x11), Some(PAGE), PAGE, |a| a.call(rbx))?;
        p.mov(al, byte_ptr(PAGE))?;
        p.user(|p| p.call(rbx))?;
        p.done()
    })?;
    m.run()
}

fn smap(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    if m.profile
        .leaf(7, 0)
        .is_none_or(|leaf| leaf.ebx & 1 << 20 == 0)
    {
        return Ok(());
    }
    m.map(PAGE, PAGE | P | W | U)?;
    // A local descriptor table in the user's page.
    let table = crate::tables::descriptor(PAGE as u32, 0xFFF, 0x82, 0);
    m.descriptor(FREE_SELECTOR, table)?;
    m.program(|p| {
        p.mov(rax, cr4)?;
        p.bts(rax, 21)?;
        p.mov(cr4, rax)?;
        p.pf(1, PAGE, |a| a.mov(al, byte_ptr(PAGE)))?;
        p.pf(3, PAGE, |a| a.mov(byte_ptr(PAGE), al))?;
        p.stac()?;
        p.mov(byte_ptr(PAGE), 5)?;
        p.clac()?;
        p.pf(1, PAGE, |a| a.mov(al, byte_ptr(PAGE)))?;
        // POPF opens and closes just as well.
        p.push(flag::AC as i32 | 2)?;
        p.popfq()?;
        p.mov(al, byte_ptr(PAGE))?;
        p.push(2)?;
        p.popfq()?;
        p.pf(3, PAGE, |a| a.inc(byte_ptr(PAGE)))?;
        // Implicit accesses to the system's tables do not ask AC.
        p.stac()?;
        p.mov(rbx, qword_ptr(GDT + u64::from(KERNEL_DS)))?;
        p.mov(qword_ptr(PAGE + 0x10), rbx)?;
        p.mov(eax, i32::from(FREE_SELECTOR))?;
        p.lldt(ax)?;
        p.mov(eax, 0x14)?;
        p.pf(1, PAGE + 0x10, |a| a.mov(ds, eax))?;
        p.clac()?;
        p.user(|p| {
            p.mov(al, byte_ptr(PAGE))?;
            p.ud(|a| a.stac())
        })?;
        p.done()
    })?;
    m.run()
}

fn accessed_and_dirty(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(al, byte_ptr(PAGE))?;
        p.mov(rax, qword_ptr(Machine::pte(PAGE)))?;
        p.put(0, rax)?;
        p.mov(byte_ptr(PAGE), al)?;
        p.mov(rax, qword_ptr(Machine::pte(PAGE)))?;
        p.put(1, rax)?;
        p.mov(rax, qword_ptr(Machine::pte(NEXT)))?;
        p.put(2, rax)?;
        p.mov(byte_ptr(NEXT), al)?;
        p.mov(rax, qword_ptr(Machine::pte(NEXT)))?;
        p.put(3, rax)?;
        // Clearing D needs INVLPG; afterwards a store sets it again.
        p.mov(qword_ptr(Machine::pte(NEXT)), (NEXT | P | W) as i32)?;
        p.invlpg(byte_ptr(NEXT))?;
        p.mov(al, byte_ptr(NEXT))?;
        p.mov(byte_ptr(NEXT), al)?;
        p.mov(rax, qword_ptr(Machine::pte(NEXT)))?;
        p.put(4, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, PAGE | P | W | A, "entry after a load");
    check_eq!(m.slot(1)?, PAGE | P | W | A | D, "entry after a store");
    check_eq!(m.slot(2)?, NEXT | P | W, "entry of an untouched page");
    check_eq!(
        m.slot(3)?,
        NEXT | P | W | A | D,
        "entry after a first store"
    );
    check_eq!(
        m.slot(4)?,
        NEXT | P | W | A | D,
        "entry after another store"
    );
    check_eq!(m.get(PML4)? & (A | D), A, "PML4 entry");
    check_eq!(m.get(PDPT)? & (A | D), A, "PDPT entry");
    check_eq!(m.get(PD)? & (A | D), A, "page-directory entry");
    let code = m.get(Machine::pte(CODE))?;
    check_eq!(code & (A | D), A, "entry of the code");
    check_eq!(m.get(PDPT + 8)? & A, 0, "an untouched PDPT entry");
    Ok(())
}

fn accessed_and_dirty_of_faults(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.map(PAGE, PAGE | P)?;
    m.map(NEXT, 0)?;
    m.program(|p| {
        p.pf(3, PAGE, |a| a.mov(byte_ptr(PAGE), al))?;
        p.mov(rax, qword_ptr(Machine::pte(PAGE)))?;
        p.put(0, rax)?;
        // Writable now, the second half of the access is absent.
        p.mov(qword_ptr(Machine::pte(PAGE)), (PAGE | P | W) as i32)?;
        p.invlpg(byte_ptr(PAGE))?;
        p.pf(2, NEXT, |a| a.mov(qword_ptr(NEXT - 4), rax))?;
        p.mov(rax, qword_ptr(Machine::pte(NEXT)))?;
        p.put(1, rax)?;
        // CMPXCHG that fails stores all the same.
        p.mov(qword_ptr(Machine::pte(PAGE)), (PAGE | P | W) as i32)?;
        p.invlpg(byte_ptr(PAGE))?;
        p.mov(eax, 1)?;
        p.cmpxchg(dword_ptr(PAGE), ecx)?;
        p.mov(rax, qword_ptr(Machine::pte(PAGE)))?;
        p.put(2, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)? & D, 0, "dirty bit after a refused store");
    check_eq!(m.slot(1)?, 0, "an absent entry");
    check_eq!(m.slot(2)? & (A | D), A | D, "entry after CMPXCHG");
    Ok(())
}

fn large_pages(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let one_gib = m
        .profile
        .leaf(0x8000_0001, 0)
        .is_some_and(|leaf| leaf.edx & 1 << 26 != 0);
    // 2 MiB at 0x60_0000 and, if there are any, 1 GiB at 256 GiB.
    m.put(PD + 8 * 3, PS | P | W)?;
    m.put(PDPT + 8 * 256, PS | P | W)?;
    m.put(DATA, 0x55)?;
    m.program(|p| {
        p.mov(rax, qword_ptr(0x60_0000 + DATA))?;
        p.put(0, rax)?;
        p.mov(rax, qword_ptr(PD + 24))?;
        p.put(1, rax)?;
        p.inc(qword_ptr(0x60_0000 + DATA))?;
        p.mov(rax, qword_ptr(PD + 24))?;
        p.put(2, rax)?;
        if one_gib {
            p.mov(rbx, 0x40_0000_0000u64 + DATA)?;
            p.mov(rax, qword_ptr(rbx))?;
            p.put(3, rax)?;
            p.inc(qword_ptr(rbx))?;
        }
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0x55, "load through a 2 MiB page");
    check_eq!(m.slot(1)?, PS | P | W | A, "entry after a load");
    check_eq!(m.slot(2)?, PS | P | W | A | D, "entry after a store");
    if one_gib {
        check_eq!(m.slot(3)?, 0x56, "load through a 1 GiB page");
        check_eq!(m.get(DATA)?, 0x57, "store through a 1 GiB page");
        let entry = m.get(PDPT + 8 * 256)?;
        check_eq!(entry, PS | P | W | A | D, "1 GiB entry");
    }
    Ok(())
}

fn accesses_across_pages(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let second = NEXT + 0x1000;
    m.map(PAGE, 0)?;
    m.map(second, second | P)?;
    m.put(NEXT, 0x1111_1111_1111_1111)?;
    m.put(second - 8, 0x2222_2222_2222_2222)?;
    m.program(|p| {
        for back in 1..8 {
            // First half absent: CR2 is the first byte.
            let at = NEXT - back;
            p.pf(0, at, |a| a.mov(rax, qword_ptr(at)))?;
            p.pf(2, at, |a| a.mov(qword_ptr(at), rax))?;
            // Second half read-only: CR2 is that page's first byte, and
            // nothing of the first half is stored.
            let at = second - back;
            p.mov(rax, qword_ptr(at))?;
            p.pf(3, second, |a| a.mov(qword_ptr(at), rax))?;
            p.pf(3, second, |a| a.inc(qword_ptr(at)))?;
            p.pf(3, second, |a| a.lock().xadd(qword_ptr(at), rax))?;
        }
        p.done()
    })?;
    m.run()?;
    check_eq!(m.get(NEXT)?, 0x1111_1111_1111_1111, "memory behind");
    check_eq!(m.get(second - 8)?, 0x2222_2222_2222_2222, "memory before");
    let dirty = m.get(Machine::pte(second))? & D;
    check_eq!(dirty, 0, "dirty bit of a read-only page");
    Ok(())
}

fn read_modify_write_faults_as_a_write(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.map(PAGE, 0)?;
    m.map(NEXT, NEXT | P | U)?;
    m.program(|p| {
        p.mov(ecx, 1)?;
        p.pf(2, PAGE, |a| a.add(dword_ptr(PAGE), ecx))?;
        p.pf(2, PAGE, |a| a.shl(dword_ptr(PAGE), cl))?;
        p.pf(2, PAGE, |a| a.xchg(dword_ptr(PAGE), ecx))?;
        p.pf(2, PAGE, |a| a.bts(dword_ptr(PAGE), ecx))?;
        p.pf(2, PAGE, |a| a.neg(byte_ptr(PAGE)))?;
        p.pf(2, PAGE, |a| a.cmpxchg8b(qword_ptr(PAGE)))?;
        p.pf(0, PAGE, |a| a.cmp(dword_ptr(PAGE), ecx))?;
        p.pf(0, PAGE, |a| a.test(dword_ptr(PAGE), ecx))?;
        // Pushes from memory read first.
        p.pf(0, PAGE, |a| a.push(qword_ptr(PAGE)))?;
        p.pf(2, PAGE, |a| a.pop(qword_ptr(PAGE)))?;
        p.put(0, rsp)?;
        p.user(|p| {
            p.pf(7, NEXT, |a| a.xadd(dword_ptr(NEXT), ecx))?;
            p.mov(esi, NEXT as i32)?;
            p.mov(edi, NEXT as i32 + 8)?;
            p.pf(7, NEXT + 8, |a| a.movsq())
        })?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, STACK, "RSP after failed pushes and pops");
    Ok(())
}

fn rights_of_every_level(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let at = ALIAS + PAGE;
    // The directory above an open, writable, executable page says no.
    m.put(PD + 8, PT_ALIAS | P | W)?;
    m.put(PDPT + 8 * 256, SPARE_TABLE | P | U | NX)?;
    m.put(SPARE_TABLE, PT_ALIAS | P | W | U)?;
    let far = 0x40_0000_0000u64 + PAGE;
    m.program(|p| {
        p.mov(al, byte_ptr(at))?;
        p.mov(rbx, far)?;
        p.mov(al, byte_ptr(rbx))?;
        p.pf(3, far, |a| a.mov(byte_ptr(rbx), al))?;
        p.fault_at((vector::PF, 0x11), Some(far), far, |a| a.call(rbx))?;
        // Opened again for the user's code, which sees the others closed.
        p.mov(qword_ptr(PD + 8), (PT_ALIAS | P | W | U) as i32)?;
        p.mov(rax, cr3)?;
        p.mov(cr3, rax)?;
        p.user(|p| {
            p.mov(al, byte_ptr(rbx))?;
            p.pf(7, far, |a| a.mov(byte_ptr(rbx), al))?;
            p.pf(5, DATA, |a| a.mov(al, byte_ptr(DATA)))
        })?;
        p.done()
    })?;
    m.run()?;
    check!(m.get(PML4)? & A != 0, "PML4 entry was not accessed");
    Ok(())
}
