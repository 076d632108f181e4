//! What KVM says when it cannot go on, in words.

use std::fmt::Write;

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_EXCEPTION, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT,
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};

/// An exit's name in KVM's documentation.
pub fn name(reason: u32) -> String {
    let name = match reason {
        KVM_EXIT_EXCEPTION => "KVM_EXIT_EXCEPTION",
        KVM_EXIT_IO => "KVM_EXIT_IO",
        KVM_EXIT_DEBUG => "KVM_EXIT_DEBUG",
        KVM_EXIT_HLT => "KVM_EXIT_HLT",
        KVM_EXIT_MMIO => "KVM_EXIT_MMIO",
        KVM_EXIT_SHUTDOWN => "KVM_EXIT_SHUTDOWN",
        KVM_EXIT_FAIL_ENTRY => "KVM_EXIT_FAIL_ENTRY",
        KVM_EXIT_INTR => "KVM_EXIT_INTR",
        KVM_EXIT_INTERNAL_ERROR => "KVM_EXIT_INTERNAL_ERROR",
        KVM_EXIT_SYSTEM_EVENT => "KVM_EXIT_SYSTEM_EVENT",
        other => return format!("exit {other}"),
    };
    name.to_owned()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, " {byte:02x}");
    }
    text
}

/// An internal error: what, where, and the bytes of the instruction. `bytes`
/// are those in guest memory, for a kernel that does not tell.
pub fn internal_error(run: &kvm_run, rip: u64, bytes: &[u8]) -> String {
    // SAFETY: the exit reason says that this member is valid; all of it is
    // plain data.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let what = match internal.suberror {
        KVM_INTERNAL_ERROR_EMULATION => "it cannot emulate an instruction",
        KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions came together that cannot",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "delivering an event caused an exit it cannot handle",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "the processor left the guest unexpectedly",
        _ => "it does not say why",
    };
    let mut text = format!(
        "KVM gave up (internal error {}): {what}; RIP {rip:#x}",
        internal.suberror
    );
    let told = told_bytes(run, internal.suberror, internal.ndata);
    let bytes = told.as_deref().unwrap_or(bytes);
    if !bytes.is_empty() {
        text.push_str(", instruction bytes");
        text.push_str(&hex(bytes));
    }
    let data = internal.data.iter().take(internal.ndata as usize);
    let data: Vec<_> = data.map(|word| format!("{word:#x}")).collect();
    if !data.is_empty() {
        // Writing to a string does not fail.
        let _ = write!(text, ", data {}", data.join(" "));
    }
    text
}

/// The instruction's bytes where the kernel tells them.
fn told_bytes(run: &kvm_run, suberror: u32, ndata: u32) -> Option<Vec<u8>> {
    // Flags, and then sixteen bytes of size and instruction.
    if suberror != KVM_INTERNAL_ERROR_EMULATION || ndata < 3 {
        return None;
    }
    // SAFETY: as in `internal_error`.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    let flag = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
    if failure.flags & flag == 0 {
        return None;
    }
    // SAFETY: the flag says that the bytes are there; they are plain data.
    let (size, bytes) = unsafe {
        let told = &failure.__bindgen_anon_1.__bindgen_anon_1;
        (told.insn_size, told.insn_bytes)
    };
    Some(bytes.into_iter().take(size.into()).collect())
}

/// The processor refused to enter the guest.
pub fn fail_entry(run: &kvm_run, rip: u64) -> String {
    // SAFETY: as in `internal_error`.
    let failure = unsafe { run.__bindgen_anon_1.fail_entry };
    let hint = match failure.hardware_entry_failure_reason {
        // VMX: bit 31 set, basic reason 33 (SDM vol. 3, appendix C).
        0x8000_0021 => " (the guest's state is not valid for VMX)",
        // SVM: VMEXIT_INVALID.
        u64::MAX | 0xFFFF_FFFF => " (the guest's state is not valid for SVM)",
        _ => "",
    };
    format!(
        "the processor refused to enter the guest: reason {:#x}{hint}, on CPU {}; RIP {rip:#x}",
        failure.hardware_entry_failure_reason, failure.cpu
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulation_failure_names_the_instruction() {
        let mut run = kvm_run::default();
        run.__bindgen_anon_1.internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
        run.__bindgen_anon_1.internal.ndata = 0;
        let text = internal_error(&run, 0x6003, &[0x0F, 0x57, 0xC0]);
        assert!(
            text.contains("RIP 0x6003, instruction bytes 0f 57 c0"),
            "{text}"
        );
        run.__bindgen_anon_1.internal.ndata = 3;
        let mut data = [0; 16];
        data[..2].copy_from_slice(&[1, 0xCC01]);
        run.__bindgen_anon_1.internal.data = data;
        let text = internal_error(&run, 0, &[0x90]);
        assert!(
            text.contains("instruction bytes cc, data 0x1 0xcc01 0x0"),
            "{text}"
        );
    }

    #[test]
    fn damaged_counts_are_bounded() {
        let mut run = kvm_run::default();
        run.__bindgen_anon_1.internal.ndata = u32::MAX;
        assert!(internal_error(&run, 0, &[]).len() < 500);
        run.__bindgen_anon_1
            .fail_entry
            .hardware_entry_failure_reason = 0x8000_0021;
        assert!(fail_entry(&run, 7).contains("not valid for VMX"));
    }
}
