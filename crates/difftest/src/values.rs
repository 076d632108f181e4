//! Operand values: random ones, and those at the edges where processors and
//! interpreters go wrong.

use rand::Rng;
use rand::rngs::SmallRng;

use crate::state::Xsave;

/// Integers at the borders of every width, and their neighbours.
fn edge(rng: &mut SmallRng) -> u64 {
    let border = match rng.random_range(0..9) {
        0 => 0,
        1 => 1 << 7,
        2 => 1 << 8,
        3 => 1 << 15,
        4 => 1 << 16,
        5 => 1 << 31,
        6 => 1 << 32,
        7 => 1 << 63,
        _ => 1u64 << rng.random_range(0..64),
    };
    let near = rng.random_range(0..5u64);
    let value = u64::wrapping_add(border, near).wrapping_sub(2);
    if rng.random_bool(0.3) {
        value.wrapping_neg()
    } else {
        value
    }
}

/// A general register's value.
pub fn integer(rng: &mut SmallRng) -> u64 {
    match rng.random_range(0..8) {
        0..3 => edge(rng),
        3 => rng.random_range(0..256),
        // An edge in the low part under garbage.
        4 => rng.random::<u64>() << 32 | edge(rng) & 0xFFFF_FFFF,
        5 => rng.random::<u64>() << 16 | edge(rng) & 0xFFFF,
        _ => rng.random(),
    }
}

fn pick<T: Copy>(rng: &mut SmallRng, values: &[T]) -> T {
    values[rng.random_range(0..values.len())]
}

fn float16(rng: &mut SmallRng) -> u16 {
    const EDGES: [u16; 12] = [
        0, 1, 0x3FF, 0x400, 0x3C00, 0x3BFF, 0x7BFF, 0x7C00, 0x7C01, 0x7DFF, 0x7E00, 0x7FFF,
    ];
    match rng.random_range(0..3) {
        0 => rng.random(),
        _ => pick(rng, &EDGES) | if rng.random() { 0x8000 } else { 0 },
    }
}

fn float32(rng: &mut SmallRng) -> u32 {
    // 0, denormals, smallest normal, 1, numbers around the integer ranges,
    // largest, infinity, signalling and quiet NaNs.
    const EDGES: [u32; 20] = [
        0,
        1,
        0x007F_FFFF,
        0x0080_0000,
        0x0080_0001,
        0x3F80_0000,
        0x3F7F_FFFF,
        0x3F00_0000,
        0x4000_0000,
        0x3FC0_0000,
        0x4EFF_FFFF,
        0x4F00_0000,
        0x5EFF_FFFF,
        0x5F00_0000,
        0x7F7F_FFFF,
        0x7F80_0000,
        0x7F80_0001,
        0x7FBF_FFFF,
        0x7FC0_0000,
        0x7FFF_FFFF,
    ];
    let sign = if rng.random() { 1 << 31 } else { 0 };
    match rng.random_range(0..6) {
        0 => rng.random(),
        // Moderate numbers, which neither overflow nor vanish.
        1 | 2 => (rng.random_range(0x70u32..0x90) << 23) | rng.random::<u32>() >> 9 | sign,
        3 => (rng.random_range(-1000i32..1000) as f32 / 4.0).to_bits(),
        _ => pick(rng, &EDGES) | sign,
    }
}

fn float64(rng: &mut SmallRng) -> u64 {
    const EDGES: [u64; 22] = [
        0,
        1,
        0x000F_FFFF_FFFF_FFFF,
        0x0010_0000_0000_0000,
        0x3FF0_0000_0000_0000,
        0x3FEF_FFFF_FFFF_FFFF,
        0x3FE0_0000_0000_0000,
        0x3FF8_0000_0000_0000,
        0x4000_0000_0000_0000,
        0x41DF_FFFF_FFC0_0000,
        0x41E0_0000_0000_0000,
        0x43DF_FFFF_FFFF_FFFF,
        0x43E0_0000_0000_0000,
        // At the borders of single precision.
        0x47EF_FFFF_E000_0000,
        0x47EF_FFFF_F000_0000,
        0x3690_0000_0000_0000,
        0x380F_FFFF_FFFF_FFFF,
        0x7FEF_FFFF_FFFF_FFFF,
        0x7FF0_0000_0000_0000,
        0x7FF0_0000_0000_0001,
        0x7FF8_0000_0000_0000,
        0x7FFF_FFFF_FFFF_FFFF,
    ];
    let sign = if rng.random() { 1 << 63 } else { 0 };
    match rng.random_range(0..6) {
        0 => rng.random(),
        1 | 2 => (rng.random_range(0x3E0u64..0x420) << 52) | rng.random::<u64>() >> 12 | sign,
        3 => (f64::from(rng.random_range(-1000i32..1000)) / 4.0).to_bits(),
        _ => pick(rng, &EDGES) | sign,
    }
}

/// An 80-bit number, those that are no numbers any more (unnormals,
/// pseudo-denormals) among them.
pub fn float80(rng: &mut SmallRng) -> [u8; 10] {
    const TOP: u64 = 1 << 63;
    let sign: u16 = if rng.random() { 0x8000 } else { 0 };
    let (exponent, fraction): (u16, u64) = match rng.random_range(0..16) {
        0 => (rng.random::<u16>() & 0x7FFF, rng.random()),
        1 => (0, 0),
        2 => (0, rng.random::<u64>() >> 1),
        3 => (0, TOP | rng.random::<u64>()),
        4 => (0x7FFF, TOP),
        5 => (0x7FFF, TOP | 1),
        6 => (0x7FFF, TOP | 1 << 62),
        7 => (0x7FFF, TOP | rng.random::<u64>()),
        8 => (0x7FFE, u64::MAX),
        9 => (1, TOP),
        10 => (rng.random_range(0x3FF0..0x4050), TOP | edge(rng)),
        11 => (0x3FFF + rng.random_range(0..64), TOP),
        _ => (rng.random_range(0x3FC0..0x4045), TOP | rng.random::<u64>()),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&fraction.to_le_bytes());
    bytes[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
    bytes
}

/// Fills `out` with lanes of one kind.
pub fn lanes(rng: &mut SmallRng, out: &mut [u8]) {
    match rng.random_range(0..9) {
        0 | 1 => {
            for lane in out.chunks_mut(4) {
                lane.copy_from_slice(&float32(rng).to_le_bytes()[..lane.len()]);
            }
        }
        2 | 3 => {
            for lane in out.chunks_mut(8) {
                lane.copy_from_slice(&float64(rng).to_le_bytes()[..lane.len()]);
            }
        }
        4 => {
            for lane in out.chunks_mut(2) {
                lane.copy_from_slice(&float16(rng).to_le_bytes()[..lane.len()]);
            }
        }
        5 => {
            for lane in out.chunks_mut(10) {
                lane.copy_from_slice(&float80(rng)[..lane.len()]);
            }
        }
        6 => {
            let width = pick(rng, &[1, 2, 4, 8]);
            for lane in out.chunks_mut(width) {
                lane.copy_from_slice(&edge(rng).to_le_bytes()[..lane.len()]);
            }
        }
        7 => {
            // Decimal digits and short strings.
            for byte in out {
                *byte = pick(rng, &[0, 0, 0x10, 0x42, 0x99, b'a', b'b', b'z']);
            }
        }
        _ => rng.fill(out),
    }
}

/// RFLAGS: arithmetic flags and DF random, AC and ID seldom.
pub fn flags(rng: &mut SmallRng) -> u64 {
    // CF, PF, AF, ZF, SF, OF.
    let mut flags = 0x202 | rng.random::<u64>() & 0x8D5;
    if rng.random_bool(0.25) {
        flags |= 1 << 10;
    }
    if rng.random_bool(0.06) {
        flags |= 1 << 18;
    }
    if rng.random_bool(0.1) {
        flags |= 1 << 21;
    }
    flags
}

/// MXCSR: any rounding, FTZ and DAZ, sticky flags; unmasked exceptions in a
/// quarter.
pub fn mxcsr(rng: &mut SmallRng) -> u32 {
    let mut value = 0x1F80;
    if rng.random_bool(0.25) {
        value = rng.random::<u32>() & 0x1F80;
    }
    if rng.random_bool(0.3) {
        value |= rng.random::<u32>() & 0x3F;
    }
    if rng.random_bool(0.5) {
        value |= rng.random::<u32>() & 0x6000;
    }
    if rng.random_bool(0.2) {
        value |= rng.random::<u32>() & 0x8040;
    }
    value
}

/// x87, SSE and AVX state.
pub fn xsave(rng: &mut SmallRng) -> Xsave {
    let mut area = Xsave::default();
    let mut control: u16 = 0x40 | rng.random::<u16>() & 0x0F00 | 0x3F;
    if rng.random_bool(0.2) {
        control = control & !0x3F | rng.random::<u16>() & 0x3F;
    }
    let mut status = (rng.random::<u16>() & 7) << 11 | rng.random::<u16>() & 0x4700;
    let mut flags = if rng.random_bool(0.3) {
        rng.random::<u16>() & 0x7F
    } else {
        0
    };
    // Mostly nothing is pending, else nearly every instruction would be #MF.
    if rng.random_bool(0.8) {
        flags &= control | 0x40;
    }
    status |= flags;
    if flags & !control & 0x3F != 0 {
        status |= 0x8080;
    }
    let tags: u8 = match rng.random_range(0..4) {
        0 => 0,
        1 => rng.random(),
        _ => 0xFF,
    };
    area.put(0, &control.to_le_bytes());
    area.put(2, &status.to_le_bytes());
    area.put(4, &[tags]);
    area.put(6, &(rng.random::<u16>() & 0x7FF).to_le_bytes());
    // User addresses, canonical as a processor would have them.
    area.put(8, &(rng.random::<u64>() >> 17).to_le_bytes());
    area.put(16, &(rng.random::<u64>() >> 17).to_le_bytes());
    area.put(24, &mxcsr(rng).to_le_bytes());
    for n in 0..8 {
        let st = float80(rng);
        area.put(32 + 16 * n, &st);
        // MMX values are fractions under an exponent of ones.
        if rng.random_bool(0.3) {
            let mut mmx = [0xFF; 10];
            lanes(rng, &mut mmx[..8]);
            area.put(32 + 16 * n, &mmx);
        }
    }
    for n in 0..16 {
        let mut ymm = [0; 32];
        lanes(rng, &mut ymm[..16]);
        lanes(rng, &mut ymm[16..]);
        area.set_ymm(n, &ymm);
    }
    area
}
