//! `amdanet synth`

use std::path::PathBuf;

use clap::Args;

use super::progress::Progress;
use super::{Size, say};
use crate::Result;
use crate::data::{Layout, synth};

#[derive(Args)]
pub struct Synth {
    /// Folder to write to
    #[arg(long)]
    out: PathBuf,
    /// Number of pairs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pairs: u64,
    /// Height and width
    #[arg(long, default_value = "480x640")]
    size: Size,
    /// The same seed draws the same scenes
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Layout of the folder
    #[arg(long, value_enum, default_value = "flat")]
    layout: Layout,
}

impl Synth {
    pub fn run(self) -> Result<()> {
        let mut progress = Progress::new("scenes", self.pairs as usize);
        let Size { height, width } = self.size;
        let (pairs, seed) = (self.pairs as usize, self.seed);
        synth::write_as(self.layout, &self.out, pairs, seed, height, width, &mut |_| progress.step(""))?;
        drop(progress);
        say(format!("{} pairs of {height}x{width} in {}", self.pairs, self.out.display()));
        Ok(())
    }
}
