//! Where Croft's programs find each other.

use std::env;
use std::path::PathBuf;

/// Finds another of Croft's programs: in the directory of the running one, or
/// in `../libexec/croft` beside it. The search path is not used: the three
/// programs belong together.
pub fn find(program: &str) -> Result<PathBuf, String> {
    let here = env::current_exe()
        .map_err(|error| format!("cannot tell where this program is: {error}; mount /proc"))?;
    let directory = here.parent().unwrap_or(&here);
    [
        directory.join(program),
        directory.join("../libexec/croft").join(program),
    ]
    .into_iter()
    .find(|candidate| candidate.is_file())
    .ok_or_else(|| {
        format!(
            "{program} is missing from {} and ../libexec/croft; install all of Croft's programs",
            directory.display()
        )
    })
}
