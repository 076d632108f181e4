//! A copy of the architectural state.

use std::fmt::LowerHex;

use crate::cpu::{Activity, Cpu, RIP, Segment, Table};
use crate::msr::Msrs;
use crate::vector::{VectorState, at};

/// Names of [`Cpu::regs`].
const NAMES: [&str; 18] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "zero", "rip",
];

/// The state that instructions inside change, and what lies around it.
#[derive(Clone)]
pub struct Snapshot {
    regs: [u64; 18],
    rflags: u64,
    segs: [Segment; 6],
    tr: Segment,
    ldtr: Segment,
    gdtr: Table,
    idtr: Table,
    /// CR0, CR2, CR3, CR4, EFER, XCR0, DR6, DR7.
    control: [u64; 8],
    pdpte: [u64; 4],
    dr: [u64; 4],
    msrs: Msrs,
    vector: VectorState,
    activity: Activity,
    nmi_blocked: bool,
    nmi_pending: bool,
    shadow: bool,
    shadow_ss: bool,
    debug_hits: u64,
}

impl Snapshot {
    /// The present state.
    pub fn take(cpu: &Cpu) -> Self {
        Snapshot {
            regs: cpu.regs,
            rflags: cpu.rflags,
            segs: cpu.segs,
            tr: cpu.tr,
            ldtr: cpu.ldtr,
            gdtr: cpu.gdtr,
            idtr: cpu.idtr,
            control: [
                cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer, cpu.xcr0, cpu.dr6, cpu.dr7,
            ],
            pdpte: cpu.pdpte,
            dr: cpu.dr,
            msrs: cpu.msrs.clone(),
            vector: (*cpu.vector).clone(),
            activity: cpu.activity,
            nmi_blocked: cpu.nmi_blocked,
            nmi_pending: cpu.nmi_pending,
            shadow: cpu.shadow,
            shadow_ss: cpu.shadow_ss,
            debug_hits: cpu.debug_hits,
        }
    }

    /// Makes it the present state again.
    pub fn put(&self, cpu: &mut Cpu) {
        cpu.regs = self.regs;
        cpu.rflags = self.rflags;
        cpu.segs = self.segs;
        cpu.tr = self.tr;
        cpu.ldtr = self.ldtr;
        cpu.gdtr = self.gdtr;
        cpu.idtr = self.idtr;
        [
            cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer, cpu.xcr0, cpu.dr6, cpu.dr7,
        ] = self.control;
        cpu.pdpte = self.pdpte;
        cpu.dr = self.dr;
        cpu.msrs = self.msrs.clone();
        (*cpu.vector).clone_from(&self.vector);
        cpu.activity = self.activity;
        cpu.nmi_blocked = self.nmi_blocked;
        cpu.nmi_pending = self.nmi_pending;
        cpu.shadow = self.shadow;
        cpu.shadow_ss = self.shadow_ss;
        cpu.debug_hits = self.debug_hits;
        cpu.update_mode();
    }

    /// The instruction pointer.
    pub fn rip(&self) -> u64 {
        self.regs[usize::from(RIP)]
    }

    /// For people: general registers and flags.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (n, (name, value)) in NAMES.iter().zip(&self.regs).enumerate() {
            if n != 16 {
                let end = if n % 4 == 3 { "\n" } else { "  " };
                text += &format!("{name:>3} {value:016x}{end}");
            }
        }
        text + &format!("rflags {:x}", self.rflags)
    }

    /// Adds to `list` what `other`, translated code's, has differently, other
    /// than `open` flags.
    pub fn differences(&self, other: &Snapshot, open: u64, list: &mut Vec<String>) {
        for (name, (a, b)) in NAMES.iter().zip(self.regs.iter().zip(&other.regs)) {
            different(list, name, a, b);
        }
        let flags = [self.rflags & !open, other.rflags & !open];
        different(list, "rflags", &flags[0], &flags[1]);
        let names = ["cr0", "cr2", "cr3", "cr4", "efer", "xcr0", "dr6", "dr7"];
        for (name, (a, b)) in names.iter().zip(self.control.iter().zip(&other.control)) {
            different(list, name, a, b);
        }
        different(list, "debug_hits", &self.debug_hits, &other.debug_hits);
        different(list, "mxcsr", &self.vector.mxcsr, &other.vector.mxcsr);
        for n in 0..16 {
            if self.vector.ymm[n] != other.vector.ymm[n] {
                let (a, b) = (self.vector.ymm[n], other.vector.ymm[n]);
                list.push(format!("ymm{n}: {a:02x?} / {b:02x?}"));
            }
        }
        // Translated code has no shadow behind STI where nothing waits.
        let shadow = self.shadow || !other.shadow;
        for (name, same) in [
            ("segments", self.segs == other.segs),
            ("tr", self.tr == other.tr),
            ("ldtr", self.ldtr == other.ldtr),
            ("gdtr", self.gdtr == other.gdtr),
            ("idtr", self.idtr == other.idtr),
            ("pdpte", self.pdpte == other.pdpte),
            ("dr0-3", self.dr == other.dr),
            ("msrs", self.msrs == other.msrs),
            ("x87", same_x87(&self.vector, &other.vector)),
            ("activity", self.activity == other.activity),
            ("NMIs blocked", self.nmi_blocked == other.nmi_blocked),
            ("NMI pending", self.nmi_pending == other.nmi_pending),
            ("interrupt shadow", shadow),
            ("shadow of SS", self.shadow_ss == other.shadow_ss),
        ] {
            if !same {
                list.push(name.to_owned());
            }
        }
    }
}

fn different<T: LowerHex + Eq>(list: &mut Vec<String>, name: &str, a: &T, b: &T) {
    if a != b {
        list.push(format!("{name}: {a:x} / {b:x}"));
    }
}

/// The rest of the image is what the last stub has left.
fn same_x87(a: &VectorState, b: &VectorState) -> bool {
    let image = |state: &VectorState| {
        let mut words = [0; 5];
        words.copy_from_slice(&state.x87[..at::FTW + 1]);
        let mut registers = [0; at::XMM - at::ST];
        registers.copy_from_slice(&state.x87[at::ST..at::XMM]);
        (words, registers, state.fip, state.fdp, state.fop)
    };
    image(a) == image(b)
}
