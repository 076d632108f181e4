//! Translation by the guest's page tables, for the debugger: KVM_TRANSLATE
//! does not tell permissions. (SDM vol. 3, chapter 4.)

use croft_engine::Translation;
use croft_memory::GuestRam;
use kvm_bindings::kvm_sregs;

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Address bits of an entry.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

struct Walk<'a> {
    ram: &'a GuestRam,
    writable: bool,
    user: bool,
    executable: bool,
}

impl Walk<'_> {
    fn entry(&self, table: u64, index: u64, size: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..size as usize)?;
        self.ram.read(table.checked_add(index * size)?, part).ok()?;
        let entry = u64::from_le_bytes(bytes);
        (entry & PRESENT != 0).then_some(entry)
    }

    fn rights(&mut self, entry: u64) {
        self.writable &= entry & WRITABLE != 0;
        self.user &= entry & USER != 0;
        self.executable &= entry & NO_EXECUTE == 0;
    }

    /// Tables of 512 entries, the first covering `shift + 9` address bits.
    fn long(&mut self, mut table: u64, linear: u64, levels: u32) -> Option<u64> {
        for level in (0..levels).rev() {
            let shift = 12 + 9 * level;
            let entry = self.entry(table & ADDRESS, linear >> shift & 0x1FF, 8)?;
            self.rights(entry);
            if level == 0 || entry & LARGE != 0 && level <= 2 {
                let inside = (1 << shift) - 1;
                return Some(entry & ADDRESS & !inside | linear & inside);
            }
            table = entry;
        }
        None
    }

    /// Two levels of 1024 entries of four bytes.
    fn short(&mut self, cr3: u64, linear: u64, large_pages: bool) -> Option<u64> {
        let directory = self.entry(cr3 & 0xFFFF_F000, linear >> 22, 4)?;
        self.rights(directory);
        if large_pages && directory & LARGE != 0 {
            // PSE-36: bits 20:13 are address bits 39:32.
            let high = (directory >> 13 & 0xFF) << 32;
            return Some(high | directory & 0xFFC0_0000 | linear & 0x3F_FFFF);
        }
        let entry = self.entry(directory & 0xFFFF_F000, linear >> 12 & 0x3FF, 4)?;
        self.rights(entry);
        Some(entry & 0xFFFF_F000 | linear & 0xFFF)
    }
}

/// Translates `linear`; `None` where nothing is mapped.
pub fn translate(ram: &GuestRam, s: &kvm_sregs, linear: u64) -> Option<Translation> {
    let mut walk = Walk {
        ram,
        writable: true,
        user: true,
        executable: true,
    };
    let long = s.efer & EFER_LMA != 0;
    let linear = if long { linear } else { linear & 0xFFFF_FFFF };
    let physical = if s.cr0 & CR0_PG == 0 {
        linear
    } else if long {
        if (linear as i64) << 16 >> 16 != linear as i64 {
            return None;
        }
        walk.long(s.cr3, linear, 4)?
    } else if s.cr4 & CR4_PAE != 0 {
        // The four top entries have no rights.
        let top = walk.entry(s.cr3 & 0xFFFF_FFE0, linear >> 30, 8)?;
        walk.long(top, linear, 2)?
    } else {
        walk.short(s.cr3, linear, s.cr4 & CR4_PSE != 0)?
    };
    Some(Translation {
        physical,
        writable: walk.writable || s.cr0 & CR0_WP == 0,
        executable: walk.executable || s.efer & EFER_NXE == 0,
        user: walk.user,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_memory::Range;

    fn ram(entries: &[(u64, u64)]) -> GuestRam {
        let ram = GuestRam::new(&[Range {
            start: 0,
            len: 0x10000,
        }])
        .unwrap();
        for (at, entry) in entries {
            ram.write(*at, &entry.to_le_bytes()).unwrap();
        }
        ram
    }

    fn sregs(cr0: u64, cr4: u64, efer: u64) -> kvm_sregs {
        kvm_sregs {
            cr0,
            cr3: 0x1000,
            cr4,
            efer,
            ..Default::default()
        }
    }

    #[test]
    fn long_mode_pages_of_all_sizes() {
        let ram = ram(&[
            (0x1000, 0x2007),
            (0x2000, 0x3007),
            (0x2008, 0x4000_0085),
            (0x3000, 0x4007),
            (0x3008, 0x20_0083 | NO_EXECUTE),
            (0x4008, 0x9003),
        ]);
        let s = sregs(CR0_PG | CR0_WP, CR4_PAE, EFER_LMA | EFER_NXE);
        let at = |linear| translate(&ram, &s, linear);
        let small = at(0x1234).unwrap();
        assert_eq!(
            (small.physical, small.writable, small.user),
            (0x9234, true, false)
        );
        let large = at(0x20_1234).unwrap();
        assert_eq!((large.physical, large.executable), (0x20_1234, false));
        let huge = at(0x4123_4567).unwrap();
        assert_eq!(
            (huge.physical, huge.writable, huge.user),
            (0x4123_4567, false, true)
        );
        assert_eq!(at(0x2000), None);
        assert_eq!(at(1 << 47), None, "not canonical");
    }

    #[test]
    fn the_older_modes() {
        let plain = translate(&ram(&[]), &sregs(0, 0, 0), 0x1_0000_1234).unwrap();
        assert_eq!(plain.physical, 0x1234);
        let short = ram(&[(0x1000, 0x2007 | 0x40_0087 << 32), (0x2004, 0x5007)]);
        let s = sregs(CR0_PG, CR4_PSE, 0);
        assert_eq!(translate(&short, &s, 0x1001).unwrap().physical, 0x5001);
        assert_eq!(
            translate(&short, &s, 0x40_0002).unwrap().physical,
            0x40_0002
        );
        let pae = ram(&[(0x1000, 0x2001), (0x2000, 0x3007), (0x3010, 0x7007)]);
        let s = sregs(CR0_PG, CR4_PAE, 0);
        assert_eq!(translate(&pae, &s, 0x2003).unwrap().physical, 0x7003);
    }

    #[test]
    fn tables_outside_ram_map_nothing() {
        let ram = ram(&[(0x1000, 0xF_F000_0007)]);
        let s = sregs(CR0_PG, CR4_PAE, EFER_LMA);
        assert_eq!(translate(&ram, &s, 0), None);
    }
}
