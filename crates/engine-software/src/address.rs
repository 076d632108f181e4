//! From an operand to a linear address: offsets, segments, limits.

use crate::cpu::{Cpu, attr, seg};
use crate::fault::{Exec, vector};
use crate::op::{Op, op_flag};

impl Cpu {
    /// Offset of `op`'s memory operand in its segment.
    #[inline(always)]
    pub fn ea(&self, op: &Op) -> u64 {
        let base = self.regs[usize::from(op.base)];
        let index = self.regs[usize::from(op.index)];
        let offset = base
            .wrapping_add(index << op.scale)
            .wrapping_add(op.disp as u64);
        if op.has(op_flag::FLAT) {
            offset
        } else if op.has(op_flag::ADDR32) {
            offset & 0xFFFF_FFFF
        } else if op.has(op_flag::ADDR16) {
            offset & 0xFFFF
        } else {
            offset
        }
    }

    /// Linear address of `op`'s memory operand of `size` bytes.
    #[inline(always)]
    pub fn linear(&mut self, op: &Op, size: u64, write: bool) -> Exec<u64> {
        let offset = self.ea(op);
        if op.has(op_flag::FLAT) {
            return Ok(offset);
        }
        if op.has(op_flag::CODE64) {
            return Ok(self.linear64(op.seg, offset));
        }
        self.linear_at(op.seg, offset, size, write)
    }

    #[inline(always)]
    fn linear64(&self, segment: u8, offset: u64) -> u64 {
        if segment >= seg::FS {
            offset.wrapping_add(self.segs[usize::from(segment)].base)
        } else {
            offset
        }
    }

    /// Linear address of `size` bytes at `segment`:`offset`, with the checks
    /// of the current mode (SDM vol. 3, 5.3 and 5.4). Canonical form is
    /// checked by the access itself.
    pub fn linear_at(&mut self, segment: u8, offset: u64, size: u64, write: bool) -> Exec<u64> {
        if self.code64() {
            return Ok(self.linear64(segment, offset));
        }
        let s = self.segs[usize::from(segment)];
        let fail = if segment == seg::SS {
            vector::SS
        } else {
            vector::GP
        };
        if self.protected() && !self.vm86() {
            let code = s.attr & attr::CODE != 0;
            let forbidden = if write {
                code || s.attr & attr::RW == 0
            } else {
                code && s.attr & attr::RW == 0 && segment != seg::CS
            };
            if s.attr & attr::UNUSABLE != 0 || forbidden {
                return Err(self.raise_code(fail, 0));
            }
        }
        let offset = offset & 0xFFFF_FFFF;
        let last = offset.wrapping_add(size.wrapping_sub(1));
        let limit = u64::from(s.limit);
        let expand_down = s.attr & (attr::CODE | attr::EC | attr::S) == attr::EC | attr::S;
        let outside = if expand_down {
            let top = if s.attr & attr::DB != 0 {
                0xFFFF_FFFF
            } else {
                0xFFFF
            };
            offset <= limit || last > top
        } else {
            last > limit
        };
        if outside {
            return Err(self.raise_code(fail, 0));
        }
        Ok(s.base.wrapping_add(offset) & 0xFFFF_FFFF)
    }
}
