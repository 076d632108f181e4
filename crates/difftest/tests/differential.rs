//! The software engine against the host processor.

use std::sync::Arc;

use croft_difftest::{Campaign, Plan, Table};
use croft_engine::{
    Capabilities, CpuIo, CpuModel, CpuProfile, CpuState, DebugControl, Doorbell, Engine,
    EngineError, Fitness, InterruptRoute, Kicker, Missing, Partition, PartitionConfig,
    PartitionState, Stop, Topology, Translation, Vcpu,
};
use croft_engine_software::{Planted, SoftwareEngine, plant};
use croft_irqchip::Msi;
use iced_x86::Code;
use vmm_sys_util::eventfd::EventFd;

fn check(table: &Table) {
    println!("{table}");
    for report in table.reports.iter().take(100) {
        println!("{report}");
    }
    assert!(
        table.forgotten.is_empty(),
        "neither tested nor listed: {:?}",
        table.forgotten
    );
    assert_eq!(table.mismatched(), 0, "see the reports above");
}

/// Both models announce the same instructions, so one run serves both.
#[test]
fn every_announced_form_agrees_with_the_host() {
    let mut campaign = Campaign::new(&SoftwareEngine::new(), CpuModel::SoftwareFast).unwrap();
    check(&campaign.run(&Plan::from_environment()).unwrap());
}

#[test]
fn models_announce_the_same_forms() {
    let engine = SoftwareEngine::new();
    let forms = |model| {
        let profile = engine.profile(model, Topology { vcpus: 1 }).unwrap();
        let announced = croft_difftest::features::announced(&profile);
        croft_difftest::features::forms(&announced)
    };
    let (fast, portable) = (forms(CpuModel::SoftwareFast), forms(CpuModel::PortableV1));
    let only: Vec<_> = portable
        .iter()
        .filter(|code| !fast.contains(code))
        .collect();
    assert!(only.is_empty(), "only portable-v1 has {only:?}");
}

/// Forms that the engine runs through host stubs.
const STUBS: [Code; 6] = [
    Code::Addps_xmm_xmmm128,
    Code::VEX_Vaddpd_ymm_ymm_ymmm256,
    Code::Ucomisd_xmm_xmmm64,
    Code::Cvttsd2si_r64_xmmm64,
    Code::Popcnt_r64_rm64,
    Code::Fadd_m64fp,
];

fn plan() -> Plan {
    Plan {
        seed: 1,
        count: 64,
        only: None,
    }
}

/// Mismatches of `forms` with an error planted into the engine's stubs.
fn with_planted(error: Planted, forms: &[Code]) -> Table {
    let mut campaign = Campaign::new(&SoftwareEngine::new(), CpuModel::SoftwareFast).unwrap();
    plant(error);
    let table = campaign.run_forms(&plan(), forms);
    plant(Planted::None);
    table.unwrap()
}

#[test]
fn sound_stubs_agree() {
    assert_eq!(with_planted(Planted::None, &STUBS).mismatched(), 0);
}

#[test]
fn planted_operand_fetch_is_caught() {
    let table = with_planted(Planted::OperandFetch, &STUBS);
    assert_eq!(table.mismatches.len(), STUBS.len(), "{table}");
}

#[test]
fn planted_write_back_is_caught() {
    let forms = [
        Code::Addps_xmm_xmmm128,
        Code::VEX_Vaddpd_ymm_ymm_ymmm256,
        Code::Cvttsd2si_r64_xmmm64,
        Code::Popcnt_r64_rm64,
    ];
    let table = with_planted(Planted::WriteBack, &forms);
    assert_eq!(table.mismatches.len(), forms.len(), "{table}");
}

#[test]
fn planted_flags_merge_is_caught() {
    let forms = [Code::Ucomisd_xmm_xmmm64, Code::Popcnt_r64_rm64];
    let table = with_planted(Planted::FlagsMerge, &forms);
    assert_eq!(table.mismatches.len(), forms.len(), "{table}");
}

#[test]
fn planted_fault_path_is_caught() {
    let forms = [Code::Addps_xmm_xmmm128, Code::VEX_Vaddpd_ymm_ymm_ymmm256];
    let table = with_planted(Planted::FaultPath, &forms);
    assert_eq!(table.mismatches.len(), forms.len(), "{table}");
}

/// An engine whose vCPUs have an error of `Wrong`'s kind in every outcome.
struct WrongEngine(Wrong);

/// What [`WrongEngine`] does wrong.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    /// A general register has a bit flipped.
    Register,
    /// An XMM register has.
    Vector,
    /// The instruction's own flags are lost: CF is flipped before it runs.
    Flags,
    /// It starts one byte later.
    Fetch,
}

struct WrongPartition(Arc<dyn Partition>, Wrong);

struct WrongVcpu(Box<dyn Vcpu>, Wrong);

impl Engine for WrongEngine {
    fn name(&self) -> &'static str {
        "wrong"
    }

    fn probe(&self) -> Fitness {
        SoftwareEngine::new().probe()
    }

    fn capabilities(&self) -> Capabilities {
        SoftwareEngine::new().capabilities()
    }

    fn profile(&self, model: CpuModel, topology: Topology) -> Result<CpuProfile, Vec<Missing>> {
        SoftwareEngine::new().profile(model, topology)
    }

    fn partition(&self, config: PartitionConfig) -> Result<Arc<dyn Partition>, EngineError> {
        let inner = SoftwareEngine::new().partition(config)?;
        Ok(Arc::new(WrongPartition(inner, self.0)))
    }
}

impl Partition for WrongPartition {
    fn vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(WrongVcpu(self.0.vcpu(index)?, self.1)))
    }

    fn set_line(&self, gsi: u32, level: bool) {
        self.0.set_line(gsi, level);
    }

    fn msi(&self, msi: Msi) {
        self.0.msi(msi);
    }

    fn irqfd(&self, route: InterruptRoute) -> Result<EventFd, EngineError> {
        self.0.irqfd(route)
    }

    fn resample(&self, gsi: u32) -> Result<EventFd, EngineError> {
        self.0.resample(gsi)
    }

    fn doorbell(&self, doorbell: Doorbell) -> Result<EventFd, EngineError> {
        self.0.doorbell(doorbell)
    }

    fn remove_doorbell(&self, doorbell: Doorbell) {
        self.0.remove_doorbell(doorbell);
    }

    fn clock_ns(&self) -> u64 {
        self.0.clock_ns()
    }

    fn pause_clock(&self) {
        self.0.pause_clock();
    }

    fn resume_clock(&self) {
        self.0.resume_clock();
    }

    fn save(&self) -> Result<PartitionState, EngineError> {
        self.0.save()
    }

    fn restore(&self, state: &PartitionState) -> Result<(), EngineError> {
        self.0.restore(state)
    }

    fn reset(&self) {
        self.0.reset();
    }
}

impl Vcpu for WrongVcpu {
    fn run(&mut self, io: &dyn CpuIo) -> Stop {
        self.0.run(io)
    }

    fn kicker(&self) -> Kicker {
        self.0.kicker()
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        let mut state = self.0.save()?;
        match self.1 {
            Wrong::Register => state.registers[9] ^= 1 << 40,
            // XMM5 in the legacy region.
            Wrong::Vector => {
                if let Some(byte) = state.xsave.get_mut(160 + 16 * 5 + 3) {
                    *byte ^= 4;
                }
            }
            Wrong::Flags | Wrong::Fetch => {}
        }
        Ok(state)
    }

    fn restore(&mut self, state: &CpuState) -> Result<(), EngineError> {
        let mut state = state.clone();
        match self.1 {
            Wrong::Flags => state.rflags ^= 1,
            Wrong::Fetch => state.rip += 1,
            Wrong::Register | Wrong::Vector => {}
        }
        self.0.restore(&state)
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn translate(&mut self, linear: u64) -> Option<Translation> {
        self.0.translate(linear)
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError> {
        self.0.set_debug(control)
    }
}

fn is_caught(wrong: Wrong, form: Code) {
    let mut campaign = Campaign::new(&WrongEngine(wrong), CpuModel::SoftwareFast).unwrap();
    let table = campaign.run_forms(&plan(), &[form]).unwrap();
    assert!(table.mismatched() > 0, "{wrong:?} in {form:?}\n{table}");
}

#[test]
fn wrong_register_is_caught() {
    is_caught(Wrong::Register, Code::Mov_r64_rm64);
}

#[test]
fn wrong_vector_is_caught() {
    is_caught(Wrong::Vector, Code::Nopd);
}

#[test]
fn wrong_flags_are_caught() {
    is_caught(Wrong::Flags, Code::Adc_rm64_r64);
}

#[test]
fn wrong_fetch_is_caught() {
    is_caught(Wrong::Fetch, Code::Add_rm32_imm32);
}
