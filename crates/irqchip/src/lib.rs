//! Interrupt controllers and the interval timer, for whatever an engine does
//! not do itself: one implementation serves every engine.
//!
//! Pure logic: no thread, no clock, no lock of its own. The owner passes the
//! time in, and delivers what comes out.

pub mod message;
pub mod state;

pub use message::{Delivery, Destination, Message, Msi};
pub use state::{IoApicState, LapicState, PicState, PicsState, PitChannelState, PitState};
