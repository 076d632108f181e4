//! One vCPU: the run loop.
//!
//! ```text
//!        ┌────────────────────────────────────────────────────┐
//!        ▼                                                    │
//!  kicked, nothing half done? ─► Stop::Kicked                 │
//!        │ kicked, an access half done: immediate exit        │
//!        ▼                                                    │
//!     KVM_RUN ─► access: CpuIo ─► half done ──────────────────┤
//!        │   └─► interrupted: nothing is half done any more ──┘
//!        └─► any other exit ─► Stop
//! ```
//!
//! KVM completes an access (writes what was read into a register, moves RIP
//! on) when it is entered again. With an immediate exit it does just that and
//! returns, so a kick is reported on an instruction boundary. An access that
//! KVM passes on in pieces goes round until the last one.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use croft_engine::{
    Breakpoint, CpuIo, CpuState, DebugControl, DebugStop, EngineError, Kicker, Stop, Translation,
    Vcpu,
};
use kvm_bindings::{
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_enable_cap,
    kvm_run,
};
use kvm_ioctls::VcpuFd;

use crate::error::{answer, host};
use crate::kick::{KvmKick, Running};
use crate::partition::Shared;
use crate::{cpuid, debug, exits, msr, sys, walk};

/// RFLAGS.RF: the next instruction's code breakpoint does not stop it.
const RESUME: u64 = 1 << 16;
/// Longest instruction.
const INSTRUCTION: usize = 15;

/// A vCPU of a machine on KVM.
pub struct KvmVcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) index: u32,
    pub(crate) shared: Arc<Shared>,
    /// MSRs that are saved here.
    pub(crate) msrs: Vec<u32>,
    kick: Arc<KvmKick>,
    /// State at power-on.
    initial: CpuState,
    /// The clock's generation that this vCPU's TSC follows.
    pub(crate) synced: Option<u64>,
    debug: DebugControl,
    /// Where a code breakpoint was reported, to go on from there.
    reported_at: Option<u64>,
}

impl KvmVcpu {
    /// vCPU `index` at power-on.
    pub fn new(shared: Arc<Shared>, index: u32) -> Result<Self, EngineError> {
        let fail = || host("cannot make a vCPU");
        let fd = shared.vm.create_vcpu(index.into()).map_err(fail())?;
        if shared.scales() {
            fd.set_tsc_khz(shared.profile.tsc_khz)
                .map_err(host("cannot scale a vCPU's TSC"))?;
        }
        let mut enforce = kvm_enable_cap {
            cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
            ..Default::default()
        };
        enforce.args[0] = 1;
        fd.enable_cap(&enforce).map_err(fail())?;
        let leaves = cpuid::entries(&shared.profile, index).ok_or_else(|| {
            EngineError::Unsupported("the CPU model has more leaves than KVM takes".to_owned())
        })?;
        fd.set_cpuid2(&leaves)
            .map_err(host("KVM refuses the CPU model"))?;
        let msrs = msr::present(&fd);
        msr::write_changed(&fd, &msr::at_reset(&msrs))?;
        if cpuid::has_arch_capabilities(&shared.profile) {
            let value = shared.profile.arch_capabilities;
            msr::write(
                &fd,
                &[croft_engine::state::MsrState {
                    index: msr::ARCH_CAPABILITIES,
                    value,
                }],
            )?;
        }
        let mut vcpu = KvmVcpu {
            fd,
            index,
            shared,
            msrs,
            kick: Arc::default(),
            initial: CpuState::default(),
            synced: None,
            debug: DebugControl::default(),
            reported_at: None,
        };
        vcpu.initial = vcpu.save_state()?;
        // EDX tells the processor's signature (SDM vol. 3, table 10-1).
        let signature = vcpu.shared.profile.leaf(1, 0).map_or(0, |leaf| leaf.eax);
        vcpu.initial.registers[2] = signature.into();
        vcpu.initial.lapic.timer_expires_at = 0;
        let initial = vcpu.initial.clone();
        vcpu.restore_state(&initial)?;
        Ok(vcpu)
    }

    /// Makes this vCPU's TSC follow the partition's clock.
    pub(crate) fn sync_clock(&mut self) -> Result<(), EngineError> {
        let clock = &self.shared.clock;
        let generation = clock.generation();
        if generation.is_some() && self.synced == generation {
            return Ok(());
        }
        let fail = crate::error::os("cannot set a vCPU's TSC");
        let offset = clock.offset(|| -> Result<u64, EngineError> {
            let offset = sys::tsc_offset(&self.fd).map_err(&fail)?;
            Ok(msr::read(&self.fd, msr::TSC)?.wrapping_sub(offset))
        })?;
        let adjust = if self.msrs.contains(&msr::TSC_ADJUST) {
            msr::read(&self.fd, msr::TSC_ADJUST)?
        } else {
            0
        };
        sys::set_tsc_offset(&self.fd, offset.wrapping_add(adjust)).map_err(&fail)?;
        // Tells a guest that has KVM's clock that it stood still; one without
        // it is no error.
        let _ = self.fd.kvmclock_ctrl();
        self.synced = generation;
        Ok(())
    }

    /// Lets an instruction go on at which a breakpoint was reported.
    fn step_over_reported(&mut self) -> Result<(), EngineError> {
        let Some(at) = self.reported_at.take() else {
            return Ok(());
        };
        let fail = || host("cannot step over a breakpoint");
        let mut regs = self.fd.get_regs().map_err(fail())?;
        if regs.rip == at {
            regs.rflags |= RESUME;
            self.fd.set_regs(&regs).map_err(fail())?;
        }
        Ok(())
    }

    fn enter(&mut self, running: &Running, io: &dyn CpuIo) -> Stop {
        let mut half_done = false;
        loop {
            if self.kick.is_requested() {
                if !half_done {
                    self.kick.take();
                    return Stop::Kicked;
                }
                running.leave_at_once(true);
            }
            let result = self.fd.run().map(drop);
            if let Err(error) = result {
                match error.errno() {
                    libc::EINTR => {
                        half_done = false;
                        running.leave_at_once(false);
                    }
                    // An application processor that waits looks again.
                    libc::EAGAIN => {}
                    _ => {
                        return Stop::Failed(format!(
                            "KVM cannot run vCPU {}: {}",
                            self.index,
                            answer(error.errno())
                        ));
                    }
                }
                continue;
            }
            match self.fd.get_kvm_run().exit_reason {
                KVM_EXIT_IO => {
                    self.port_access(io);
                    half_done = true;
                }
                KVM_EXIT_MMIO => {
                    self.memory_access(io);
                    half_done = true;
                }
                KVM_EXIT_INTR => half_done = false,
                reason => return self.stop(reason),
            }
        }
    }

    fn stop(&mut self, reason: u32) -> Stop {
        match reason {
            KVM_EXIT_SHUTDOWN => match self.save_state() {
                Ok(state) => Stop::TripleFault(Box::new(state)),
                Err(error) => Stop::Failed(format!(
                    "the guest faulted three times, and its state cannot be read: {error}"
                )),
            },
            KVM_EXIT_DEBUG => {
                // SAFETY: the exit reason says that this member is valid.
                let exit = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.debug.arch };
                let stop = debug::from_kvm(&exit, &self.debug);
                if matches!(stop, DebugStop::Breakpoint(Breakpoint::Code(_))) {
                    self.reported_at = Some(exit.pc);
                }
                Stop::Debug(stop)
            }
            KVM_EXIT_SYSTEM_EVENT => {
                // SAFETY: as above.
                let event = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.system_event.type_ };
                match event {
                    KVM_SYSTEM_EVENT_SHUTDOWN => Stop::Shutdown,
                    KVM_SYSTEM_EVENT_RESET => Stop::Reset,
                    other => Stop::Failed(format!("KVM reports system event {other}")),
                }
            }
            KVM_EXIT_INTERNAL_ERROR => {
                let (rip, bytes) = self.instruction();
                let text = exits::internal_error(self.fd.get_kvm_run(), rip, &bytes);
                Stop::Failed(format!("vCPU {}: {text}", self.index))
            }
            KVM_EXIT_FAIL_ENTRY => {
                let (rip, _) = self.instruction();
                let text = exits::fail_entry(self.fd.get_kvm_run(), rip);
                Stop::Failed(format!("vCPU {}: {text}", self.index))
            }
            other => Stop::Failed(format!(
                "vCPU {}: KVM returned {}, which Croft does not know here",
                self.index,
                exits::name(other)
            )),
        }
    }

    /// Where the vCPU stands: linear address, and the bytes there as far as
    /// they are mapped.
    fn instruction(&mut self) -> (u64, Vec<u8>) {
        let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) else {
            return (0, Vec::new());
        };
        let long = sregs.efer & 1 << 10 != 0 && sregs.cs.l != 0;
        let linear = if long {
            regs.rip
        } else {
            sregs.cs.base.wrapping_add(regs.rip) & 0xFFFF_FFFF
        };
        let bytes = (0..INSTRUCTION as u64).map_while(|n| {
            let at = walk::translate(&self.shared.ram, &sregs, linear.wrapping_add(n))?;
            let mut byte = [0];
            self.shared.ram.read(at.physical, &mut byte).ok()?;
            Some(byte[0])
        });
        (linear, bytes.collect())
    }

    fn port_access(&mut self, io: &dyn CpuIo) {
        let size = self.shared.vm.run_size();
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit reason says that this member is valid.
        let access = unsafe { run.__bindgen_anon_1.io };
        let width = usize::from(access.size);
        let len = width * access.count as usize;
        let offset = access.data_offset as usize;
        if width == 0 || offset.saturating_add(len) > size {
            return;
        }
        let base = std::ptr::from_mut::<kvm_run>(run).cast::<u8>();
        // SAFETY: `size` bytes are mapped from `base` on; the kernel leaves
        // them alone until it is entered again, and nobody else holds a
        // reference to these.
        let data = unsafe { std::slice::from_raw_parts_mut(base.add(offset), len) };
        for piece in data.chunks_exact_mut(width) {
            if u32::from(access.direction) == KVM_EXIT_IO_OUT {
                io.port_write(access.port, piece);
            } else {
                io.port_read(access.port, piece);
            }
        }
    }

    fn memory_access(&mut self, io: &dyn CpuIo) {
        // SAFETY: the exit reason says that this member is valid.
        let access = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.mmio };
        let len = (access.len as usize).min(access.data.len());
        let mut address = access.phys_addr;
        let mut rest = &mut access.data[..len];
        while !rest.is_empty() {
            let (part, tail) = rest.split_at_mut(piece(address, rest.len()));
            if access.is_write != 0 {
                io.mmio_write(address, part);
            } else {
                io.mmio_read(address, part);
            }
            address = address.wrapping_add(part.len() as u64);
            rest = tail;
        }
    }
}

/// The widest piece of an access at `address` that is aligned and at most
/// `left` bytes (and eight).
fn piece(address: u64, left: usize) -> usize {
    let aligned = 1usize << address.trailing_zeros().min(3);
    let fits = 1usize << left.clamp(1, 8).ilog2();
    aligned.min(fits)
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, io: &dyn CpuIo) -> Stop {
        let prepared = self.sync_clock().and_then(|()| self.step_over_reported());
        if let Err(error) = prepared {
            return Stop::Failed(format!("vCPU {}: {error}", self.index));
        }
        let byte = std::ptr::addr_of_mut!(self.fd.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        // SAFETY: the page stays mapped as long as the vCPU's descriptor,
        // which outlives this call.
        let running = unsafe { self.kick.running(byte) };
        self.enter(&running, io)
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.kick.clone())
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        self.save_state()
    }

    fn restore(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.restore_state(state)
    }

    fn reset(&mut self) {
        let initial = self.initial.clone();
        self.reported_at = None;
        // It was read from this very vCPU: there is nothing to refuse.
        let _ = self.restore_state(&initial);
    }

    fn translate(&mut self, linear: u64) -> Option<Translation> {
        let sregs = self.fd.get_sregs().ok()?;
        walk::translate(&self.shared.ram, &sregs, linear)
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError> {
        let debug = debug::to_kvm(control)?;
        self.fd
            .set_guest_debug(&debug)
            .map_err(host("cannot set breakpoints"))?;
        self.debug = control.clone();
        self.reported_at = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_split_at_their_natural_alignment() {
        assert_eq!(piece(0x1000, 8), 8);
        assert_eq!(piece(0x1000, 7), 4);
        assert_eq!(piece(0x1001, 8), 1);
        assert_eq!(piece(0x1006, 3), 2);
    }
}
