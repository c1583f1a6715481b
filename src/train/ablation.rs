//! What can be left out of a network and of its training: the rows of the paper's Tables 5 and 6.

use super::config::Config;
use super::losses::LossWeights;
use crate::{Error, Result};

/// A part that can be left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Part {
    /// Semantic consistency inference.
    Sci,
    /// Mutual feature mask learning: every term of the loss that looks at masked features.
    Mfml,
    /// Both alignments.
    Fdam,
    /// Local alignment.
    Local,
    /// Global alignment.
    Global,
}

impl Part {
    /// The name of the part on the command line.
    pub fn name(self) -> &'static str {
        ["sci", "mfml", "fdam", "local", "global"][self as usize]
    }
}

impl Config {
    /// Leaves a part out. The parameters of a part of the network are not made then, and checkpoints say so.
    pub fn leave_out(&mut self, part: Part) {
        let (model, loss) = (&mut self.model, &mut self.loss);
        match part {
            Part::Sci => model.sci = false,
            Part::Mfml => {
                (loss.seg_masked, loss.fus_masked, loss.dice_masked, loss.cr) = (0.0, 0.0, 0.0, 0.0);
            }
            Part::Fdam => (model.local_alignment, model.global_alignment) = (false, false),
            Part::Local => model.local_alignment = false,
            Part::Global => model.global_alignment = false,
        }
    }
}

impl LossWeights {
    /// Each term's name with its weight.
    pub fn terms(mut self) -> [(&'static str, f32); 7] {
        self.terms_mut().map(|(name, weight)| (name, *weight))
    }

    fn terms_mut(&mut self) -> [(&'static str, &mut f32); 7] {
        [
            ("seg", &mut self.seg),
            ("fus", &mut self.fus),
            ("seg_masked", &mut self.seg_masked),
            ("fus_masked", &mut self.fus_masked),
            ("dice", &mut self.dice),
            ("dice_masked", &mut self.dice_masked),
            ("cr", &mut self.cr),
        ]
    }

    /// Sets the weight of the term called `term`; 0 switches it off.
    ///
    /// # Errors
    /// When there is no such term, or the weight is negative or not finite.
    pub fn set(&mut self, term: &str, weight: f32) -> Result<()> {
        Self::check(term, weight)?;
        let names = self.terms().map(|(name, _)| name).join(", ");
        match self.terms_mut().into_iter().find(|(name, _)| *name == term) {
            Some((_, value)) => {
                *value = weight;
                Ok(())
            }
            None => {
                Err(Error::Config(format!("there is no term {term:?} in the loss: the terms are {names}")))
            }
        }
    }

    fn check(term: &str, weight: f32) -> Result<()> {
        if weight >= 0.0 && weight.is_finite() {
            return Ok(());
        }
        Err(Error::Config(format!("loss weight {term} = {weight}: must be 0 or more")))
    }

    /// Checks all of them.
    ///
    /// # Errors
    /// When a weight is negative or not finite, or none is above 0.
    pub fn validate(self) -> Result<()> {
        let terms = self.terms();
        terms.iter().try_for_each(|&(term, weight)| Self::check(term, weight))?;
        if terms.iter().all(|&(_, weight)| weight == 0.0) {
            return Err(Error::Config("all weights of the loss are 0: at least one must be above".into()));
        }
        Ok(())
    }
}
