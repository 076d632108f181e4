//! How far something is: a bar on a terminal, a line for each phase elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use croft_image::progress::Progress;
use indicatif::{ProgressBar, ProgressStyle};

use crate::say;

/// Shows progress on standard error.
pub struct Bar {
    bar: Option<ProgressBar>,
    started: Instant,
    phase: String,
}

impl Bar {
    /// With nothing to show yet.
    pub fn new() -> Bar {
        Bar {
            bar: std::io::stderr()
                .is_terminal()
                .then(ProgressBar::new_spinner),
            started: Instant::now(),
            phase: String::new(),
        }
    }

    /// Takes it off the terminal.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A template is text in this file; one that were wrong would show nothing.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Progress for Bar {
    fn phase(&mut self, what: &str) {
        if what == self.phase {
            return;
        }
        what.clone_into(&mut self.phase);
        match &self.bar {
            Some(bar) => {
                bar.set_style(style("{spinner} {msg} ({elapsed})"));
                bar.set_message(what.to_owned());
                bar.enable_steady_tick(Duration::from_millis(120));
            }
            None => {
                let seconds = self.started.elapsed().as_secs();
                say::line(&format!("croft: {seconds:>3} s: {what}"));
            }
        }
    }

    fn bytes(&mut self, done: u64, total: u64) {
        let Some(bar) = &self.bar else { return };
        if total > 0 {
            bar.set_length(total);
            bar.set_position(done.min(total));
            bar.set_style(style("{spinner} {msg} {wide_bar} {bytes}/{total_bytes}"));
        } else {
            bar.set_position(done);
            bar.set_style(style("{spinner} {msg} {bytes} ({elapsed})"));
        }
    }
}
