//! The control queue (virtio 1.2, 5.1.6.5).
//!
//! ```text
//! readable: class (1) · command (1) · its data
//! writable: ack (1)
//! ```

use std::sync::Arc;

use croft_memory::GuestRam;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
    VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_ALLUNI,
    VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_CTRL_RX_NOMULTI, VIRTIO_NET_CTRL_RX_NOUNI,
    VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD,
    VIRTIO_NET_CTRL_VLAN_DEL, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ,
};

use super::config::Features;
use super::filter::{ADDRESSES_MAX, Addresses, Filter};
use super::handle::Hub;
use crate::virtio::{Buffers, Chain, QueueError, QueueHandler};

/// The answers (`VIRTIO_NET_OK`, `VIRTIO_NET_ERR`).
const OK: u8 = 0;
const ERROR: u8 = 1;
/// Where a command's data are.
const DATA: u64 = 2;

/// Serves the control queue.
pub struct Control {
    pub hub: Arc<Hub>,
    pub features: Features,
}

impl QueueHandler for Control {
    fn serve(&mut self, ram: &GuestRam, chain: &Chain) -> Result<u32, QueueError> {
        if chain.writable.is_empty() {
            return Err(QueueError::Request("has no room for its answer"));
        }
        let command = Command {
            ram,
            buffers: &chain.readable,
        };
        let done = match command.read::<{ DATA as usize }>(0)? {
            Some([class, number]) => self.obey(&command, u32::from(class), u32::from(number))?,
            None => None,
        };
        let answer = if done.is_some() { OK } else { ERROR };
        chain.writable.write(ram, 0, &[answer])?;
        Ok(1)
    }
}

/// What a driver sent.
struct Command<'a> {
    ram: &'a GuestRam,
    buffers: &'a Buffers,
}

impl Command<'_> {
    /// Bytes from `offset` on, if there are as many.
    fn read<const N: usize>(&self, offset: u64) -> Result<Option<[u8; N]>, QueueError> {
        let mut bytes = [0; N];
        let count = self.buffers.read(self.ram, offset, &mut bytes)?;
        Ok((count == N).then_some(bytes))
    }

    /// A table of addresses at `offset`, and where it ends.
    fn table(&self, offset: u64) -> Result<Option<(Addresses, u64)>, QueueError> {
        let Some(count) = self.read(offset)?.map(u32::from_le_bytes) else {
            return Ok(None);
        };
        let (start, len) = (offset + 4, 6 * u64::from(count));
        if self.buffers.len() < start + len {
            return Ok(None);
        }
        let mut table = Addresses {
            too_many: count as usize > ADDRESSES_MAX,
            ..Addresses::default()
        };
        if !table.too_many {
            for index in 0..u64::from(count) {
                table.listed.extend(self.read::<6>(start + 6 * index)?);
            }
        }
        Ok(Some((table, start + len)))
    }
}

impl Control {
    /// Does what is asked; `None` when that cannot be.
    fn obey(
        &self,
        command: &Command<'_>,
        class: u32,
        number: u32,
    ) -> Result<Option<()>, QueueError> {
        let has = |feature| self.features.has(feature);
        Ok(match class {
            VIRTIO_NET_CTRL_RX if has(VIRTIO_NET_F_CTRL_RX) => {
                command.read(DATA)?.and_then(|on| self.mode(number, on))
            }
            VIRTIO_NET_CTRL_MAC => self.address(command, number)?,
            VIRTIO_NET_CTRL_VLAN if has(VIRTIO_NET_F_CTRL_VLAN) => {
                let id = command.read(DATA)?.map(u16::from_le_bytes);
                id.and_then(|id| self.vlan(number, id))
            }
            VIRTIO_NET_CTRL_ANNOUNCE if has(VIRTIO_NET_F_GUEST_ANNOUNCE) => {
                let known = number == VIRTIO_NET_CTRL_ANNOUNCE_ACK;
                known.then(|| self.hub.with_settings(|settings| settings.announce = false))
            }
            VIRTIO_NET_CTRL_MQ if has(VIRTIO_NET_F_MQ) => {
                let pairs = command.read(DATA)?.map(u16::from_le_bytes);
                let pairs = pairs.filter(|_| number == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
                let set = pairs.is_some_and(|pairs| self.hub.set_pairs(pairs));
                set.then_some(())
            }
            VIRTIO_NET_CTRL_GUEST_OFFLOADS if has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) => {
                let wanted = command.read(DATA)?.map(u64::from_le_bytes);
                let wanted = wanted.filter(|_| number == VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET);
                wanted.and_then(|wanted| self.take_over(wanted))
            }
            _ => None,
        })
    }

    fn change_filter(&self, change: impl FnOnce(&mut Filter) -> bool) -> Option<()> {
        let mut filter = Filter::clone(&self.hub.filter());
        let changed = change(&mut filter);
        changed.then(|| self.hub.set_filter(filter))
    }

    fn mode(&self, number: u32, [on]: [u8; 1]) -> Option<()> {
        let on = on != 0;
        let extra = number > VIRTIO_NET_CTRL_RX_ALLMULTI;
        if extra && !self.features.has(VIRTIO_NET_F_CTRL_RX_EXTRA) {
            return None;
        }
        self.change_filter(|filter| {
            let mode = match number {
                VIRTIO_NET_CTRL_RX_PROMISC => &mut filter.promiscuous,
                VIRTIO_NET_CTRL_RX_ALLMULTI => &mut filter.all_multicast,
                VIRTIO_NET_CTRL_RX_ALLUNI => &mut filter.all_unicast,
                VIRTIO_NET_CTRL_RX_NOMULTI => &mut filter.no_multicast,
                VIRTIO_NET_CTRL_RX_NOUNI => &mut filter.no_unicast,
                VIRTIO_NET_CTRL_RX_NOBCAST => &mut filter.no_broadcast,
                _ => return false,
            };
            *mode = on;
            true
        })
    }

    fn address(&self, command: &Command<'_>, number: u32) -> Result<Option<()>, QueueError> {
        match number {
            VIRTIO_NET_CTRL_MAC_TABLE_SET if self.features.has(VIRTIO_NET_F_CTRL_RX) => {
                let Some((unicast, end)) = command.table(DATA)? else {
                    return Ok(None);
                };
                let Some((multicast, _)) = command.table(end)? else {
                    return Ok(None);
                };
                Ok(self.change_filter(|filter| {
                    filter.unicast = unicast;
                    filter.multicast = multicast;
                    true
                }))
            }
            VIRTIO_NET_CTRL_MAC_ADDR_SET if self.features.has(VIRTIO_NET_F_CTRL_MAC_ADDR) => {
                let mac = command.read(DATA)?;
                Ok(mac.and_then(|mac| {
                    self.change_filter(|filter| {
                        filter.mac = mac;
                        true
                    })
                }))
            }
            _ => Ok(None),
        }
    }

    fn vlan(&self, number: u32, id: u16) -> Option<()> {
        let passes = match number {
            VIRTIO_NET_CTRL_VLAN_ADD => true,
            VIRTIO_NET_CTRL_VLAN_DEL => false,
            _ => return None,
        };
        self.change_filter(|filter| filter.set_vlan(id, passes))
    }

    fn take_over(&self, wanted: u64) -> Option<()> {
        let accepted = self.features.offloads();
        (wanted & !accepted == 0).then(|| {
            self.hub
                .with_settings(|settings| settings.offloads = wanted);
            self.hub.wake();
        })
    }
}
