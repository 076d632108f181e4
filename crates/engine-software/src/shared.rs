//! What the vCPUs of a partition share, and what others may touch of a vCPU.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use croft_engine::{CpuProfile, Doorbell, DoorbellAddress, Kick};
use croft_irqchip::{Action, Chips, Delivery, Lapic, Message, Outlet};
use croft_memory::{CodeLog, GuestRam, StoreLog};
use vmm_sys_util::eventfd::EventFd;

use crate::clock::Clock;
use crate::cpuid::FeatureSet;
use crate::ticker::Ticker;
use crate::translate::Region;

/// Locks a mutex; a poisoned one is as good as any here, because the data
/// behind each is valid between any two statements.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bits of [`VcpuShared::attention`].
pub mod attention {
    /// Somebody wants `run` to return.
    pub const KICK: u32 = 1 << 0;
    /// The local APIC or the PIC may have something.
    pub const INTERRUPT: u32 = 1 << 1;
    /// Instructions were overwritten.
    pub const CODE: u32 = 1 << 2;
    /// Somebody begins to watch pages for stores.
    pub const REVOKE: u32 = 1 << 3;
}

/// One vCPU as other threads see it.
pub struct VcpuShared {
    /// Its local APIC.
    pub lapic: Mutex<Lapic>,
    /// Where the vCPU lives; has the attention word.
    pub region: Region,
    /// Translated code may run: false outside `run` and in HLT.
    awake: AtomicBool,
    /// How often the right to store unseen was asked back, and given.
    revokes: [AtomicU64; 2],
    sleeping: AtomicBool,
    bed: Mutex<()>,
    alarm: Condvar,
}

impl VcpuShared {
    /// The shared part of vCPU `index`.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn new(index: u32, physical_bits: u8) -> io::Result<Self> {
        let mut lapic = Lapic::new(index, index == 0);
        lapic.set_physical_bits(physical_bits);
        Ok(VcpuShared {
            lapic: Mutex::new(lapic),
            region: Region::new()?,
            awake: AtomicBool::new(false),
            revokes: Default::default(),
            sleeping: AtomicBool::new(false),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
        })
    }

    /// Why the run loop should look up; see [`attention`].
    #[inline(always)]
    pub fn attention(&self) -> &AtomicU32 {
        self.region.attention()
    }

    /// Says whether translated code may run from here on. Who wakes up looks
    /// at the attention word before it runs any.
    pub fn set_awake(&self, awake: bool) {
        self.awake.store(awake, Ordering::SeqCst);
    }

    /// How often the right to store unseen was asked back so far.
    pub fn revokes_wanted(&self) -> u64 {
        self.revokes[0].load(Ordering::SeqCst)
    }

    /// All that was asked for up to `wanted` is done.
    pub fn revoked(&self, wanted: u64) {
        self.revokes[1].store(wanted, Ordering::SeqCst);
    }

    /// Takes back the vCPU's right to store to pages unseen, and waits until
    /// it has given it; `meanwhile` is called again and again. Whatever it
    /// stored unseen is visible then.
    pub fn revoke(&self, mut meanwhile: impl FnMut()) {
        let wanted = self.revokes[0].fetch_add(1, Ordering::SeqCst) + 1;
        self.notify(attention::REVOKE);
        let mut rounds = 0;
        while self.awake.load(Ordering::SeqCst) && self.revokes[1].load(Ordering::SeqCst) < wanted {
            meanwhile();
            rounds += 1;
            if rounds < 100 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Sets attention bits and wakes the vCPU if it sleeps.
    pub fn notify(&self, bits: u32) {
        self.attention().fetch_or(bits, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            let _bed = lock(&self.bed);
            self.alarm.notify_all();
        }
    }

    /// Sleeps until there is an attention bit or `timeout` is over.
    pub fn sleep(&self, timeout: Option<Duration>) {
        let bed = lock(&self.bed);
        self.sleeping.store(true, Ordering::SeqCst);
        // Either this load sees a bit set before `sleeping`, or the notifier
        // sees `sleeping` and then waits for the lock until we wait.
        if self.attention().load(Ordering::SeqCst) == 0 {
            let awake = |_: &mut ()| self.attention().load(Ordering::SeqCst) == 0;
            match timeout {
                Some(timeout) => drop(self.alarm.wait_timeout_while(bed, timeout, awake)),
                None => drop(self.alarm.wait_while(bed, awake)),
            }
        }
        self.sleeping.store(false, Ordering::SeqCst);
    }
}

/// Translated code stores without looking at a page once the page was found
/// unwatched. The dirty log learns of a page when it is found so, and has it
/// found again after each reading.
impl StoreLog for VcpuShared {
    fn start(&self) {
        self.revoke(|| ());
    }

    fn stop(&self) {}

    fn take(&self, _: &mut [u64]) {
        self.revoke(|| ());
    }
}

impl Kick for VcpuShared {
    fn kick(&self) {
        self.notify(attention::KICK);
    }
}

/// Where the chips' results go: straight to the local APICs and to the
/// listeners of EOIs.
pub struct Wires<'a>(&'a Shared);

impl Outlet for Wires<'_> {
    fn send(&mut self, message: Message) {
        self.0.deliver(&message);
    }

    fn ended(&mut self, gsi: u32) -> bool {
        let resample = self.0.resample.read();
        let resample = resample.unwrap_or_else(PoisonError::into_inner);
        let Some(events) = resample.get(&gsi) else {
            return false;
        };
        for event in events {
            // A full counter means that the reader has been told already.
            let _ = event.write(1);
        }
        true
    }
}

impl CodeLog for Shared {
    fn overwritten(&self) {
        for vcpu in &self.vcpus {
            vcpu.notify(attention::CODE);
        }
    }
}

/// What all vCPUs of a partition share.
pub struct Shared {
    /// Guest RAM.
    pub ram: Arc<GuestRam>,
    /// The processor promised to the guest.
    pub profile: CpuProfile,
    /// The same as a set that decoding asks.
    pub features: FeatureSet,
    /// PICs, PIT, I/O APIC.
    pub chips: Mutex<Chips>,
    /// The vCPUs, by index.
    pub vcpus: Vec<Arc<VcpuShared>>,
    /// Guest time.
    pub clock: Clock,
    /// Held while a locked access that no host instruction can make (across
    /// pages, to MMIO) is under way.
    pub bus_lock: Mutex<()>,
    /// Wakes vCPUs whose timers are due.
    pub ticker: Ticker,
    doorbells: RwLock<HashMap<DoorbellAddress, Vec<(Doorbell, EventFd)>>>,
    resample: RwLock<HashMap<u32, Vec<EventFd>>>,
    low_ram: (usize, u64),
}

impl Shared {
    /// The shared state of a partition at power-on.
    ///
    /// # Errors
    /// The host has no memory for its vCPUs.
    pub fn new(ram: GuestRam, profile: CpuProfile, vcpus: u32) -> io::Result<Arc<Self>> {
        let low_ram = ram
            .ranges()
            .first()
            .filter(|range| range.start == 0)
            .and_then(|range| Some((ram.page(0)?.host as usize, range.len)))
            .unwrap_or((0, 0));
        let vcpus = (0..vcpus)
            .map(|n| Ok(Arc::new(VcpuShared::new(n, profile.physical_bits)?)))
            .collect::<io::Result<Vec<_>>>()?;
        let shared = Arc::new(Shared {
            ticker: Ticker::start(vcpus.clone())?,
            features: FeatureSet::from_profile(&profile),
            clock: Clock::new(profile.tsc_khz),
            chips: Mutex::new(Chips::new()),
            vcpus,
            bus_lock: Mutex::new(()),
            doorbells: RwLock::default(),
            resample: RwLock::default(),
            low_ram,
            ram: Arc::new(ram),
            profile,
        });
        let log: Weak<dyn CodeLog> = Arc::downgrade(&shared) as Weak<dyn CodeLog>;
        for range in shared.ram.ranges() {
            if let Some((table, _)) = shared.ram.table(range.start) {
                table.watch_overwritten(log.clone());
                for vcpu in &shared.vcpus {
                    table.attach(Arc::downgrade(vcpu) as Weak<dyn StoreLog>);
                }
            }
        }
        Ok(shared)
    }

    /// Host address of guest-physical `gpa`, where there is RAM. The rest of
    /// its page is RAM too.
    #[inline]
    pub fn host(&self, gpa: u64) -> Option<*mut u8> {
        let (base, len) = self.low_ram;
        if gpa < len {
            return Some((base + gpa as usize) as *mut u8);
        }
        let page = self.ram.page(gpa)?;
        Some(page.host.wrapping_add((gpa & 0xFFF) as usize))
    }

    /// Leaves the traces of a store of `len` bytes at `gpa` that was made
    /// through a host pointer; whether it hit decoded code. Call it when the
    /// page's watch byte says so.
    #[cold]
    pub fn stored(&self, gpa: u64, len: u64) -> bool {
        self.ram
            .table(gpa)
            .is_some_and(|(table, offset)| table.written(offset, len))
    }

    /// Guest time in nanoseconds.
    pub fn clock_ns(&self) -> u64 {
        self.clock.ns()
    }

    /// Hands a message to the local APICs it is for.
    pub fn deliver(&self, message: &Message) {
        if message.delivery == Delivery::LowestPriority {
            return self.deliver_lowest(message);
        }
        for vcpu in &self.vcpus {
            let mut lapic = lock(&vcpu.lapic);
            if lapic.matches(&message.destination) && lapic.accept(message) {
                drop(lapic);
                vcpu.notify(attention::INTERRUPT);
            }
        }
    }

    /// To the one destination with the lowest processor priority (SDM vol. 3,
    /// 11.6.2.4).
    fn deliver_lowest(&self, message: &Message) {
        let chosen = self
            .vcpus
            .iter()
            .filter_map(|vcpu| {
                let lapic = lock(&vcpu.lapic);
                lapic
                    .matches(&message.destination)
                    .then(|| (lapic.ppr(), vcpu))
            })
            .min_by_key(|(ppr, _)| *ppr);
        if let Some((_, vcpu)) = chosen
            && lock(&vcpu.lapic).accept(message)
        {
            vcpu.notify(attention::INTERRUPT);
        }
    }

    /// Does what a write to a local APIC's register asks of others.
    pub fn perform(&self, action: &Action) {
        if let Some(message) = &action.ipi {
            self.deliver(message);
        }
        if let Some(vector) = action.eoi {
            self.with_chips(|chips, out| chips.eoi(vector, out));
        }
    }

    /// Runs `work` on the chips; what comes out of them is delivered.
    pub fn with_chips<T>(&self, work: impl FnOnce(&mut Chips, &mut Wires<'_>) -> T) -> T {
        let mut chips = lock(&self.chips);
        let before = chips.intr();
        let result = work(&mut chips, &mut Wires(self));
        let pic_rose = chips.intr() && !before;
        drop(chips);
        if pic_rose {
            self.notify_bsp();
        }
        result
    }

    /// Makes vCPU 0, which serves the PIC's interrupts and the interval
    /// timer, look for events.
    pub fn notify_bsp(&self) {
        if let Some(bsp) = self.vcpus.first() {
            bsp.notify(attention::INTERRUPT);
        }
    }

    /// Adds an event object for the EOIs of `gsi`.
    pub fn add_resample(&self, gsi: u32, event: EventFd) {
        let mut resample = self
            .resample
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        resample.entry(gsi).or_default().push(event);
    }

    /// True when somebody listens to the EOIs of `gsi`.
    pub fn is_resampled(&self, gsi: u32) -> bool {
        let resample = self.resample.read().unwrap_or_else(PoisonError::into_inner);
        resample.contains_key(&gsi)
    }

    /// Adds a doorbell.
    pub fn add_doorbell(&self, doorbell: Doorbell, event: EventFd) {
        let mut doorbells = self
            .doorbells
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        doorbells
            .entry(doorbell.address)
            .or_default()
            .push((doorbell, event));
    }

    /// Removes a doorbell.
    pub fn remove_doorbell(&self, doorbell: Doorbell) {
        let mut doorbells = self
            .doorbells
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(bells) = doorbells.get_mut(&doorbell.address) {
            bells.retain(|(bell, _)| *bell != doorbell);
        }
    }

    /// Rings the doorbells that a write matches; true when one did.
    pub fn ring(&self, address: DoorbellAddress, data: &[u8]) -> bool {
        let doorbells = self
            .doorbells
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(bells) = doorbells.get(&address) else {
            return false;
        };
        let value = data
            .iter()
            .rev()
            .fold(0u64, |all, byte| all << 8 | u64::from(*byte));
        let mut rung = false;
        for (bell, event) in bells {
            let size = bell.len == 0 || usize::from(bell.len) == data.len();
            if size && bell.value.is_none_or(|wanted| wanted == value) {
                // A full counter means that the reader has been told already.
                let _ = event.write(1);
                rung = true;
            }
        }
        rung
    }
}
