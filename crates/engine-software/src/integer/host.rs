//! Integer operations run by the host's own instructions, flags included.
//!
//! Guest and host speak the same instruction set, so results and flags
//! (undefined ones too) are exact by construction. Each function takes the
//! guest's flags, runs one host instruction and merges what it changes.

use std::arch::asm;

use crate::cpu::flag::{ARITH, CF, OF};
use crate::word::Word;

/// Merges the flags in `mask` from `new` into `flags`.
#[inline(always)]
fn merge(flags: &mut u64, new: u64, mask: u64) {
    *flags = *flags & !mask | new & mask;
}

/// An integer the host computes with.
#[allow(missing_docs)]
pub trait Int: Word {
    fn add(a: Self, b: Self, flags: &mut u64) -> Self;
    fn or(a: Self, b: Self, flags: &mut u64) -> Self;
    fn adc(a: Self, b: Self, flags: &mut u64) -> Self;
    fn sbb(a: Self, b: Self, flags: &mut u64) -> Self;
    fn and(a: Self, b: Self, flags: &mut u64) -> Self;
    fn sub(a: Self, b: Self, flags: &mut u64) -> Self;
    fn xor(a: Self, b: Self, flags: &mut u64) -> Self;
    fn inc(a: Self, flags: &mut u64) -> Self;
    fn dec(a: Self, flags: &mut u64) -> Self;
    fn neg(a: Self, flags: &mut u64) -> Self;
    fn not(a: Self) -> Self;
    fn shl(a: Self, count: u8, flags: &mut u64) -> Self;
    fn shr(a: Self, count: u8, flags: &mut u64) -> Self;
    fn sar(a: Self, count: u8, flags: &mut u64) -> Self;
    fn rol(a: Self, count: u8, flags: &mut u64) -> Self;
    fn ror(a: Self, count: u8, flags: &mut u64) -> Self;
    fn rcl(a: Self, count: u8, flags: &mut u64) -> Self;
    fn rcr(a: Self, count: u8, flags: &mut u64) -> Self;
    /// Exchanges with guest RAM.
    ///
    /// # Safety
    /// The bytes at `at` must be mapped and writable.
    unsafe fn atomic_swap(at: *mut u8, value: Self) -> Self;
    /// LOCK CMPXCHG: the value found; stored `new` when it equals `old`.
    ///
    /// # Safety
    /// The bytes at `at` must be mapped and writable.
    unsafe fn atomic_cmpxchg(at: *mut u8, old: Self, new: Self) -> Self;
}

macro_rules! binary {
    ($name:ident, $type:ty, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut a: $type, b: $type, flags: &mut u64) -> $type {
            let new: u64;
            // SAFETY: registers and a balanced push and pop only.
            unsafe {
                asm!(
                    concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"),
                    "pushfq",
                    "pop {new}",
                    a = inout($class) a,
                    b = in($class) b,
                    new = lateout(reg) new,
                );
            }
            merge(flags, new, ARITH);
            a
        }
    };
}

macro_rules! carry_binary {
    ($name:ident, $type:ty, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut a: $type, b: $type, flags: &mut u64) -> $type {
            let new: u64;
            // SAFETY: as in `binary`; BT puts the guest's CF into the host's.
            unsafe {
                asm!(
                    "bt {flags:e}, 0",
                    concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"),
                    "pushfq",
                    "pop {new}",
                    a = inout($class) a,
                    b = in($class) b,
                    flags = in(reg) *flags,
                    new = lateout(reg) new,
                );
            }
            merge(flags, new, ARITH);
            a
        }
    };
}

macro_rules! unary {
    ($name:ident, $type:ty, $class:ident, $m:literal, $mask:expr) => {
        #[inline(always)]
        fn $name(mut a: $type, flags: &mut u64) -> $type {
            let new: u64;
            // SAFETY: registers and a balanced push and pop only.
            unsafe {
                asm!(
                    concat!(stringify!($name), " {a", $m, "}"),
                    "pushfq",
                    "pop {new}",
                    a = inout($class) a,
                    new = lateout(reg) new,
                );
            }
            merge(flags, new, $mask);
            a
        }
    };
}

/// Shifts and rotates: a masked count that is a multiple of `$period` (zero
/// among them) changes nothing at all.
macro_rules! shift {
    ($name:ident, $type:ty, $class:ident, $m:literal, $mask:expr, $period:expr) => {
        #[inline(always)]
        fn $name(mut a: $type, count: u8, flags: &mut u64) -> $type {
            let count = count & if <$type>::BITS == 64 { 63 } else { 31 };
            if u32::from(count) % $period == 0 {
                return a;
            }
            let new: u64;
            // SAFETY: registers and a balanced push and pop only; BT puts the
            // guest's CF into the host's for the rotates through carry.
            unsafe {
                asm!(
                    "bt {flags:e}, 0",
                    concat!(stringify!($name), " {a", $m, "}, cl"),
                    "pushfq",
                    "pop {new}",
                    a = inout($class) a,
                    in("cl") count,
                    flags = in(reg) *flags,
                    new = lateout(reg) new,
                );
            }
            merge(flags, new, $mask);
            a
        }
    };
}

/// More than any masked count: only zero is a multiple of it.
const NEVER: u32 = 64;

macro_rules! int {
    ($type:ty, $class:ident, $m:literal, $width:literal, $acc:tt) => {
        impl Int for $type {
            binary!(add, $type, $class, $m);
            binary!(or, $type, $class, $m);
            carry_binary!(adc, $type, $class, $m);
            carry_binary!(sbb, $type, $class, $m);
            binary!(and, $type, $class, $m);
            binary!(sub, $type, $class, $m);
            binary!(xor, $type, $class, $m);
            unary!(inc, $type, $class, $m, ARITH & !CF);
            unary!(dec, $type, $class, $m, ARITH & !CF);
            unary!(neg, $type, $class, $m, ARITH);
            #[inline(always)]
            fn not(a: $type) -> $type {
                !a
            }
            shift!(shl, $type, $class, $m, ARITH, NEVER);
            shift!(shr, $type, $class, $m, ARITH, NEVER);
            shift!(sar, $type, $class, $m, ARITH, NEVER);
            shift!(rol, $type, $class, $m, CF | OF, NEVER);
            shift!(ror, $type, $class, $m, CF | OF, NEVER);
            shift!(rcl, $type, $class, $m, CF | OF, <$type>::BITS + 1);
            shift!(rcr, $type, $class, $m, CF | OF, <$type>::BITS + 1);
            #[inline(always)]
            unsafe fn atomic_swap(at: *mut u8, mut value: $type) -> $type {
                // SAFETY: the caller says the bytes are mapped.
                unsafe {
                    asm!(
                        concat!("xchg ", $width, " ptr [{at}], {value", $m, "}"),
                        at = in(reg) at,
                        value = inout($class) value,
                        options(nostack, preserves_flags)
                    );
                }
                value
            }
            #[inline(always)]
            unsafe fn atomic_cmpxchg(at: *mut u8, old: $type, new: $type) -> $type {
                let found: $type;
                // SAFETY: the caller says the bytes are mapped.
                unsafe {
                    asm!(
                        concat!("lock cmpxchg ", $width, " ptr [{at}], {new", $m, "}"),
                        at = in(reg) at,
                        new = in($class) new,
                        inout($acc) old => found,
                        options(nostack)
                    );
                }
                found
            }
        }
    };
}

int!(u8, reg_byte, "", "byte", "al");
int!(u16, reg, ":x", "word", "ax");
int!(u32, reg, ":e", "dword", "eax");
int!(u64, reg, "", "qword", "rax");

macro_rules! double_shift {
    ($name:ident, $insn:literal, $type:ty, $m:literal, $max:literal) => {
        /// Double-precision shift; a masked count of zero changes nothing.
        pub fn $name(mut a: $type, b: $type, count: u8, flags: &mut u64) -> $type {
            let count = count & $max;
            if count == 0 {
                return a;
            }
            let new: u64;
            // SAFETY: registers and a balanced push and pop only.
            unsafe {
                asm!(
                    concat!($insn, " {a", $m, "}, {b", $m, "}, cl"),
                    "pushfq",
                    "pop {new}",
                    a = inout(reg) a,
                    b = in(reg) b,
                    in("cl") count,
                    new = lateout(reg) new,
                );
            }
            merge(flags, new, ARITH);
            a
        }
    };
}

double_shift!(shld16, "shld", u16, ":x", 31);
double_shift!(shld32, "shld", u32, ":e", 31);
double_shift!(shld64, "shld", u64, "", 63);
double_shift!(shrd16, "shrd", u16, ":x", 31);
double_shift!(shrd32, "shrd", u32, ":e", 31);
double_shift!(shrd64, "shrd", u64, "", 63);

macro_rules! widening {
    ($name:ident, $insn:literal, $type:ty, $m:literal, $lo:tt, $hi:tt) => {
        /// Widening multiplication: (low, high).
        pub fn $name(a: $type, b: $type, flags: &mut u64) -> ($type, $type) {
            let (low, high): ($type, $type);
            let new: u64;
            // SAFETY: registers and a balanced push and pop only.
            unsafe {
                asm!(
                    concat!($insn, " {b", $m, "}"),
                    "pushfq",
                    "pop {new}",
                    b = in(reg) b,
                    inout($lo) a => low,
                    lateout($hi) high,
                    new = lateout(reg) new,
                );
            }
            merge(flags, new, ARITH);
            (low, high)
        }
    };
}

widening!(mul16, "mul", u16, ":x", "ax", "dx");
widening!(mul32, "mul", u32, ":e", "eax", "edx");
widening!(mul64, "mul", u64, "", "rax", "rdx");
widening!(imul16, "imul", u16, ":x", "ax", "dx");
widening!(imul32, "imul", u32, ":e", "eax", "edx");
widening!(imul64, "imul", u64, "", "rax", "rdx");

macro_rules! multiply8 {
    ($name:ident, $insn:literal) => {
        /// AX = AL × operand.
        pub fn $name(a: u8, b: u8, flags: &mut u64) -> u16 {
            let product: u16;
            let new: u64;
            // SAFETY: registers and a balanced push and pop only.
            unsafe {
                asm!(
                    concat!($insn, " {b}"),
                    "pushfq",
                    "pop {new}",
                    b = in(reg_byte) b,
                    inout("ax") u16::from(a) => product,
                    new = lateout(reg) new,
                );
            }
            merge(flags, new, ARITH);
            product
        }
    };
}

multiply8!(mul8, "mul");
multiply8!(imul8, "imul");

macro_rules! truncating {
    ($name:ident, $type:ty, $m:literal) => {
        /// Signed multiplication, truncated.
        pub fn $name(mut a: $type, b: $type, flags: &mut u64) -> $type {
            let new: u64;
            // SAFETY: registers and a balanced push and pop only.
            unsafe {
                asm!(
                    concat!("imul {a", $m, "}, {b", $m, "}"),
                    "pushfq",
                    "pop {new}",
                    a = inout(reg) a,
                    b = in(reg) b,
                    new = lateout(reg) new,
                );
            }
            merge(flags, new, ARITH);
            a
        }
    };
}

truncating!(imul_16, u16, ":x");
truncating!(imul_32, u32, ":e");
truncating!(imul_64, u64, "");

macro_rules! scan {
    ($name:ident, $insn:literal, $m:literal) => {
        /// Bit scan: a zero source leaves what the host leaves in `old`.
        pub fn $name(old: u64, source: u64, flags: &mut u64) -> u64 {
            let mut result = old;
            let new: u64;
            // SAFETY: registers and a balanced push and pop only.
            unsafe {
                asm!(
                    concat!($insn, " {result", $m, "}, {source", $m, "}"),
                    "pushfq",
                    "pop {new}",
                    result = inout(reg) result,
                    source = in(reg) source,
                    new = lateout(reg) new,
                );
            }
            merge(flags, new, ARITH);
            result
        }
    };
}

scan!(bsf16, "bsf", ":x");
scan!(bsf32, "bsf", ":e");
scan!(bsf64, "bsf", "");
scan!(bsr16, "bsr", ":x");
scan!(bsr32, "bsr", ":e");
scan!(bsr64, "bsr", "");

/// LOCK CMPXCHG16B on guest RAM: true when exchanged; else `old` is what was
/// found.
///
/// # Safety
/// 16 mapped, writable bytes at `at`, 16-byte aligned.
pub unsafe fn cmpxchg16b(at: *mut u8, old: &mut (u64, u64), new: (u64, u64)) -> bool {
    let equal: u8;
    // SAFETY: the caller says the bytes are mapped. RBX is LLVM's: it is
    // exchanged in and back.
    unsafe {
        asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            "setz r8b",
            in("rdi") at,
            inout("rsi") new.0 => _,
            in("rcx") new.1,
            inout("rax") old.0,
            inout("rdx") old.1,
            out("r8b") equal,
            options(nostack)
        );
    }
    equal != 0
}
