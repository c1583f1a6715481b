//! Reverse-mode differentiation.
//!
//! A [`Tape`] is made for one step and consumed by [`Tape::backward`]. An operation computes its value, then calls
//! [`Tape::record`] with its inputs and a closure that turns the gradient of the output into gradients of the
//! inputs; the closure owns just what it needs. When nothing is recorded the closure is dropped at once, and with it
//! every intermediate tensor that no one else holds.

use std::ops::Range;

use crate::{Error, Result, Shape, Tensor};

/// A tensor, and where the tape has it, if a gradient flows to it.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    id: Option<usize>,
}

impl Var {
    /// A value that no gradient flows to.
    pub fn constant(value: Tensor) -> Self {
        Self { value, id: None }
    }

    /// The tensor.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The tensor, given up by the variable: its buffer can be reused if nobody else holds it.
    pub fn into_value(self) -> Tensor {
        self.value
    }

    /// Whether a gradient flows to it.
    pub fn needs_grad(&self) -> bool {
        self.id.is_some()
    }

    /// The same value, cut off from the gradient.
    pub fn detach(&self) -> Self {
        Self::constant(self.value.clone())
    }

    /// The shape of the tensor.
    pub fn shape(&self) -> Shape {
        self.value.shape()
    }

    /// Whether both are the same output of the same operation, or the same leaf.
    pub fn is(&self, other: &Var) -> bool {
        self.id.is_some() && self.id == other.id
    }

    /// What a tape needs to know of it.
    pub fn key(&self) -> Key {
        Key { id: self.id, shape: self.shape() }
    }
}

/// A [`Var`] without its tensor.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    id: Option<usize>,
    shape: Shape,
}

type Backward<'a> = Box<dyn FnOnce(Vec<Option<Tensor>>, &mut Gradients) -> Result<()> + Send + 'a>;

struct Node<'a> {
    outputs: Range<usize>,
    backward: Backward<'a>,
}

/// What was computed in this step, in order. Its closures may borrow what lives for `'a`: layers and parameters.
#[derive(Default)]
pub struct Tape<'a> {
    recording: bool,
    nodes: Vec<Node<'a>>,
    /// Number of gradient slots handed out, to leaves and to outputs of nodes.
    slots: usize,
}

impl<'a> Tape<'a> {
    /// A tape that records.
    pub fn new() -> Self {
        Self { recording: true, ..Self::default() }
    }

    /// A tape that records nothing: for evaluation.
    pub fn off() -> Self {
        Self::default()
    }

    /// Whether operations are recorded.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// A variable whose gradient is wanted: a parameter.
    pub fn leaf(&mut self, value: Tensor) -> Var {
        let id = self.recording.then(|| self.slot());
        Var { value, id }
    }

    fn slot(&mut self) -> usize {
        self.slots += 1;
        self.slots - 1
    }

    /// Makes `value` the output of an operation on `inputs`.
    ///
    /// `backward` receives the gradient of the output and, for each input, whether its gradient is needed, and
    /// returns one gradient for each input that needs one (what it returns for others is dropped).
    pub fn record<const N: usize>(
        &mut self,
        inputs: [&Var; N],
        value: Tensor,
        backward: impl FnOnce(Tensor, [bool; N]) -> Result<[Option<Tensor>; N]> + Send + 'a,
    ) -> Var {
        self.record_keys(inputs.map(Var::key), value, backward)
    }

    /// [`Tape::record`] for an operation whose backward can add: it also receives what later operations gave for the
    /// gradient of the first input, if they did, and returns the sum with its own.
    pub fn record_adding<const N: usize>(
        &mut self,
        inputs: [&Var; N],
        value: Tensor,
        backward: impl FnOnce(Tensor, [bool; N], Option<Tensor>) -> Result<[Option<Tensor>; N]> + Send + 'a,
    ) -> Var {
        let inputs = inputs.map(Var::key);
        let needed = inputs.map(|input| input.id.is_some());
        self.node(needed.contains(&true), value, move |dy, gradients| {
            let sum = inputs[0].id.and_then(|id| gradients.slots[id].take());
            gradients.add_all(inputs, backward(dy, needed, sum)?)
        })
    }

    /// [`Tape::record`] for an operation that has already given up the tensor of an input.
    pub fn record_keys<const N: usize>(
        &mut self,
        inputs: [Key; N],
        value: Tensor,
        backward: impl FnOnce(Tensor, [bool; N]) -> Result<[Option<Tensor>; N]> + Send + 'a,
    ) -> Var {
        let needed = inputs.map(|input| input.id.is_some());
        self.node(needed.contains(&true), value, move |dy, gradients| {
            gradients.add_all(inputs, backward(dy, needed)?)
        })
    }

    /// [`Tape::record_keys`] for an operation with several outputs: `backward` receives the gradient of each that has
    /// one, which is at least one of them.
    pub fn record_outputs<const N: usize, const M: usize>(
        &mut self,
        inputs: [Key; N],
        values: [Tensor; M],
        backward: impl FnOnce([Option<Tensor>; M], [bool; N]) -> Result<[Option<Tensor>; N]> + Send + 'a,
    ) -> [Var; M] {
        if !self.recording || inputs.iter().all(|input| input.id.is_none()) {
            return values.map(Var::constant);
        }
        let first = self.slots;
        let outputs = values.map(|value| Var { value, id: Some(self.slot()) });
        let backward: Backward = Box::new(move |dy, gradients| {
            let mut dy = dy.into_iter();
            let dy = [(); M].map(|()| dy.next().flatten());
            gradients.add_all(inputs, backward(dy, inputs.map(|input| input.id.is_some()))?)
        });
        self.nodes.push(Node { outputs: first..self.slots, backward });
        outputs
    }

    /// [`Tape::record_keys`] for any number of inputs: `backward` returns a gradient for each that needs one, in order.
    pub fn record_list(
        &mut self,
        inputs: Vec<Key>,
        value: Tensor,
        backward: impl FnOnce(Tensor) -> Result<Vec<Option<Tensor>>> + Send + 'a,
    ) -> Var {
        let needed = inputs.iter().any(|input| input.id.is_some());
        self.node(needed, value, move |dy, gradients| gradients.add_all(inputs, backward(dy)?))
    }

    /// Makes `value` the only output of a node, if a gradient is needed: `backward` receives that of the value, and adds to
    /// those of the inputs.
    fn node(
        &mut self,
        needed: bool,
        value: Tensor,
        backward: impl FnOnce(Tensor, &mut Gradients) -> Result<()> + Send + 'a,
    ) -> Var {
        if !self.recording || !needed {
            return Var::constant(value);
        }
        let id = self.slot();
        let backward: Backward = Box::new(move |mut dy, gradients| match dy.pop().flatten() {
            Some(dy) => backward(dy, gradients),
            None => unreachable!("a node without the gradient of an output is passed over"),
        });
        self.nodes.push(Node { outputs: id..id + 1, backward });
        Var { value, id: Some(id) }
    }

    /// Guards an operation that has no backward: never a silent zero.
    ///
    /// # Errors
    /// [`Error::NoBackward`] when an input needs a gradient.
    pub fn forward_only<const N: usize>(&self, op: &'static str, inputs: [&Var; N]) -> Result<()> {
        match inputs.iter().any(|v| v.needs_grad()) {
            true => Err(Error::NoBackward { op }),
            false => Ok(()),
        }
    }

    /// The gradients of the scalar `loss` with respect to every leaf. Each intermediate gradient, and everything
    /// a closure holds, is freed as soon as it was used.
    ///
    /// # Errors
    /// When `loss` has more than one element or was not recorded here, or a backward fails.
    pub fn backward(self, loss: &Var) -> Result<Gradients> {
        let id = loss.id.ok_or(Error::NoBackward { op: "backward of a constant" })?;
        if loss.value.len() != 1 {
            return Err(Error::shape("backward", "a loss is a single number", &[loss.shape()]));
        }
        let seed = Tensor::full(loss.shape(), 1.0).to(&loss.value.device())?;
        self.backward_from(id, seed)
    }

    /// Like [`Tape::backward`], from the gradient `seed` of a variable of any shape.
    ///
    /// # Errors
    /// When `seed` has another shape than `output`, or a backward fails.
    pub fn backward_with(self, output: &Var, seed: Tensor) -> Result<Gradients> {
        let id = output.id.ok_or(Error::NoBackward { op: "backward of a constant" })?;
        if output.shape() != seed.shape() {
            return Err(Error::shape("backward", "the shapes differ", &[output.shape(), seed.shape()]));
        }
        self.backward_from(id, seed)
    }

    fn backward_from(self, id: usize, seed: Tensor) -> Result<Gradients> {
        let mut gradients = Gradients { slots: vec![None; self.slots] };
        gradients.slots[id] = Some(seed);
        for node in self.nodes.into_iter().rev() {
            let dy: Vec<_> = gradients.slots[node.outputs].iter_mut().map(Option::take).collect();
            if dy.iter().any(Option::is_some) {
                (node.backward)(dy, &mut gradients)?;
            }
        }
        Ok(gradients)
    }
}

/// What [`Tape::backward`] gives: the gradient of each leaf that the loss depends on.
pub struct Gradients {
    slots: Vec<Option<Tensor>>,
}

impl Gradients {
    /// The gradient of a leaf; `None` when the loss does not depend on it.
    pub fn take(&mut self, leaf: &Var) -> Option<Tensor> {
        self.slots.get_mut(leaf.id?)?.take()
    }

    /// Adds what an operation gave for its inputs.
    fn add_all(
        &mut self,
        inputs: impl IntoIterator<Item = Key>,
        gradients: impl IntoIterator<Item = Option<Tensor>>,
    ) -> Result<()> {
        for (Key { id, shape }, gradient) in inputs.into_iter().zip(gradients) {
            let Some(id) = id else { continue };
            let gradient = gradient.ok_or(Error::NoBackward { op: "an operation that gave no gradient" })?;
            if gradient.shape() != shape {
                let why = "a gradient does not have its input's shape";
                return Err(Error::shape("backward", why, &[shape, gradient.shape()]));
            }
            self.add(id, gradient)?;
        }
        Ok(())
    }

    /// The first contribution moves in, later ones add to it.
    fn add(&mut self, id: usize, grad: Tensor) -> Result<()> {
        match &mut self.slots[id] {
            Some(sum) => sum.add_assign(&grad),
            empty => {
                *empty = Some(grad);
                Ok(())
            }
        }
    }
}
