//! What device, services and the host's side share.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use croft_net::Backend;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_S_ANNOUNCE,
    VIRTIO_NET_S_LINK_UP,
};

use super::config::Features;
use super::filter::Filter;
use super::{Limits, NicHost, Rate, VirtioNetState};
use crate::lock;
use crate::virtio::Notifier;
use crate::virtio::limit::Limiter;

/// The host's side of a NIC; clones are of the same one.
#[derive(Clone)]
pub struct NicHandle(Arc<Hub>);

impl NicHandle {
    /// The name it was made with.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The MTU that the guest was told.
    pub fn mtu(&self) -> u16 {
        self.0.mtu()
    }

    /// Pairs of queues that it has.
    pub fn pairs(&self) -> u16 {
        self.0.pairs_max
    }

    /// Whether the guest sees a link: the cable is in, and leads somewhere.
    pub fn is_up(&self) -> bool {
        self.0.is_up()
    }

    /// Plugs the cable in, or pulls it.
    pub fn set_link(&self, up: bool) {
        if self.0.cable.swap(up, Ordering::SeqCst) != up {
            self.0.link_changed();
        }
    }

    /// From now on frames go there, or nowhere.
    pub fn set_backend(&self, backend: Option<Backend>) {
        self.0.backend.store(backend.map(Arc::new));
        self.0.link_changed();
    }

    /// From now on it may do so much.
    pub fn set_limits(&self, limits: Limits) {
        self.0.limits.store(Arc::new(Limiters::new(limits)));
        self.0.wake();
    }
}

impl std::fmt::Debug for NicHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NicHandle").field(&self.0.name).finish()
    }
}

/// Keeps a NIC within its limits.
pub struct Limiters {
    pub inbound: Limiter,
    pub outbound: Limiter,
}

impl Limiters {
    fn new(limits: Limits) -> Self {
        let limiter = |rate: Rate| Limiter::new(rate.frames_per_second, rate.bytes_per_second);
        Limiters {
            inbound: limiter(limits.inbound),
            outbound: limiter(limits.outbound),
        }
    }
}

/// What the driver has set.
pub struct Settings {
    pub features: Features,
    /// What it takes over.
    pub offloads: u64,
    /// It is to announce itself.
    pub announce: bool,
    /// Its queues are served: the rest is of this driver.
    active: bool,
    /// A restored state waits for its queues.
    restored: bool,
}

/// See the [module](self).
pub struct Hub {
    name: String,
    mac: [u8; 6],
    mtu: AtomicU16,
    pairs_max: u16,
    /// Pairs of queues that frames go to.
    pairs: AtomicU16,
    backend: ArcSwapOption<Backend>,
    /// The cable is plugged in.
    cable: AtomicBool,
    filter: ArcSwap<Filter>,
    limits: ArcSwap<Limiters>,
    settings: Mutex<Settings>,
    notifier: OnceLock<Notifier>,
    host: Arc<dyn NicHost>,
}

impl Hub {
    pub fn new(options: super::NicOptions, pairs_max: u16, host: Arc<dyn NicHost>) -> Arc<Self> {
        let hub = Arc::new(Hub {
            name: options.name,
            mac: options.mac,
            mtu: AtomicU16::new(options.mtu),
            pairs_max,
            pairs: AtomicU16::new(1),
            backend: ArcSwapOption::from(options.backend.map(Arc::new)),
            cable: AtomicBool::new(options.link),
            filter: ArcSwap::from_pointee(Filter::new(options.mac, false)),
            limits: ArcSwap::from_pointee(Limiters::new(options.limits)),
            settings: Mutex::new(Settings {
                features: Features::default(),
                offloads: 0,
                announce: false,
                active: false,
                restored: false,
            }),
            notifier: OnceLock::new(),
            host,
        });
        hub.show_cable();
        hub
    }

    pub fn handle(self: &Arc<Self>) -> NicHandle {
        NicHandle(self.clone())
    }

    pub fn set_notifier(&self, notifier: Notifier) {
        // It comes once.
        let _ = self.notifier.set(notifier);
    }

    pub fn pairs_max(&self) -> u16 {
        self.pairs_max
    }

    /// Pairs in use, at least 1.
    pub fn pairs(&self) -> u16 {
        self.pairs.load(Ordering::SeqCst).max(1)
    }

    /// Puts so many pairs to use; false when it has not as many.
    pub fn set_pairs(&self, pairs: u16) -> bool {
        let possible = (1..=self.pairs_max).contains(&pairs);
        if possible {
            self.pairs.store(pairs, Ordering::SeqCst);
            self.wake();
        }
        possible
    }

    pub fn mtu(&self) -> u16 {
        self.mtu.load(Ordering::SeqCst)
    }

    pub fn backend(&self) -> Option<Arc<Backend>> {
        self.backend.load_full()
    }

    pub fn filter(&self) -> Arc<Filter> {
        self.filter.load_full()
    }

    pub fn set_filter(&self, filter: Filter) {
        self.filter.store(Arc::new(filter));
    }

    pub fn limits(&self) -> Arc<Limiters> {
        self.limits.load_full()
    }

    pub fn is_up(&self) -> bool {
        self.cable.load(Ordering::SeqCst) && self.backend.load().is_some()
    }

    /// The status in the configuration.
    pub fn status(&self) -> u16 {
        let up = if self.is_up() {
            VIRTIO_NET_S_LINK_UP
        } else {
            0
        };
        let announce = lock(&self.settings).announce;
        let announce = if announce { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        (up | announce) as u16
    }

    /// What the driver has set; not to be held across calls of the hub.
    pub fn with_settings<T>(&self, work: impl FnOnce(&mut Settings) -> T) -> T {
        work(&mut lock(&self.settings))
    }

    /// What the driver takes over now.
    pub fn offloads(&self) -> u64 {
        lock(&self.settings).offloads
    }

    /// `backend` has no other end any more. Nothing happens if another one
    /// has come since.
    pub fn lost(&self, backend: &Arc<Backend>) {
        let before = self
            .backend
            .compare_and_swap(&Some(backend.clone()), None::<Arc<Backend>>);
        if before.as_ref().is_some_and(|b| Arc::ptr_eq(b, backend)) {
            self.link_changed();
            self.host.lost(&self.name);
        }
    }

    /// What is behind the NIC is shown whether its cable is plugged in.
    fn show_cable(&self) {
        if let Some(backend) = self.backend() {
            // Where it cannot be shown frames are thrown away all the same.
            let _ = backend.set_carrier(self.cable.load(Ordering::SeqCst));
        }
    }

    /// Both ends hear of the link. The driver is asked to announce itself where
    /// there is one now: whoever is there may not know of it.
    fn link_changed(&self) {
        self.show_cable();
        if self.is_up() {
            self.ask_for_announcement();
        }
        self.config_changed();
        self.wake();
    }

    fn ask_for_announcement(&self) {
        let settings = &mut *lock(&self.settings);
        settings.announce = settings.active && settings.features.has(VIRTIO_NET_F_GUEST_ANNOUNCE);
    }

    fn config_changed(&self) {
        if let Some(notifier) = self.notifier.get() {
            notifier.config_changed();
        }
    }

    /// Wakes the workers that carry frames.
    pub fn wake(&self) {
        if let Some(notifier) = self.notifier.get() {
            (0..2 * self.pairs_max).for_each(|queue| notifier.wake(queue));
        }
    }

    /// A driver that has accepted `features` begins, once for each queue.
    pub fn activate(&self, features: Features) {
        let settings = &mut *lock(&self.settings);
        if std::mem::replace(&mut settings.active, true) {
            return;
        }
        settings.features = features;
        if std::mem::take(&mut settings.restored) {
            // Others may have its place in the network since.
            settings.announce |= features.has(VIRTIO_NET_F_GUEST_ANNOUNCE);
            // The link may be another one, too.
            self.config_changed();
        } else {
            settings.offloads = features.offloads();
            let vlans = features.has(VIRTIO_NET_F_CTRL_VLAN);
            self.set_filter(Filter::new(self.mac, vlans));
        }
    }

    /// As at power-on.
    pub fn reset(&self) {
        *lock(&self.settings) = Settings {
            features: Features::default(),
            offloads: 0,
            announce: false,
            active: false,
            restored: false,
        };
        self.pairs.store(1, Ordering::SeqCst);
        self.set_filter(Filter::new(self.mac, false));
    }

    /// Takes a state over that was checked.
    pub fn restore(&self, state: &VirtioNetState) {
        let settings = &mut *lock(&self.settings);
        settings.offloads = state.offloads;
        settings.announce = state.announce;
        settings.active = false;
        settings.restored = state.transport.driver_at_work();
        self.mtu.store(state.mtu, Ordering::SeqCst);
        self.pairs.store(state.pairs, Ordering::SeqCst);
        self.set_filter(state.filter.clone());
    }
}
