//! Named parameters, and how their published layout maps onto the one that the operations want.

use std::sync::OnceLock;

use crate::random::Stream;
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// How the published tensor of one stream maps onto this program's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// The same axes: vectors, and weights of linear layers.
    Same,
    /// A single number: published `()`, here `(1)`.
    Scalar,
    /// A 1×1 convolution, a linear layer here: published `(O, I, 1, 1)`, here `(O, I)`.
    Pointwise,
    /// A 1×1 convolution over a concatenation of equal parts: published `(O, n·I, 1, 1)`, here `(n, O, I)`.
    PointwiseParts,
    /// A convolution: published `(O, I, kh, kw)`, here `(O, kh, kw, I)`.
    Conv,
    /// A depthwise convolution: published `(C, 1, kh, kw)`, here `(kh, kw, C)`.
    Depthwise,
}

/// What a parameter starts as.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Init {
    /// The same number everywhere.
    Constant(f32),
    /// Normal with this standard deviation.
    Normal(f32),
}

/// Whether, and how, the optimizer changes a parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The weight of a linear or convolution layer: trained with weight decay.
    Weight,
    /// Trained without weight decay.
    NoDecay,
    /// A running statistic: not trained by gradients.
    Statistic,
}

/// The index of a parameter in [`Params`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ParamId(pub(crate) usize);

/// One parameter of all streams that share its shape: `(S, …)`.
#[derive(Clone, Debug)]
pub struct Param {
    /// The published name, one for each stream.
    pub names: Vec<String>,
    /// How the published tensor maps onto `value`.
    pub layout: Layout,
    /// What the optimizer does with it.
    pub role: Role,
    /// What it starts as.
    pub init: Init,
    /// The numbers, all streams.
    pub value: Tensor,
}

impl Param {
    /// The shape of one stream's published tensor.
    pub fn published_shape(&self) -> Vec<usize> {
        let shape = self.value.shape();
        match (self.layout, &shape[1..]) {
            (Layout::Scalar, _) => vec![],
            (Layout::Pointwise, &[o, i]) => vec![o, i, 1, 1],
            (Layout::PointwiseParts, &[o, i]) => vec![o, shape[0] * i, 1, 1],
            (Layout::Conv, &[o, kh, kw, i]) => vec![o, i, kh, kw],
            (Layout::Depthwise, &[kh, kw, c]) => vec![c, 1, kh, kw],
            (_, same) => same.to_vec(),
        }
    }

    /// For each number of a published tensor, in its order, its place in this program's, `value`.
    fn places(&self, value: &Tensor) -> Vec<usize> {
        let (shape, len) = (value.shape(), value.len() / self.names.len());
        // (rows, columns) of the published matrix of blocks, transposed here; blocks of `inner` numbers.
        let transpose = |outer: usize, rows: usize, columns: usize, inner: usize| -> Vec<usize> {
            let mut places = Vec::with_capacity(len);
            for o in 0..outer {
                for (r, c) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
                    let block = ((o * columns + c) * rows + r) * inner;
                    places.extend(block..block + inner);
                }
            }
            places
        };
        match (self.layout, &shape[1..]) {
            (Layout::Conv, &[o, kh, kw, i]) => transpose(o, i, kh * kw, 1),
            (Layout::Depthwise, &[kh, kw, c]) => transpose(1, c, kh * kw, 1),
            (Layout::PointwiseParts, &[o, i]) => transpose(1, o, shape[0], i),
            _ => (0..len).collect(),
        }
    }

    /// The published tensor of `stream`, taken from `value` on the CPU: the parameter itself or its gradient.
    pub fn export(&self, value: &Tensor, stream: usize) -> Vec<f32> {
        let len = value.len() / self.names.len();
        let data = &value.f32()[stream * len..(stream + 1) * len];
        self.places(value).into_iter().map(|place| data[place]).collect()
    }
}

impl Param {
    /// The reverse of [`Param::export`]: overwrites one stream of `value`, which is on the CPU and of the parameter's
    /// shape.
    ///
    /// # Errors
    /// When `data` does not have as many numbers as the published shape.
    pub fn import_into(&self, value: &mut Tensor, stream: usize, data: &[f32]) -> Result<()> {
        let len = value.len() / self.names.len();
        if data.len() != len {
            let name = &self.names[stream];
            return Err(Error::Config(format!("{name}: {} numbers were given for {len}", data.len())));
        }
        let places = self.places(value);
        let out = &mut value.f32_mut()[stream * len..(stream + 1) * len];
        for (place, &v) in places.into_iter().zip(data) {
            out[place] = v;
        }
        Ok(())
    }
}

/// All parameters of a network, in the order of their construction: float32, on one device.
#[derive(Clone, Debug)]
pub struct Params {
    list: Vec<Param>,
    device: Device,
    compute: DType,
    /// All of them in the type of the products, from when one was asked for until a value may change.
    rounded: OnceLock<Vec<Tensor>>,
}

impl Default for Params {
    fn default() -> Self {
        Self { list: Vec::new(), device: Device::Cpu, compute: DType::F32, rounded: OnceLock::new() }
    }
}

impl Params {
    /// Number of parameters, each counted once for all its streams.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Moves every parameter to `device`, where passes store activations, and multiply matrices, as `compute`.
    ///
    /// The parameters stay float32; with another type there are rounded copies of them for products: [`Params::rounded`].
    ///
    /// # Errors
    /// When the CPU is to compute in another type than float32, or a device reports an error.
    pub fn place(&mut self, device: &Device, compute: DType) -> Result<()> {
        if compute == DType::U8 || (*device == Device::Cpu && compute != DType::F32) {
            return Err(Error::Config(format!(
                "{device:?} cannot compute in {compute}: the CPU computes in f32"
            )));
        }
        for param in self.list_mut() {
            param.value = param.value.to(device)?;
        }
        (self.device, self.compute) = (device.clone(), compute);
        Ok(())
    }

    /// Where the parameters are, and where a pass computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type of activations and products.
    pub fn compute(&self) -> DType {
        self.compute
    }

    /// The parameters for writing: what was made of their values is forgotten.
    fn list_mut(&mut self) -> &mut Vec<Param> {
        self.rounded.take();
        &mut self.list
    }

    /// One parameter.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.list[id.0]
    }

    /// One parameter in the type of activations and products.
    ///
    /// # Errors
    /// When the device reports one.
    pub fn rounded(&self, id: ParamId) -> Result<Tensor> {
        if self.rounded.get().is_none() {
            let values: Vec<&Tensor> = self.list.iter().map(|p| &p.value).collect();
            let rounded = Tensor::cast_all(&values, self.compute)?;
            // Another pass may have been faster.
            let _ = self.rounded.set(rounded);
        }
        Ok(self.rounded.get().expect("it was set above")[id.0].clone())
    }

    /// The numbers of one parameter, for writing.
    pub fn value_mut(&mut self, id: ParamId) -> &mut Tensor {
        &mut self.list_mut()[id.0].value
    }

    /// The numbers of all parameters, for writing, with what the optimizer does with them.
    pub fn values_mut(&mut self) -> impl Iterator<Item = (Role, &mut Tensor)> {
        self.list_mut().iter_mut().map(|p| (p.role, &mut p.value))
    }

    /// Overwrites one stream of a parameter with a published tensor.
    ///
    /// # Errors
    /// When `data` does not have as many numbers as the published shape, or a device reports an error.
    pub fn import(&mut self, id: ParamId, stream: usize, data: &[f32]) -> Result<()> {
        let device = self.device.clone();
        let param = &mut self.list_mut()[id.0];
        let mut value = std::mem::replace(&mut param.value, Tensor::zeros([0])).to(&Device::Cpu)?;
        let done = param.import_into(&mut value, stream, data);
        param.value = value.to(&device)?;
        done
    }

    /// All parameters with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Param)> {
        self.list.iter().enumerate().map(|(i, p)| (ParamId(i), p))
    }

    /// Every published tensor: parameter, stream, name.
    pub fn published(&self) -> impl Iterator<Item = (ParamId, usize, &str)> {
        self.iter().flat_map(|(id, p)| p.names.iter().enumerate().map(move |(s, n)| (id, s, n.as_str())))
    }

    /// Numbers that are trained.
    pub fn count(&self) -> usize {
        self.list.iter().filter(|p| p.role != Role::Statistic).map(|p| p.value.len()).sum()
    }

    /// Draws every parameter anew; the same seed gives the same numbers everywhere.
    ///
    /// # Panics
    /// When the parameters are not on the CPU.
    pub fn initialise(&mut self, seed: u64) {
        for (i, param) in self.list_mut().iter_mut().enumerate() {
            let data = param.value.f32_mut();
            match param.init {
                Init::Constant(value) => data.fill(value),
                Init::Normal(std) => Stream::new(seed, i as u64).fill_normal(data, std),
            }
        }
    }
}

/// Where in the network parameters are being made: the published prefix of each stream.
pub struct Scope<'a> {
    params: &'a mut Params,
    prefixes: Vec<String>,
}

impl<'a> Scope<'a> {
    /// The top of a network.
    pub fn new(params: &'a mut Params) -> Self {
        Self { params, prefixes: vec![String::new()] }
    }

    /// One step down, the same name for every stream.
    pub fn child(&mut self, name: impl std::fmt::Display) -> Scope<'_> {
        let prefixes = self.prefixes.iter().map(|p| join(p, &name.to_string())).collect();
        Scope { params: self.params, prefixes }
    }

    /// One step down into two streams of equal shape, visible and infrared.
    pub fn streams(
        &mut self,
        visible: impl std::fmt::Display,
        infrared: impl std::fmt::Display,
    ) -> Scope<'_> {
        let prefix = &self.prefixes[0];
        let prefixes = vec![join(prefix, &visible.to_string()), join(prefix, &infrared.to_string())];
        Scope { params: self.params, prefixes }
    }

    /// Number of streams S.
    pub fn count(&self) -> usize {
        self.prefixes.len()
    }

    /// A parameter called `leaf` with `shape` after the stream axis.
    pub fn param<const N: usize>(
        &mut self,
        leaf: &str,
        layout: Layout,
        shape: [usize; N],
        init: Init,
        role: Role,
    ) -> ParamId {
        let names: Vec<String> = self.prefixes.iter().map(|p| join(p, leaf)).collect();
        let lengths: Vec<usize> = std::iter::once(names.len()).chain(shape).collect();
        let shape = match layout {
            Layout::Scalar => Shape::from([1]),
            // The parts take the place of the streams.
            Layout::PointwiseParts => Shape::try_from(&lengths[1..]).expect("three axes"),
            _ => Shape::try_from(&lengths[..]).expect("a weight has at most five axes"),
        };
        self.params.list_mut().push(Param { names, layout, role, init, value: Tensor::zeros(shape) });
        ParamId(self.params.list.len() - 1)
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published tensor 0, 1, 2, … of each layout lands where the operation reads it, and comes back.
    #[test]
    fn layouts_round_trip() {
        let mut params = Params::default();
        let mut scope = Scope::new(&mut params);
        let mut streams = scope.streams("a", "b");
        let zero = Init::Constant(0.0);
        let conv = streams.param("conv", Layout::Conv, [2, 3, 4, 5], zero, Role::Weight);
        let deep = streams.param("deep", Layout::Depthwise, [3, 3, 7], zero, Role::Weight);
        let parts = scope.param("parts", Layout::PointwiseParts, [4, 2, 3], zero, Role::Weight);
        for (id, stream, name) in params.clone().published() {
            let len: usize = params.get(id).published_shape().iter().product();
            let data: Vec<f32> = (0..len).map(|i| i as f32).collect();
            params.import(id, stream, &data).unwrap();
            assert_eq!(params.get(id).export(&params.get(id).value, stream), data, "{name}");
            assert!(params.import(id, stream, &data[1..]).is_err());
        }
        // Output 1, row 2, column 3, input 4 of the second stream.
        let (o, row, column, i) = (1, 2, 3, 4);
        let here = ((o * 3 + row) * 4 + column) * 5 + i;
        let published = ((o * 5 + i) * 3 + row) * 4 + column;
        assert_eq!(params.get(conv).value.f32()[120 + here], published as f32);
        assert_eq!(params.get(conv).published_shape(), [2, 5, 3, 4]);
        assert_eq!(params.get(deep).value.f32()[4 * 7 + 6], (6 * 9 + 4) as f32);
        assert_eq!(params.get(deep).published_shape(), [7, 1, 3, 3]);
        // Part 2, output 1, input 0: column 2·3 + 0 of row 1.
        assert_eq!(params.get(parts).value.f32()[2 * 6 + 3], (12 + 6) as f32);
        assert_eq!(params.get(parts).published_shape(), [2, 12, 1, 1]);
    }
}
