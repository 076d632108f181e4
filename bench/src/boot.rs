//! How long a stock kernel takes to its first program.

use croft_tests::files::Kernel;
use croft_tests::guest::{Act, UP};

use crate::case::{Case, Contestant, Figure};
use crate::systems::{Files, System};

/// One for each stock kernel.
pub fn cases(files: &Files) -> Vec<Case<'_>> {
    [Kernel::Cloud, Kernel::Generic]
        .into_iter()
        .map(|kernel| Case {
            title: format!("Boot to init, Debian's {} kernel", kernel.name()),
            about: "From the start of the process to the first line of the guest's init on the \
                    console. The guest has one processor.",
            figures: vec![Figure {
                name: "",
                unit: "s",
                digits: 2,
            }],
            contestants: [
                System::Software("software-fast"),
                System::Software("portable-v1"),
                System::Tcg(""),
                System::Tcg("mitigations=off"),
            ]
            .into_iter()
            .map(|system| boot(files, kernel, system))
            .collect(),
        })
        .collect()
}

fn boot(files: &Files, kernel: Kernel, system: System) -> Contestant<'_> {
    Contestant {
        name: system.name(),
        run: Box::new(move || {
            let mut guest = system.start(files, kernel, Act::Report)?;
            Ok(vec![guest.time_to(UP)?.as_secs_f64()])
        }),
    }
}
