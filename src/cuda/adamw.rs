//! Launches of `kernels/adamw.cu`; see [`crate::cpu::adamw`] for the equations.

use super::loss::{COMBINING, scratch_f64};
use super::{Call, scratch_f32};
use crate::cpu::adamw::{AdamW, Factors, Outcome, Parameter, Scaling, check};
use crate::{DType, Device, Error, Result, Tensor};

/// Threads of a block, and the numbers that it takes: the kernel's.
const THREADS: usize = 256;
const CHUNK: usize = 4096;

/// A parameter as the kernels see it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
struct Row {
    value: u64,
    gradient: u64,
    m: u64,
    v: u64,
    len: u64,
    keep: f32,
    unused: u32,
}

/// Part `index` of a parameter.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
struct Chunk {
    parameter: i32,
    index: i32,
}

/// One step on all `parameters`, float32 on one device, in three launches; see [`crate::cpu::adamw::step`].
///
/// # Errors
/// When tensors do not fit, or the device reports an error.
pub fn step(
    rule: &AdamW,
    parameters: &mut [Parameter<'_>],
    lr: f64,
    t: u64,
    scaling: Scaling,
) -> Result<Outcome> {
    check(parameters, t)?;
    let Some(first) = parameters.first() else { return Ok(Outcome { norm: 0.0, finite: true }) };
    let device = first.value.device();
    let (mut rows, mut chunks) = (Vec::with_capacity(parameters.len()), Vec::new());
    let (mut numbers, mut gradients) = (0, 0);
    for (i, parameter) in parameters.iter_mut().enumerate() {
        let len = parameter.value.len();
        for written in [&mut *parameter.value, &mut *parameter.m, &mut *parameter.v] {
            written.make_unique()?;
        }
        let address = |x: &Tensor| match x.address() {
            Some((_, address)) if x.dtype() == DType::F32 && x.device() == device => Ok(address),
            _ => Err(Error::cuda("adamw", format!("a {} tensor on {:?}", x.dtype(), x.device()))),
        };
        rows.push(Row {
            value: address(parameter.value)?,
            gradient: parameter.gradient.map_or(Ok(0), address)?,
            m: address(parameter.m)?,
            v: address(parameter.v)?,
            len: len as u64,
            keep: Factors::keep(lr, parameter.weight_decay),
            unused: 0,
        });
        let parameter_index = i as i32;
        chunks.extend(
            (0..len.div_ceil(CHUNK)).map(|index| Chunk { parameter: parameter_index, index: index as i32 }),
        );
        numbers += len;
        gradients += if parameter.gradient.is_some() { len } else { 0 };
    }
    let table = [bytemuck::cast_slice::<Row, u8>(&rows), bytemuck::cast_slice(&chunks)].concat();
    let table = Tensor::from_slice([table.len()], &table)?.to(&device)?;
    let split = size_of_val(&rows[..]);
    let (rows, parts) = (table.narrow(0..split)?, chunks.len());
    let chunks = table.narrow(split..table.len())?;

    let mut partial = scratch_f64(&table, parts)?;
    if parts > 0 {
        let call = Call::untyped("adamw_squares", &table)?
            .input_of(&rows, DType::U8)
            .input_of(&chunks, DType::U8)
            .output_of(&mut partial, DType::F32)
            .float(scaling.unscale)
            .bytes(4 * gradients)
            .operations(3 * gradients);
        // SAFETY: a block for each chunk, which lies within its parameter; the gradients at the addresses of the table
        // are borrowed, and have as many numbers as their parameters.
        unsafe { call.launch([parts, 1, 1], THREADS, 8 * THREADS)? };
    }
    let mut state = scratch_f32(&table, [3])?;
    let call = Call::untyped("adamw_norm", &table)?
        .input_of(&partial, DType::F32)
        .output_of(&mut state, DType::F32)
        .int(parts)
        .float(scaling.unscale)
        .float(scaling.max_norm.unwrap_or(f32::INFINITY))
        .operations(parts);
    // SAFETY: a block walks over the parts; a double for each of its threads fits into the shared memory.
    unsafe { call.launch([1, 1, 1], COMBINING, 8 * COMBINING)? };
    if parts > 0 {
        let Factors { rate, unbias, beta2, eps, c1, c2 } = Factors::new(rule, lr, t);
        let call = Call::untyped("adamw_update", &table)?
            .input_of(&rows, DType::U8)
            .input_of(&chunks, DType::U8)
            .input_of(&state, DType::F32);
        let call = [rate, unbias, beta2, eps, c1, c2].into_iter().fold(call, Call::float);
        let call = call.bytes(24 * numbers + 4 * gradients).operations(16 * numbers);
        // SAFETY: as above; parameters and moments are borrowed for writing, share their memory with nobody, and have
        // as many numbers as the table says.
        unsafe { call.launch([parts, 1, 1], THREADS, 0)? };
    }
    // What the launches read is freed in the order of the queue, and the download waits for them.
    let state = state.narrow(0..2)?.to(&Device::Cpu)?;
    let [norm, overflow] = [state.f32()[0], state.f32()[1]];
    Ok(Outcome { norm, finite: overflow == 0.0 })
}
