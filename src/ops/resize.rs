//! Bilinear resizing with half-pixel centres: `align_corners=False`, without antialiasing.

use crate::cpu::resize as cpu;
use crate::{Error, Result, Tape, Var};

/// Each image of x at another size. An output position i reads the input at max((i + ½)·input/output − ½, 0).
///
/// x `(S, B, h, w, C)` -> `(S, B, height, width, C)`; the same variable when that is its size already.
///
/// # Errors
/// When x does not have five axes, or a length is zero.
pub fn resize(tape: &mut Tape, x: &Var, height: usize, width: usize) -> Result<Var> {
    let xs = x.shape();
    if xs.rank() != 5 || xs.is_empty() || height == 0 || width == 0 {
        let why = format!(
            "x must be (S, B, h, w, C) without an empty axis, and so must its new size {height}x{width}"
        );
        return Err(Error::shape("resize", why, &[xs]));
    }
    if (xs[2], xs[3]) == (height, width) {
        return Ok(x.clone());
    }
    let y = cpu::forward(x.value(), height, width);
    Ok(tape.record([x], y, move |dy, _| Ok([Some(cpu::backward(&dy, xs))])))
}

/// Four maps of both streams at the size of two images, and the images, side by side over the channels: map 0 stream
/// 0, map 0 stream 1, map 1 stream 0, … map 3 stream 1, image 0, image 1.
///
/// Maps `(2, B, h_i, w_i, C)`, images `(1, B, H, W, 3)` -> `(1, B, H, W, 8C + 6)`. The resized maps exist nowhere
/// else.
///
/// # Errors
/// When the shapes do not fit.
pub fn resize_concat(tape: &mut Tape, maps: [&Var; 4], images: [&Var; 2]) -> Result<Var> {
    let (shapes, image) = (maps.map(Var::shape), images[0].shape());
    let fits = image.rank() == 5
        && image[0] == 1
        && image[4] == 3
        && !image.is_empty()
        && images[1].shape() == image
        && shapes
            .iter()
            .all(|s| s.rank() == 5 && s[0] == 2 && s[1] == image[1] && s[4] == shapes[0][4] && !s.is_empty());
    if !fits {
        let why = "the maps must be (2, B, h, w, C) with the same C, the images (1, B, H, W, 3)";
        let all: Vec<_> = shapes.into_iter().chain(images.map(Var::shape)).collect();
        return Err(Error::shape("resize_concat", why, &all));
    }
    let y = cpu::concat_forward(maps.map(Var::value), images.map(Var::value));
    let ([a, b, c, d], [visible, infrared]) = (maps, images);
    Ok(tape.record([a, b, c, d, visible, infrared], y, move |dy, needs| {
        let maps = match needs[..4].contains(&true) {
            true => cpu::concat_backward_maps(&dy, shapes).map(Some),
            false => [const { None }; 4],
        };
        let [a, b, c, d] = maps;
        let image = |i: usize| needs[4 + i].then(|| cpu::concat_backward_image(&dy, i));
        Ok([a, b, c, d, image(0), image(1)])
    }))
}
