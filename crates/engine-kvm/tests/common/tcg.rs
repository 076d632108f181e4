//! Guests that fail on QEMU's emulation of a processor with AMD-V (TCG, as in
//! the nested test machine), and where in the sources of QEMU 7.2, in
//! `target/i386/tcg`, the reason is.

const BREAKPOINTS: &str =
    "VMRUN sets DR7 without arming its breakpoints (sysemu/svm_helper.c, helper_vmrun)";
const ERROR_CODES: &str = "the error code is 16 times the vector, without EXT (seg_helper.c, \
                           do_interrupt64)";
const LIMITS: &str = "no limits, types or null selectors on access (translate.c, gen_lea_v_seg)";
const RESERVED: &str =
    "P is not set with a reserved bit's fault (sysemu/excp_helper.c, mmu_translate)";
const READ_FIRST: &str = "a read-modify-write faults as a read (translate.c, gen_op)";
const MSR_BASES: &str = "WRMSR takes any address (sysemu/misc_helper.c, helper_wrmsr)";
const TARGETS: &str = "a jump's target is looked at when it is fetched, and the frame has it \
                       (translate.c, gen_op_jmp_v)";
const XCR0: &str = "XSETBV is not intercepted, so KVM does not see XCR0 (translate.c, 0xd1)";

/// Name and reason.
pub const LACKS: &[(&str, &str)] = &[
    ("accesses::return_to_nowhere", TARGETS),
    (
        "code::next_instruction",
        "the second stage's walk drops the running block (sysemu/excp_helper.c, mmu_translate)",
    ),
    (
        "debug_registers::between_iterations",
        "RF is not set between iterations (translate.c, gen_repz)",
    ),
    ("debug_registers::code_breakpoint", BREAKPOINTS),
    ("debug_registers::data_breakpoints", BREAKPOINTS),
    (
        "debug_registers::general_detect",
        "no DR7.GD (sysemu/bpt_helper.c, helper_get_dr)",
    ),
    ("debug_registers::int1", "no INT1 (translate.c, WANT_ICEBP)"),
    ("debug_registers::resume_flag", BREAKPOINTS),
    ("double::benign_pair", ERROR_CODES),
    (
        "double::contributory_pair",
        "what VMRUN injects is no first fault (sysemu/svm_helper.c, helper_vmrun)",
    ),
    (
        "exceptions::alignment_check",
        "no #AC (excp_helper.c, handle_unaligned_access)",
    ),
    ("exceptions::bad_gates", ERROR_CODES),
    (
        "exceptions::control_registers",
        "CR0's upper half is ignored, CR3's reserved bits are VMEXIT_INVALID \
         (sysemu/misc_helper.c, helper_write_crN)",
    ),
    (
        "exceptions::device_not_available",
        "EMMS does not look at CR0.TS (emit.c.inc, gen_EMMS)",
    ),
    (
        "exceptions::floating_point",
        "only WAIT raises #MF, nothing #XM (fpu_helper.c, helper_fwait)",
    ),
    (
        "exceptions::non_canonical_addresses",
        "always #GP, never #SS (sysemu/excp_helper.c, get_physical_address)",
    ),
    (
        "exceptions::null_task",
        "LTR takes a null selector (seg_helper.c, helper_ltr)",
    ),
    (
        "exceptions::resume_flag_in_frames",
        "RF is cleared only at a block's end (translate.c, do_gen_eob_worker)",
    ),
    ("features::cpuid_follows_state", XCR0),
    ("features::extended_state", XCR0),
    ("features::model_specific_registers", MSR_BASES),
    ("modes::real_mode_interrupts", LIMITS),
    ("paging::no_execute_disabled", RESERVED),
    ("paging::read_modify_write_faults_as_a_write", READ_FIRST),
    ("paging::reserved_bits", RESERVED),
    ("paging::smap", READ_FIRST),
    (
        "privilege::interrupt_return_faults",
        "IRET takes any address (seg_helper.c, helper_ret_protected)",
    ),
    ("privilege::segment_bases", MSR_BASES),
    ("seam::breakpoint_and_going_on", BREAKPOINTS),
    ("seam::data_breakpoint", BREAKPOINTS),
    ("segments::expand_down", LIMITS),
    ("segments::limits", LIMITS),
    ("segments::types_and_null", LIMITS),
    (
        "segments::virtual_8086_mode",
        "RF is not set in the frames of faults (seg_helper.c, do_interrupt_protected)",
    ),
    (
        "system_calls::syscall_and_sysret",
        "SYSCALL clears the arithmetic flags (sysemu/seg_helper.c, helper_syscall)",
    ),
    ("translations::users_jumps_to_nowhere", TARGETS),
];
