//! What the tests run on.

use std::arch::x86_64::__cpuid;

/// Whether the processor is QEMU's emulation of one (TCG): its signature in
/// CPUID 4000_0000h is "TCGTCGTCGTCG".
pub fn is_tcg() -> bool {
    let announced = __cpuid(1).ecx >> 31 != 0;
    let leaf = __cpuid(0x4000_0000);
    announced && (leaf.ebx, leaf.ecx, leaf.edx) == (0x5447_4354, 0x4354_4743, 0x4743_5447)
}
