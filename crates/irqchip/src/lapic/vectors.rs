//! A set of the 256 vectors that knows its highest member: IRR, ISR and TMR.

/// Vectors below this one are reserved for exceptions; an APIC neither sends
/// nor accepts them (SDM vol. 3, 11.5.2).
pub(super) const FIRST_LEGAL: u8 = 16;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VectorSet {
    words: [u64; 4],
    /// Highest member; 0 when empty (vector 0 is never a member).
    highest: u8,
}

impl VectorSet {
    pub(super) fn insert(&mut self, vector: u8) {
        if vector >= FIRST_LEGAL {
            self.words[usize::from(vector >> 6)] |= 1 << (vector & 63);
            self.highest = self.highest.max(vector);
        }
    }

    pub(super) fn remove(&mut self, vector: u8) {
        self.words[usize::from(vector >> 6)] &= !(1 << (vector & 63));
        if vector == self.highest {
            self.highest = self.find_highest();
        }
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.words[usize::from(vector >> 6)] & 1 << (vector & 63) != 0
    }

    /// The highest member, 0 when there is none.
    pub(super) fn highest(&self) -> u8 {
        self.highest
    }

    /// Register `index` (0–7) of the eight 32-bit ones that show the set.
    pub(super) fn register(&self, index: usize) -> u32 {
        (self.words[index / 2 % 4] >> (32 * (index % 2))) as u32
    }

    /// From the eight registers; `None` when a reserved vector is a member.
    pub(super) fn from_registers(registers: &[u32]) -> Option<Self> {
        let mut set = VectorSet::default();
        for (index, &register) in registers.iter().take(8).enumerate() {
            set.words[index / 2] |= u64::from(register) << (32 * (index % 2));
        }
        if set.words[0] & ((1 << FIRST_LEGAL) - 1) != 0 {
            return None;
        }
        set.highest = set.find_highest();
        Some(set)
    }

    fn find_highest(&self) -> u8 {
        for (index, &word) in self.words.iter().enumerate().rev() {
            if word != 0 {
                return (index as u8) << 6 | (63 - word.leading_zeros() as u8);
            }
        }
        0
    }
}
