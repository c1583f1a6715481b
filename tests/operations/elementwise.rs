use amdanet::ops;

use crate::gradient::{check, random};

#[test]
fn gradients() {
    let (x, y) = (random([3, 5, 7], 1), random([3, 5, 7], 2));
    check(&[x.clone(), y], |t, v| ops::add(t, &v[0], v[1].clone()));
    check(std::slice::from_ref(&x), |t, v| Ok(ops::sigmoid(t, &v[0])));
    check(std::slice::from_ref(&x), |t, v| Ok(ops::gelu(t, &v[0])));
    // Away from the kink at zero.
    let mut far = x;
    far.f32_mut().iter_mut().for_each(|v| *v += 0.1 * v.signum());
    check(&[far], |t, v| Ok(ops::relu(t, &v[0])));
}
