//! The last program before a container's own: some instructions in memory that
//! nothing can change.
//!
//! A process that is about to become a container's program still is its maker's
//! program: `/proc/self/exe` leads to the host's file. Where the container's
//! program, or its interpreter, is that link, the maker's program would run in
//! the container, and who opened it there could write to it when it has ended
//! (CVE-2019-5736). So init first becomes this, and from this the program: the
//! link then leads to a page of memory, sealed, that runs what it is told.
//!
//! ```text
//! arguments: path, then the program's own
//! fcntl(channel, F_SETFD, FD_CLOEXEC)       open until the program is there;
//!                                           a second time it is not: the end
//! execve(path, arguments + 1, environment)
//! write(channel, "X" and the error)         only if that failed
//! exit_group(1)
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    Access, AtFlags, CWD, MemfdFlags, SealFlags, StatVfsMountFlags, accessat, fcntl_add_seals,
    fcntl_get_seals, memfd_create, stat, statvfs,
};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::getuid;

/// This program, whatever its file is called by now.
pub const OWN: &str = "/proc/self/exe";
/// What its complaint begins with; the error follows as four bytes.
pub const FAILED: u8 = b'X';

/// Where it is loaded.
const ADDRESS: u64 = 0x40_0000;
/// Sizes of an ELF file's header and of a segment's (elf(5)).
const HEADERS: u64 = 64 + 56;

/// The instructions. The channel's number is put into the second.
const CODE: [u8; 91] = [
    0x4c, 0x8b, 0x24, 0x24, // mov r12, [rsp]: how many arguments
    0xbd, 0x00, 0x00, 0x00, 0x00, // mov ebp, channel
    0x89, 0xef, // mov edi, ebp
    0xbe, 0x02, 0x00, 0x00, 0x00, // mov esi, F_SETFD
    0xba, 0x01, 0x00, 0x00, 0x00, // mov edx, FD_CLOEXEC
    0xb8, 0x48, 0x00, 0x00, 0x00, // mov eax, fcntl
    0x0f, 0x05, // syscall
    0x85, 0xc0, // test eax, eax
    0x75, 0x2f, // jnz to the end
    0x48, 0x8b, 0x7c, 0x24, 0x08, // mov rdi, [rsp + 8]: the path
    0x48, 0x8d, 0x74, 0x24, 0x10, // lea rsi, [rsp + 16]: the rest
    0x4a, 0x8d, 0x54, 0xe4, 0x10, // lea rdx, [rsp + 8 * r12 + 16]: the environment
    0xb8, 0x3b, 0x00, 0x00, 0x00, // mov eax, execve
    0x0f, 0x05, // syscall
    0xf7, 0xd8, // neg eax
    0x6a, 0x58, // push 'X'
    0x89, 0x44, 0x24, 0x01, // mov [rsp + 1], eax
    0x89, 0xef, // mov edi, ebp
    0x48, 0x89, 0xe6, // mov rsi, rsp
    0xba, 0x05, 0x00, 0x00, 0x00, // mov edx, 5
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, write
    0x0f, 0x05, // syscall
    0xbf, 0x01, 0x00, 0x00, 0x00, // mov edi, 1
    0xb8, 0xe7, 0x00, 0x00, 0x00, // mov eax, exit_group
    0x0f, 0x05, // syscall
];
/// Where the channel's number is in the instructions.
const CHANNEL: usize = 5;

/// Whether nobody with the rights of this process can write to its file.
pub fn is_safe() -> bool {
    let read_only =
        statvfs(OWN).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY));
    let sealed = || {
        let seals = File::open(OWN).map(|own| fcntl_get_seals(&own));
        matches!(seals, Ok(Ok(seals)) if seals.contains(SealFlags::WRITE))
    };
    let refused = || {
        accessat(CWD, OWN, Access::WRITE_OK, AtFlags::empty()) == Err(Errno::ACCESS)
            && stat(OWN).is_ok_and(|found| found.st_uid != getuid().as_raw())
    };
    read_only || refused() || sealed()
}

/// Whether the file's owner, or anybody, is an id of a container that maps
/// these ids of the host's.
pub fn is_mapped(maps: impl IntoIterator<Item = (u32, u32)>) -> bool {
    let Ok(found) = stat(Path::new(OWN)) else {
        return true;
    };
    let inside = |(first, count): (u32, u32)| {
        let at = found.st_uid.checked_sub(first);
        at.is_some_and(|at| at < count)
    };
    // Its group, and all others, usually may not write.
    found.st_mode & 0o022 != 0 || maps.into_iter().any(inside)
}

/// Makes one, which tells `channel` when it fails; see [`keep`].
pub fn make(channel: &OwnedFd) -> io::Result<OwnedFd> {
    let memory = memory()?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let mut memory = File::from(memory);
    memory.write_all(&image(channel.as_raw_fd()))?;
    fcntl_add_seals(&memory, seals)?;
    Ok(memory.into())
}

/// Keeps the channel open for it: to be done just before it begins.
pub fn keep(channel: &OwnedFd) -> Result<(), Errno> {
    fcntl_setfd(channel, FdFlags::empty())
}

/// The error of a complaint, behind what it begins with.
pub fn error(bytes: &[u8]) -> Option<Errno> {
    let number = i32::from_le_bytes(bytes.try_into().ok()?);
    Errno::from_io_error(&io::Error::from_raw_os_error(number))
}

/// Memory that programs can be run from and that can be sealed.
pub fn memory() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Since Linux 6.3 it is asked for; before, it is so.
    match memfd_create(c"croft", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create(c"croft", flags),
        result => result,
    }
}

/// An ELF file of one segment (elf(5)): headers and instructions.
fn image(channel: i32) -> Vec<u8> {
    let mut code = CODE;
    if let Some(place) = code.get_mut(CHANNEL..CHANNEL + 4) {
        place.copy_from_slice(&channel.to_le_bytes());
    }
    let length = HEADERS + code.len() as u64;
    let mut bytes = Vec::with_capacity(length as usize);
    // 64 bits, little-endian, version 1.
    bytes.extend(b"\x7fELF\x02\x01\x01");
    bytes.resize(16, 0);
    // An executable file for x86-64.
    bytes.extend(2_u16.to_le_bytes());
    bytes.extend(62_u16.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    // Its first instruction; segments behind this header; no sections.
    bytes.extend((ADDRESS + HEADERS).to_le_bytes());
    bytes.extend(64_u64.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    for size in [64_u16, 56, 1, 0, 0, 0] {
        bytes.extend(size.to_le_bytes());
    }
    // One segment: loaded, read and executed.
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(5_u32.to_le_bytes());
    for value in [0, ADDRESS, ADDRESS, length, length, 0x1000] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(code);
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use super::*;
    use crate::channel::pair;

    fn run(words: &[&str]) -> (Option<i32>, Vec<u8>, Vec<u8>) {
        let (ours, theirs) = pair().unwrap();
        let memory = make(&theirs).unwrap();
        keep(&theirs).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
        let mut command = Command::new(path);
        std::os::unix::process::CommandExt::arg0(&mut command, words[0]);
        let output = command.args(&words[1..]).env("A", "b").output().unwrap();
        drop(theirs);
        let mut bytes = [0; 16];
        let length = rustix::io::read(&ours, &mut bytes).unwrap();
        (
            output.status.code(),
            output.stdout,
            bytes[..length].to_vec(),
        )
    }

    #[test]
    fn the_program_gets_its_arguments_and_environment() {
        let script = "echo $0 $1 $A; ls -l /proc/$$/fd | grep -c socket; exit 3";
        let (code, said, channel) = run(&["/bin/sh", "sh", "-c", script, "name", "first"]);
        assert_eq!(code, Some(3));
        assert_eq!(String::from_utf8(said).unwrap(), "name first b\n0\n");
        assert!(channel.is_empty());
    }

    #[test]
    fn a_failure_is_told() {
        let (code, _, channel) = run(&["/no/program", "x"]);
        assert_eq!(code, Some(1));
        // ENOENT is 2.
        assert_eq!(channel, [FAILED, 2, 0, 0, 0]);
    }
}
