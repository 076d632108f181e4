//! Names the system call that was refused, and ends the process.
//!
//! ```text
//! refused call ─► SIGSYS ─► on_refused ─┬─ a file that the C library can do
//!                                       │  without: "no such file", goes on
//!                                       └─ else: a line on standard error,
//!                                          exit with STATUS
//! ```

use std::io;
use std::mem::zeroed;
use std::ptr;

use syscalls::Sysno;

use crate::table::WITHOUT_FILES;

/// Exit status of a process that its filter ended.
pub const STATUS: i32 = 159;
/// The signal that ends a process whose thread cannot handle it.
pub const SIGNAL: i32 = libc::SIGSYS;
/// What the line on standard error begins with.
pub const PREFIX: &str = "jail: ";
/// `si_code` of a signal that a filter sent (asm-generic/siginfo.h,
/// SYS_SECCOMP).
const FILTERED: i32 = 1;
/// Longest name of a thread, with its zero (TASK_COMM_LEN).
const NAME: usize = 16;

/// Installs the handler.
pub fn install() -> io::Result<()> {
    // SAFETY: `sigaction` is plain data and valid when zero; the handler has
    // the type that SA_SIGINFO announces.
    let result = unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = on_refused as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGSYS, &action, ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What the line says, behind [`PREFIX`].
pub fn refused(line: &str) -> Option<&str> {
    line.strip_prefix(PREFIX)
}

extern "C" fn on_refused(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`, and a `ucontext_t` that
    // is ours to change.
    let (code, registers) = unsafe {
        (
            (*info).si_code,
            &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs,
        )
    };
    let register = |which: libc::c_int| registers[which as usize];
    // The kernel has put the number back to where the caller had it.
    let number = register(libc::REG_RAX);
    let path = match Sysno::new(number as usize) {
        Some(Sysno::open) => register(libc::REG_RDI),
        Some(Sysno::openat) => register(libc::REG_RSI),
        _ => 0,
    };
    if code == FILTERED && path != 0 && can_do_without(path as *const u8) {
        registers[libc::REG_RAX as usize] = -i64::from(libc::ENOENT);
        return;
    }
    report(number);
}

/// Whether the path is of [`WITHOUT_FILES`]. A caller that was taken over may
/// have put any address here: reading it ends the process at worst.
fn can_do_without(path: *const u8) -> bool {
    WITHOUT_FILES.iter().any(|file| {
        file.iter().enumerate().all(|(at, byte)| {
            // SAFETY: the bytes before this one were equal to those of a
            // string without a zero in it, so the caller's goes on here.
            unsafe { path.add(at).read() == *byte }
        })
    })
}

/// Says which thread called what, without a lock or an allocation, and ends
/// the process.
fn report(number: i64) -> ! {
    let mut line = Line::default();
    let mut name = [0u8; NAME];
    // SAFETY: room for the longest name.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    line.push(PREFIX.as_bytes());
    line.push(b"thread ");
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME);
    line.push(name.get(..end).unwrap_or_default());
    line.push(b" called ");
    match usize::try_from(number).ok().and_then(Sysno::new) {
        Some(call) => line.push(call.name().as_bytes()),
        None => {
            line.push(b"number ");
            line.push_number(number as u64);
        }
    }
    line.push(b"\n");
    // SAFETY: bytes of our own; nothing runs after the exit.
    unsafe {
        libc::write(2, line.bytes.as_ptr().cast(), line.len);
        libc::_exit(STATUS)
    }
}

/// A line that is put together without an allocation; what does not fit is
/// left out.
struct Line {
    bytes: [u8; 128],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Line {
            bytes: [0; 128],
            len: 0,
        }
    }
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len += 1;
            }
        }
    }

    fn push_number(&mut self, number: u64) {
        let mut divisor = 10u64.pow(19);
        while divisor > 1 && number / divisor == 0 {
            divisor /= 10;
        }
        while divisor > 0 {
            self.push(&[b'0' + (number / divisor % 10) as u8]);
            divisor /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_long_texts() {
        for number in [0, 7, 10, 59, 1_000_000, u64::MAX] {
            let mut line = Line::default();
            line.push_number(number);
            assert_eq!(&line.bytes[..line.len], number.to_string().as_bytes());
        }
        let mut line = Line::default();
        line.push(&[b'x'; 300]);
        assert_eq!(line.len, 128);
    }

    #[test]
    fn only_whole_paths_are_done_without() {
        assert!(can_do_without(
            c"/sys/devices/system/cpu/online".as_ptr().cast()
        ));
        for path in [c"/sys/devices/system/cpu/onlin", c"/etc/passwd", c""] {
            assert!(!can_do_without(path.as_ptr().cast()), "{path:?}");
        }
    }

    #[test]
    fn the_line_is_recognised() {
        assert_eq!(
            refused("jail: thread a called b"),
            Some("thread a called b")
        );
        assert_eq!(refused("thread 'main' panicked"), None);
    }
}
