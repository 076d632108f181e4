//! Differential test: single instructions on an engine and on the host.
//!
//! An engine promises what a processor does. For each instruction form that
//! a CPU model announces, [`campaign`] makes tests: an instruction with random
//! and edge operands ([`form`], [`values`]), its memory operand or its own
//! bytes across the borders of pages that differ ([`place`], [`layout`]). Each
//! runs on the host processor ([`native`]) and in a guest ([`machine`]), from
//! the same registers, memory and addresses, and what is left is compared
//! ([`compare`], [`deviations`]): registers, flags, vector state, memory, and the exception.
//!
//! Forms that cannot be tested so are named in [`listed`], with the reason.
//!
//! `CROFT_DIFF_SEED`, `CROFT_DIFF_COUNT` and `CROFT_DIFF_ONLY` (part of a
//! form's name) choose other tests than the usual ones.

pub mod blocks;
pub mod campaign;
pub mod compare;
pub mod deviations;
pub mod draft;
pub mod features;
pub mod form;
pub mod layout;
pub mod listed;
pub mod machine;
pub mod native;
pub mod place;
pub mod state;
pub mod values;

pub use campaign::{Campaign, CampaignError, Plan, Table};
