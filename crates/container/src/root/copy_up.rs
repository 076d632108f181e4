//! A tmpfs that begins with what was in its place (`tmpcopyup`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, fchmod, fchown, fstat,
    mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

/// Deepest directory that is copied.
const DEPTH: usize = 64;

/// Copies what is in one directory into another. What is neither directory,
/// file, link nor device node is left out.
pub fn copy(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let there = fstat(&from)?;
    fchown_all(&to, there.st_uid, there.st_gid)?;
    chmod(&to, there.st_mode)?;
    copy_entries(&open(&from, c".")?, &open(&to, c".")?, DEPTH)
}

fn open(directory: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

fn chmod(file: impl AsFd, mode: u32) -> Result<(), Errno> {
    // By its path: a handle has no right to it otherwise.
    chmodat(
        file,
        c".",
        Mode::from_raw_mode(mode & 0o7777),
        AtFlags::empty(),
    )
}

fn fchown_all(file: impl AsFd, uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    chownat(file, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

fn copy_entries(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Errno::NAMETOOLONG.into());
    };
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let there = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(there.st_mode);
        let mode = Mode::from_raw_mode(there.st_mode & 0o7777);
        let owner = (Uid::from_raw(there.st_uid), Gid::from_raw(there.st_gid));
        match kind {
            FileType::Directory => {
                mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                let (from, to) = (open(from, name)?, open(to, name)?);
                copy_entries(&from, &to, depth)?;
                fchown(&to, Some(owner.0), Some(owner.1))?;
                fchmod(&to, mode)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = openat(from, name, flags, Mode::empty())?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let target = openat(to, name, flags, Mode::from_raw_mode(0o600))?;
                let (mut source, mut target) = (File::from(source), File::from(target));
                io::copy(&mut source, &mut target)?;
                fchown(&target, Some(owner.0), Some(owner.1))?;
                fchmod(&target, mode)?;
            }
            FileType::Symlink => {
                let points = readlinkat(from, name, Vec::new())?;
                symlinkat(points, to, name)?;
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                chownat(to, name, Some(owner.0), Some(owner.1), flags)?;
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
                mknodat(to, name, kind, mode, there.st_rdev)?;
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                chownat(to, name, Some(owner.0), Some(owner.1), flags)?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::super::resolve::directory;
    use super::*;

    #[test]
    fn trees_are_copied_as_they_are() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(from.path().join("sub")).unwrap();
        fs::write(from.path().join("sub/file"), "text").unwrap();
        let mode = fs::Permissions::from_mode(0o4751);
        fs::set_permissions(from.path().join("sub/file"), mode).unwrap();
        symlink("nowhere", from.path().join("link")).unwrap();
        let handle = |path| directory(path).unwrap();
        copy(handle(from.path()), handle(to.path())).unwrap();
        let copied = to.path().join("sub/file");
        assert_eq!(fs::read_to_string(&copied).unwrap(), "text");
        assert_eq!(fs::metadata(&copied).unwrap().mode() & 0o7777, 0o4751);
        let link = fs::read_link(to.path().join("link")).unwrap();
        assert_eq!(link.to_str(), Some("nowhere"));
    }
}
