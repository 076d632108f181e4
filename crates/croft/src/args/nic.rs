//! `croft nic`.
//!
//! What is done to NICs of instances; how a NIC is written is in
//! [`net`](super::net).

use clap::{Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCandidates;

use super::instance::NameOptions;
use super::net::{Net, VALUE, parse_net, places};
use super::resize::DetachOptions;
use crate::size;

/// What follows the help of `croft nic attach`.
pub const ATTACH_HELP: &str = "\
A guest that runs finds the NIC at once; what it does with it is its own affair.
The instance keeps it, unless --live-only is said. One that is stopped has it
from its next start on. The name that is printed is for the other commands.

Exit codes:
  0    done
  1    it could not be done
  2    wrong usage, or there is no such instance; nothing was done
  124  it was not done in time

Example:
  croft nic attach web --net lan,limit-out=10M";

/// What follows the help of `croft nic detach`.
pub const DETACH_HELP: &str = "\
A machine's guest is asked to release the NIC. One that does not answer within
the time stays asked: the NIC goes when it answers, or with its next reset.
--force takes it away as it is. A container's NIC is gone at once. 'croft show'
lists the NICs there are.

Exit codes:
  0    the NIC is gone
  1    it could not be done
  2    wrong usage, or there is no such instance; nothing was done
  124  the guest has not released it in time

Example:
  croft nic detach web net1";

/// What follows the help of `croft nic set`.
pub const SET_HELP: &str = "\
What is not named stays as it is.

Exit codes:
  0    done
  1    it could not be done
  2    wrong usage, or there is no such instance; nothing was done
  124  it was not done in time

Examples:
  croft nic set web net0 --link down
  croft nic set web net0 --limit-in 10M --limit-out none";

/// What can be done to NICs of instances.
#[derive(Debug, Subcommand)]
pub enum NicCommand {
    /// Give an instance one more NIC, also while it runs
    #[command(after_help = ATTACH_HELP, after_long_help = format!("{}\n\n{ATTACH_HELP}", super::net::HELP))]
    Attach(AttachOptions),
    /// Take a NIC from an instance, also while it runs
    #[command(after_help = DETACH_HELP)]
    Detach(DetachOptions),
    /// Pull or plug a NIC's cable, or change what it may do
    #[command(after_help = SET_HELP)]
    Set(SetOptions),
}

/// `croft nic attach`.
#[derive(Debug, clap::Args)]
pub struct AttachOptions {
    #[command(flatten)]
    pub name: NameOptions,

    /// Where it leads to, with options
    #[arg(long, value_name = VALUE, value_parser = parse_net, add = ArgValueCandidates::new(places))]
    pub net: Net,

    /// Until the instance's next start only
    #[arg(long)]
    pub live_only: bool,
}

/// `croft nic set`.
#[derive(Debug, clap::Args)]
pub struct SetOptions {
    #[command(flatten)]
    pub name: NameOptions,

    /// Its name, as 'croft show' has it
    pub nic: String,

    /// Plug its cable in, or pull it
    #[arg(long, required_unless_present_any = ["limit_in", "limit_out"])]
    pub link: Option<Link>,

    /// At most so many bytes in a second to the guest, or 'none' for no limit
    #[arg(long, value_name = "SIZE|none", value_parser = parse_limit)]
    pub limit_in: Option<Limit>,

    /// The same from the guest
    #[arg(long, value_name = "SIZE|none", value_parser = parse_limit)]
    pub limit_out: Option<Limit>,

    /// Until the instance's next start only
    #[arg(long)]
    pub live_only: bool,
}

/// A cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Link {
    /// It is plugged in.
    Up,
    /// It is not.
    Down,
}

/// Bytes in a second, if there is a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<u64>);

fn parse_limit(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    let size = size::parse(text)?;
    if size == 0 {
        return Err(
            "give at least one byte in a second, or 'none'; '--link down' stops all".to_owned(),
        );
    }
    Ok(Limit(Some(size)))
}
