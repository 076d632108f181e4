//! Traps that the host raises at a stub's native instruction.
//!
//! ```text
//! stub: … lea r11, exit; NATIVE ──trap──▶ kernel ──SIGFPE…──▶ on_signal
//!                                                                │ RIP ← r11
//!       exit: restore host state; ret  ◀── sigreturn ────────────┘ RAX ← trap
//! ```
//!
//! A trap is a stub's when RIP lies in the arena, R11 too, and the word just
//! before R11's target gives exactly the distance between them. Everything
//! else goes to the handler that was there before.

use std::cell::UnsafeCell;
use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Or'ed to the host's trap number in what a stub returns.
pub const TRAPPED: u32 = 0x100;

const SIGNALS: [libc::c_int; 4] = [libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGBUS];

/// Earlier handlers, by position in [`SIGNALS`]. Each is written once, before
/// our handler for the signal is installed, and only read afterwards.
struct Earlier([UnsafeCell<MaybeUninit<libc::sigaction>>; 4]);

// SAFETY: see above: no write can meet a read.
unsafe impl Sync for Earlier {}

static EARLIER: Earlier = Earlier([const { UnsafeCell::new(MaybeUninit::uninit()) }; 4]);
static ARENA_START: AtomicU64 = AtomicU64::new(0);
static ARENA_END: AtomicU64 = AtomicU64::new(0);

/// Installs the handlers. Called once, by the arena.
pub fn install(start: u64, end: u64) -> io::Result<()> {
    ARENA_START.store(start, Ordering::Relaxed);
    ARENA_END.store(end, Ordering::Release);
    for (n, signal) in SIGNALS.into_iter().enumerate() {
        // SAFETY: `sigaction` is plain data; the pointers are valid; the slot
        // is not read before the handler is installed below.
        unsafe {
            let slot = (*EARLIER.0[n].get()).as_mut_ptr();
            if libc::sigaction(signal, ptr::null(), slot) != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            if libc::sigaction(signal, &action, ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

fn in_arena(address: u64) -> bool {
    (ARENA_START.load(Ordering::Relaxed)..ARENA_END.load(Ordering::Acquire)).contains(&address)
}

/// Vectors that a guest's instruction can cause through a stub: #DE, #UD,
/// #GP, #MF, #AC, #XM. A page fault is none: guest pages are host RAM, so a
/// fault there is a failure of the host.
fn is_guest_trap(trap: i64) -> bool {
    matches!(trap, 0 | 6 | 13 | 16 | 17 | 19)
}

extern "C" fn on_signal(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid `ucontext_t`, ours to change. What is
    // read at R11 - 4 lies in the arena, which is mapped for good.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        let exit = registers[libc::REG_R11 as usize] as u64;
        let trap = registers[libc::REG_TRAPNO as usize];
        if in_arena(rip)
            && in_arena(exit.wrapping_sub(4))
            && u64::from(((exit - 4) as *const u32).read_unaligned()) == exit.wrapping_sub(rip)
            && is_guest_trap(trap)
        {
            registers[libc::REG_RIP as usize] = exit as i64;
            registers[libc::REG_RAX as usize] = i64::from(TRAPPED) | trap;
            return;
        }
    }
    pass_on(signal, info, context);
}

/// Does what would have happened without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(n) = SIGNALS.iter().position(|&s| s == signal) else {
        return;
    };
    // SAFETY: the slot was filled before our handler was installed; the
    // earlier handler has the type its flags announce.
    unsafe {
        let earlier = (*EARLIER.0[n].get()).assume_init_ref();
        match earlier.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                // Returning runs into the same fault again, now fatal; a
                // signal sent by `kill` has to be sent once more.
                let mut default: libc::sigaction = zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &default, ptr::null_mut());
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
            handler if earlier.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
            handler => {
                let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}
