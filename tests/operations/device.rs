//! An operation on a CUDA device against the same operation on the CPU.
//!
//! The device is the emulator, with every check it has, or a real one where `AMDANET_TEST_DEVICE` is `cuda`.

use std::sync::{Arc, OnceLock};

use amdanet::{DType, Device, Result, Tape, Tensor, Var};
use emulator::{Emulator, Options};

use crate::gradient::{random, relative_error};

/// The largest relative error in float32: a few hundred roundings.
const F32: f64 = 1e-5;

/// The devices that are tested: the emulator with its threads in order, then shuffled; or a real one.
pub fn all() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        if std::env::var_os("AMDANET_TEST_DEVICE").is_some_and(|name| name == "cuda") {
            // Twice, so that two runs are compared.
            return vec![Device::Cuda(amdanet::cuda::open(0, false).unwrap()); 2];
        }
        let checked = Options { checked: true, ..Options::default() };
        let shuffled = Options { shuffle: Some(7), ..checked };
        [checked, shuffled].map(|options| Device::Cuda(Emulator::new(options) as Arc<_>)).into()
    })
}

/// Runs `f` on the CPU in float32 and on each device in every type, forward and backward, and compares the output and
/// all gradients.
///
/// `f` gets `activations`, which are stored in the type under test, then `parameters`, which are float32 always, and
/// beside these `constants` as they are. Of half precision the rule is that the error is at most twice that of the
/// plainest computation in the type, which here is one that rounds nothing but its result. Addresses that are no
/// multiple of 16 give the same numbers, and two runs the same bits.
#[track_caller]
pub fn check(
    activations: &[Tensor],
    parameters: &[Tensor],
    constants: &[Tensor],
    f: impl Fn(&mut Tape, &[Var], &[Tensor]) -> Result<Var>,
) {
    check_within(F32, activations, parameters, constants, f);
}

/// [`check`] with another largest error in float32, for numbers that magnify the last bit of a function.
#[track_caller]
pub fn check_within(
    f32_error: f64,
    activations: &[Tensor],
    parameters: &[Tensor],
    constants: &[Tensor],
    f: impl Fn(&mut Tape, &[Var], &[Tensor]) -> Result<Var>,
) {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let rounded: Vec<Tensor> =
            activations.iter().map(|x| x.cast(dtype).unwrap().cast(DType::F32).unwrap()).collect();
        let want = run(&Device::Cpu, DType::F32, 0, dtype, (&rounded, parameters, constants), &f);
        let mut first: Option<Vec<Tensor>> = None;
        for device in all() {
            for offset in [0, 1] {
                let got = run(device, dtype, offset, dtype, (&rounded, parameters, constants), &f);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert_eq!(got.shape(), want.shape(), "result {i}");
                    let what = format!("{dtype}, offset {offset}, result {i} of {device:?}");
                    assert_error_within(f32_error, got, want, &what);
                }
                match &first {
                    Some(first) if offset == 0 => {
                        for (i, (one, two)) in first.iter().zip(&got).enumerate() {
                            assert!(
                                bits(one) == bits(two),
                                "result {i} in {dtype} depends on the order of threads"
                            );
                        }
                    }
                    Some(_) => {}
                    None => first = Some(got),
                }
            }
        }
    }
}

/// The output, then the gradient of each activation and parameter, as they come from `device` when activations are
/// stored as `dtype`; `offset` elements lie before each tensor in its buffer. The gradient of the output is random,
/// rounded to `probe`.
pub fn run(
    device: &Device,
    dtype: DType,
    offset: usize,
    probe: DType,
    (activations, parameters, constants): (&[Tensor], &[Tensor], &[Tensor]),
    f: impl Fn(&mut Tape, &[Var], &[Tensor]) -> Result<Var>,
) -> Vec<Tensor> {
    let place = |x: &Tensor| placed(x, device, offset);
    let mut tape = Tape::new();
    let activations = activations.iter().map(|x| place(&x.cast(dtype).unwrap()));
    let vars: Vec<Var> = activations.chain(parameters.iter().map(place)).map(|x| tape.leaf(x)).collect();
    let constants: Vec<Tensor> = constants.iter().map(place).collect();
    let y = f(&mut tape, &vars, &constants).unwrap();
    let seed = random(y.shape(), 99).cast(probe).unwrap().cast(y.value().dtype()).unwrap();
    let mut gradients = tape.backward_with(&y, place(&seed)).unwrap();
    let mut results = vec![y.into_value()];
    for v in &vars {
        results.push(gradients.take(v).expect("a gradient for every input"));
    }
    results.iter().map(|x| x.to(&Device::Cpu).unwrap()).collect()
}

/// `got` is as near to `want` as its type allows.
#[track_caller]
pub fn assert_error(got: &Tensor, want: &Tensor, what: &str) {
    assert_error_within(F32, got, want, what);
}

#[track_caller]
fn assert_error_within(f32_error: f64, got: &Tensor, want: &Tensor, what: &str) {
    let rounding =
        relative_error(want.cast(got.dtype()).unwrap().cast(DType::F32).unwrap().f32(), want.f32());
    let error = relative_error(got.cast(DType::F32).unwrap().f32(), want.f32());
    let most = f32_error + 2.0 * rounding;
    assert!(error <= most, "{what}: error {error:.2e}, at most {most:.2e} is allowed");
}

/// `x` on a device, with `offset` elements before it in its buffer.
pub fn placed(x: &Tensor, device: &Device, offset: usize) -> Tensor {
    let all = shifted(x, offset).to(device).unwrap();
    all.narrow(offset..x.len() + offset).unwrap().reshape(x.shape()).unwrap()
}

/// A vector of `offset` zeros and then the numbers of `x`.
fn shifted(x: &Tensor, offset: usize) -> Tensor {
    fn copy<T: amdanet::tensor::Element>(x: &Tensor, offset: usize) -> Tensor {
        let mut data = vec![T::zeroed(); offset];
        data.extend_from_slice(x.as_slice::<T>());
        Tensor::from_slice([data.len()], &data).unwrap()
    }
    match x.dtype() {
        DType::F32 => copy::<f32>(x, offset),
        DType::F16 => copy::<half::f16>(x, offset),
        DType::BF16 => copy::<half::bf16>(x, offset),
        DType::U8 => copy::<u8>(x, offset),
    }
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.cast(DType::F32).unwrap().f32().iter().map(|v| v.to_bits()).collect()
}
