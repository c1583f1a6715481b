//! Where numbers that are not finite come from.

use std::cell::OnceCell;

use super::trainer::Trainer;
use crate::data::Batch;
use crate::nn::{Param, Role};
use crate::{DType, Device, Result, Tensor};

/// The first tensor of the step on `batch` that is not finite: a parameter, a picture, the output of a layer, a term of
/// the loss, or, from the loss on back, the gradient of a parameter. `None` when there is none.
///
/// The step is computed again for it, and nothing is changed.
///
/// # Errors
/// When a device reports one.
pub fn first_not_finite(trainer: &Trainer, batch: &Batch) -> Result<Option<String>> {
    // Running statistics take no part in a training step.
    for (_, param) in trainer.model.params.iter().filter(|(_, param)| param.role != Role::Statistic) {
        if let Some((name, count)) = in_streams(param, &param.value)? {
            return Ok(Some(format!("the parameter {name} has {count}")));
        }
    }
    if let Some(what) = in_pictures(batch)? {
        return Ok(Some(what));
    }
    let parts = trainer.parts(batch)?;
    for (i, part) in parts.iter().enumerate() {
        if let Some(mut what) = in_part(trainer, part, i)? {
            if parts.len() > 1 {
                what += &format!(" (micro-batch {} of {})", i + 1, parts.len());
            }
            return Ok(Some(what));
        }
    }
    Ok(None)
}

fn in_pictures(batch: &Batch) -> Result<Option<String>> {
    for (what, pictures) in [("visible", &batch.visible), ("infrared", &batch.infrared)] {
        let shape = pictures.shape();
        let pictures = pictures.reshape([shape[1], shape[2], shape[3], shape[4]])?;
        for i in 0..shape[1] {
            if let Some(count) = count(&pictures.narrow(i..i + 1)?)? {
                return Ok(Some(format!("the {what} picture of example {} of the step has {count}", i + 1)));
            }
        }
    }
    Ok(None)
}

/// Layers, losses and gradients of micro-batch `i` of the step.
fn in_part(trainer: &Trainer, batch: &Batch, i: usize) -> Result<Option<String>> {
    let found = OnceCell::new();
    let mut pass = trainer.pass(i);
    pass.watch(|param, output| {
        if found.get().is_none()
            && let Some((name, count)) = in_streams(param, output)?
        {
            let layer = name.rsplit_once('.').map_or(name, |(layer, _)| layer);
            let _ = found.set(format!("{layer}: output has {count}"));
        }
        Ok(())
    });
    let losses = trainer.losses(&mut pass, batch, i)?;
    if let Some(found) = found.get() {
        return Ok(Some(found.clone()));
    }
    let (total, terms) = losses.values()?;
    let mut terms = terms.into_iter().chain([("sum", total)]);
    if let Some((name, value)) = terms.find(|(_, value)| !value.is_finite()) {
        return Ok(Some(format!("the term {name} of the loss is {value}, all layers' outputs are finite")));
    }
    let step = pass.backward(&losses.total, trainer.loss_scale())?;
    // Backward comes to the parameters in the reverse of their order, or nearly so.
    let mut last = None;
    for ((_, param), gradient) in trainer.model.params.iter().zip(&step.gradients) {
        let Some(gradient) = gradient else { continue };
        last = in_streams(param, gradient)?.or(last);
    }
    Ok(last.map(|(name, count)| format!("the gradient of {name} has {count}, all outputs are finite")))
}

/// The published name of the first stream of `value`, which is of `param`, that is not finite, and what is there.
fn in_streams<'p>(param: &'p Param, value: &Tensor) -> Result<Option<(&'p str, String)>> {
    let streams = param.names.len();
    for (stream, name) in param.names.iter().enumerate() {
        let part = if streams == value.dim(0) { value.narrow(stream..stream + 1)? } else { value.clone() };
        if let Some(count) = count(&part)? {
            return Ok(Some((name, count)));
        }
    }
    Ok(None)
}

/// What is not finite among the numbers of `x`; `None` when everything is.
fn count(x: &Tensor) -> Result<Option<String>> {
    let x = x.to(&Device::Cpu)?.cast(DType::F32)?;
    let nan = x.f32().iter().filter(|x| x.is_nan()).count();
    let infinite = x.f32().iter().filter(|x| x.is_infinite()).count();
    let found = match (nan, infinite) {
        (0, 0) => return Ok(None),
        (nan, 0) => format!("{nan} NaN"),
        (0, infinite) => format!("{infinite} infinite"),
        (nan, infinite) => format!("{nan} NaN and {infinite} infinite"),
    };
    Ok(Some(format!("{found} of {} values", x.len())))
}
