//! Which frames the driver wants (virtio 1.2, 5.1.6.5.1 to 5.1.6.5.3).

use serde::{Deserialize, Serialize};

/// Most addresses of a kind that are told apart; with more, all of the kind
/// are let in.
pub const ADDRESSES_MAX: usize = 64;
/// VLAN ids (IEEE 802.1Q): 12 bits.
const VLANS: u16 = 1 << 12;
/// Words of the set of them.
pub const VLAN_WORDS: usize = VLANS as usize / 64;
const TAG: [u8; 2] = [0x81, 0x00];
const BROADCAST: [u8; 6] = [0xFF; 6];

/// Addresses of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// These.
    pub listed: Vec<[u8; 6]>,
    /// There were too many: all.
    pub too_many: bool,
}

impl Addresses {
    fn contain(&self, address: &[u8; 6]) -> bool {
        self.too_many || self.listed.contains(address)
    }
}

/// The filter, also as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// The NIC's own address.
    pub mac: [u8; 6],
    /// Everything passes.
    pub promiscuous: bool,
    /// All multicast does.
    pub all_multicast: bool,
    /// All unicast does.
    pub all_unicast: bool,
    /// No multicast does.
    pub no_multicast: bool,
    /// No unicast does.
    pub no_unicast: bool,
    /// No broadcast does.
    pub no_broadcast: bool,
    /// Further unicast addresses.
    pub unicast: Addresses,
    /// Multicast addresses.
    pub multicast: Addresses,
    /// VLANs that pass, a bit each; all when there are none.
    pub vlans: Option<Vec<u64>>,
}

impl Filter {
    /// As after a reset: nothing is kept out before the driver says so.
    pub fn new(mac: [u8; 6], vlans: bool) -> Self {
        Filter {
            mac,
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Addresses::default(),
            multicast: Addresses::default(),
            vlans: vlans.then(|| vec![0; VLAN_WORDS]),
        }
    }

    /// Whether it could be one of this device's.
    pub fn is_sound(&self) -> bool {
        let few = |addresses: &Addresses| addresses.listed.len() <= ADDRESSES_MAX;
        let vlans = self.vlans.as_ref();
        few(&self.unicast) && few(&self.multicast) && vlans.is_none_or(|v| v.len() == VLAN_WORDS)
    }

    /// Lets a VLAN in, or keeps it out; false when there is none of that id.
    pub fn set_vlan(&mut self, id: u16, passes: bool) -> bool {
        let Some(vlans) = self.vlans.as_mut().filter(|_| id < VLANS) else {
            return false;
        };
        if let Some(word) = vlans.get_mut(usize::from(id / 64)) {
            let bit = 1 << (id % 64);
            *word = if passes { *word | bit } else { *word & !bit };
        }
        true
    }

    /// Whether a frame is for the driver.
    pub fn passes(&self, frame: &[u8]) -> bool {
        let Some((to, rest)) = frame.split_first_chunk::<6>() else {
            return false;
        };
        if self.promiscuous {
            return true;
        }
        // Behind the sender's address: ethertype, and the tag's contents.
        if let Some(&[t0, t1, v0, v1]) = rest.get(6..10)
            && [t0, t1] == TAG
            && !self.vlan_passes(u16::from_be_bytes([v0, v1]) % VLANS)
        {
            return false;
        }
        if *to == BROADCAST {
            return !self.no_broadcast;
        }
        if to[0] & 1 != 0 {
            return !self.no_multicast && (self.all_multicast || self.multicast.contain(to));
        }
        !self.no_unicast && (self.all_unicast || *to == self.mac || self.unicast.contain(to))
    }

    fn vlan_passes(&self, id: u16) -> bool {
        // Id 0 is a priority, and no VLAN.
        let Some(vlans) = self.vlans.as_ref().filter(|_| id != 0) else {
            return true;
        };
        let word = vlans.get(usize::from(id / 64));
        word.is_some_and(|word| word >> (id % 64) & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn frame(to: [u8; 6], vlan: Option<u16>) -> Vec<u8> {
        let mut frame = to.to_vec();
        frame.extend([2, 0, 0, 0, 0, 9]);
        if let Some(vlan) = vlan {
            frame.extend(TAG);
            frame.extend((vlan | 0x2000).to_be_bytes());
        }
        frame.extend([8, 0, 1, 2, 3, 4]);
        frame
    }

    #[test]
    fn what_passes() {
        let group = [1, 0, 0x5E, 0, 0, 1];
        let other = [2, 0, 0, 0, 0, 2];
        let mut filter = Filter::new(MAC, true);
        assert!(filter.passes(&frame(other, Some(5))) && !filter.passes(&[1, 2]));
        filter.promiscuous = false;
        let passes = |filter: &Filter| {
            [MAC, other, group, BROADCAST].map(|to| filter.passes(&frame(to, None)))
        };
        assert_eq!(passes(&filter), [true, false, false, true]);
        filter.all_multicast = true;
        filter.all_unicast = true;
        assert_eq!(passes(&filter), [true; 4]);
        filter.no_multicast = true;
        filter.no_unicast = true;
        filter.no_broadcast = true;
        assert_eq!(passes(&filter), [false; 4]);
        let mut filter = Filter::new(MAC, true);
        filter.promiscuous = false;
        filter.unicast.listed.push(other);
        filter.multicast.too_many = true;
        assert_eq!(passes(&filter), [true; 4]);
        let vlan = |filter: &Filter, id| filter.passes(&frame(MAC, Some(id)));
        assert!(vlan(&filter, 0) && !vlan(&filter, 5) && !vlan(&filter, 4095));
        assert!(filter.set_vlan(5, true) && filter.set_vlan(4095, true));
        assert!(vlan(&filter, 5) && vlan(&filter, 4095) && !vlan(&filter, 6));
        assert!(filter.set_vlan(5, false) && !vlan(&filter, 5));
        assert!(!filter.set_vlan(4096, true));
        assert!(Filter::new(MAC, false).passes(&frame(MAC, Some(9))));
    }
}
