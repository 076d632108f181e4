//! What threads are for.

use bitflags::bitflags;

/// What a thread of a payload is for, which decides what it may ask of the
/// kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The main thread until the machine is made.
    Setup,
    /// The main thread from then on: the owner of the machine's life.
    Owner,
    /// Makes all other threads, so that none of them can.
    Maker,
    /// Executes guest code and the devices' registers.
    Vcpu,
    /// Serves the queues of a disk.
    Disk,
    /// Serves the queues of a NIC.
    Net,
    /// Serves the queues of another device.
    Device,
    /// Serves the queues of a shared directory.
    Share,
    /// Carries the console's bytes.
    Console,
    /// Waits for time, or for interrupts' event objects.
    Timers,
    /// Hears the monitor.
    Control,
    /// Talks to debuggers.
    Gdb,
    /// Waits for the signal that asks for counts.
    Counts,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 13] = [
        Role::Setup,
        Role::Owner,
        Role::Maker,
        Role::Vcpu,
        Role::Disk,
        Role::Net,
        Role::Device,
        Role::Share,
        Role::Console,
        Role::Timers,
        Role::Control,
        Role::Gdb,
        Role::Counts,
    ];

    /// The set of it alone.
    pub const fn set(self) -> Roles {
        match self {
            Role::Setup => Roles::SETUP,
            Role::Owner => Roles::OWNER,
            Role::Maker => Roles::MAKER,
            Role::Vcpu => Roles::VCPU,
            Role::Disk => Roles::DISK,
            Role::Net => Roles::NET,
            Role::Device => Roles::DEVICE,
            Role::Share => Roles::SHARE,
            Role::Console => Roles::CONSOLE,
            Role::Timers => Roles::TIMERS,
            Role::Control => Roles::CONTROL,
            Role::Gdb => Roles::GDB,
            Role::Counts => Roles::COUNTS,
        }
    }

    /// Its word, for people and tests.
    pub const fn word(self) -> &'static str {
        match self {
            Role::Setup => "setup",
            Role::Owner => "owner",
            Role::Maker => "maker",
            Role::Vcpu => "vcpu",
            Role::Disk => "disk",
            Role::Net => "net",
            Role::Device => "device",
            Role::Share => "share",
            Role::Console => "console",
            Role::Timers => "timers",
            Role::Control => "control",
            Role::Gdb => "gdb",
            Role::Counts => "counts",
        }
    }
}

bitflags! {
    /// Some roles.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Roles: u16 {
        /// [`Role::Setup`].
        const SETUP = 1;
        /// [`Role::Owner`].
        const OWNER = 1 << 1;
        /// [`Role::Maker`].
        const MAKER = 1 << 2;
        /// [`Role::Vcpu`].
        const VCPU = 1 << 3;
        /// [`Role::Disk`].
        const DISK = 1 << 4;
        /// [`Role::Device`].
        const DEVICE = 1 << 5;
        /// [`Role::Share`].
        const SHARE = 1 << 6;
        /// [`Role::Console`].
        const CONSOLE = 1 << 7;
        /// [`Role::Timers`].
        const TIMERS = 1 << 8;
        /// [`Role::Control`].
        const CONTROL = 1 << 9;
        /// [`Role::Gdb`].
        const GDB = 1 << 10;
        /// [`Role::Counts`].
        const COUNTS = 1 << 11;
        /// [`Role::Net`].
        const NET = 1 << 12;
    }
}
