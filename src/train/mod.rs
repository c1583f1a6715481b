//! Training: losses, optimizer, schedule, the loop.

mod ablation;
mod config;
mod diagnosis;
mod ema;
mod examples;
mod loss_scale;
mod losses;
mod memory;
mod optimizer;
mod run;
mod tensorboard;
mod trainer;

pub use ablation::Part;
pub use config::{AugmentConfig, Config, OptimizerConfig, Preset, Recipe, RunConfig};
pub use examples::{Examples, Feed};
pub use loss_scale::LossScale;
pub use losses::{LossWeights, Losses, Targets, losses};
pub use memory::{Estimate, estimate};
pub use optimizer::Optimizer;
pub use run::{Best, Run, Time};
pub use tensorboard::Events;
pub use trainer::{Progress, Trainer};

/// What each kind of draw adds to the seed of the run, so that no two share random numbers.
mod domain {
    pub const ORDER: u64 = 1 << 40;
    pub const AUGMENT: u64 = 2 << 40;
    pub const MASK: u64 = 3 << 40;
    pub const DROP: u64 = 4 << 40;
}
