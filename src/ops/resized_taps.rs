//! The fusion head's 3×3 convolution over resized maps; see [`crate::cpu::resized_taps`].

use crate::cpu::resized_taps as cpu;
use crate::cuda::resized_taps as cuda;
use crate::{Error, Result, Tape, Var};

/// The input channels `from .. from + S·C` of a 3×3 convolution's weight as the weights of S linear layers, one for
/// each group of C channels, whose outputs are the nine taps of O channels side by side.
///
/// weight `(1, O, 3, 3, I)` -> `(S, 9·O, C)`.
///
/// # Errors
/// When the shapes do not fit.
pub fn tap_weights(tape: &mut Tape, weight: &Var, from: usize, s: usize, c: usize) -> Result<Var> {
    use crate::cpu::structure as cpu;
    use crate::cuda::structure as cuda;
    let shape = weight.shape();
    if shape.rank() != 5 || shape[..1] != [1] || shape[2..4] != [3, 3] || from + s * c > shape[4] {
        let why = format!("the weight must be (1, O, 3, 3, I) and I at least {}", from + s * c);
        return Err(Error::shape("tap_weights", why, &[shape]));
    }
    let y = on_device_of!(weight.value(), tap_weights(weight.value(), from, s, c))?;
    Ok(tape.record([weight], y, move |dy, _| {
        Ok([Some(on_device_of!(dy, tap_weights_backward(&dy, shape, from))?)])
    }))
}

/// base + Σ over maps, streams and taps (ky, kx) of the map's group 3·ky + kx, resized bilinearly to the size of the
/// base and read at (y + ky − 1, x + kx − 1), where the picture has such a pixel.
///
/// base `(1, B, H, W, O)`, whose buffer is reused when nobody else holds it; maps `(2, B, h_i, w_i, 9·O)`.
///
/// With the maps made by linear layers of [`tap_weights`], this is the 3×3 convolution of the resized inputs of those
/// layers, for a sixteenth of the work and without ever storing the resized maps.
///
/// # Errors
/// When the shapes do not fit.
pub fn add_resized_taps(tape: &mut Tape, base: Var, maps: [&Var; 4]) -> Result<Var> {
    let (shape, shapes) = (base.shape(), maps.map(Var::shape));
    let fits = shape.rank() == 5
        && shape[0] == 1
        && !shape.is_empty()
        && shapes
            .iter()
            .all(|s| s.rank() == 5 && s[..2] == [2, shape[1]] && s[4] == 9 * shape[4] && !s.is_empty());
    if !fits {
        let why = "the base must be (1, B, H, W, O), the maps (2, B, h, w, 9·O)";
        let all: Vec<_> = std::iter::once(shape).chain(shapes).collect();
        return Err(Error::shape("add_resized_taps", why, &all));
    }
    let [a, b, c, d] = maps.map(Var::key);
    let keys = [base.key(), a, b, c, d];
    let y = on_device_of!(maps[0].value(), forward(base.into_value(), maps.map(Var::value)))?;
    Ok(tape.record_keys(keys, y, move |dy, _| {
        let [a, b, c, d] = on_device_of!(dy, backward(&dy, shapes))?.map(Some);
        Ok([Some(dy), a, b, c, d])
    }))
}
