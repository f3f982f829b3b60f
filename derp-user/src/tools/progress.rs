//! The progress bar on standard error, if that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One line that says what is going on and how far it is.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar, if one is `wanted` and there is a terminal to draw it on.
    pub(super) fn new(wanted: bool) -> Self {
        let target =
            if wanted { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(1), target);
        let template = "{msg:<28} [{bar:30}] {percent:>3}%";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar }
    }

    /// Begins a step of `length` parts.
    pub(super) fn begin(&self, what: &str, length: u64) {
        self.bar.set_length(length);
        self.bar.set_position(0);
        self.bar.set_message(what.to_owned());
    }

    /// Begins a step that takes this long.
    pub(super) fn begin_time(&self, what: &str, duration: Duration) {
        self.begin(what, u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    }

    /// Says what is going on within the step.
    pub(super) fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// One part more is done.
    pub(super) fn step(&self) {
        self.bar.inc(1);
    }

    /// This much time of the step has passed.
    pub(super) fn at(&self, elapsed: Duration) {
        self.bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    }

    /// Takes the bar off the terminal.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
