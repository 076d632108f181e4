//! The host: its instances, where they are and how they live.
//!
//! * [`Directories`] says where everything is.
//! * [`Instances`] makes, finds, starts and deletes instances; [`store`] says
//!   how they are kept.
//! * [`lifecycle`] has the states of an instance and what leads from one to
//!   another.
//! * [`Client`] talks to the monitor of a running one.
//! * [`files`] writes small files that are whole or not there.
//! * [`socket`] binds and connects at paths of any length.

mod client;
mod directories;
pub mod files;
pub mod lifecycle;
mod lock;
mod name;
pub mod process;
pub mod socket;
mod start;
pub mod store;

pub use client::{Client, ClientError};
pub use directories::{Directories, DirectoriesError};
pub use files::now;
pub use lock::{InstanceLock, LockError};
pub use name::{InstanceName, NameError};
pub use start::{Attached, StartError, Started};
pub use store::{Config, Instances, NewInstance, StoreError};
