//! Progress: a bar on a terminal, plain lines otherwise.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{FormattedDuration, ProgressBar, ProgressStyle};

/// How far a long piece of work is, on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    total: usize,
    done: usize,
    /// When the first unit that is done here was begun, and how many were done before.
    start: (Instant, usize),
    next_line: Instant,
}

/// Time between plain lines.
const INTERVAL: Duration = Duration::from_secs(10);

impl Progress {
    /// `total` units of work, called `what`.
    pub fn new(what: &str, total: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{prefix} [{bar:30}] {pos}/{len} {elapsed}<{eta} {msg}";
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total as u64)
                .with_style(style.progress_chars("█▌ "))
                .with_prefix(what.to_string())
        });
        let now = Instant::now();
        Self { bar, what: what.into(), total, done: 0, start: (now, 0), next_line: now + INTERVAL }
    }

    /// `n` units were done before.
    pub fn skip(&mut self, n: usize) {
        self.done += n;
        self.start = (Instant::now(), self.done);
        if let Some(bar) = &self.bar {
            bar.inc(n as u64);
            bar.reset_eta();
        }
    }

    /// One unit more is done; `message` says how it goes.
    pub fn step(&mut self, message: impl std::fmt::Display) {
        self.done += 1;
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
        self.message(message);
    }

    /// Says how it goes, in the middle of a unit.
    pub fn message(&mut self, message: impl std::fmt::Display) {
        match &self.bar {
            Some(bar) => bar.set_message(message.to_string()),
            None if Instant::now() >= self.next_line => {
                self.next_line = Instant::now() + INTERVAL;
                let (what, done, total, left) = (&self.what, self.done, self.total, self.left());
                let _ = writeln!(std::io::stderr(), "{what} {done}/{total}{left} {message}");
            }
            None => {}
        }
    }

    /// The time that the rest will take at the speed so far.
    fn left(&self) -> String {
        let (start, before) = self.start;
        match self.done.saturating_sub(before) {
            0 => String::new(),
            done => {
                let rest = self.total.saturating_sub(self.done) as f64 / done as f64;
                let left = Duration::try_from_secs_f64(start.elapsed().as_secs_f64() * rest);
                left.map_or(String::new(), |left| format!(", {} left,", FormattedDuration(left)))
            }
        }
    }

    /// A line above the bar.
    pub fn note(&self, line: impl std::fmt::Display) {
        match &self.bar {
            Some(bar) => bar.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{line}");
            }),
            None => {
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
