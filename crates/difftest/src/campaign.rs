//! Runs tests of many forms and keeps the score.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use croft_engine::{CpuModel, Engine};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thiserror::Error;

use crate::compare;
use crate::deviations::{self, Deviations};
use crate::features;
use crate::form::Form;
use crate::layout::{self, BACKING, CODE, DATA};
use crate::listed;
use crate::machine::{Machine, MachineError};
use crate::native::Native;
use crate::place::{Placement, Scenario};
use crate::state::Input;

/// `int3`, which all code memory is full of.
const INT3: u8 = 0xCC;
/// Reports kept of each form.
const REPORTS: usize = 3;

/// Why a campaign cannot run.
#[derive(Debug, Error)]
pub enum CampaignError {
    /// The guest.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The host side.
    #[error("cannot run instructions on the host: {0}")]
    Native(#[from] std::io::Error),
    /// A test that stopped the campaign.
    #[error("{error}, by\n{test}")]
    Test {
        /// What happened.
        error: MachineError,
        /// During what.
        test: String,
    },
}

/// How much is tested.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything random follows from it.
    pub seed: u64,
    /// Tests with freely placed operands for each form, and repetitions of
    /// its placements: one for each 64.
    pub count: u32,
    /// Only forms whose name contains this.
    pub only: Option<String>,
}

impl Plan {
    /// From `CROFT_DIFF_SEED`, `CROFT_DIFF_COUNT` and `CROFT_DIFF_ONLY`.
    pub fn from_environment() -> Plan {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        Plan {
            seed: number("CROFT_DIFF_SEED").unwrap_or(2),
            count: number("CROFT_DIFF_COUNT").unwrap_or(64) as u32,
            only: std::env::var("CROFT_DIFF_ONLY").ok(),
        }
    }
}

/// What came out.
#[derive(Debug, Default)]
pub struct Table {
    /// Engine and model.
    pub subject: String,
    /// The plan's seed.
    pub seed: u64,
    /// Forms tested, with the number of tests of each.
    pub tested: BTreeMap<String, u32>,
    /// Forms listed, by reason.
    pub listed: BTreeMap<&'static str, Vec<Code>>,
    /// Forms announced that are neither.
    pub forgotten: Vec<Code>,
    /// Tests run.
    pub tests: u64,
    /// How tests ended, by exception vector.
    pub ends: BTreeMap<u8, u64>,
    /// Tests whose outcomes differ, by form.
    pub mismatches: BTreeMap<String, u32>,
    /// The first few in full.
    pub reports: Vec<String>,
    /// Differences accepted, by rule.
    pub deviations: BTreeMap<&'static str, u64>,
    /// Forms by the flags that are undefined after them.
    pub undefined: BTreeMap<String, u32>,
    /// Time taken.
    pub took: Duration,
}

impl Table {
    /// Number of mismatches.
    pub fn mismatched(&self) -> u64 {
        self.mismatches.values().map(|n| u64::from(*n)).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed: usize = self.listed.values().map(Vec::len).sum();
        writeln!(f, "differential test, {}, seed {}", self.subject, self.seed)?;
        writeln!(f, "  forms tested      {:>9}", self.tested.len())?;
        writeln!(f, "  forms listed      {listed:>9}")?;
        for (reason, codes) in &self.listed {
            writeln!(f, "    {:>5}  {reason}", codes.len())?;
        }
        writeln!(f, "  forms forgotten   {:>9}", self.forgotten.len())?;
        writeln!(f, "  tests             {:>9}", self.tests)?;
        for (vector, n) in &self.ends {
            writeln!(f, "    {n:>9}  ended with vector {vector}")?;
        }
        writeln!(f, "  undefined flags, not compared")?;
        for (flags, n) in &self.undefined {
            writeln!(f, "    {n:>5}  forms: {flags}")?;
        }
        writeln!(f, "  differences accepted")?;
        for (rule, n) in &self.deviations {
            writeln!(f, "    {n:>9}  {rule}")?;
        }
        let rate = self.tests as f64 / self.took.as_secs_f64().max(1e-9);
        writeln!(
            f,
            "  time              {:>8.1}s ({rate:.0}/s)",
            self.took.as_secs_f64()
        )?;
        writeln!(
            f,
            "  mismatches        {:>9}  in {} forms",
            self.mismatched(),
            self.mismatches.len()
        )?;
        for (form, n) in &self.mismatches {
            writeln!(f, "    {n:>5}  {form}")?;
        }
        Ok(())
    }
}

/// The host and a guest side by side.
pub struct Campaign {
    machine: Machine,
    native: Native,
    deviations: Deviations,
    guest_data: Box<[u8; BACKING]>,
    /// Where code other than `int3` stands, by place in the backing.
    written: Vec<(usize, usize)>,
    subject: String,
}

impl Campaign {
    /// Sets both up.
    pub fn new(engine: &dyn Engine, model: CpuModel) -> Result<Campaign, CampaignError> {
        // The engine first: its signal handlers, if any, come behind ours.
        engine.probe();
        let mut native = Native::take()?;
        let machine = Machine::new(engine, model, native.fs_base(), native.selectors())?;
        let deviations = Deviations::new(machine.profile());
        native.code().fill(INT3);
        machine.write_code(0, &[INT3; BACKING])?;
        Ok(Campaign {
            machine,
            native,
            deviations,
            guest_data: Box::new([0; BACKING]),
            written: Vec::new(),
            subject: format!("{} engine, {model}", engine.name()),
        })
    }

    /// Runs `plan` over everything the model announces.
    pub fn run(&mut self, plan: &Plan) -> Result<Table, CampaignError> {
        let announced = features::announced(self.machine.profile());
        let forms = features::forms(&announced);
        self.run_forms(plan, &forms)
    }

    /// Runs `plan` over `forms`.
    pub fn run_forms(&mut self, plan: &Plan, forms: &[Code]) -> Result<Table, CampaignError> {
        let start = Instant::now();
        let mut table = Table {
            subject: self.subject.clone(),
            seed: plan.seed,
            ..Table::default()
        };
        for code in forms.iter().copied() {
            let name = format!("{code:?}");
            if plan.only.as_ref().is_some_and(|only| !name.contains(only)) {
                continue;
            }
            if let Some(reason) = listed::reason(code) {
                table.listed.entry(reason).or_default().push(code);
                continue;
            }
            let tests = self.run_form(plan, code, &name, &mut table)?;
            if tests == 0 {
                table.forgotten.push(code);
                continue;
            }
            table.tested.insert(name, tests);
            table.tests += u64::from(tests);
            let mut insn = Instruction::default();
            insn.set_code(code);
            // A shift or rotation count other than 0 and 1.
            insn.set_immediate8(5);
            let (_, _, flags) = compare::undefined_flags(&insn);
            if !flags.is_empty() {
                *table.undefined.entry(flags.join(" ")).or_default() += 1;
            }
        }
        table.took = start.elapsed();
        Ok(table)
    }

    fn run_form(
        &mut self,
        plan: &Plan,
        code: Code,
        name: &str,
        table: &mut Table,
    ) -> Result<u32, CampaignError> {
        let mut rng = SmallRng::seed_from_u64(plan.seed << 16 ^ code as u64);
        let form = Form::new(code);
        self.fill_data(&mut rng)?;
        let free = Scenario {
            operand: None,
            code: Placement::Free,
        };
        let free = std::iter::repeat_n(free, plan.count as usize);
        let placed = form.scenarios();
        let rounds = plan.count.div_ceil(64) as usize;
        let mut tests = 0;
        for scenario in free.chain(std::iter::repeat_n(placed, rounds).flatten()) {
            let Some(input) = form.instance(&mut rng, &scenario) else {
                if tests == 0 && scenario.code == Placement::Free && scenario.operand.is_some() {
                    return Ok(0);
                }
                continue;
            };
            tests += 1;
            if let Some(report) = self.run_test(&input, table)? {
                let count = table.mismatches.entry(name.to_owned()).or_default();
                *count += 1;
                if *count <= REPORTS as u32 {
                    table.reports.push(report);
                }
            }
        }
        Ok(tests)
    }

    fn fill_data(&mut self, rng: &mut SmallRng) -> Result<(), CampaignError> {
        rng.fill(&mut self.guest_data[..]);
        self.native.data().copy_from_slice(&self.guest_data[..]);
        self.machine.write_data(0, &self.guest_data[..])?;
        Ok(())
    }

    /// One test on both; a report when they disagree.
    fn run_test(
        &mut self,
        input: &Input,
        table: &mut Table,
    ) -> Result<Option<String>, CampaignError> {
        self.prepare(input)?;
        let insn = Decoder::with_ip(64, &input.code, input.rip, DecoderOptions::NONE).decode();
        let host = self.native.run(input);
        let mut guest = self
            .machine
            .run(input)
            .map_err(|error| CampaignError::Test {
                error,
                test: compare::describe(&insn, input),
            })?;
        *table.ends.entry(host.end.vector).or_default() += 1;
        let accepted = self.deviations.accept(&insn, input, &host, &mut guest);
        let mut lines = compare::differences(&insn, &host, &guest);
        self.machine.read_data(&mut self.guest_data)?;
        let host_data = self.native.data();
        let mut rules = accepted.rules;
        if let Some((address, len)) = accepted.memory {
            for (at, from, to) in pieces(DATA, address, len as usize) {
                let range = at..at + to - from;
                if host_data[range.clone()] != self.guest_data[range.clone()] {
                    rules.push(deviations::HALF_STORED);
                    self.guest_data[range.clone()].copy_from_slice(&host_data[range]);
                    self.machine.write_data(0, host_data)?;
                }
            }
        }
        for rule in rules {
            *table.deviations.entry(rule).or_default() += 1;
        }
        if host_data != &self.guest_data[..] {
            let places = host_data.iter().zip(self.guest_data.iter()).enumerate();
            for (at, (host, guest)) in places.filter(|(_, (h, g))| h != g).take(8) {
                lines.push(format!(
                    "memory at backing {at:#x}: host {host:#x}, engine {guest:#x}"
                ));
            }
            self.machine.write_data(0, host_data)?;
        }
        self.clean()?;
        if lines.is_empty() {
            return Ok(None);
        }
        let mut report = compare::describe(&insn, input);
        let _ = writeln!(
            report,
            "  ended: host {:?}, engine {:?}",
            host.end, guest.end
        );
        for line in lines {
            let _ = writeln!(report, "    {line}");
        }
        Ok(Some(report))
    }

    fn prepare(&mut self, input: &Input) -> Result<(), CampaignError> {
        for (address, bytes) in &input.memory {
            for (at, from, to) in pieces(DATA, *address, bytes.len()) {
                self.native.data()[at..][..to - from].copy_from_slice(&bytes[from..to]);
                self.machine.write_data(at, &bytes[from..to])?;
            }
        }
        for (at, from, to) in pieces(CODE, input.rip, input.code.len()) {
            self.native.code()[at..][..to - from].copy_from_slice(&input.code[from..to]);
            self.machine.write_code(at, &input.code[from..to])?;
            self.written.push((at, to - from));
        }
        Ok(())
    }

    fn clean(&mut self) -> Result<(), CampaignError> {
        for (at, len) in self.written.drain(..) {
            self.native.code()[at..][..len].fill(INT3);
            self.machine.write_code(at, &[INT3; 16][..len])?;
        }
        Ok(())
    }
}

/// The parts of `len` bytes at `address` that something backs: place, and
/// range of the bytes.
fn pieces(area: u64, address: u64, len: usize) -> Vec<(usize, usize, usize)> {
    let mut pieces = Vec::new();
    let mut from = 0;
    while from < len {
        let here = address.wrapping_add(from as u64);
        let left = (layout::PAGE - here % layout::PAGE) as usize;
        let to = len.min(from + left);
        if let Some(at) = layout::backing(area, here) {
            pieces.push((at, from, to));
        }
        from = to;
    }
    pieces
}
