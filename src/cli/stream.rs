//! `amdanet stream`

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;

use super::Machine;
use super::weights::Weights;
use crate::infer::{Pairs, Wanted};
use crate::stream::{End, Format, Source, Statistics, stream};
use crate::{Device, Error, Result};

/// Reads raw frames from standard input, and writes fused ones, rgb24, to standard output. The input is an rgb24 frame,
/// then its gray8 frame, and so on.
#[derive(Args)]
pub struct Stream {
    #[command(flatten)]
    weights: Weights,
    /// Columns of a frame
    #[arg(long, value_name = "N")]
    width: usize,
    /// Rows of a frame
    #[arg(long, value_name = "N")]
    height: usize,
    /// Where gray8 frames come from, as a named pipe; standard input then holds rgb24 frames alone
    #[arg(long, value_name = "FILE")]
    infrared: Option<PathBuf>,
    /// Write the labels after each fused frame, as a gray8 frame
    #[arg(long)]
    labels: bool,
    #[command(flatten)]
    machine: Machine,
}

impl Stream {
    pub fn run(self) -> Result<()> {
        let format = Format { width: self.width, height: self.height, labels: self.labels };
        format.validate()?;
        if io::stdin().is_terminal() || io::stdout().is_terminal() {
            let what = "standard input and output carry raw frames: connect both with pipes or files, as in \
                        `ffmpeg … - | amdanet stream … | ffmpeg … -i - …`";
            return Err(Error::Config(what.into()));
        }
        let device = self.machine.set_up()?;
        let visible = Source { from: io::stdin(), name: "standard input".into() };
        let infrared = self.infrared.as_ref().map(|path| {
            let from = File::open(path).map_err(Error::io(path, "open"))?;
            Ok(Source { from, name: path.display().to_string() })
        });
        let infrared = infrared.transpose()?;
        let (engine, _) = self.weights.load(&device, self.machine.precision)?;
        // On a GPU one frame is copied while another is computed.
        let sessions = if device == Device::Cpu { 1 } else { 2 };
        let computers = (0..sessions).map(|_| {
            let mut session = engine.session();
            move |pair: &Pairs, take: &mut dyn FnMut(&[u8], &[u8])| {
                let output = session.run(pair, Wanted::default())?;
                take(output.fused, output.labels);
                Ok(())
            }
        });
        let mut meter = Meter::new();
        let (end, statistics) =
            stream(visible, infrared, io::stdout(), format, computers, |statistics| meter.show(statistics))?;
        drop(meter);
        let note = match end {
            End::Input => "",
            End::Output => "; nobody reads standard output any more, so this is the end",
        };
        let _ = writeln!(io::stderr(), "{}{note}", line(&statistics));
        Ok(())
    }
}

fn line(statistics: &Statistics) -> String {
    let (median, worst) = statistics.latency();
    format!(
        "{} frames, {:.2} frames/s, latency {:.1} ms (median), {:.1} ms (worst)",
        statistics.frames(),
        statistics.rate(),
        1e3 * median,
        1e3 * worst
    )
}

/// Says once a second how it goes, on a terminal.
struct Meter {
    bar: Option<ProgressBar>,
    next: Instant,
}

impl Meter {
    const INTERVAL: Duration = Duration::from_secs(1);

    fn new() -> Self {
        let bar = io::stderr().is_terminal().then(ProgressBar::new_spinner);
        Self { bar, next: Instant::now() + Self::INTERVAL }
    }

    fn show(&mut self, statistics: &Statistics) {
        if let Some(bar) = &self.bar
            && Instant::now() >= self.next
        {
            self.next = Instant::now() + Self::INTERVAL;
            bar.set_message(line(statistics));
            bar.tick();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
