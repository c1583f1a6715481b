//! One forward pass through a network, and the gradients that come back from it.

use std::collections::BTreeMap;

use super::params::{Param, ParamId, Params};
use crate::ops::{self, BatchNorm, BatchStatistics};
use crate::tape::{Tape, Var};
use crate::{DType, Device, Result, Tensor};

/// The state of one forward pass: parameters, tape, and what training draws and collects.
pub struct Pass<'a> {
    params: &'a Params,
    /// Where operations are recorded.
    pub tape: Tape<'a>,
    leaves: Vec<Option<Var>>,
    /// The leaves rounded to the type of the products, where that is not float32.
    rounded: Vec<Option<Var>>,
    training: Option<u64>,
    draws: u64,
    statistics: Vec<RunningUpdate>,
    /// Whether [`Pass::recomputed`] keeps nothing but the input of what it computes.
    pub recompute: bool,
    watcher: Option<Watcher<'a>>,
    observations: Option<Observations>,
}

/// Values that somebody looks at, by name and level.
struct Observations {
    /// The names whose values are leaves of the tape.
    leaves: Vec<String>,
    values: BTreeMap<String, Var>,
}

/// Looks at a layer's first parameter, which bears the layer's names, and at its output.
type Watcher<'a> = Box<dyn FnMut(&Param, &Tensor) -> Result<()> + 'a>;

/// Batch statistics on their way into running statistics.
#[derive(Clone)]
pub struct RunningUpdate {
    /// The running mean and the running variance.
    pub into: [ParamId; 2],
    /// What was measured.
    pub batch: BatchStatistics,
    /// Weight of the new value.
    pub momentum: f32,
}

/// What a training pass yields.
pub struct Step {
    /// The gradient of each parameter, times the loss scale, by its index; `None` where the loss does not depend on it.
    pub gradients: Vec<Option<Tensor>>,
    /// What the pass does to running statistics, in order.
    pub statistics: Vec<RunningUpdate>,
}

impl<'a> Pass<'a> {
    /// A pass that records nothing, with running statistics in the batch norms.
    pub fn eval(params: &'a Params) -> Self {
        Self { tape: Tape::off(), training: None, ..Self::train(params, 0) }
    }

    /// A pass like [`Pass::eval`] that keeps what [`Pass::observe`] sees, for [`Pass::observed`].
    ///
    /// The values named in `leaves` become leaves of the tape, and parameters are constants: what follows them is
    /// recorded, for gradients with respect to them, and what comes before is not. A leaf that follows another one
    /// takes the gradient from it. Without leaves nothing is recorded.
    pub fn observing(params: &'a Params, leaves: &[String]) -> Self {
        let observations = Some(Observations { leaves: leaves.to_vec(), values: BTreeMap::new() });
        let tape = if leaves.is_empty() { Tape::off() } else { Tape::new() };
        Self { tape, training: None, observations, ..Self::train(params, 0) }
    }

    /// A pass that records, with batch statistics; `seed` decides what drop path and dropout drop.
    pub fn train(params: &'a Params, seed: u64) -> Self {
        let (leaves, rounded) = (vec![None; params.len()], vec![None; params.len()]);
        let (tape, training) = (Tape::new(), Some(seed));
        let (statistics, recompute, watcher, observations) = (Vec::new(), false, None, None);
        Self {
            params,
            tape,
            leaves,
            rounded,
            training,
            draws: 0,
            statistics,
            recompute,
            watcher,
            observations,
        }
    }

    /// Has `watcher` look at the output `(S, …)` of each layer in the order of the computation, with the parameter that
    /// the layer was made with first: its names, one for each stream, begin with the published name of the layer.
    pub fn watch(&mut self, watcher: impl FnMut(&Param, &Tensor) -> Result<()> + 'a) {
        self.watcher = Some(Box::new(watcher));
    }

    /// The output `y` of the layer whose first parameter is `id`, seen by whoever watches.
    ///
    /// # Errors
    /// What the watcher says.
    pub fn watched(&mut self, id: ParamId, y: Var) -> Result<Var> {
        if let Some(watcher) = &mut self.watcher {
            watcher(self.params.get(id), y.value())?;
        }
        Ok(y)
    }

    /// f(x), of which, with [`Pass::recompute`], nothing but x is kept: backward computes the inside again with the same
    /// draws, so every gradient has the bits that it would have had.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn recomputed(
        &mut self,
        x: Var,
        f: impl Fn(&mut Pass<'a>, Var) -> Result<Var> + Send + 'a,
    ) -> Result<Var> {
        if !self.recompute || !self.tape.is_recording() {
            return f(self, x);
        }
        let (params, training, draws) = (self.params, self.training, self.draws);
        let inner = move |tape| Pass { tape, training, draws, ..Pass::train(params, 0) };
        let mut pass = inner(Tape::off());
        pass.watcher = self.watcher.take();
        let (key, x) = (x.key(), x.into_value());
        let y = f(&mut pass, Var::constant(x.clone()))?.into_value();
        let Pass { leaves, draws, mut statistics, watcher, .. } = pass;
        (self.draws, self.watcher) = (draws, watcher);
        self.statistics.append(&mut statistics);
        let used = (0..leaves.len()).filter(|&i| leaves[i].is_some()).map(ParamId);
        let used: Vec<ParamId> = used.collect();
        let keys = std::iter::once(key).chain(used.iter().map(|&id| self.param(id).key())).collect();
        Ok(self.tape.record_list(keys, y, move |dy| {
            let mut pass = inner(Tape::new());
            let x = pass.tape.leaf(x);
            let y = f(&mut pass, x.clone())?;
            let Pass { tape, leaves, .. } = pass;
            let mut gradients = tape.backward_with(&y, dy)?;
            let inputs = std::iter::once(Some(&x)).chain(used.iter().map(|id| leaves[id.0].as_ref()));
            Ok(inputs.map(|input| gradients.take(input?)).collect())
        }))
    }

    /// Keeps `value` under `name` and the number of `level`, which is counted from 0, if somebody looks; the value that
    /// the pass goes on with.
    pub fn observe(&mut self, name: &str, level: usize, value: Var) -> Var {
        let Some(observations) = &mut self.observations else { return value };
        let name = format!("{name}{}", level + 1);
        let value = match observations.leaves.contains(&name) {
            true => self.tape.leaf(value.into_value()),
            false => value,
        };
        observations.values.insert(name, value.clone());
        value
    }

    /// What was observed under a name with its level, `fused1` for the finest; `None` when there was no such value.
    pub fn observed(&self, name: &str) -> Option<&Var> {
        self.observations.as_ref()?.values.get(name)
    }

    /// The device that computes.
    pub fn device(&self) -> &Device {
        self.params.device()
    }

    /// The type of activations and products.
    pub fn compute(&self) -> DType {
        self.params.compute()
    }

    /// The parameter of a product, as a variable of the type of activations; the same one each time.
    ///
    /// # Errors
    /// When a device reports one.
    pub fn weight(&mut self, id: ParamId) -> Result<Var> {
        let (leaf, compute) = (self.param(id), self.compute());
        if let Some(rounded) = &self.rounded[id.0] {
            return Ok(rounded.clone());
        }
        let rounded = match compute {
            DType::F32 => leaf,
            _ => ops::cast(&mut self.tape, &leaf, self.params.rounded(id)?),
        };
        self.rounded[id.0] = Some(rounded.clone());
        Ok(rounded)
    }

    /// The parameter as a float32 variable; the same one each time.
    pub fn param(&mut self, id: ParamId) -> Var {
        let (tape, value) = (&mut self.tape, &self.params.get(id).value);
        let constant = self.observations.is_some();
        let leaf = || if constant { Var::constant(value.clone()) } else { tape.leaf(value.clone()) };
        self.leaves[id.0].get_or_insert_with(leaf).clone()
    }

    /// A seed and a stream number that no other draw of this pass has; `None` in evaluation.
    pub fn draw(&mut self) -> Option<(u64, u64)> {
        let seed = self.training?;
        self.draws += 1;
        Some((seed, self.draws))
    }

    /// Batch norm and ReLU of x `(S, B, H, W, C)`; the four parameters are weight, bias, running mean and variance.
    /// `repeats` is how often the published network computes this very value: the running statistics feel each.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn batch_norm_relu(
        &mut self,
        x: &Var,
        [weight, bias, mean, variance]: [ParamId; 4],
        eps: f32,
        momentum: f32,
        repeats: usize,
    ) -> Result<Var> {
        let (w, b) = (self.param(weight), self.param(bias));
        let mode = match self.training {
            Some(_) => BatchNorm::Train,
            None => BatchNorm::Eval {
                mean: &self.params.get(mean).value,
                variance: &self.params.get(variance).value,
            },
        };
        let (y, batch) = ops::batch_norm_relu(&mut self.tape, x, &w, &b, mode, eps)?;
        if let Some(batch) = batch {
            let update = RunningUpdate { into: [mean, variance], batch, momentum };
            self.statistics.extend(std::iter::repeat_n(update, repeats));
        }
        Ok(y)
    }

    /// Differentiates `scale`·`loss`, and ends the pass.
    ///
    /// # Errors
    /// When `loss` is not a recorded scalar.
    pub fn backward(self, loss: &Var, scale: f32) -> Result<Step> {
        let seed = Tensor::full(loss.shape(), scale).to(self.params.device())?;
        let mut gradients = self.tape.backward_with(loss, seed)?;
        let gradients = self.leaves.iter().map(|leaf| gradients.take(leaf.as_ref()?)).collect();
        Ok(Step { gradients, statistics: self.statistics })
    }
}

impl Step {
    /// Adds the gradients of another pass on the same parameters; its running statistics come after those of this one.
    ///
    /// # Errors
    /// When a device reports one.
    pub fn add(&mut self, other: Self) -> Result<()> {
        for (sum, gradient) in self.gradients.iter_mut().zip(other.gradients) {
            match (sum, gradient) {
                (Some(sum), Some(gradient)) => sum.add_assign(&gradient)?,
                (empty, gradient @ Some(_)) => *empty = gradient,
                (_, None) => {}
            }
        }
        self.statistics.extend(other.statistics);
        Ok(())
    }
}

impl RunningUpdate {
    /// running = (1 − momentum)·running + momentum·batch, with the unbiased variance. The result goes to `running`,
    /// which holds what earlier updates of the step made of the statistics of `params`.
    ///
    /// # Errors
    /// When a device reports one.
    pub fn apply(&self, params: &Params, running: &mut BTreeMap<ParamId, Tensor>) -> Result<()> {
        for (id, batch) in self.into.into_iter().zip([&self.batch.mean, &self.batch.variance]) {
            let value = running.entry(id).or_insert_with(|| params.get(id).value.clone());
            ops::update_running(value, batch, self.momentum)?;
        }
        Ok(())
    }
}
