//! A guest program: instructions, and the exceptions they must cause.

use std::ops::{Deref, DerefMut};

use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

use crate::layout::*;

type Emit = Result<(), IcedError>;

/// Where the frame of an exception must point.
#[derive(Clone, Copy, Debug)]
enum Frame {
    Label(CodeLabel),
    Address(u64),
    Any,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    vector: u8,
    error: Option<u64>,
    cr2: Option<u64>,
    frame: Frame,
}

/// An exception or interrupt that must be in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Vector.
    pub vector: u8,
    /// Error code; zero without one.
    pub error: Option<u64>,
    /// CR2.
    pub cr2: Option<u64>,
    /// Address in the frame; user code may show it through the alias.
    pub rip: Option<u64>,
}

/// An assembler that remembers what must happen.
pub struct Program {
    asm: CodeAssembler,
    bits: u32,
    due: Vec<Due>,
    fixups: Vec<(Frame, CodeLabel, u64)>,
    marks: Vec<CodeLabel>,
}

/// A program with its addresses.
pub struct Assembled {
    /// Machine code.
    pub bytes: Vec<u8>,
    /// What must be in the log, in order.
    pub expected: Vec<Expected>,
    /// Fix-up table.
    pub fixups: Vec<[u64; 3]>,
    /// Addresses of the marks.
    pub marks: Vec<u64>,
}

impl Deref for Program {
    type Target = CodeAssembler;
    fn deref(&self) -> &CodeAssembler {
        &self.asm
    }
}

impl DerefMut for Program {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.asm
    }
}

impl Program {
    /// An empty program of 16-, 32- or 64-bit code.
    pub fn new(bits: u32) -> Result<Self, IcedError> {
        Ok(Program {
            asm: CodeAssembler::new(bits)?,
            bits,
            due: Vec::new(),
            fixups: Vec::new(),
            marks: Vec::new(),
        })
    }

    /// Assembles for linear address `ip`.
    pub fn assemble(mut self, ip: u64) -> Result<Assembled, IcedError> {
        // Labels need an instruction behind them.
        self.asm.nop()?;
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let result = self.asm.assemble_options(ip, options)?;
        let address = |frame: &Frame| -> Result<Option<u64>, IcedError> {
            Ok(match frame {
                Frame::Label(label) => Some(result.label_ip(label)?),
                Frame::Address(address) => Some(*address),
                Frame::Any => None,
            })
        };
        let mut expected = Vec::new();
        for due in &self.due {
            expected.push(Expected {
                vector: due.vector,
                error: due.error,
                cr2: due.cr2,
                rip: address(&due.frame)?,
            });
        }
        let mut fixups = Vec::new();
        for (frame, target, kind) in &self.fixups {
            if let Some(from) = address(frame)? {
                fixups.push([from, result.label_ip(target)?, *kind]);
            }
        }
        let marks = self
            .marks
            .iter()
            .map(|label| result.label_ip(label))
            .collect::<Result<_, _>>()?;
        Ok(Assembled {
            bytes: result.inner.code_buffer,
            expected,
            fixups,
            marks,
        })
    }

    /// Marks this place; the result indexes [`Assembled::marks`].
    pub fn mark(&mut self) -> Result<usize, IcedError> {
        let mut label = self.asm.create_label();
        self.asm.set_label(&mut label)?;
        self.asm.nop()?;
        self.marks.push(label);
        Ok(self.marks.len() - 1)
    }

    fn faulting(
        &mut self,
        due: impl FnOnce(CodeLabel) -> Due,
        emit: impl FnOnce(&mut CodeAssembler) -> Emit,
    ) -> Emit {
        let (mut before, mut after) = (self.asm.create_label(), self.asm.create_label());
        self.asm.nop()?;
        self.asm.set_label(&mut before)?;
        emit(&mut self.asm)?;
        self.asm.set_label(&mut after)?;
        self.asm.nop()?;
        let due = due(before);
        self.fixups.push((due.frame, after, 0));
        self.due.push(due);
        Ok(())
    }

    /// The instruction faults; the frame points at it.
    pub fn fault(
        &mut self,
        vector: u8,
        error: u64,
        emit: impl FnOnce(&mut CodeAssembler) -> Emit,
    ) -> Emit {
        self.faulting(
            |before| Due {
                vector,
                error: Some(error),
                cr2: None,
                frame: Frame::Label(before),
            },
            emit,
        )
    }

    /// The instruction raises #GP.
    pub fn gp(&mut self, error: u64, emit: impl FnOnce(&mut CodeAssembler) -> Emit) -> Emit {
        self.fault(vector::GP, error, emit)
    }

    /// The instruction raises #UD.
    pub fn ud(&mut self, emit: impl FnOnce(&mut CodeAssembler) -> Emit) -> Emit {
        self.fault(vector::UD, 0, emit)
    }

    /// The instruction raises #PF at `linear`.
    pub fn pf(
        &mut self,
        error: u64,
        linear: u64,
        emit: impl FnOnce(&mut CodeAssembler) -> Emit,
    ) -> Emit {
        self.faulting(
            |before| Due {
                vector: vector::PF,
                error: Some(error),
                cr2: Some(linear),
                frame: Frame::Label(before),
            },
            emit,
        )
    }

    /// What happens here makes an exception whose frame points at `address`,
    /// such as a jump whose target cannot be fetched.
    pub fn fault_at(
        &mut self,
        (vector, error): (u8, u64),
        linear: Option<u64>,
        address: u64,
        emit: impl FnOnce(&mut CodeAssembler) -> Emit,
    ) -> Emit {
        self.faulting(
            |_| Due {
                vector,
                error: Some(error),
                cr2: linear,
                frame: Frame::Address(address),
            },
            emit,
        )
    }

    /// What happens here makes an exception in user mode, whose frame points at
    /// `address`; it goes on behind, back in the kernel. RSP must have been
    /// stored at [`KERNEL_RSP`].
    pub fn fault_that_escapes(
        &mut self,
        vector: u8,
        error: u64,
        address: u64,
        emit: impl FnOnce(&mut CodeAssembler) -> Emit,
    ) -> Emit {
        let mut after = self.asm.create_label();
        emit(&mut self.asm)?;
        self.asm.set_label(&mut after)?;
        self.asm.nop()?;
        let frame = Frame::Address(address);
        self.fixups.push((frame, after, 1));
        self.due.push(Due {
            vector,
            error: Some(error),
            cr2: None,
            frame,
        });
        Ok(())
    }

    /// The instruction completes and then traps.
    pub fn trap(&mut self, vector: u8, emit: impl FnOnce(&mut CodeAssembler) -> Emit) -> Emit {
        let mut after = self.asm.create_label();
        emit(&mut self.asm)?;
        self.asm.set_label(&mut after)?;
        self.asm.nop()?;
        self.due.push(Due {
            vector,
            error: Some(0),
            cr2: None,
            frame: Frame::Label(after),
        });
        Ok(())
    }

    /// An interrupt or exception comes somewhere here.
    pub fn event(&mut self, vector: u8) {
        self.due.push(Due {
            vector,
            error: None,
            cr2: None,
            frame: Frame::Any,
        });
    }

    /// Stores a 64-bit register in a result slot.
    pub fn put(&mut self, slot: u64, register: AsmRegister64) -> Emit {
        self.asm.mov(qword_ptr(SLOTS + 8 * slot), register)
    }

    /// Stores a 32-bit register in a result slot.
    pub fn put32(&mut self, slot: u64, register: AsmRegister32) -> Emit {
        self.asm.mov(dword_ptr(SLOTS + 8 * slot), register)
    }

    /// Stores a 64-bit register in a result slot, from user mode.
    pub fn put_user(&mut self, slot: u64, register: AsmRegister64) -> Emit {
        self.asm.mov(qword_ptr(ALIAS + SLOTS + 8 * slot), register)
    }

    /// Code that runs in user mode, entered with `flags`. Uses R15 (EBP in
    /// 32-bit code); it must reach its end.
    pub fn user_with(&mut self, flags: u64, body: impl FnOnce(&mut Program) -> Emit) -> Emit {
        let mut start = self.asm.create_label();
        let asm = &mut self.asm;
        if self.bits == 64 {
            asm.mov(qword_ptr(KERNEL_RSP), rsp)?;
            asm.push(i32::from(USER_DS))?;
            asm.push(USER_STACK as i32)?;
            asm.push((flags | flag::FIXED) as i32)?;
            asm.push(i32::from(USER_CS))?;
            asm.lea(r15, ptr(start))?;
            asm.add(r15, ALIAS as i32)?;
            asm.push(r15)?;
            asm.iretq()?;
        } else {
            // No relative addresses here: a call tells where it is.
            let mut leave = asm.create_label();
            asm.jmp(start)?;
            asm.set_label(&mut leave)?;
            asm.pop(ebp)?;
            asm.add(ebp, ALIAS as i32)?;
            asm.push(i32::from(USER_DS))?;
            asm.push(USER_STACK as i32)?;
            asm.push((flags | flag::FIXED) as i32)?;
            asm.push(i32::from(USER_CS32))?;
            asm.push(ebp)?;
            asm.mov(ebp, i32::from(USER_DS))?;
            asm.mov(ds, ebp)?;
            asm.mov(es, ebp)?;
            asm.iretd()?;
            asm.set_label(&mut start)?;
            asm.mov(dword_ptr(KERNEL_RSP), esp)?;
            asm.call(leave)?;
            start = asm.create_label();
        }
        asm.set_label(&mut start)?;
        asm.nop()?;
        body(self)?;
        let (mut behind, mut out) = (self.asm.create_label(), self.asm.create_label());
        self.asm.int(i32::from(ESCAPE))?;
        self.asm.set_label(&mut behind)?;
        self.asm.nop()?;
        self.asm.set_label(&mut out)?;
        self.asm.nop()?;
        self.fixups.push((Frame::Label(behind), out, 1));
        Ok(())
    }

    /// Code that runs in user mode with interrupts off.
    pub fn user(&mut self, body: impl FnOnce(&mut Program) -> Emit) -> Emit {
        self.user_with(0, body)
    }

    /// A far jump to `selector:offset` in 16- or 32-bit code, whose offset has
    /// the size of the code.
    pub fn far_jump(&mut self, selector: u16, offset: u32) -> Emit {
        let mut bytes = vec![0xEA];
        if self.bits == 16 {
            bytes.extend_from_slice(&(offset as u16).to_le_bytes());
        } else {
            bytes.extend_from_slice(&offset.to_le_bytes());
        }
        bytes.extend_from_slice(&selector.to_le_bytes());
        self.asm.db(&bytes)
    }

    /// A far jump with a 32-bit offset out of 16-bit code.
    pub fn far_jump32(&mut self, selector: u16, offset: u32) -> Emit {
        let mut bytes = vec![0x66, 0xEA];
        bytes.extend_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(&selector.to_le_bytes());
        self.asm.db(&bytes)
    }

    /// Writes `value` to MSR `index`; uses EAX, ECX, EDX.
    pub fn wrmsr_value(&mut self, index: u32, value: u64) -> Emit {
        self.asm.mov(ecx, index as i32)?;
        self.asm.mov(eax, value as u32 as i32)?;
        self.asm.mov(edx, (value >> 32) as i32)?;
        self.asm.wrmsr()
    }

    /// Reads MSR `index` into RAX; uses RCX, RDX.
    pub fn rdmsr_value(&mut self, index: u32) -> Emit {
        self.asm.mov(ecx, index as i32)?;
        self.asm.rdmsr()?;
        self.asm.shl(rdx, 32)?;
        self.asm.or(rax, rdx)
    }

    /// Writes to a byte port; uses AL.
    pub fn out8(&mut self, port: u8, value: u8) -> Emit {
        self.asm.mov(al, u32::from(value))?;
        self.asm.out(u32::from(port), al)
    }

    /// Loads TR, which the state has already: QEMU's emulation of a nested
    /// processor knows tasks from LTR only. Uses EAX.
    pub fn load_task(&mut self) -> Emit {
        self.asm.mov(eax, i32::from(TSS_SELECTOR))?;
        self.asm.ltr(ax)
    }

    /// Stops the vCPU without ending the guest.
    pub fn stop(&mut self) -> Emit {
        self.asm.out(u32::from(PORT_STOP), al)
    }

    /// Ends the guest.
    pub fn done(&mut self) -> Emit {
        let mut forever = self.asm.create_label();
        self.asm.out(u32::from(PORT_DONE), al)?;
        self.asm.set_label(&mut forever)?;
        self.asm.cli()?;
        self.asm.hlt()?;
        self.asm.jmp(forever)
    }
}
