//! Guests that do not pass on QEMU's emulation of a processor with AMD-V
//! (TCG, as in the nested test machine). Seen with QEMU 7.2; the reasons are
//! the probable ones, few of them checked against QEMU's sources.

/// Guests that end the emulator, and with it the machine that the tests are
/// in.
pub const ENDS: &[(&str, &str)] = &[
    (
        "exceptions::bad_selectors",
        "LTR takes a null selector, and the emulator stops at the next fault in user mode",
    ),
    (
        "modes::paging_32_bit",
        "the emulator stops where user mode is left by a 32-bit TSS that VMLOAD brought",
    ),
    ("modes::paging_pae", "as modes::paging_32_bit"),
    (
        "segments::user_mode_entry_switches_stacks",
        "as modes::paging_32_bit",
    ),
    ("segments::virtual_8086_mode", "as modes::paging_32_bit"),
    (
        "segments::call_gate_to_the_kernel",
        "as modes::paging_32_bit",
    ),
    ("segments::conforming_code", "as modes::paging_32_bit"),
    (
        "segments::task_switch",
        "tasks are not switched to from a TSS that VMLOAD brought",
    ),
    (
        "segments::task_switch_and_return",
        "as segments::task_switch",
    ),
    (
        "segments::limits",
        "limits and types of data segments are not checked, and the guest runs away",
    ),
    ("segments::expand_down", "as segments::limits"),
    ("segments::types_and_null", "as segments::limits"),
];

const DEBUG: &str = "no debug registers, no TF, in a nested guest";
const CANONICAL: &str = "addresses are not checked for being canonical";
const ERROR_CODES: &str = "other error codes";

/// Guests that fail.
pub const LACKS: &[(&str, &str)] = &[
    (
        "code::by_a_device_while_it_runs",
        "stores of another processor's to code are not seen in a loop",
    ),
    (
        "code::next_instruction",
        "a store to the next instruction is not seen",
    ),
    ("debug_registers::code_breakpoint", DEBUG),
    ("debug_registers::data_breakpoints", DEBUG),
    ("debug_registers::general_detect", DEBUG),
    ("debug_registers::int1", "INT1 is undefined"),
    ("debug_registers::port_breakpoint", DEBUG),
    ("debug_registers::resume_flag", DEBUG),
    ("double::benign_pair", ERROR_CODES),
    (
        "double::contributory_pair",
        "a fault in a delivery is not made a double fault",
    ),
    (
        "double::triple_fault",
        "AMD: the state is the one after INIT",
    ),
    (
        "double::triple_fault_from_user_mode",
        "AMD: the state is the one after INIT",
    ),
    ("exceptions::alignment_check", "no alignment checks"),
    ("exceptions::bad_gates", ERROR_CODES),
    (
        "exceptions::control_registers",
        "reserved bits are taken, and then refused by VMRUN",
    ),
    (
        "exceptions::device_not_available",
        "WAIT does not look at CR0.TS alone",
    ),
    (
        "exceptions::floating_point",
        "SSE exceptions are not raised",
    ),
    ("exceptions::non_canonical_addresses", "#GP instead of #SS"),
    (
        "exceptions::resume_flag_in_frames",
        "RF in the frames of traps",
    ),
    (
        "features::cpuid_follows_state",
        "the XSAVE area's size does not follow XCR0",
    ),
    (
        "features::extended_state",
        "XSAVE forms that EPYC's model lacks",
    ),
    ("features::model_specific_registers", CANONICAL),
    (
        "interrupts::stack_segment_shadow",
        "the shadow of MOV SS ends early",
    ),
    ("interrupts::x2apic_access_faults", CANONICAL),
    ("paging::no_execute_disabled", ERROR_CODES),
    (
        "paging::read_modify_write_faults_as_a_write",
        "it faults as a read",
    ),
    ("paging::reserved_bits", ERROR_CODES),
    ("paging::smap", "a read-modify-write faults as a read"),
    ("privilege::interrupt_return_faults", CANONICAL),
    (
        "privilege::ports_from_user_mode",
        "no I/O bitmap in a TSS that VMLOAD brought",
    ),
    ("privilege::segment_bases", CANONICAL),
    (
        "privilege::user_mode_instruction_prevention",
        "EPYC has no UMIP",
    ),
    ("seam::breakpoint_and_going_on", DEBUG),
    ("seam::data_breakpoint", DEBUG),
    (
        "seam::dirty_log",
        "AMD: walking page tables counts as writing to them",
    ),
    ("seam::saved_with_a_pending_interrupt", DEBUG),
    ("seam::single_steps", DEBUG),
    (
        "modes::real_mode_interrupts",
        "the IDT's limit is not checked in real mode",
    ),
    (
        "features::paused_clock_stands_still",
        "an entry of the guest takes milliseconds, which its TSC sees",
    ),
    (
        "system_calls::syscall_and_sysret",
        "SFMASK does not clear OF",
    ),
    (
        "system_calls::sysenter_and_sysexit",
        "AMD: not in 64-bit mode",
    ),
];
