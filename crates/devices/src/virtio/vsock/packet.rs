//! What stands before every packet (virtio 1.2, 5.10.6).
//!
//! | offset | bytes | contents                                            |
//! |--------|-------|-----------------------------------------------------|
//! | 0      | 8     | context id of the sender                            |
//! | 8      | 8     | context id of the receiver                          |
//! | 16     | 4     | port of the sender                                  |
//! | 20     | 4     | port of the receiver                                |
//! | 24     | 4     | bytes of data that follow                           |
//! | 28     | 2     | type of the socket                                  |
//! | 30     | 2     | operation                                           |
//! | 32     | 4     | flags of the operation                              |
//! | 36     | 4     | the sender's whole room for data of this connection |
//! | 40     | 4     | how much of it the sender has passed on, ever       |

/// Bytes of a header.
pub const LEN: usize = 44;

/// The only type of socket here: a stream (5.10.6.4).
pub const STREAM: u16 = 1;
/// The host's context id (5.10.4).
pub const HOST_CID: u64 = 2;

/// Operations (5.10.6).
pub mod op {
    /// Open a connection.
    pub const REQUEST: u16 = 1;
    /// It is open.
    pub const RESPONSE: u16 = 2;
    /// It is not, or no longer.
    pub const RST: u16 = 3;
    /// One or both directions end.
    pub const SHUTDOWN: u16 = 4;
    /// Data.
    pub const RW: u16 = 5;
    /// Nothing but what every header tells of room.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for the former.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flag of SHUTDOWN: its sender takes no more data.
pub const SHUTDOWN_RECEIVE: u32 = 1 << 0;
/// Flag of SHUTDOWN: its sender sends no more data.
pub const SHUTDOWN_SEND: u32 = 1 << 1;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// A header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// As it stands in memory.
    pub fn parse(bytes: &[u8; LEN]) -> Self {
        let mut rest = &bytes[..];
        Header {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Counterpart of [`parse`](Self::parse).
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut at = 0;
        let mut put = |value: &[u8]| {
            bytes[at..at + value.len()].copy_from_slice(value);
            at += value.len();
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// A reset for whoever sent this (5.10.6.6).
    pub fn refusal(&self) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: STREAM,
            op: op::RST,
            ..Header::default()
        }
    }
}

/// The next `N` bytes; zeros where they are missing.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk() {
        Some((first, others)) => {
            *rest = others;
            *first
        }
        None => [0; N],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_they_belong() {
        let bytes: [u8; LEN] = std::array::from_fn(|i| i as u8);
        let header = Header::parse(&bytes);
        assert_eq!(header.bytes(), bytes);
        assert_eq!(header.dst_cid, 0x0F0E_0D0C_0B0A_0908);
        assert_eq!(
            (header.src_port, header.dst_port),
            (0x1312_1110, 0x1716_1514)
        );
        assert_eq!((header.kind, header.op), (0x1D1C, 0x1F1E));
        assert_eq!(header.fwd_cnt, 0x2B2A_2928);
    }
}
