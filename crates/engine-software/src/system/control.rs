//! Control registers: SDM vol. 3, 2.5; rules of MOV CR in vol. 2.
//!
//! ```text
//! real ──PE──► protected ──PG──► paging (32-bit, or PAE with CR4.PAE)
//!                  │
//!                  └─ EFER.LME, CR4.PAE, then PG ──► IA-32e (EFER.LMA)
//! ```

use iced_x86::{Instruction, Mnemonic, Register};

use crate::cpu::{Cpu, attr, cr0, cr4, efer, gpr, seg};
use crate::fault::{Exec, vector};
use crate::op::{Flow, Handler, Op};
use crate::segment::{BUSY, system_type};
use crate::shared::lock;
use crate::vector::component;

pub(super) fn handler(insn: &Instruction) -> Option<Handler> {
    Some(match insn.mnemonic() {
        Mnemonic::Mov if insn.op0_register().is_cr() => mov_to_cr,
        Mnemonic::Mov if insn.op1_register().is_cr() => mov_from_cr,
        Mnemonic::Smsw => smsw,
        Mnemonic::Lmsw => lmsw,
        Mnemonic::Clts => clts,
        Mnemonic::Xgetbv => xgetbv,
        Mnemonic::Xsetbv => xsetbv,
        _ => return None,
    })
}

fn mov_from_cr(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = match op.insn().op1_register() {
        Register::CR0 => cpu.cr0,
        Register::CR2 => cpu.cr2,
        Register::CR3 => cpu.cr3,
        Register::CR4 => cpu.cr4,
        Register::CR8 => {
            cpu.require_cpl0()?;
            u64::from(lock(&cpu.own.lapic).cr8())
        }
        _ => return Err(cpu.ud()),
    };
    cpu.require_cpl0()?;
    cpu.set_register(op.insn().op0_register(), value);
    Ok(Flow::Next)
}

fn mov_to_cr(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let which = op.insn().op0_register();
    let known = matches!(
        which,
        Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4 | Register::CR8
    );
    if !known {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    let value = cpu.register(op.insn().op1_register());
    match which {
        Register::CR0 => cpu.write_cr0(value)?,
        Register::CR2 => {
            cpu.cr2 = value;
            return Ok(Flow::Next);
        }
        Register::CR3 => cpu.write_cr3(value)?,
        Register::CR4 => cpu.write_cr4(value)?,
        _ => {
            if value > 0xF {
                return Err(cpu.gp(0));
            }
            cpu.collect_pv_eoi();
            lock(&cpu.own.lapic).set_cr8(value as u8);
            cpu.lapic_changed();
        }
    }
    Ok(Flow::End)
}

/// Bits of CR0 that exist.
const CR0_BITS: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// CR0 and CR4 bits whose change reloads the PAE page-directory pointers
/// (SDM vol. 3, 4.4.1).
const CR0_PDPTE: u64 = cr0::PG | cr0::CD | cr0::NW;
const CR4_PDPTE: u64 = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;

/// CR4 bits whose change makes cached translations wrong.
const CR4_TLB: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP;

/// CR3 bit 63: do not flush (with CR4.PCIDE).
const CR3_KEEP: u64 = 1 << 63;

/// Reserved bits of a present PAE page-directory pointer, below the
/// physical-address width.
const PDPTE_RESERVED: u64 = 0x1E6;

impl Cpu {
    /// MOV to CR0 with its checks.
    pub fn write_cr0(&mut self, value: u64) -> Exec {
        if value >> 32 != 0
            || value & (cr0::NW | cr0::CD) == cr0::NW
            || value & (cr0::PG | cr0::PE) == cr0::PG
        {
            return Err(self.gp(0));
        }
        let value = value & CR0_BITS | cr0::ET;
        let changed = self.cr0 ^ value;
        let mut new_efer = self.efer;
        if changed & cr0::PG != 0 {
            if value & cr0::PG == 0 {
                if self.code64() || self.cr4 & cr4::PCIDE != 0 {
                    return Err(self.gp(0));
                }
                new_efer &= !efer::LMA;
            } else if self.efer & efer::LME != 0 {
                let tss16 = self.tr.attr & attr::TYPE & !BUSY == system_type::TSS16;
                let code = self.segs[seg::CS as usize].attr;
                if self.cr4 & cr4::PAE == 0 || code & attr::L != 0 || tss16 {
                    return Err(self.gp(0));
                }
                new_efer |= efer::LMA;
            }
        }
        let pae = value & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && new_efer & efer::LMA == 0;
        if pae && changed & CR0_PDPTE != 0 {
            self.load_pdptes()?;
        }
        self.cr0 = value;
        self.efer = new_efer;
        if changed & (cr0::PG | cr0::PE | cr0::WP) != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        Ok(())
    }

    /// MOV to CR3 with its checks.
    pub fn write_cr3(&mut self, value: u64) -> Exec {
        let mut keep = false;
        let mut value = value;
        if self.long_mode {
            if self.cr4 & cr4::PCIDE != 0 {
                keep = value & CR3_KEEP != 0;
                value &= !CR3_KEEP;
            }
            if value >> self.shared.profile.physical_bits != 0 {
                return Err(self.gp(0));
            }
        } else {
            value &= 0xFFFF_FFFF;
        }
        let old = std::mem::replace(&mut self.cr3, value);
        if self.pae_paging()
            && let Err(fault) = self.load_pdptes()
        {
            self.cr3 = old;
            return Err(fault);
        }
        self.switch_address_space(keep);
        Ok(())
    }

    /// MOV to CR4 with its checks.
    pub fn write_cr4(&mut self, value: u64) -> Exec {
        let changed = self.cr4 ^ value;
        let sets = changed & value;
        let forbidden = value & !self.shared.features.cr4 != 0
            || self.long_mode && value & cr4::PAE == 0
            || sets & cr4::PCIDE != 0 && (!self.long_mode || self.cr3 & 0xFFF != 0);
        if forbidden {
            return Err(self.gp(0));
        }
        let old = std::mem::replace(&mut self.cr4, value);
        if self.pae_paging()
            && changed & CR4_PDPTE != 0
            && let Err(fault) = self.load_pdptes()
        {
            self.cr4 = old;
            return Err(fault);
        }
        if changed & CR4_TLB != 0 {
            self.flush_tlb();
        }
        if changed & cr4::SMAP != 0 {
            self.retranslate();
        }
        self.update_mode();
        Ok(())
    }

    pub(crate) fn pae_paging(&self) -> bool {
        self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && !self.long_mode
    }

    /// Loads the four PAE page-directory pointers from where CR3 points;
    /// #GP(0) when a present one has reserved bits set.
    pub(crate) fn load_pdptes(&mut self) -> Exec {
        let table = self.cr3 & 0xFFFF_FFE0;
        let mut bytes = [0xFF; 32];
        // Without RAM there the bus reads as ones, which are reserved bits.
        let _ = self.shared.ram.read(table, &mut bytes);
        let mut loaded = [0; 4];
        for (entry, chunk) in loaded.iter_mut().zip(bytes.chunks_exact(8)) {
            *entry = chunk
                .iter()
                .rev()
                .fold(0, |all, byte| all << 8 | u64::from(*byte));
        }
        if !self.pdptes_allowed(&loaded) {
            return Err(self.gp(0));
        }
        self.pdpte = loaded;
        Ok(())
    }

    /// No present one has reserved bits set.
    pub(crate) fn pdptes_allowed(&self, pdptes: &[u64; 4]) -> bool {
        let reserved = PDPTE_RESERVED | u64::MAX << self.shared.profile.physical_bits;
        pdptes
            .iter()
            .all(|entry| entry & 1 == 0 || entry & reserved == 0)
    }
}

fn smsw(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    super::tables::check_umip(cpu)?;
    let value = cpu.cr0;
    cpu.set_operand16(op, 0, value)?;
    Ok(Flow::Next)
}

fn lmsw(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_cpl0()?;
    let value = u64::from(cpu.operand16(op, 0)?);
    // PE can be set, not cleared.
    let low = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    let new = cpu.cr0 & !(low & !cr0::PE) | value & low;
    cpu.write_cr0(new)?;
    Ok(Flow::End)
}

fn clts(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    cpu.require_cpl0()?;
    cpu.cr0 &= !cr0::TS;
    Ok(Flow::End)
}

fn need_osxsave(cpu: &mut Cpu) -> Exec {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    Ok(())
}

fn xgetbv(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    need_osxsave(cpu)?;
    let value = match cpu.regs[gpr::RCX] as u32 {
        0 => cpu.xcr0,
        1 if cpu.shared.features.xgetbv1 => cpu.xcr0 & cpu.vector.xinuse(),
        _ => return Err(cpu.gp(0)),
    };
    cpu.set_r32(gpr::RAX, value as u32);
    cpu.set_r32(gpr::RDX, (value >> 32) as u32);
    Ok(Flow::Next)
}

fn xsetbv(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    need_osxsave(cpu)?;
    let value = cpu.regs[gpr::RDX] << 32 | cpu.regs[gpr::RAX] & 0xFFFF_FFFF;
    let avx_alone = value & (component::SSE | component::AVX) == component::AVX;
    let valid = cpu.cpl == 0
        && cpu.regs[gpr::RCX] as u32 == 0
        && value & component::X87 != 0
        && value & !cpu.shared.profile.xcr0 == 0
        && !avx_alone;
    if !valid {
        return Err(cpu.raise_code(vector::GP, 0));
    }
    cpu.xcr0 = value;
    Ok(Flow::End)
}
