use super::*;

fn config(vcpus: u32) -> Config {
    Config {
        vcpus,
        pci_window_64: Range {
            start: 1 << 39,
            len: 1 << 39,
        },
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into()
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn find(tables: &[(u64, Vec<u8>)], address: u64) -> &[u8] {
    let table = tables.iter().find(|(at, _)| *at == address);
    &table.expect("a table at the address").1
}

#[test]
fn every_table_is_reachable_and_sums_to_zero() {
    for vcpus in [1, 2, 255, 256, VCPUS_MAX] {
        let tables = build(&config(vcpus));
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let rsdp = find(&tables, RSDP);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
        let xsdt = find(&tables, long(rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let mut seen = vec![xsdt];
        for entry in xsdt[36..].chunks(8) {
            seen.push(find(&tables, long(entry, 0)));
        }
        let fadt = seen[1];
        assert_eq!(&fadt[..4], b"FACP");
        let facs = find(&tables, word(fadt, 36));
        assert_eq!(&facs[..4], b"FACS");
        assert_eq!(word(fadt, 40), long(fadt, 140));
        seen.push(find(&tables, word(fadt, 40)));
        for table in seen {
            assert_eq!(word(table, 4) as usize, table.len());
            assert_eq!(sum(table), 0, "{:?}", &table[..4]);
        }
    }
}

#[test]
fn the_tables_stay_in_their_place_without_meeting() {
    let mut tables = build(&config(VCPUS_MAX));
    tables.sort();
    for pair in tables.windows(2) {
        assert!(pair[0].0 + pair[0].1.len() as u64 <= pair[1].0);
    }
    let (last, bytes) = tables.last().unwrap();
    assert!(last + bytes.len() as u64 <= ACPI_END);
    assert_eq!(tables[0].0 % 16, 0);
}

#[test]
fn the_madt_counts_every_vcpu() {
    let madt = madt::build(300);
    let (mut at, mut lapics, mut x2apics) = (44, 0, 0);
    while at < madt.len() {
        match madt[at] {
            0 => lapics += 1,
            9 => x2apics += 1,
            _ => {}
        }
        at += usize::from(madt[at + 1]);
    }
    assert_eq!((at, lapics, x2apics), (madt.len(), 255, 45));
}
