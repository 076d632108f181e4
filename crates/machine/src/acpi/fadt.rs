//! FADT: fixed hardware [5.2.9].

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use croft_devices::platform;

use super::{OEM, OEM_REVISION, OEM_TABLE};

// IA-PC boot architecture flags [5.2.9.3]. The i8042 is left out: it resets
// the machine but has no keyboard to probe for.
const LEGACY_DEVICES: u16 = 1 << 0;
const NO_VGA: u16 = 1 << 2;
const NO_ASPM: u16 = 1 << 4;

/// Latencies above these say that there is no C2 and no C3 [5.2.9].
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

const PM1_EVENT_LEN: u8 = 4;
const PM1_CONTROL_LEN: u8 = 2;
const PM_TIMER_LEN: u8 = 4;

pub fn build(facs: u64, dsdt: u64) -> FADT {
    let port = |address: u16, len: u8, access| {
        GAS::new(AddressSpace::SystemIo, len * 8, 0, access, address.into())
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .gpe_info(platform::GPE0_PORT.into(), 0, platform::GPE0_LEN, 0, 0);
    // Tables lie below 1 MiB. Both widths are given: ACPI 1.0 readers know
    // only the first.
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    // No SMI_CMD: the machine is always in ACPI mode.
    fadt.sci_int = (platform::SCI_IRQ as u16).into();
    fadt.pm1a_evt_blk = u32::from(platform::PM1A_EVENT_PORT).into();
    fadt.pm1a_cnt_blk = u32::from(platform::PM1A_CONTROL_PORT).into();
    fadt.pm_tmr_blk = u32::from(platform::PM_TIMER_PORT).into();
    fadt.pm1_evt_len = PM1_EVENT_LEN;
    fadt.pm1_cnt_len = PM1_CONTROL_LEN;
    fadt.pm_tmr_len = PM_TIMER_LEN;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = platform::RTC_CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA | NO_ASPM).into();
    fadt.reset_reg = port(platform::RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = platform::RESET_VALUE;
    fadt.x_pm1a_evt_blk = port(
        platform::PM1A_EVENT_PORT,
        PM1_EVENT_LEN,
        AccessSize::WordAccess,
    );
    fadt.x_pm1a_cnt_blk = port(
        platform::PM1A_CONTROL_PORT,
        PM1_CONTROL_LEN,
        AccessSize::WordAccess,
    );
    fadt.x_pm_tmr_blk = port(
        platform::PM_TIMER_PORT,
        PM_TIMER_LEN,
        AccessSize::DwordAccess,
    );
    fadt.x_gpe0_blk = port(
        platform::GPE0_PORT,
        platform::GPE0_LEN,
        AccessSize::ByteAccess,
    );
    fadt.flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button is fixed hardware, a sleep button there is not.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .finalize()
}
