//! Runs FEX-Emu's assembled tests (`unittests/ASM`) on the processor this
//! runs on: a host's, or a guest's as the only program of its initramfs.
//!
//! `asm_suite DIRECTORY` takes each `NAME.asm.bin` below the directory with
//! the `NAME.asm.config.bin` beside it, prints a line for each test that
//! failed and the counts. A test is a flat program at [`CODE`] that ends with
//! `hlt`, which user mode refuses. It runs in a process of its own, traced, so
//! that all of its registers can be set and read while none is this program's.
#![allow(unsafe_code)]

use std::arch::x86_64::__cpuid_count;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::{env, fs, io, process, ptr};

/// Where tests are loaded and start.
const CODE: u64 = 0x1_0000;
/// Memory that each test finds, as start and length.
const MEMORY: [(u64, u64); 3] = [
    (0xE000_0000, 0xA000),
    (0xE7FF_F000, 0x2000),
    // The stack of 32-bit tests.
    (0xC000_0000, 0x1000),
];
const HLT: u8 = 0xF4;
/// The code segment of 32-bit tests, entry 1 of the local descriptor table.
/// They load the data segment, entry 2, themselves.
const CODE32: u64 = 0xF;
/// Seconds that a test may take.
const PATIENCE: u32 = 10;

/// Header of a configuration: five words, three half words, then offset and
/// count of four lists.
mod at {
    pub const MODE: usize = 36;
    pub const FEATURES: usize = 40;
    pub const REGIONS: usize = 44;
    pub const REGISTERS: usize = 52;
    pub const MEMORY: usize = 60;
    pub const OPTIONS: usize = 68;
}

/// Offsets in an XSAVE area of the standard format (SDM vol. 1, 13.4).
mod xsave {
    pub const STATUS: usize = 2;
    pub const STACK: usize = 32;
    pub const XMM: usize = 160;
    pub const HEADER: usize = 512;
    pub const YMM_HIGH: usize = 576;
    pub const LEN: usize = 16 << 10;
}

/// Bit of the feature word, CPUID leaf, register (EAX to EDX) and bit.
const FEATURES: [(u32, u32, usize, u32); 23] = [
    (0, 0x8000_0001, 3, 31),  // 3DNow!
    (1, 0x8000_0001, 2, 6),   // SSE4A
    (2, 7, 1, 5),             // AVX2, which the suite calls AVX
    (3, 1, 2, 30),            // RDRAND
    (3, 7, 1, 18),            // RDSEED
    (4, 7, 1, 29),            // SHA
    (5, 0x8000_0008, 1, 0),   // CLZERO
    (6, 7, 1, 3),             // BMI1
    (7, 7, 1, 8),             // BMI2
    (8, 7, 1, 24),            // CLWB
    (10, 7, 2, 9),            // VAES
    (12, 1, 2, 9),            // SSSE3
    (13, 1, 2, 19),           // SSE4.1
    (14, 1, 2, 20),           // SSE4.2
    (15, 1, 2, 25),           // AES
    (16, 1, 2, 1),            // PCLMULQDQ
    (17, 1, 2, 22),           // MOVBE
    (18, 7, 1, 19),           // ADX
    (19, 1, 2, 27),           // XSAVE, by OSXSAVE
    (20, 7, 2, 22),           // RDPID
    (21, 7, 1, 23),           // CLFLUSHOPT
    (22, 7, 1, 0),            // FSGSBASE
    (23, 0x8000_0001, 3, 22), // AMD's additions to MMX
];

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// What a test expects, and what it wants to find.
struct Config(Vec<u8>);

impl Config {
    fn bytes<const N: usize>(&self, at: usize) -> io::Result<[u8; N]> {
        self.0
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .ok_or_else(|| io::Error::other("its configuration is too short"))
    }

    fn half(&self, at: usize) -> io::Result<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn word(&self, at: usize) -> io::Result<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    /// Offset and length of a list.
    fn list(&self, at: usize) -> io::Result<(usize, u32)> {
        Ok((self.half(at)? as usize, self.half(at + 4)?))
    }

    fn long(&self) -> io::Result<bool> {
        Ok(self.half(at::MODE)? == 1)
    }

    fn regions(&self) -> io::Result<Vec<(u64, u64)>> {
        let (offset, count) = self.list(at::REGIONS)?;
        (0..count as usize)
            .map(|i| {
                let at = offset + 16 * i;
                Ok((self.word(at)?, self.word(at + 8)?))
            })
            .collect()
    }

    /// Registers, by number, with the words they should have.
    fn registers(&self) -> io::Result<Vec<(u32, Vec<u64>)>> {
        let (mut offset, count) = self.list(at::REGISTERS)?;
        let mut registers = Vec::new();
        for _ in 0..count {
            let words = self.half(offset)? as usize;
            let number = self.word(offset + 4)?.trailing_zeros();
            let values = (0..words)
                .map(|i| self.word(offset + 12 + 8 * i))
                .collect::<io::Result<_>>()?;
            registers.push((number, values));
            offset += 12 + 8 * words;
        }
        Ok(registers)
    }

    /// Addresses with the bytes to be there.
    fn memory(&self) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let (mut offset, count) = self.list(at::MEMORY)?;
        let mut memory = Vec::new();
        for _ in 0..count {
            let len = self.half(offset + 8)? as usize;
            let bytes = (0..len)
                .map(|i| self.bytes::<1>(offset + 12 + i).map(|[byte]| byte))
                .collect::<io::Result<_>>()?;
            memory.push((self.word(offset)?, bytes));
            offset += 12 + len;
        }
        Ok(memory)
    }

    /// Why the test is not for this processor.
    fn misfit(&self) -> io::Result<Option<String>> {
        let wanted = self.half(at::FEATURES)?;
        for (bit, leaf, register, at) in FEATURES {
            let most = __cpuid_count(leaf & 0x8000_0000, 0).eax;
            let cpuid = __cpuid_count(leaf.min(most), 0);
            let word = [cpuid.eax, cpuid.ebx, cpuid.ecx, cpuid.edx][register];
            if wanted >> bit & 1 != 0 && (leaf > most || word >> at & 1 == 0) {
                return Ok(Some(format!(
                    "the processor lacks {leaf:x}h.{register}.{at}"
                )));
            }
        }
        let (offset, _) = self.list(at::OPTIONS)?;
        let options =
            String::from_utf8_lossy(self.0.get(offset..).unwrap_or_default()).into_owned();
        Ok(options
            .contains("REDUCEDPRECISION\u{0}1")
            .then(|| "expects x87 results of less than the full precision".to_owned()))
    }
}

/// What a test left.
struct Left {
    regs: libc::user_regs_struct,
    xsave: Vec<u8>,
}

impl Left {
    fn vector_word(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        if let Some(bytes) = self.xsave.get(at..at + 8) {
            word.copy_from_slice(bytes);
        }
        u64::from_le_bytes(word)
    }

    /// Word `index` of register `number`, in the suite's order.
    fn word(&self, number: u32, index: usize) -> Option<u64> {
        let regs = &self.regs;
        let general = [
            regs.rip, regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp,
            regs.rsp, regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        let number = number as usize;
        match number {
            0..17 => (index == 0).then(|| general[number]),
            17..33 => {
                let (area, index) = if index < 2 {
                    (xsave::XMM, index)
                } else {
                    (xsave::YMM_HIGH, index - 2)
                };
                Some(self.vector_word(area + 16 * (number - 17) + 8 * index))
            }
            33 => Some(regs.gs_base),
            34 => Some(regs.fs_base),
            35..43 => {
                // Kept in the order of the stack, named by physical register.
                let top = self.vector_word(0).to_le_bytes()[xsave::STATUS + 1] >> 3 & 7;
                let place = (number - 35).wrapping_sub(top.into()) % 8;
                let word = self.vector_word(xsave::STACK + 16 * place + 8 * index);
                Some(if index == 0 { word } else { word & 0xFFFF })
            }
            _ => None,
        }
    }

    fn differences(&self, config: &Config) -> io::Result<Vec<String>> {
        let mut differences = Vec::new();
        for (number, values) in config.registers()? {
            for (index, expected) in values.into_iter().enumerate() {
                match self.word(number, index) {
                    Some(found) if found == expected => {}
                    Some(found) => differences.push(format!(
                        "register {number}.{index} is {found:#x}, not {expected:#x}"
                    )),
                    None => differences.push(format!("register {number}.{index} is unknown")),
                }
            }
        }
        Ok(differences)
    }
}

fn checked(status: libc::c_long) -> io::Result<libc::c_long> {
    if status == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(status)
    }
}

/// Maps zeroed memory at `start`, which may already be there.
fn map(start: u64, len: u64) -> io::Result<()> {
    let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let kind =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let len = usize::try_from(len.next_multiple_of(0x1000)).map_err(io::Error::other)?;
    // SAFETY: never replaces a mapping.
    let mapped = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(start as usize),
            len,
            all,
            kind,
            -1,
            0,
        )
    };
    if mapped != libc::MAP_FAILED {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EEXIST) {
        Ok(())
    } else {
        Err(error)
    }
}

fn copy(start: u64, bytes: &[u8]) {
    // SAFETY: the suite's own mapping, made by this process just before; a
    // configuration that names another place ends this test's process only.
    unsafe {
        ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            ptr::without_provenance_mut(start as usize),
            bytes.len(),
        );
    }
}

/// Flat 32-bit segments as `struct user_desc`: number, base, limit, and the
/// bits seg_32bit, contents (data 0, code 2), limit_in_pages, useable.
fn segments() -> io::Result<()> {
    for (number, contents) in [(1, 2), (2, 0)] {
        let entry: [u32; 4] = [number, 0, 0xF_FFFF, 1 | contents << 1 | 1 << 4 | 1 << 6];
        // SAFETY: the kernel reads the 16 bytes.
        checked(unsafe { libc::syscall(libc::SYS_modify_ldt, 0x11, entry.as_ptr(), 16usize) })?;
    }
    Ok(())
}

/// The test's process until it is ready to be given its registers.
fn become_test(code: &[u8], config: &Config) -> io::Result<()> {
    map(CODE, code.len() as u64)?;
    for (start, len) in MEMORY.into_iter().chain(config.regions()?) {
        map(start, len)?;
    }
    copy(CODE, code);
    for (start, bytes) in config.memory()? {
        copy(start, &bytes);
    }
    if !config.long()? {
        segments()?;
    }
    // SAFETY: calls without memory; the tracer waits for the stop.
    unsafe {
        libc::alarm(PATIENCE);
        checked(libc::ptrace(libc::PTRACE_TRACEME))?;
        checked(libc::raise(libc::SIGSTOP).into())?;
    }
    Ok(())
}

/// Waits for the next stop; the signal that stopped it, or none when it ended.
fn wait(child: libc::pid_t) -> io::Result<Option<i32>> {
    let mut status = 0;
    // SAFETY: `status` is written.
    checked(unsafe { libc::waitpid(child, &raw mut status, 0) }.into())?;
    Ok(libc::WIFSTOPPED(status).then(|| libc::WSTOPSIG(status)))
}

fn registers(child: libc::pid_t) -> io::Result<libc::user_regs_struct> {
    let mut regs = MaybeUninit::<libc::user_regs_struct>::uninit();
    // SAFETY: the kernel fills `regs`, or fails.
    unsafe {
        checked(libc::ptrace(
            libc::PTRACE_GETREGS,
            child,
            0usize,
            regs.as_mut_ptr(),
        ))?;
        Ok(regs.assume_init())
    }
}

/// Reads or writes (`request`) the traced process' XSAVE area; its length.
fn vectors(request: libc::c_uint, child: libc::pid_t, area: &mut [u8]) -> io::Result<usize> {
    const NT_X86_XSTATE: usize = 0x202;
    let mut vector = libc::iovec {
        iov_base: area.as_mut_ptr().cast(),
        iov_len: area.len(),
    };
    // SAFETY: the kernel stays inside `area`.
    checked(unsafe { libc::ptrace(request, child, NT_X86_XSTATE, &raw mut vector) })?;
    Ok(vector.iov_len)
}

/// Gives the stopped process the registers that tests begin with, and lets it
/// run to its end. The signal that ended it.
fn run(child: libc::pid_t, long: bool) -> io::Result<(Option<i32>, Left)> {
    let mut area = vec![0; xsave::LEN];
    let len = vectors(libc::PTRACE_GETREGSET, child, &mut area)?;
    area.truncate(len);
    if let Some(present) = area.get_mut(xsave::HEADER..xsave::HEADER + 8) {
        present.fill(0);
    }
    vectors(libc::PTRACE_SETREGSET, child, &mut area)?;

    let before = registers(child)?;
    let cs = if long { before.cs } else { CODE32 };
    // SAFETY: integers only.
    let zero: libc::user_regs_struct = unsafe { MaybeUninit::zeroed().assume_init() };
    let start = libc::user_regs_struct {
        // Not in a system call that could be restarted.
        orig_rax: u64::MAX,
        rip: CODE,
        eflags: 0x202,
        cs,
        ss: before.ss,
        ..zero
    };
    // SAFETY: the kernel reads `start`.
    checked(unsafe { libc::ptrace(libc::PTRACE_SETREGS, child, 0usize, &raw const start) })?;
    // SAFETY: no memory is passed.
    checked(unsafe { libc::ptrace(libc::PTRACE_CONT, child, 0usize, 0usize) })?;
    let signal = wait(child)?;
    if signal.is_none() {
        return Ok((
            None,
            Left {
                regs: start,
                xsave: area,
            },
        ));
    }
    let mut area = vec![0; xsave::LEN];
    vectors(libc::PTRACE_GETREGSET, child, &mut area)?;
    Ok((
        signal,
        Left {
            regs: registers(child)?,
            xsave: area,
        },
    ))
}

fn judge(child: libc::pid_t, config: &Config) -> io::Result<Outcome> {
    if wait(child)? != Some(libc::SIGSTOP) {
        return Ok(Outcome::Failed("it could not be prepared".to_owned()));
    }
    let (signal, left) = run(child, config.long()?)?;
    let Some(signal) = signal else {
        return Ok(Outcome::Failed("its process ended".to_owned()));
    };
    // SAFETY: no memory is passed.
    let next = unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, child, left.regs.rip, 0usize) };
    if signal != libc::SIGSEGV || next as u8 != HLT {
        let rip = left.regs.rip;
        return Ok(Outcome::Failed(format!("signal {signal} at {rip:#x}")));
    }
    let differences = left.differences(config)?;
    Ok(if differences.is_empty() {
        Outcome::Passed
    } else {
        Outcome::Failed(differences.join(", "))
    })
}

fn test(code: &Path) -> io::Result<Outcome> {
    let config = Config(fs::read(code.with_extension("config.bin"))?);
    let code = fs::read(code)?;
    if let Some(why) = config.misfit()? {
        return Ok(Outcome::Skipped(why));
    }
    // SAFETY: this program has one thread.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let ready = become_test(&code, &config);
            eprintln!("cannot prepare a test: {:?}", ready.err());
            process::exit(1);
        }
        _ => {
            let outcome = judge(child, &config);
            // SAFETY: the child is this process' own and not yet waited for, or
            // it is gone and both calls fail.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, ptr::null_mut(), 0);
            }
            outcome
        }
    }
}

fn find(directory: &Path, tests: &mut BTreeMap<String, PathBuf>, top: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, tests, top)?;
        } else if let Some(name) = path.to_string_lossy().strip_suffix(".asm.bin") {
            let name = Path::new(name)
                .strip_prefix(top)
                .map_err(io::Error::other)?;
            tests.insert(name.to_string_lossy().into_owned(), path.clone());
        }
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let Some(directory) = env::args_os().nth(1).map(PathBuf::from) else {
        return Err(io::Error::other("usage: asm_suite DIRECTORY"));
    };
    let mut tests = BTreeMap::new();
    find(&directory, &mut tests, &directory)?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, code) in &tests {
        match test(code)? {
            Outcome::Passed => passed += 1,
            Outcome::Failed(why) => {
                failed += 1;
                println!("FAIL {name}: {why}");
            }
            Outcome::Skipped(why) => {
                skipped += 1;
                println!("SKIP {name}: {why}");
            }
        }
    }
    println!("SUMMARY: {passed} passed, {failed} failed, {skipped} skipped");
    Ok(())
}
