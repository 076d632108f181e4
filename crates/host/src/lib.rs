//! The host: where its instances are.
//!
//! [`Directories`] says where everything is; [`socket`] binds and connects at
//! paths of any length.

mod directories;
mod name;
pub mod socket;

pub use directories::{Directories, DirectoriesError};
pub use name::{InstanceName, NameError};
