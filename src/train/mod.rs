//! Training: losses, optimizer, schedule, the loop.

mod config;
mod loss_scale;
mod losses;
mod optimizer;
mod run;
mod trainer;

pub use config::{AugmentConfig, Config, OptimizerConfig, Preset, Recipe, RunConfig};
pub use loss_scale::LossScale;
pub use losses::{LossWeights, Losses, Targets, losses};
pub use optimizer::Optimizer;
pub use run::Run;
pub use trainer::{Examples, Progress, Trainer};
