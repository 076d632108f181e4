//! A machine: memory, interrupt controllers, clock.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use croft_engine::state::{STATE_VERSION, StateError, check_version};
use croft_engine::{
    CpuProfile, Doorbell, EngineError, InterruptRoute, Partition, PartitionConfig, PartitionState,
    Vcpu,
};
use croft_irqchip::{Chips, ChipsState, Msi, PicsState};
use croft_memory::GuestRam;
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS, KVM_CAP_X2APIC_API, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, KVM_X86_QUIRK_LINT0_REENABLED, kvm_clock_data, kvm_enable_cap,
    kvm_irqchip, kvm_pit_config,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::chips::{ioapic_from_kvm, ioapic_to_kvm, pic_from_kvm, pic_to_kvm};
use crate::clock::{Clock, monotonic_ns};
use crate::doorbell::Doorbells;
use crate::engine::Facts;
use crate::error::{damaged, host, lock, os};
use crate::lines::{self, Lines};
use crate::slots::Slots;
use crate::vcpu::KvmVcpu;
use crate::{kick, pit, sys};

/// Pages that KVM takes for itself on some Intel processors: a page table and
/// a task state segment of three pages. Behind the local APICs, below the
/// firmware's place, where no machine has anything.
const IDENTITY_MAP: u64 = 0xFEFF_C000;
const TASK_STATE: u64 = 0xFEFF_D000;
const RESERVED_END: u64 = 0xFF00_0000;
/// Frequencies this close count as the same: KVM does not scale by less
/// (its parameter `tsc_tolerance_ppm`).
const TSC_TOLERANCE_PPM: u64 = 250;

/// What a machine and its vCPUs share.
pub struct Shared {
    /// The device and what it told.
    pub facts: Arc<Facts>,
    /// The machine.
    pub vm: Arc<VmFd>,
    /// Keeps the memory in the machine; goes after `vm`'s last use.
    _slots: Slots,
    /// Guest RAM.
    pub ram: GuestRam,
    /// What every vCPU is promised.
    pub profile: CpuProfile,
    /// Guest time.
    pub clock: Clock,
}

impl Shared {
    /// Whether vCPUs must be told a TSC frequency of their own.
    pub fn scales(&self) -> bool {
        scales(self.profile.tsc_khz, self.facts.tsc_khz)
    }
}

fn scales(guest_khz: u32, host_khz: u32) -> bool {
    let difference = u64::from(guest_khz.abs_diff(host_khz));
    difference * 1_000_000 > u64::from(host_khz) * TSC_TOLERANCE_PPM
}

/// A machine on KVM.
pub struct KvmPartition {
    shared: Arc<Shared>,
    taken: Vec<AtomicBool>,
    lines: Mutex<Lines>,
    doorbells: Mutex<Doorbells>,
    /// I/O APIC pins as devices drive them.
    driven: AtomicU32,
}

/// Asks for one capability.
fn enable(vm: &VmFd, cap: u32, flags: u32) -> Result<(), EngineError> {
    let mut request = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    request.args[0] = flags.into();
    vm.enable_cap(&request)
        .map_err(host("cannot set up a machine"))
}

impl KvmPartition {
    /// An empty machine.
    pub fn new(facts: &Arc<Facts>, config: PartitionConfig) -> Result<Self, EngineError> {
        let fail = || host("cannot set up a machine");
        kick::install().map_err(os("cannot install the signal that interrupts vCPUs"))?;
        if scales(config.profile.tsc_khz, facts.tsc_khz) && !facts.scales_tsc {
            return Err(EngineError::Unsupported(format!(
                "the machine's TSC runs at {} kHz, this host's at {} kHz, and its processor \
                 cannot scale it; use the software engine or another host",
                config.profile.tsc_khz, facts.tsc_khz
            )));
        }
        let in_the_way = config
            .ram
            .ranges()
            .iter()
            .any(|range| range.start < RESERVED_END && range.start + range.len > IDENTITY_MAP);
        if in_the_way {
            return Err(EngineError::Unsupported(format!(
                "guest RAM at {IDENTITY_MAP:#x} is where KVM keeps pages of its own"
            )));
        }
        let vm = facts
            .kvm
            .create_vm()
            .map_err(host("cannot make a machine"))?;
        let vm = Arc::new(vm);
        vm.set_identity_map_address(IDENTITY_MAP).map_err(fail())?;
        vm.set_tss_address(TASK_STATE as usize).map_err(fail())?;
        enable(
            &vm,
            KVM_CAP_X2APIC_API,
            KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
        )?;
        // LINT0 starts masked, as the manual says.
        enable(&vm, KVM_CAP_DISABLE_QUIRKS, KVM_X86_QUIRK_LINT0_REENABLED)?;
        vm.create_irq_chip().map_err(fail())?;
        vm.create_pit2(kvm_pit_config {
            // Port 0x61 too.
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        })
        .map_err(fail())?;
        sys::no_pit_reinjection(&vm).map_err(os("cannot set up a machine"))?;
        let shared = Arc::new(Shared {
            _slots: Slots::new(&vm, &config.ram)?,
            clock: Clock::new(config.profile.tsc_khz, clock_base(&config, facts)),
            facts: facts.clone(),
            vm: vm.clone(),
            ram: config.ram,
            profile: config.profile,
        });
        let partition = KvmPartition {
            taken: (0..config.vcpus).map(|_| AtomicBool::new(false)).collect(),
            lines: Mutex::new(Lines::new(&vm)?),
            doorbells: Mutex::default(),
            driven: AtomicU32::new(0),
            shared,
        };
        partition.set_kvm_clock()?;
        Ok(partition)
    }

    /// Makes the clock that guests read in memory agree with ours.
    fn set_kvm_clock(&self) -> Result<(), EngineError> {
        let clock = kvm_clock_data {
            clock: self.shared.clock.ns(),
            ..Default::default()
        };
        self.shared
            .vm
            .set_clock(&clock)
            .map_err(host("cannot set a machine's clock"))
    }

    fn chip(&self, chip_id: u32) -> Result<kvm_irqchip, EngineError> {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        self.shared
            .vm
            .get_irqchip(&mut chip)
            .map_err(host("cannot read the interrupt controllers"))?;
        Ok(chip)
    }

    fn chips(&self) -> Result<ChipsState, EngineError> {
        let pic = |slave: bool| {
            let chip = self.chip(if slave {
                KVM_IRQCHIP_PIC_SLAVE
            } else {
                KVM_IRQCHIP_PIC_MASTER
            })?;
            // SAFETY: the chip asked for is a PIC; all of it is plain data.
            Ok::<_, EngineError>(pic_from_kvm(unsafe { &chip.chip.pic }, slave))
        };
        let ioapic = self.chip(KVM_IRQCHIP_IOAPIC)?;
        // SAFETY: the chip asked for is the I/O APIC; all of it is plain data.
        let ioapic = unsafe { &ioapic.chip.ioapic };
        let pit = self
            .shared
            .vm
            .get_pit2()
            .map_err(host("cannot read the interval timer"))?;
        Ok(ChipsState {
            pics: PicsState {
                master: pic(false)?,
                slave: pic(true)?,
            },
            pit: pit::from_kvm(&pit, self.shared.clock.ns(), monotonic_ns()),
            ioapic: ioapic_from_kvm(ioapic, self.driven.load(Ordering::Acquire)),
        })
    }

    fn set_chips(&self, state: &ChipsState) -> Result<(), EngineError> {
        // What the other engine's chips refuse is damaged here too.
        Chips::new()
            .restore(state)
            .map_err(|error| damaged(error.to_string()))?;
        let vm = &self.shared.vm;
        let fail = || host("cannot restore the interrupt controllers");
        for (pic, slave) in [(&state.pics.master, false), (&state.pics.slave, true)] {
            let mut chip = kvm_irqchip {
                chip_id: if slave {
                    KVM_IRQCHIP_PIC_SLAVE
                } else {
                    KVM_IRQCHIP_PIC_MASTER
                },
                ..Default::default()
            };
            chip.chip.pic = pic_to_kvm(pic, slave);
            vm.set_irqchip(&chip).map_err(fail())?;
        }
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..Default::default()
        };
        chip.chip.ioapic = ioapic_to_kvm(&state.ioapic)
            .ok_or_else(|| damaged("the I/O APIC has too few entries"))?;
        vm.set_irqchip(&chip).map_err(fail())?;
        vm.set_pit2(&pit::to_kvm(&state.pit))
            .map_err(host("cannot restore the interval timer"))?;
        self.driven.store(state.ioapic.lines, Ordering::Release);
        Ok(())
    }
}

/// The host frequency to scale from: the guest's own where KVM does not scale.
fn clock_base(config: &PartitionConfig, facts: &Facts) -> u32 {
    if scales(config.profile.tsc_khz, facts.tsc_khz) {
        facts.tsc_khz
    } else {
        config.profile.tsc_khz
    }
}

impl Partition for KvmPartition {
    fn vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let taken = self
            .taken
            .get(index as usize)
            .ok_or(EngineError::NoSuchVcpu(index))?;
        if taken.swap(true, Ordering::AcqRel) {
            return Err(EngineError::NoSuchVcpu(index));
        }
        Ok(Box::new(KvmVcpu::new(self.shared.clone(), index)?))
    }

    fn set_line(&self, gsi: u32, level: bool) {
        if !lines::is_line(gsi) {
            return;
        }
        let bit = 1 << lines::pin(gsi);
        if level {
            self.driven.fetch_or(bit, Ordering::AcqRel);
        } else {
            self.driven.fetch_and(!bit, Ordering::AcqRel);
        }
        // The line exists and the chips are there: KVM has no reason to refuse.
        let _ = self.shared.vm.set_irq_line(gsi, level);
    }

    fn msi(&self, msi: Msi) {
        lines::send(&self.shared.vm, msi);
    }

    fn irqfd(&self, route: InterruptRoute) -> Result<EventFd, EngineError> {
        lock(&self.lines).add(&self.shared.vm, route)
    }

    fn resample(&self, gsi: u32) -> Result<EventFd, EngineError> {
        lock(&self.lines).resample(&self.shared.vm, gsi)
    }

    fn doorbell(&self, doorbell: Doorbell) -> Result<EventFd, EngineError> {
        lock(&self.doorbells).add(&self.shared.vm, doorbell)
    }

    fn remove_doorbell(&self, doorbell: Doorbell) {
        lock(&self.doorbells).remove(&self.shared.vm, &doorbell);
    }

    fn clock_ns(&self) -> u64 {
        self.shared.clock.ns()
    }

    fn pause_clock(&self) {
        self.shared.clock.pause();
    }

    fn resume_clock(&self) {
        self.shared.clock.resume();
        // A guest whose clock could not be set back sees time jump, which it
        // must be able to bear anyway.
        let _ = self.set_kvm_clock();
    }

    fn save(&self) -> Result<PartitionState, EngineError> {
        let chips = self.chips()?;
        let clock = &self.shared.clock;
        let tsc = clock.tsc();
        Ok(PartitionState {
            version: STATE_VERSION,
            pics: chips.pics,
            pit: chips.pit,
            ioapic: chips.ioapic,
            clock_ns: clock.ticks_to_ns(tsc),
            tsc,
            tsc_khz: clock.tsc_khz(),
        })
    }

    fn restore(&self, state: &PartitionState) -> Result<(), EngineError> {
        check_version(state.version)?;
        if state.tsc_khz != self.shared.clock.tsc_khz() {
            return Err(StateError::Damaged(format!(
                "the TSC runs at {} kHz there and at {} kHz here",
                state.tsc_khz,
                self.shared.clock.tsc_khz()
            ))
            .into());
        }
        self.shared.clock.set_tsc(state.tsc);
        self.set_chips(&ChipsState {
            pics: state.pics.clone(),
            pit: state.pit.clone(),
            ioapic: state.ioapic.clone(),
        })?;
        self.set_kvm_clock()
    }

    fn reset(&self) {
        let mut fresh = Chips::new().save();
        // Devices go on driving their lines.
        if let Ok(now) = self.chips() {
            fresh.ioapic.lines = now.ioapic.lines;
            fresh.pics.master.lines = now.pics.master.lines;
            fresh.pics.slave.lines = now.pics.slave.lines;
        }
        // The state is that of fresh chips: there is nothing to refuse.
        let _ = self.set_chips(&fresh);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_differences_of_frequency_are_not_scaled() {
        assert!(!scales(2_000_000, 2_000_000));
        assert!(!scales(2_000_400, 2_000_000));
        assert!(scales(2_000_600, 2_000_000));
        assert!(scales(1_000_000, 2_000_000));
    }
}
