//! Time, identity, randomness, sleep, hypercalls.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::{Activity, Cpu, cr4, flag, gpr};
use crate::fault::Exec;
use crate::op::{Flow, Handler, Op};

/// KVM's answers to hypercalls (Linux `include/uapi/linux/kvm_para.h`).
const KVM_ENOSYS: i64 = 1000;
const KVM_EPERM: i64 = 1;

pub(super) fn handler(insn: &Instruction) -> Option<Handler> {
    Some(match insn.mnemonic() {
        Mnemonic::Cpuid => cpuid,
        Mnemonic::Rdtsc => rdtsc,
        Mnemonic::Rdtscp => rdtscp,
        Mnemonic::Rdpid => rdpid,
        Mnemonic::Rdpmc => rdpmc,
        Mnemonic::Rdmsr => rdmsr,
        Mnemonic::Wrmsr => wrmsr,
        Mnemonic::Rdrand | Mnemonic::Rdseed if insn.op0_kind() == OpKind::Register => random,
        Mnemonic::Hlt => hlt,
        Mnemonic::Pause => pause,
        Mnemonic::Vmcall | Mnemonic::Vmmcall => hypercall,
        _ => return None,
    })
}

fn cpuid(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    cpu.cpuid();
    Ok(Flow::Next)
}

/// #GP(0) where CR4.TSD keeps users from the time.
fn check_tsd(cpu: &mut Cpu) -> Exec {
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

fn load_tsc(cpu: &mut Cpu) {
    let tsc = cpu.tsc();
    cpu.set_r32(gpr::RAX, tsc as u32);
    cpu.set_r32(gpr::RDX, (tsc >> 32) as u32);
}

fn rdtsc(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    check_tsd(cpu)?;
    load_tsc(cpu);
    Ok(Flow::Next)
}

fn rdtscp(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    check_tsd(cpu)?;
    load_tsc(cpu);
    let aux = cpu.msrs.tsc_aux as u32;
    cpu.set_r32(gpr::RCX, aux);
    Ok(Flow::Next)
}

fn rdpid(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let aux = cpu.msrs.tsc_aux;
    cpu.set_register(op.insn().op0_register(), aux);
    Ok(Flow::Next)
}

/// There are no counters to read.
fn rdpmc(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    Err(cpu.gp(0))
}

fn rdmsr(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    cpu.rdmsr()?;
    Ok(Flow::Next)
}

fn wrmsr(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    cpu.wrmsr()?;
    Ok(Flow::End)
}

fn random(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let register = op.insn().op0_register();
    let value = host_random();
    if value.is_some() || register.size() != 2 {
        // What fails gives zero.
        cpu.set_register(register, value.unwrap_or(0));
    }
    let carry = if value.is_some() { flag::CF } else { 0 };
    cpu.rflags = cpu.rflags & !flag::ARITH | carry;
    Ok(Flow::Next)
}

/// From the host processor where it has RDRAND, else from its kernel.
fn host_random() -> Option<u64> {
    if std::arch::is_x86_feature_detected!("rdrand") {
        let mut value = 0;
        // SAFETY: the processor has RDRAND, as was just looked up.
        #[allow(unsafe_code)]
        let ready = unsafe { std::arch::x86_64::_rdrand64_step(&mut value) };
        if ready == 1 {
            return Some(value);
        }
    }
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is as long as said.
    #[allow(unsafe_code)]
    let got =
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    (got == bytes.len() as isize).then(|| u64::from_le_bytes(bytes))
}

fn hlt(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    cpu.require_cpl0()?;
    cpu.activity = Activity::Halted;
    cpu.recheck = true;
    Ok(Flow::End)
}

/// A vCPU that spins waits for another one: let it run.
fn pause(_: &mut Cpu, _: &Op) -> Exec<Flow> {
    std::hint::spin_loop();
    Ok(Flow::End)
}

/// No hypercall is announced; every number is unknown.
fn hypercall(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    if !cpu.shared.features.kvm || cpu.real_or_vm86() {
        return Err(cpu.ud());
    }
    let answer = if cpu.cpl == 0 {
        -KVM_ENOSYS
    } else {
        -KVM_EPERM
    };
    if cpu.code64() {
        cpu.set_r64(gpr::RAX, answer as u64);
    } else {
        cpu.set_r32(gpr::RAX, answer as u32);
    }
    Ok(Flow::Next)
}
