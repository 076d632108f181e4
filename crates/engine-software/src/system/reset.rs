//! Register values after power-on and INIT (SDM vol. 3, table 10-1).

use crate::cpu::{Activity, Cpu, Segment, Table, attr, cr0, flag, gpr, seg};
use crate::msr::Msrs;
use crate::system::debug::{DR6_FIXED, DR7_FIXED};

/// First instruction: the top of the 4 GiB address space.
const RESET_BASE: u64 = 0xFFFF_0000;
const RESET_RIP: u64 = 0xFFF0;

impl Cpu {
    /// State after power-on: vCPU 0 runs, the others wait for INIT.
    pub fn power_on(&mut self) {
        self.reset_common();
        self.cr0 = cr0::CD | cr0::NW | cr0::ET;
        self.msrs = Msrs::default();
        self.vector.reset();
        self.xcr0 = 1;
        self.activity = if self.index == 0 {
            Activity::Running
        } else {
            Activity::Uninitialized
        };
        self.flush_tlb();
    }

    /// INIT: as power-on, but the cache mode, x87 and vector registers and
    /// most MSRs stay. Afterwards vCPU 0 starts over and others wait for a
    /// start-up message.
    pub fn init_reset(&mut self) {
        let cache = self.cr0 & (cr0::CD | cr0::NW);
        self.collect_pv_eoi();
        self.reset_common();
        self.cr0 = cr0::ET | cache;
        self.activity = if self.index == 0 {
            Activity::Running
        } else {
            Activity::WaitForStartup
        };
        self.flush_tlb();
    }

    /// A start-up message: real mode at page `vector`.
    pub fn start_up(&mut self, vector: u8) {
        let selector = u16::from(vector) << 8;
        let code = &mut self.segs[seg::CS as usize];
        code.selector = selector;
        code.base = u64::from(selector) << 4;
        self.set_rip(0);
        self.activity = Activity::Running;
        self.update_mode();
    }

    fn reset_common(&mut self) {
        self.regs = [0; 18];
        // Family, model, stepping, as CPUID leaf 1 tells them.
        let signature = self.shared.profile.leaf(1, 0).map_or(0, |leaf| leaf.eax);
        self.regs[gpr::RDX] = u64::from(signature);
        self.set_rip(RESET_RIP);
        self.rflags = flag::FIXED;
        let data = Segment {
            selector: 0,
            attr: 0x93,
            limit: 0xFFFF,
            base: 0,
        };
        self.segs = [data; 6];
        self.segs[seg::CS as usize] = Segment {
            selector: 0xF000,
            attr: 0x9B,
            limit: 0xFFFF,
            base: RESET_BASE,
        };
        self.ldtr = Segment { attr: 0x82, ..data };
        self.tr = Segment {
            attr: 0x8B & !attr::UNUSABLE,
            ..data
        };
        self.gdtr = Table {
            base: 0,
            limit: 0xFFFF,
        };
        self.idtr = self.gdtr;
        self.cr2 = 0;
        self.cr3 = 0;
        self.cr4 = 0;
        self.efer = 0;
        self.pdpte = [0; 4];
        self.dr = [0; 4];
        self.dr6 = DR6_FIXED;
        self.dr7 = DR7_FIXED;
        self.debug_hits = 0;
        self.shadow = false;
        self.shadow_ss = false;
        self.nmi_blocked = false;
        self.nmi_pending = false;
        self.inject = None;
        self.inject_interrupt = None;
        self.update_mode();
    }
}
