//! Interrupt controllers and the interval timer, for whatever an engine does
//! not do itself: one implementation serves every engine.
//!
//! Pure logic: no thread, no clock, no lock of its own. The owner passes the
//! time in, and delivers what comes out.
//!
//! ```text
//!  devices ──set_line──▶ Chips ──────┬─ PIC pair ──intr──▶ vCPU 0 (LINT0 as ExtINT)
//!                        PIT ──IRQ0──┤
//!                                    └─ I/O APIC ──Message──▶ Lapic of each vCPU it matches
//!  devices ──Msi──▶ Message::from_msi ──────────────────────▶ Lapic …
//!  Lapic ──Action::ipi──▶ Lapic …      Lapic ──Action::eoi──▶ Chips::eoi
//! ```

pub mod chips;
pub mod ioapic;
pub mod lapic;
pub mod message;
pub mod pic;
pub mod pit;
pub mod state;

pub use chips::{Chips, Outlet};
pub use ioapic::IoApic;
pub use lapic::{Action, ApicMode, GpFault, Lapic};
pub use message::{Delivery, Destination, Message, Msi};
pub use pic::Pics;
pub use pit::Pit;
pub use state::{
    ChipsState, IoApicState, LapicState, PicState, PicsState, PitChannelState, PitState,
    RestoreError,
};
