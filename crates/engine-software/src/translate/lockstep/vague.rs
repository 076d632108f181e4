//! Flags that no manual defines, where the interpreter and translated code
//! have the host run different instructions, or the same from other flags.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, RflagsBits};

use crate::cpu::flag;
use crate::translate::classify::may_keep_flags;

/// What the first `done` instructions of `code` leave open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vague {
    /// Flags, in RFLAGS.
    pub flags: u64,
    /// One of them was read: nothing that follows from it counts.
    pub read: bool,
}

/// Which flags an instruction leaves open. Where it shifts by a count in the
/// instruction other than 1, OF and AF: the interpreter has the count in CL,
/// for which processors do otherwise. Where it looks at bits, those that it
/// need not change.
fn open(insn: &Instruction) -> u32 {
    use Mnemonic as M;
    let count = match insn.mnemonic() {
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr => 1,
        M::Shld | M::Shrd => 2,
        M::Bt | M::Bts | M::Btr | M::Btc | M::Bsf | M::Bsr => return insn.rflags_undefined(),
        _ => return 0,
    };
    if insn.op_kind(count) != OpKind::Immediate8 {
        return 0;
    }
    insn.rflags_undefined() & (RflagsBits::OF | RflagsBits::AF)
}

/// Follows the flags through `code`.
pub fn vague(code: &[u8], done: usize) -> Vague {
    let mut vague = Vague::default();
    let mut bits = 0;
    for insn in Decoder::new(64, code, DecoderOptions::NONE)
        .iter()
        .take(done)
    {
        vague.read |= insn.rflags_read() & bits != 0;
        let defined = if may_keep_flags(&insn) {
            0
        } else {
            insn.rflags_modified() & !insn.rflags_undefined()
        };
        bits = bits & !defined | open(&insn);
    }
    for (bit, flag) in [
        (RflagsBits::CF, flag::CF),
        (RflagsBits::PF, flag::PF),
        (RflagsBits::AF, flag::AF),
        (RflagsBits::ZF, flag::ZF),
        (RflagsBits::SF, flag::SF),
        (RflagsBits::OF, flag::OF),
    ] {
        if bits & bit != 0 {
            vague.flags |= flag;
        }
    }
    vague
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_and_for_how_long() {
        // ror r12d, 31; seto al; add eax, eax
        let code = [0x41, 0xC1, 0xCC, 0x1F, 0x0F, 0x90, 0xC0, 0x01, 0xC0];
        let after = |done| vague(&code, done);
        assert_eq!(
            after(1),
            Vague {
                flags: flag::OF,
                read: false
            }
        );
        assert_eq!(
            after(2),
            Vague {
                flags: flag::OF,
                read: true
            }
        );
        assert_eq!(
            after(3),
            Vague {
                flags: 0,
                read: true
            }
        );
        // A shift by nothing leaves them so: btr esi, ecx; sar edx, cl
        let code = [0x0F, 0xB3, 0xCE, 0xD3, 0xFA];
        let open = flag::OF | flag::SF | flag::AF | flag::PF;
        assert_eq!(vague(&code, 1).flags, open);
        assert_eq!(vague(&code, 2).flags, open);
        // ror r12d, 1
        assert_eq!(vague(&[0x41, 0xC1, 0xCC, 0x01], 1), Vague::default());
    }
}
