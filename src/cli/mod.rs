//! The command line. Each command is one file; results go to standard output, everything else to standard error.

mod ablation;
mod bench;
mod convert;
mod demo;
mod devices;
mod eval;
mod explain;
mod info;
mod progress;
mod run;
mod stream;
mod synth;
mod train;
mod validation;
mod verify;
mod weights;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::data::{Dataset, Layout, Split};
use crate::model::{Arch, Encoder, LARGEST_SIDE, SMALLEST_SIDE};
use crate::{Device, Error, Precision, Result, cuda};

/// Fuses registered visible and infrared pictures and labels every pixel, with AMDANet.
#[derive(Parser)]
#[command(name = "amdanet", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Draw scenes, train a small network on them for a minute, and show what it does on unseen ones
    Demo(demo::Demo),
    /// Train a network
    Train(train::Train),
    /// Measure a network on a labelled data set
    Eval(eval::Eval),
    /// Fuse and label pairs of pictures
    Run(run::Run),
    /// Fuse raw frames from standard input as they come
    Stream(stream::Stream),
    /// Show what a network looks at: Grad-CAM and the maps of its gates
    Explain(explain::Explain),
    /// Measure speed and memory
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Hold this program against golden files of the reference
    Verify(verify::Verify),
    /// Show what a network is made of and what it costs
    Info(info::Info),
    /// Convert a checkpoint of any known kind into this program's own
    Convert(convert::Convert),
    /// Draw a data set of synthetic street scenes
    Synth(synth::Synth),
    /// List what this program can compute on
    Devices(devices::Devices),
}

/// A network that is not read from a file.
#[derive(Args, Clone)]
struct Network {
    /// Size of the encoder
    #[arg(long, value_enum, default_value_t)]
    encoder: Encoder,
    /// Architecture
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
    /// Number of classes
    #[arg(long, default_value_t = 9)]
    classes: usize,
}

/// A data set.
#[derive(Args, Clone)]
struct Data {
    /// Folder of the data set
    #[arg(long = "data", value_name = "DATA")]
    root: PathBuf,
    /// Its layout: auto, flat, mfnet, fmb or pst900
    #[arg(long, default_value = "auto", value_parser = layout)]
    layout: Wanted,
}

/// A layout; none is whichever fits. (The name keeps clap from taking it for an option that may be left out.)
type Wanted = Option<Layout>;

fn layout(text: &str) -> Result<Wanted, String> {
    match text {
        "auto" => Ok(None),
        _ => Layout::from_str(text, false)
            .map(Some)
            .map_err(|_| "the layouts are auto, flat, mfnet, fmb and pst900".into()),
    }
}

impl Data {
    fn layout(&self) -> Result<Layout> {
        self.layout.map_or_else(|| Layout::detect(&self.root), Ok)
    }

    fn open(&self, split: Split) -> Result<Dataset> {
        Dataset::open_as(self.layout()?, &self.root, split)
    }

    /// What was found, in one line.
    fn describe(&self) -> Result<String> {
        Ok(self.layout()?.describe(&self.root))
    }
}

/// Where and how to compute.
#[derive(Args, Clone)]
struct Machine {
    /// Device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_parser = choice)]
    device: Choice,
    /// Type of the arithmetic; the CPU computes in f32
    #[arg(long, value_enum, default_value = "f32")]
    precision: Precision,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// A device as the command line names it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Choice {
    /// The first CUDA device if it can be used, else the CPU.
    Auto,
    Cpu,
    Cuda(usize),
}

fn choice(text: &str) -> Result<Choice, String> {
    let number = |n: &str| n.parse().ok().filter(|&n: &usize| n < 1024);
    match text {
        "auto" => Some(Choice::Auto),
        "cpu" => Some(Choice::Cpu),
        "cuda" => Some(Choice::Cuda(0)),
        _ => text.strip_prefix("cuda:").and_then(number).map(Choice::Cuda),
    }
    .ok_or_else(|| "the devices are auto, cpu, cuda and cuda:N: see `amdanet devices`".into())
}

impl Machine {
    /// Sets the number of threads of everything that follows, and opens the device.
    fn set_up(&self) -> Result<Device> {
        if let Some(threads) = self.threads {
            if !(1..=1024).contains(&threads) {
                return Err(Error::Config(format!("--threads {threads}: must be 1 to 1024")));
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
            pool.map_err(|e| Error::Config(format!("--threads {threads}: {e}")))?;
        }
        self.open()
    }

    fn open(&self) -> Result<Device> {
        let cuda = |ordinal| cuda::open(ordinal, self.precision == Precision::Tf32).map(Device::Cuda);
        let (device, why) = match self.device {
            Choice::Cuda(ordinal) => {
                let hint = |e: Error| match e {
                    Error::Cuda { what, why } => {
                        Error::cuda(what, format!("{why}; --device cpu needs none of this"))
                    }
                    other => other,
                };
                return cuda(ordinal).map_err(hint);
            }
            Choice::Cpu => (Device::Cpu, String::new()),
            Choice::Auto => match cuda(0) {
                Ok(device) => (device, String::new()),
                Err(e) => (Device::Cpu, format!("; {e}")),
            },
        };
        if device == Device::Cpu && self.precision != Precision::F32 {
            let precision = self.precision_name();
            return Err(Error::Config(format!("--precision {precision}: the CPU computes in f32{why}")));
        }
        Ok(device)
    }

    fn precision_name(&self) -> String {
        self.precision.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned())
    }

    /// Device and precision in a few words.
    fn describe(&self, device: &Device) -> String {
        format!("{device:?}, {}", self.precision_name())
    }
}

/// Height and width, written `480x640`.
#[derive(Clone, Copy, Debug)]
struct Size {
    height: usize,
    width: usize,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = text.split_once('x').and_then(|(h, w)| Some((h.parse().ok()?, w.parse().ok()?)));
        let sides = SMALLEST_SIDE..=LARGEST_SIDE;
        match size {
            Some((height, width)) if sides.contains(&height) && sides.contains(&width) => {
                Ok(Self { height, width })
            }
            Some(_) => Err(format!("both sides must be {SMALLEST_SIDE} to {LARGEST_SIDE}")),
            None => Err("a size is written HEIGHTxWIDTH, as 480x640".into()),
        }
    }
}

/// Runs the command that the arguments name. The exit code is 0, 1 after an error, 2 after a usage error.
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(e) => return usage(&e),
    };
    let done = match command {
        Command::Demo(c) => c.run(),
        Command::Train(c) => c.run(),
        Command::Eval(c) => c.run(),
        Command::Run(c) => c.run(),
        Command::Stream(c) => c.run(),
        Command::Explain(c) => c.run(),
        Command::Bench(c) => c.run(),
        Command::Verify(c) => c.run(),
        Command::Info(c) => c.run(),
        Command::Convert(c) => c.run(),
        Command::Synth(c) => c.run(),
        Command::Devices(c) => c.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Errors of libraries may span lines; ours is one.
            let line = e.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            let _ = writeln!(std::io::stderr(), "{} {line}", paint("error:", "1;31"));
            ExitCode::FAILURE
        }
    }
}

/// Help and version as they are; an error on one line, as every other.
fn usage(e: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand as NoCommand;
    if !e.use_stderr() || e.kind() == NoCommand {
        let _ = e.print();
        return ExitCode::from(e.exit_code() as u8);
    }
    let text = e.render().to_string();
    let parts: Vec<String> = text
        .split("\n\n")
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|part| !part.is_empty())
        .collect();
    let line = parts.join("; ");
    let line = line.strip_prefix("error:").unwrap_or(&line);
    let _ = writeln!(std::io::stderr(), "{}{line}", paint("error:", "1;31"));
    ExitCode::from(e.exit_code() as u8)
}

/// `text` in a colour, if standard error is a terminal.
fn paint(text: &str, code: &str) -> String {
    if std::io::stderr().is_terminal() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
}

/// Writes a line to standard output; a closed pipe is no error.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A line on standard error.
fn warn(line: String) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes one JSON object to standard output.
fn say_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::Config(format!("JSON: {e}")))?;
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output", "write")(e)),
        _ => Ok(()),
    }
}
