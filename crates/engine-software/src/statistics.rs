//! What the engine counts when it is asked to, for people.
//!
//! Each vCPU counts for itself, without locks, and publishes what it has from
//! time to time; whoever prints adds the vCPUs up.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use iced_x86::{Code, Instruction};

use crate::cpu::Cpu;
use crate::op::Op;
use crate::shared::lock;
use crate::tlb::AccessMode;
use crate::translate::{Class, REASONS};

/// Forms that are printed.
const SHOWN: usize = 30;
/// Time between two publications.
const EVERY: Duration = Duration::from_millis(50);
/// Blocks of which it is remembered that they were translated: about 16 MiB.
const REMEMBERED: usize = 1 << 19;

/// What one vCPU, or all of them, counted.
#[derive(Clone, Debug, Default)]
struct Counts {
    /// Instructions of whole blocks that the interpreter ran.
    interpreted: u64,
    /// Instructions of translated blocks.
    translated: u64,
    /// Those of them that the interpreter did.
    helped: u64,
    /// Blocks translated, and those that had been before.
    blocks: u64,
    again: u64,
    /// Bytes of their code.
    bytes: u64,
    /// Times all code was thrown away, and the longest of them.
    flushes: u64,
    longest: Duration,
    /// Accesses of translated code, and what became of those that were not
    /// found at once.
    checks: u64,
    refilled: u64,
    missed: u64,
    /// Walks of page tables.
    walks: u64,
    /// Returns from translated code by [`crate::translate::Reason`].
    exits: [u64; REASONS.len()],
    /// Instructions that the interpreter did for translated code; true where
    /// it always does.
    forms: HashMap<(Code, bool), u64>,
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.interpreted += other.interpreted;
        self.translated += other.translated;
        self.helped += other.helped;
        self.blocks += other.blocks;
        self.again += other.again;
        self.bytes += other.bytes;
        self.flushes += other.flushes;
        self.longest = self.longest.max(other.longest);
        self.checks += other.checks;
        self.refilled += other.refilled;
        self.missed += other.missed;
        self.walks += other.walks;
        for (mine, theirs) in self.exits.iter_mut().zip(other.exits) {
            *mine += theirs;
        }
        for (&form, &count) in &other.forms {
            *self.forms.entry(form).or_default() += count;
        }
    }
}

/// What the vCPUs of an engine's partitions counted. Prints as a table.
#[derive(Debug, Default)]
pub struct Statistics {
    vcpus: Mutex<Vec<Arc<Mutex<Counts>>>>,
}

impl Statistics {
    fn total(&self) -> Counts {
        let mut total = Counts::default();
        for vcpu in lock(&self.vcpus).iter() {
            total.add(&lock(vcpu));
        }
        total
    }

    /// Share of the guest's instructions that ran as translated code, 0–1.
    pub fn translated_share(&self) -> f64 {
        let total = self.total();
        share(
            total.translated.saturating_sub(total.helped),
            total.translated + total.interpreted,
        )
    }

    /// Times all translated code was thrown away, and how long it took at
    /// most.
    pub fn flushes(&self) -> (u64, Duration) {
        let total = self.total();
        (total.flushes, total.longest)
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    part as f64 / whole as f64
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        let all = total.translated + total.interpreted;
        let mut line = |name: &str, count: u64, of: u64| {
            let share = 100.0 * share(count, of);
            writeln!(f, "  {name:<58} {count:>14} {share:>8.3} %")
        };
        line("guest instructions", all, all)?;
        let native = total.translated.saturating_sub(total.helped);
        line("  translated", native, all)?;
        line("  interpreted for translated code", total.helped, all)?;
        line("  interpreted", total.interpreted, all)?;
        line("blocks translated", total.blocks, total.blocks)?;
        line("  not for the first time", total.again, total.blocks)?;
        line("accesses to memory, translated", total.checks, total.checks)?;
        let hits = total.checks.saturating_sub(total.refilled + total.missed);
        line("  found in the tables", hits, total.checks)?;
        line("  found in the TLB", total.refilled, total.checks)?;
        line("  left to the interpreter", total.missed, total.checks)?;
        let exits = total.exits.iter().sum();
        line("returns from translated code", exits, exits)?;
        // There is no reason 0.
        for (name, count) in REASONS.iter().zip(total.exits).skip(1) {
            line(&format!("  {name}"), count, exits)?;
        }
        writeln!(f, "  {:<58} {:>14}", "page walks", total.walks)?;
        writeln!(
            f,
            "  {:<58} {:>14}",
            "bytes of code translated", total.bytes
        )?;
        writeln!(
            f,
            "  {:<58} {:>14}  at most {:.3} ms",
            "times all code was thrown away",
            total.flushes,
            total.longest.as_secs_f64() * 1e3
        )?;
        let mut forms: Vec<_> = total.forms.into_iter().collect();
        forms.sort_by_key(|&((code, _), count)| (std::cmp::Reverse(count), code as usize));
        if !forms.is_empty() {
            writeln!(
                f,
                "  instructions that the interpreter did for translated code"
            )?;
        }
        for ((code, always), count) in forms.into_iter().take(SHOWN) {
            let name = format!("{code:?}");
            let why = if always { "always" } else { "now and then" };
            writeln!(f, "    {name:<56} {count:>14}  {why}")?;
        }
        Ok(())
    }
}

/// One vCPU's counting.
pub struct Counting {
    counts: Counts,
    public: Arc<Mutex<Counts>>,
    published: Instant,
    /// By address of their ops: the instructions of translated blocks.
    ops: HashMap<usize, (Code, bool)>,
    /// Blocks that were translated, by address and mode.
    seen: HashSet<u64>,
}

impl Counting {
    /// For one more vCPU of `all`.
    pub fn new(all: &Statistics) -> Self {
        let public = Arc::<Mutex<Counts>>::default();
        lock(&all.vcpus).push(public.clone());
        Counting {
            counts: Counts::default(),
            public,
            published: Instant::now(),
            ops: HashMap::new(),
            seen: HashSet::new(),
        }
    }

    /// A block of `bytes` bytes of code was made.
    pub fn translated(
        &mut self,
        gpa: u64,
        mode: AccessMode,
        bytes: usize,
        block: &[(Instruction, Class)],
        ops: &[Op],
    ) {
        self.counts.blocks += 1;
        self.counts.bytes += bytes as u64;
        let key = gpa << 2 | mode as u64;
        if self.seen.contains(&key) {
            self.counts.again += 1;
        } else if self.seen.len() < REMEMBERED {
            self.seen.insert(key);
        }
        for ((insn, class), op) in block.iter().zip(ops) {
            let at = std::ptr::from_ref(op) as usize;
            let form = (insn.code(), *class == Class::Interpret);
            self.ops.insert(at, form);
        }
    }

    /// The interpreter did `op` for translated code.
    pub fn helped(&mut self, op: &Op) {
        self.counts.helped += 1;
        let at = std::ptr::from_ref(op) as usize;
        if let Some(form) = self.ops.get(&at) {
            *self.counts.forms.entry(*form).or_default() += 1;
        }
    }

    /// Translated code returned for `reason`.
    pub fn returned(&mut self, reason: usize) {
        if let Some(count) = self.counts.exits.get_mut(reason) {
            *count += 1;
        }
    }

    /// All code was thrown away, which took so long.
    pub fn flushed(&mut self, took: Duration) {
        self.ops.clear();
        self.counts.flushes += 1;
        self.counts.longest = self.counts.longest.max(took);
    }

    /// Page tables were walked.
    pub fn walked(&mut self) {
        self.counts.walks += 1;
    }
}

impl Cpu {
    /// Publishes what was counted, if `now` or if it is time.
    #[cold]
    pub fn publish_counts(&mut self, now: bool) {
        let (interpreted, hot) = (self.retired, &self.hot);
        let Some(counting) = &mut self.counting else {
            return;
        };
        if !now && counting.published.elapsed() < EVERY {
            return;
        }
        counting.published = Instant::now();
        counting.counts.interpreted = interpreted;
        counting.counts.translated = hot.retired;
        counting.counts.checks = hot.checks;
        counting.counts.refilled = hot.refilled;
        counting.counts.missed = hot.missed;
        lock(&counting.public).clone_from(&counting.counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_are_added_up() {
        let all = Statistics::default();
        assert_eq!(all.translated_share(), 0.0);
        for n in 1..=2 {
            let counting = Counting::new(&all);
            let mut counts = lock(&counting.public);
            counts.translated = 80 * n;
            counts.helped = 20 * n;
            counts.interpreted = 40 * n;
            counts.longest = Duration::from_millis(n);
            counts.flushes = n;
            counts.forms.insert((Code::Cpuid, true), n);
        }
        assert!((all.translated_share() - 0.5).abs() < 1e-9);
        assert_eq!(all.flushes(), (3, Duration::from_millis(2)));
        let text = all.to_string();
        let line = |start: &str| {
            let line = text.lines().find(|line| line.trim().starts_with(start));
            line.unwrap_or_else(|| panic!("no {start} in {text}"))
        };
        assert!(line("guest instructions").contains("360"));
        assert!(line("translated").contains("50.000 %"));
        assert!(line("Cpuid").contains('3') && line("Cpuid").ends_with("always"));
    }
}
