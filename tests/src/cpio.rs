//! Initial RAM disks.

/// A cpio archive in the "newc" format
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

// Of st_mode.
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

impl Archive {
    /// Without entries.
    pub fn new() -> Self {
        Archive::default()
    }

    /// A directory.
    #[must_use]
    pub fn directory(self, name: &str) -> Self {
        self.entry(name, DIRECTORY | 0o755, b"")
    }

    /// An executable file.
    #[must_use]
    pub fn program(self, name: &str, contents: &[u8]) -> Self {
        self.entry(name, FILE | 0o755, contents)
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(name, LINK | 0o777, target.as_bytes())
    }

    /// The archive.
    pub fn finish(self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, b"").bytes
    }

    fn entry(mut self, name: &str, mode: u32, contents: &[u8]) -> Self {
        self.entries += 1;
        let name_len = u32::try_from(name.len() + 1).expect("a short name");
        let len = u32::try_from(contents.len()).expect("a small file");
        let (inode, links) = (self.entries, 1);
        self.bytes.extend(b"070701");
        // Inode, mode, user, group, links, time, length, the numbers of the
        // file's device and of the device it is, length of the name, checksum.
        for field in [inode, mode, 0, 0, links, 0, len, 0, 0, 0, 0, name_len, 0] {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(contents);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
