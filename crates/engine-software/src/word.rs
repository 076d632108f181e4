//! Integers in guest memory: one host instruction for each load and store.

/// An integer that guest memory holds, little-endian.
pub trait Word: Copy + Default + Eq + Send + 'static {
    /// Bytes.
    const SIZE: u64;
    /// Bits.
    const BITS: u32;
    /// Truncates.
    fn from_u64(value: u64) -> Self;
    /// Zero-extends.
    fn to_u64(self) -> u64;
    /// Sign-extends.
    fn to_i64(self) -> i64;
    /// Loads from guest RAM, in one host instruction.
    ///
    /// # Safety
    /// `SIZE` bytes at `host` must be mapped.
    unsafe fn load(host: *const u8) -> Self;
    /// Stores to guest RAM, in one host instruction.
    ///
    /// # Safety
    /// `SIZE` bytes at `host` must be mapped and writable.
    unsafe fn store(host: *mut u8, value: Self);
}

macro_rules! word {
    ($type:ty, $signed:ty, $class:ident, $modifier:literal, $width:literal) => {
        impl Word for $type {
            const SIZE: u64 = <$type>::BITS as u64 / 8;
            const BITS: u32 = <$type>::BITS;
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                self as $signed as i64
            }
            // Assembly rather than a Rust load: other vCPUs and devices may
            // change the bytes at any time, and x86 keeps aligned accesses
            // whole whatever the alignment Rust would want.
            #[inline(always)]
            unsafe fn load(host: *const u8) -> Self {
                let value: $type;
                // SAFETY: the caller says the bytes are mapped.
                unsafe {
                    std::arch::asm!(
                        concat!("mov {value", $modifier, "}, ", $width, " ptr [{host}]"),
                        value = out($class) value,
                        host = in(reg) host,
                        options(nostack, preserves_flags, readonly)
                    );
                }
                value
            }
            #[inline(always)]
            unsafe fn store(host: *mut u8, value: Self) {
                // SAFETY: the caller says the bytes are mapped and writable.
                unsafe {
                    std::arch::asm!(
                        concat!("mov ", $width, " ptr [{host}], {value", $modifier, "}"),
                        value = in($class) value,
                        host = in(reg) host,
                        options(nostack, preserves_flags)
                    );
                }
            }
        }
    };
}

word!(u8, i8, reg_byte, "", "byte");
word!(u16, i16, reg, ":x", "word");
word!(u32, i32, reg, ":e", "dword");
word!(u64, i64, reg, "", "qword");
