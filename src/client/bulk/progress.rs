//! How far a run is: a bar on a terminal, plain lines elsewhere. On stderr, because stdout is for the summary.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

/// Until the first plain line, so that it is soon seen that all is well...
const FIRST: Duration = Duration::from_secs(1);
/// ... and between two of them.
const EVERY: Duration = Duration::from_secs(10);
/// The bar is drawn anew although nothing has come: what came last may not have been, and the estimate grows.
const TICK: Duration = Duration::from_millis(500);

/// What became of how many users.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) signed_out: u64,
    /// Signed out by an earlier run.
    pub(super) before: u64,
    /// By reason.
    pub(super) failed: BTreeMap<String, u64>,
}

impl Counts {
    pub(super) fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    pub(super) fn settled(&self) -> u64 {
        self.signed_out + self.before + self.failures()
    }

    fn told(&self) -> String {
        let mut text = format!("{} signed out", self.signed_out + self.before);
        for (reason, count) in &self.failed {
            let _ = write!(text, ", {count} {reason}");
        }
        text
    }
}

pub(super) struct Progress {
    bar: Option<ProgressBar>,
    total: Option<u64>,
    begun: Instant,
    next_line: Instant,
}

impl Progress {
    pub(super) fn new(total: Option<u64>) -> Self {
        let now = Instant::now();
        let bar = io::stderr().is_terminal().then(|| {
            let template = match total {
                Some(_) => "{bar:30} {pos}/{len} {per_sec} ETA {eta} · {msg}",
                None => "{spinner} {pos} {per_sec} {elapsed} · {msg}",
            };
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr()).with_style(style);
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { bar, total, begun: now, next_line: now + FIRST }
    }

    pub(super) fn update(&mut self, counts: &Counts) {
        if let Some(bar) = &self.bar {
            bar.set_position(counts.settled());
            bar.set_message(counts.told());
        } else if Instant::now() >= self.next_line {
            self.next_line = Instant::now() + EVERY;
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let rate = (counts.settled() - counts.before) as f64 / self.begun.elapsed().as_secs_f64();
            let of = self.total.map(|total| format!(" of {total}")).unwrap_or_default();
            let eta = self.total.filter(|_| rate > 0.0).map(|total| {
                #[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
                let left = total.saturating_sub(counts.settled()) as f64 / rate;
                format!(", {left:.0} s to go")
            });
            let eta = eta.unwrap_or_default();
            self.say(&format!("{}{of}, {rate:.1}/s{eta}: {}", counts.settled(), counts.told()));
        }
    }

    /// A line beside the bar.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => _ = writeln!(io::stderr(), "{text}"),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
