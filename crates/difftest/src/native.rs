//! The host side: one instruction on the processor itself.
//!
//! The instruction runs in this process, on the calling thread, with every
//! register it can see being the test's, the stack pointer too. It stands
//! among `int3`, so it always ends in a signal; signals have a stack of their
//! own. The handler reads the registers from the signal's context and jumps
//! back to where [`Native::run`] left.
//!
//! Entering is an `iretq`, which loads RIP, RSP and RFLAGS at once and
//! serializes, as code just written through another mapping needs.
#![allow(unsafe_code)]

use std::arch::{asm, global_asm};
use std::cell::UnsafeCell;
use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::layout::{self, BACKING, CODE, DATA, KINDS, PAGE, Page};
use crate::state::{End, Input, Output, Xsave};

/// Signals that exceptions become.
const SIGNALS: [libc::c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
];
/// Bytes of the signal stack: frames with AVX-512 state need about 4 KiB.
const SIGNAL_STACK: usize = 256 << 10;
/// Where the kernel's XSAVE area says how large it is (`fpx_sw_bytes`).
const SOFTWARE_BYTES: usize = 464;
/// `FP_XSTATE_MAGIC1` of the kernel's signal frames.
const MAGIC: u32 = 0x4650_5853;

/// What the assembly loads; the order is known there.
#[repr(C, align(64))]
struct Context {
    xsave: Xsave,
    regs: [u64; 16],
    /// What `iretq` pops: RIP, CS, RFLAGS, RSP, SS.
    frame: [u64; 5],
}

/// What the handler leaves.
struct Taken {
    regs: [u64; 16],
    rip: u64,
    rflags: u64,
    xsave: Xsave,
    end: End,
    gs_base: u64,
}

struct Shared(UnsafeCell<MaybeUninit<Taken>>);

// SAFETY: only the thread that holds `LOCK`, or its signal handler, uses it.
unsafe impl Sync for Shared {}

static TAKEN: Shared = Shared(UnsafeCell::new(MaybeUninit::uninit()));
static INSIDE: AtomicBool = AtomicBool::new(false);
static LOCK: Mutex<()> = Mutex::new(());
static EARLIER: Mutex<Option<[libc::sigaction; 5]>> = Mutex::new(None);
/// [`EARLIER`] for the handler, which must not lock.
static mut CHAIN: [MaybeUninit<libc::sigaction>; 5] = [MaybeUninit::uninit(); 5];

global_asm!(
    ".local croft_difftest_stack",
    ".comm croft_difftest_stack, 8, 8",
    // croft_difftest_enter(context): returns by croft_difftest_leave.
    ".globl croft_difftest_enter",
    ".hidden croft_difftest_enter",
    "croft_difftest_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "pushfq",
    "mov [rip + croft_difftest_stack], rsp",
    "mov eax, 7",
    "xor edx, edx",
    "xrstor64 [rdi]",
    "lea rsp, [rdi + {frame}]",
    "mov rax, [rdi + {regs}]",
    "mov rcx, [rdi + {regs} + 8]",
    "mov rdx, [rdi + {regs} + 16]",
    "mov rbx, [rdi + {regs} + 24]",
    "mov rbp, [rdi + {regs} + 40]",
    "mov rsi, [rdi + {regs} + 48]",
    "mov r8, [rdi + {regs} + 64]",
    "mov r9, [rdi + {regs} + 72]",
    "mov r10, [rdi + {regs} + 80]",
    "mov r11, [rdi + {regs} + 88]",
    "mov r12, [rdi + {regs} + 96]",
    "mov r13, [rdi + {regs} + 104]",
    "mov r14, [rdi + {regs} + 112]",
    "mov r15, [rdi + {regs} + 120]",
    "mov rdi, [rdi + {regs} + 56]",
    "iretq",
    ".globl croft_difftest_leave",
    ".hidden croft_difftest_leave",
    "croft_difftest_leave:",
    "mov rsp, [rip + croft_difftest_stack]",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // Signal entry: the test's AC and NT flags are still there.
    ".globl croft_difftest_signal",
    ".hidden croft_difftest_signal",
    "croft_difftest_signal:",
    "pushfq",
    "and qword ptr [rsp], {keep}",
    "popfq",
    "jmp {handler}",
    regs = const std::mem::offset_of!(Context, regs),
    frame = const std::mem::offset_of!(Context, frame),
    keep = const !0x4_4000i32,
    handler = sym handler,
);

unsafe extern "C" {
    fn croft_difftest_enter(context: *const Context);
    fn croft_difftest_leave() -> !;
    fn croft_difftest_signal();
}

/// The host processor, taken by one test at a time.
pub struct Native {
    code: *mut u8,
    data: *mut u8,
    stack: *mut u8,
    fs_base: u64,
    context: Box<Context>,
    _lock: MutexGuard<'static, ()>,
}

/// Two mappings of the same memory: one as [`layout`] says, at `area`, and a
/// plain writable one, which is returned.
fn map_area(area: u64, full: libc::c_int) -> io::Result<*mut u8> {
    // SAFETY: system calls with valid arguments; the fixed addresses belong
    // to this module, which `LOCK` serializes, and `unmap` has freed them.
    unsafe {
        let file = libc::memfd_create(c"croft-difftest".as_ptr(), libc::MFD_CLOEXEC);
        if file < 0 || libc::ftruncate(file, BACKING as libc::off_t) < 0 {
            return Err(io::Error::last_os_error());
        }
        let map = |address: u64, len, protection, fixed, offset: u64| {
            let at = libc::mmap(
                address as *mut libc::c_void,
                len,
                protection,
                libc::MAP_SHARED | libc::MAP_POPULATE | fixed,
                file,
                offset as libc::off_t,
            );
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(at.cast::<u8>())
        };
        let plain = map(0, BACKING, libc::PROT_READ | libc::PROT_WRITE, 0, 0)?;
        for (n, kind) in KINDS.iter().enumerate() {
            let (place, protection) = match *kind {
                Page::Absent => continue,
                Page::Full(place) => (place, full),
                Page::Lesser(place) => (place, libc::PROT_READ),
            };
            map(
                layout::page(area, n as u64),
                PAGE as usize,
                protection,
                libc::MAP_FIXED_NOREPLACE,
                place * PAGE,
            )?;
        }
        libc::close(file);
        Ok(plain)
    }
}

fn unmap(area: u64, plain: *mut u8) {
    // SAFETY: unmaps what `map_area` has mapped, whose owner is going away.
    unsafe {
        libc::munmap(area as *mut libc::c_void, (layout::PAGES * PAGE) as usize);
        libc::munmap(plain.cast(), BACKING);
    }
}

/// Code and stack selector of user programs.
fn selectors() -> (u64, u64) {
    let (cs, ss): (u16, u16);
    // SAFETY: reads two selectors.
    unsafe { asm!("mov {0:x}, cs", "mov {1:x}, ss", out(reg) cs, out(reg) ss) };
    (u64::from(cs), u64::from(ss))
}

impl Native {
    /// Maps the areas and installs the signal handlers; blocks while another
    /// test has them.
    ///
    /// Engines that handle signals themselves must be made before.
    pub fn take() -> io::Result<Native> {
        let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let code = map_area(CODE, libc::PROT_READ | libc::PROT_EXEC)?;
        let data = map_area(DATA, libc::PROT_READ | libc::PROT_WRITE)?;
        let (cs, ss) = selectors();
        let fs_base: u64;
        // SAFETY: a private mapping for the signal stack; `sigaltstack` and
        // `sigaction` get valid structures and a handler that chains; the GS
        // base is free for use by programs on x86-64 Linux.
        let stack = unsafe {
            let stack = libc::mmap(
                ptr::null_mut(),
                SIGNAL_STACK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            );
            if stack == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let alternative = libc::stack_t {
                ss_sp: stack,
                ss_flags: 0,
                ss_size: SIGNAL_STACK,
            };
            if libc::sigaltstack(&alternative, ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            install()?;
            asm!("rdfsbase {}", out(reg) fs_base);
            stack.cast()
        };
        Ok(Native {
            code,
            data,
            stack,
            fs_base,
            context: Box::new(Context {
                xsave: Xsave::default(),
                regs: [0; 16],
                frame: [0, cs, 0, 0, ss],
            }),
            _lock: lock,
        })
    }

    /// FS base of every test: the calling thread's own.
    pub fn fs_base(&self) -> u64 {
        self.fs_base
    }

    /// Selectors of every test: CS, SS. The others are null.
    pub fn selectors(&self) -> (u16, u16) {
        (self.context.frame[1] as u16, self.context.frame[4] as u16)
    }

    /// What backs the code area.
    pub fn code(&mut self) -> &mut [u8] {
        // SAFETY: mapped for as long as `self` lives; nothing else has a
        // reference to it.
        unsafe { std::slice::from_raw_parts_mut(self.code, BACKING) }
    }

    /// What backs the data area.
    pub fn data(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.data, BACKING) }
    }

    /// Executes what stands at `input.rip`. The instruction must not be able
    /// to reach memory outside the two areas.
    pub fn run(&mut self, input: &Input) -> Output {
        let context = &mut *self.context;
        context.xsave = input.xsave;
        context.regs = input.regs;
        context.frame[0] = input.rip;
        context.frame[2] = input.rflags;
        context.frame[3] = input.regs[4];
        INSIDE.store(true, Ordering::SeqCst);
        // SAFETY: the context is complete. The instruction ends in a signal,
        // whose handler comes back here with callee-saved registers restored;
        // x87, SSE and AVX are in the initial state then, as the kernel
        // enters handlers, and DS, ES and GS are put right below.
        let taken = unsafe {
            asm!("wrgsbase {}", in(reg) layout::GS_BASE);
            croft_difftest_enter(context);
            (*TAKEN.0.get()).assume_init_ref()
        };
        Output {
            regs: taken.regs,
            rip: taken.rip,
            rflags: taken.rflags,
            xsave: taken.xsave,
            end: taken.end,
            gs_base: taken.gs_base,
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        uninstall();
        let disable = libc::stack_t {
            ss_sp: ptr::null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: 0,
        };
        // SAFETY: the stack is not in use: handlers leave before `run` ends.
        unsafe {
            libc::sigaltstack(&disable, ptr::null_mut());
            libc::munmap(self.stack.cast(), SIGNAL_STACK);
        }
        unmap(CODE, self.code);
        unmap(DATA, self.data);
    }
}

fn install() -> io::Result<()> {
    let mut earlier = EARLIER.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: structures are zeroed before use; `CHAIN` is written before the
    // handler that reads it exists.
    unsafe {
        let mut kept: [libc::sigaction; 5] = zeroed();
        for (n, signal) in SIGNALS.iter().enumerate() {
            if libc::sigaction(*signal, ptr::null(), &mut kept[n]) != 0 {
                return Err(io::Error::last_os_error());
            }
            CHAIN[n] = MaybeUninit::new(kept[n]);
        }
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = croft_difftest_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in SIGNALS {
            if libc::sigaction(signal, &action, ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        *earlier = Some(kept);
    }
    Ok(())
}

fn uninstall() {
    let mut earlier = EARLIER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = earlier.take() {
        for (signal, action) in SIGNALS.iter().zip(&kept) {
            // SAFETY: puts back what `install` has found.
            unsafe { libc::sigaction(*signal, action, ptr::null_mut()) };
        }
    }
}

/// Order of [`Output::regs`] in the kernel's context.
const ORDER: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

unsafe extern "C" fn handler(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
) {
    // SAFETY: the kernel hands over a valid context. Inside a test nothing of
    // the host's is on the interrupted stack and `leave` goes back to `run`;
    // outside, the earlier handler decides.
    unsafe {
        if !INSIDE.swap(false, Ordering::SeqCst) {
            return chain(signal, info, context);
        }
        let machine = &(*context).uc_mcontext;
        let general = |n: libc::c_int| machine.gregs[n as usize] as u64;
        let vector = general(libc::REG_TRAPNO) as u8;
        let mut xsave = Xsave::default();
        let area = machine.fpregs.cast::<u8>().cast_const();
        let magic = area.add(SOFTWARE_BYTES).cast::<u32>().read_unaligned();
        let len = if magic == MAGIC { 832 } else { 416 };
        ptr::copy_nonoverlapping(area, xsave.0.as_mut_ptr(), len);
        let gs_base: u64;
        asm!("rdgsbase {}", out(reg) gs_base);
        asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) 0u32);
        let has_error = matches!(vector, 8 | 10..=14 | 17);
        (*TAKEN.0.get()).write(Taken {
            regs: ORDER.map(general),
            rip: general(libc::REG_RIP),
            rflags: general(libc::REG_EFL),
            xsave,
            end: End {
                vector,
                error: if has_error {
                    general(libc::REG_ERR) as u32
                } else {
                    0
                },
                cr2: if vector == 14 {
                    general(libc::REG_CR2)
                } else {
                    0
                },
            },
            gs_base,
        });
        croft_difftest_leave()
    }
}

/// Lets the handler that was there before have a signal that is not ours.
unsafe fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: `CHAIN` was filled before this handler was installed; earlier
    // handlers are called with the arguments they asked for.
    unsafe {
        let Some(n) = SIGNALS.iter().position(|s| *s == signal) else {
            return;
        };
        let earlier = CHAIN[n].assume_init();
        match earlier.sa_sigaction {
            libc::SIG_IGN => {}
            libc::SIG_DFL => {
                // Coming back runs into the same fault, now for good.
                libc::sigaction(signal, &earlier, ptr::null_mut());
            }
            function if earlier.sa_flags & libc::SA_SIGINFO != 0 => {
                let function: unsafe extern "C" fn(
                    libc::c_int,
                    *mut libc::siginfo_t,
                    *mut libc::ucontext_t,
                ) = std::mem::transmute(function);
                function(signal, info, context);
            }
            function => {
                let function: unsafe extern "C" fn(libc::c_int) = std::mem::transmute(function);
                function(signal);
            }
        }
    }
}
