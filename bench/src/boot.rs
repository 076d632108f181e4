//! How long a stock kernel takes to its first program, and a Debian to its
//! services.

use std::time::Duration;

use croft_tests::PATIENCE;
use croft_tests::files::Kernel;
use croft_tests::guest::{Act, UP};

use crate::case::{Case, Contestant, Figure, Layout, Place, Target};
use crate::files::Files;
use crate::systems::{Boot, System};

/// What the unit behind multi-user.target prints.
const MULTI_USER: &str = "guest: multi-user.target";

/// QEMU as it is, among [`systems`].
const QEMU: usize = 2;

/// For each stock kernel.
pub fn kernels(files: &Files) -> Vec<Case<'_>> {
    [Kernel::Cloud, Kernel::Generic]
        .into_iter()
        .map(|kernel| Case {
            key: "boot",
            title: format!("Boot to init, Debian's {} kernel", kernel.name()),
            about: "From the start of the process to the first line of the guest's init on the \
                    console. The guest has one processor.",
            figures: figures(),
            contestants: systems(files)
                .into_iter()
                .map(|system| {
                    contestant(system, UP, PATIENCE, move || {
                        files.shell(kernel, Act::Report)
                    })
                })
                .collect(),
            layout: Layout::Contestants,
            place: Place::Here,
        })
        .collect()
}

/// A whole system.
pub fn debian(files: &Files) -> Case<'_> {
    Case {
        key: "systemd",
        title: "Debian with systemd to multi-user.target".to_owned(),
        about: "From the start of the process to the line of a unit behind multi-user.target. \
                Debian's cloud kernel loads its modules for virtio from an initial RAM disk and \
                goes on from an ext4 file system on a virtio disk, a copy of the same for each \
                run. The guest has one processor.",
        figures: figures(),
        contestants: systems(files)
            .into_iter()
            .map(|system| contestant(system, MULTI_USER, PATIENCE * 4, || files.debian()))
            .collect(),
        layout: Layout::Contestants,
        place: Place::Here,
    }
}

fn systems(files: &Files) -> [System; 4] {
    [
        System::Software("software-fast", files.croft.clone()),
        System::Software("portable-v1", files.croft.clone()),
        System::Tcg(""),
        System::Tcg("mitigations=off"),
    ]
}

fn figures() -> Vec<Figure> {
    vec![Figure {
        name: String::new(),
        unit: "s",
        digits: 2,
        target: Some(Target::Share(QEMU, 0.50)),
    }]
}

fn contestant<'a>(
    system: System,
    text: &'static str,
    patience: Duration,
    boot: impl Fn() -> Result<Boot, String> + 'a,
) -> Contestant<'a> {
    Contestant {
        name: system.name(),
        rival: system.is_rival(),
        run: Box::new(move || {
            let mut guest = system.start(&boot()?)?;
            Ok(vec![guest.time_to(text, patience)?.as_secs_f64()])
        }),
    }
}
