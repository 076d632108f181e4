//! Accesses that leave the machine: ports, memory that is not RAM, doorbells.

use croft_engine::{Doorbell, DoorbellAddress, Engine};
use iced_x86::code_asm::*;

use crate::layout::*;
use crate::machine::Machine;
use crate::recorder::{Access, pattern_word};
use crate::{Outcome, check, check_eq};

guests! { "input_output":
    port_sizes [],
    port_strings [],
    memory_sizes [],
    memory_across_ram_boundary [],
    memory_strings [],
    memory_read_modify_write [],
    doorbells [],
}

fn port_sizes(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(rax, -1i64)?;
        p.in_(al, 0x10)?;
        p.put(0, rax)?;
        p.mov(edx, 0x1234)?;
        p.mov(rax, -1i64)?;
        p.in_(ax, dx)?;
        p.put(1, rax)?;
        p.mov(rax, -1i64)?;
        p.in_(eax, dx)?;
        p.put(2, rax)?;
        p.mov(eax, 0x4433_2211)?;
        p.out(dx, al)?;
        p.out(dx, ax)?;
        p.out(dx, eax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, !0xFF | pattern_word(0x10, 1), "AL");
    check_eq!(m.slot(1)?, !0xFFFF | pattern_word(0x1234, 2), "AX");
    check_eq!(m.slot(2)?, pattern_word(0x1234, 4), "EAX");
    let wanted = [
        Access::PortRead(0x10, 1),
        Access::PortRead(0x1234, 2),
        Access::PortRead(0x1234, 4),
        Access::PortWrite(0x1234, vec![0x11]),
        Access::PortWrite(0x1234, vec![0x11, 0x22]),
        Access::PortWrite(0x1234, vec![0x11, 0x22, 0x33, 0x44]),
    ];
    check_eq!(m.io.take(), wanted, "accesses");
    Ok(())
}

fn port_strings(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.put(DATA, 0x8877_6655_4433_2211)?;
    m.program(|p| {
        p.mov(edx, 0x123)?;
        p.mov(esi, DATA as i32)?;
        p.mov(ecx, 4)?;
        p.rep().outsw()?;
        p.put(0, rsi)?;
        p.put(1, rcx)?;
        p.mov(edi, DATA as i32 + 64 + 12)?;
        p.mov(ecx, 4)?;
        p.std()?;
        p.rep().insd()?;
        p.cld()?;
        p.put(2, rdi)?;
        // Long enough to be interrupted by the engine's own polling.
        p.mov(edi, DATA as i32 + 0x1000)?;
        p.mov(ecx, 3000)?;
        p.rep().insb()?;
        p.put(3, rdi)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, DATA + 8, "RSI");
    check_eq!(m.slot(1)?, 0, "RCX");
    check_eq!(m.slot(2)?, DATA + 64 - 4, "RDI going down");
    check_eq!(m.slot(3)?, DATA + 0x1000 + 3000, "RDI going up");
    let accesses = m.io.take();
    check_eq!(accesses.len(), 4 + 4 + 3000, "accesses");
    check_eq!(
        accesses[1],
        Access::PortWrite(0x123, vec![0x33, 0x44]),
        "second word"
    );
    let word = pattern_word(0x123, 4);
    check_eq!(m.get(DATA + 64)?, word << 32 | word, "what was read");
    Ok(())
}

fn memory_sizes(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(ebx, MMIO as i32)?;
        p.mov(ebx, ebx)?;
        p.mov(rax, -1i64)?;
        p.mov(al, byte_ptr(rbx + 1))?;
        p.put(0, rax)?;
        p.mov(ax, word_ptr(rbx + 2))?;
        p.put(1, rax)?;
        p.mov(eax, dword_ptr(rbx + 4))?;
        p.put(2, rax)?;
        p.mov(rax, qword_ptr(rbx + 8))?;
        p.put(3, rax)?;
        p.movsx(rax, byte_ptr(rbx + 3))?;
        p.put(4, rax)?;
        // Misaligned and across pages: however split, the bytes are right.
        p.mov(rax, qword_ptr(rbx + 0xFFD))?;
        p.put(5, rax)?;
        p.mov(eax, dword_ptr(rbx + 0x11))?;
        p.put(6, rax)?;
        p.mov(rax, 0x8877_6655_4433_2211u64)?;
        p.mov(byte_ptr(rbx + 0x100), al)?;
        p.mov(word_ptr(rbx + 0x102), ax)?;
        p.mov(dword_ptr(rbx + 0x104), eax)?;
        p.mov(qword_ptr(rbx + 0x108), rax)?;
        p.mov(qword_ptr(rbx + 0x1FFB), rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, !0xFF | pattern_word(MMIO + 1, 1), "AL");
    check_eq!(m.slot(1)?, !0xFFFF | pattern_word(MMIO + 2, 2), "AX");
    check_eq!(m.slot(2)?, pattern_word(MMIO + 4, 4), "EAX");
    check_eq!(m.slot(3)?, pattern_word(MMIO + 8, 8), "RAX");
    let byte = pattern_word(MMIO + 3, 1) as i8;
    check_eq!(m.slot(4)?, i64::from(byte) as u64, "sign-extended");
    check_eq!(m.slot(5)?, pattern_word(MMIO + 0xFFD, 8), "across pages");
    check_eq!(m.slot(6)?, pattern_word(MMIO + 0x11, 4), "misaligned");
    let accesses = m.io.take();
    let wanted = [
        Access::MemoryRead(MMIO + 1, 1),
        Access::MemoryRead(MMIO + 2, 2),
        Access::MemoryRead(MMIO + 4, 4),
        Access::MemoryRead(MMIO + 8, 8),
        Access::MemoryRead(MMIO + 3, 1),
    ];
    check_eq!(accesses[..5], wanted, "aligned accesses");
    let mut written = std::collections::BTreeMap::new();
    for access in &accesses {
        if let Access::MemoryWrite(address, data) = access {
            check!(
                matches!(data.len(), 1 | 2 | 4 | 8),
                "an access of {} bytes",
                data.len()
            );
            for (n, byte) in data.iter().enumerate() {
                written.insert(address + n as u64 - MMIO, *byte);
            }
        }
    }
    let bytes = 0x8877_6655_4433_2211u64.to_le_bytes();
    for (at, len) in [(0x100, 1), (0x102, 2), (0x104, 4), (0x108, 8), (0x1FFB, 8)] {
        for n in 0..len {
            let found = written.get(&(at + n)).copied();
            check_eq!(found, Some(bytes[n as usize]), "byte {:#x}", at + n);
        }
    }
    check_eq!(written.len(), 23, "bytes written");
    Ok(())
}

fn memory_across_ram_boundary(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    // The last page of the alias range ends up before RAM's end.
    m.map(RAM - 0x1000, (RAM - 0x1000) | page::P | page::W)?;
    m.ram.write(RAM - 4, &[1, 2, 3, 4])?;
    m.program(|p| {
        p.mov(rax, qword_ptr(RAM - 4))?;
        p.put(0, rax)?;
        p.mov(rax, 0x8877_6655_4433_2211u64)?;
        p.mov(qword_ptr(RAM - 3), rax)?;
        p.done()
    })?;
    m.run()?;
    let wanted = 0x0403_0201 | pattern_word(RAM, 4) << 32;
    check_eq!(m.slot(0)?, wanted, "half RAM, half not");
    let mut bytes = [0; 4];
    m.ram.read(RAM - 4, &mut bytes)?;
    check_eq!(bytes, [1, 0x11, 0x22, 0x33], "the RAM half of a store");
    let mut outside = Vec::new();
    for access in m.io.take() {
        if let Access::MemoryWrite(address, data) = access {
            check_eq!(address, RAM + outside.len() as u64, "address outside");
            outside.extend(data);
        }
    }
    check_eq!(outside, [0x44, 0x55, 0x66, 0x77, 0x88], "the other half");
    Ok(())
}

fn memory_strings(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(esi, MMIO as i32)?;
        p.mov(esi, esi)?;
        p.mov(edi, DATA as i32)?;
        p.mov(ecx, 4)?;
        p.rep().movsd()?;
        p.lea(rdi, ptr(rsi + 0x100))?;
        p.mov(esi, DATA as i32)?;
        p.mov(ecx, 3)?;
        p.rep().movsw()?;
        p.mov(ecx, 2)?;
        p.mov(eax, 0x55)?;
        p.rep().stosb()?;
        p.put(0, rdi)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.get(DATA)?, pattern_word(MMIO, 8), "copied from outside");
    check_eq!(m.get(DATA + 8)?, pattern_word(MMIO + 8, 8), "copied");
    let base = MMIO + 0x110;
    check_eq!(m.slot(0)?, base + 8, "RDI");
    let writes: Vec<_> = m.io.take().split_off(4);
    check_eq!(writes.len(), 5, "writes");
    check_eq!(
        writes[3],
        Access::MemoryWrite(base + 6, vec![0x55]),
        "STOSB"
    );
    Ok(())
}

fn memory_read_modify_write(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(ebx, MMIO as i32)?;
        p.mov(ebx, ebx)?;
        p.or(dword_ptr(rbx), 0x100)?;
        p.mov(eax, 7)?;
        p.xchg(dword_ptr(rbx + 8), eax)?;
        p.put(0, rax)?;
        p.push(qword_ptr(rbx + 0x10))?;
        p.pop(qword_ptr(rbx + 0x18))?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, pattern_word(MMIO + 8, 4), "XCHG");
    let first = (pattern_word(MMIO, 4) as u32 | 0x100).to_le_bytes();
    let pushed = pattern_word(MMIO + 0x10, 8).to_le_bytes();
    let wanted = [
        Access::MemoryRead(MMIO, 4),
        Access::MemoryWrite(MMIO, first.to_vec()),
        Access::MemoryRead(MMIO + 8, 4),
        Access::MemoryWrite(MMIO + 8, vec![7, 0, 0, 0]),
        Access::MemoryRead(MMIO + 0x10, 8),
        Access::MemoryWrite(MMIO + 0x18, pushed.to_vec()),
    ];
    check_eq!(m.io.take(), wanted, "accesses");
    Ok(())
}

fn doorbells(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let ring = |address, len, value| {
        m.partition.doorbell(Doorbell {
            address,
            len,
            value,
        })
    };
    let any = ring(DoorbellAddress::Memory(MMIO), 0, None)?;
    let wide = ring(DoorbellAddress::Memory(MMIO + 8), 4, None)?;
    let exact = ring(DoorbellAddress::Memory(MMIO + 16), 2, Some(5))?;
    let port = ring(DoorbellAddress::Port(0x60), 1, None)?;
    let gone = Doorbell {
        address: DoorbellAddress::Memory(MMIO + 32),
        len: 4,
        value: None,
    };
    let removed = m.partition.doorbell(gone)?;
    m.partition.remove_doorbell(gone);
    m.program(|p| {
        p.mov(ebx, MMIO as i32)?;
        p.mov(ebx, ebx)?;
        p.mov(eax, 5)?;
        p.mov(dword_ptr(rbx), eax)?;
        p.mov(word_ptr(rbx), ax)?;
        p.mov(dword_ptr(rbx + 8), eax)?;
        p.mov(word_ptr(rbx + 8), ax)?;
        p.mov(word_ptr(rbx + 16), ax)?;
        p.mov(word_ptr(rbx + 16), 6)?;
        p.mov(dword_ptr(rbx + 32), eax)?;
        p.out(0x60, al)?;
        // Reads are no rings.
        p.mov(eax, dword_ptr(rbx))?;
        p.done()
    })?;
    m.run()?;
    let rings = |event: &vmm_sys_util::eventfd::EventFd| event.read().unwrap_or(0);
    check_eq!(rings(&any), 2, "rings of any size");
    check_eq!(rings(&wide), 1, "rings of four bytes");
    check_eq!(rings(&exact), 1, "rings of the value");
    check_eq!(rings(&port), 1, "rings of the port");
    check_eq!(rings(&removed), 0, "rings after it was removed");
    let wanted = [
        Access::MemoryWrite(MMIO + 8, vec![5, 0]),
        Access::MemoryWrite(MMIO + 16, vec![6, 0]),
        Access::MemoryWrite(MMIO + 32, vec![5, 0, 0, 0]),
        Access::MemoryRead(MMIO, 4),
    ];
    check_eq!(m.io.take(), wanted, "what was no ring");
    Ok(())
}
