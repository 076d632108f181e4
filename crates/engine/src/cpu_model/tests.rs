use super::features::{ALL, Features};
use super::*;

fn everything() -> (HostFeatures, EngineOffer) {
    let all = Features::of(ALL);
    let host = HostFeatures {
        features: all,
        xcr0: u64::MAX,
    };
    let offer = EngineOffer {
        name: "test",
        emulated: Features::default(),
        passed: all,
        refused: &[],
        xcr0: 0b111,
        tsc_khz: 2_000_000,
        apic_khz: 1_000_000,
        physical_bits: 40,
    };
    (host, offer)
}

const TOPOLOGY: Topology = Topology { vcpus: 3 };
const MODELS: [CpuModel; 3] = [CpuModel::Host, CpuModel::PortableV1, CpuModel::SoftwareFast];

#[test]
fn names_are_read_back() {
    for model in MODELS {
        assert_eq!(model.to_string().parse(), Ok(model));
    }
    assert!("qemu64".parse::<CpuModel>().is_err());
}

#[test]
fn leaves_are_ordered_and_unique() {
    let (host, offer) = everything();
    for model in MODELS {
        let profile = build(model, TOPOLOGY, &host, &offer).unwrap();
        let keys: Vec<_> = profile
            .leaves
            .iter()
            .map(|leaf| (leaf.function, leaf.index))
            .collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "{keys:x?}");
        for base in [0, 0x4000_0000, 0x8000_0000] {
            let last = profile.leaf(base, 0).unwrap().eax;
            assert!(profile.leaf(last, 0).is_some(), "{last:#x}");
        }
    }
}

#[test]
fn the_xsave_area_fits_its_components() {
    let (host, offer) = everything();
    let profile = build(CpuModel::PortableV1, TOPOLOGY, &host, &offer).unwrap();
    let area = profile.leaf(0xD, 0).unwrap();
    let avx = profile.leaf(0xD, 2).unwrap();
    assert_eq!(u64::from(area.eax), profile.xcr0);
    assert_eq!(area.ecx, avx.ebx + avx.eax);
}

#[test]
fn everything_missing_is_named_with_who_lacks_it() {
    let (mut host, mut offer) = everything();
    host.features.remove(feature::AVX2);
    offer.passed.remove(feature::X2APIC);
    let missing = build(CpuModel::PortableV1, TOPOLOGY, &host, &offer).unwrap_err();
    let named: Vec<_> = missing.iter().map(|m| (m.feature, m.lacking)).collect();
    assert_eq!(named, [("x2apic", "test"), ("avx2", "host")]);
}

#[test]
fn the_portable_model_does_not_depend_on_the_host() {
    let (rich, offer) = everything();
    let mut poor = rich.clone();
    for feature in [feature::SHA, feature::VAES, feature::PCID, feature::FSRM] {
        poor.features.remove(feature);
    }
    let portable = |host| build(CpuModel::PortableV1, TOPOLOGY, host, &offer).unwrap();
    assert_eq!(portable(&rich), portable(&poor));
    let basic = *portable(&rich).leaf(1, 0).unwrap();
    assert_eq!(basic.ecx >> 17 & 1, 0, "PCID");
    assert_eq!(portable(&rich).arch_capabilities, 0);
}

#[test]
fn a_model_that_is_not_safe_is_refused() {
    let (host, mut offer) = everything();
    offer.refused = &[CpuModel::SoftwareFast];
    assert!(build(CpuModel::SoftwareFast, TOPOLOGY, &host, &offer).is_err());
}

#[test]
fn bits_without_a_name_do_not_pass() {
    let (mut host, mut offer) = everything();
    for word in [features::Word::SevenEbx, features::Word::BasicEcx] {
        host.features.set_word(word, u32::MAX);
        offer.passed.set_word(word, u32::MAX);
    }
    let profile = build(CpuModel::Host, TOPOLOGY, &host, &offer).unwrap();
    // AVX-512F and MONITOR.
    assert_eq!(profile.leaf(7, 0).unwrap().ebx >> 16 & 1, 0);
    assert_eq!(profile.leaf(1, 0).unwrap().ecx >> 3 & 1, 0);
}
