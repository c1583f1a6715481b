use amdanet::ops;

use crate::device;
use crate::gradient::{check, random};

#[test]
fn gradients() {
    let (x, y) = (random([3, 5, 7], 1), random([3, 5, 7], 2));
    check(&[x.clone(), y], |t, v| ops::add(t, &v[0], v[1].clone()));
    check(std::slice::from_ref(&x), |t, v| ops::sigmoid(t, &v[0]));
    check(std::slice::from_ref(&x), |t, v| ops::gelu(t, &v[0]));
    // Away from the kink at zero.
    let mut far = x;
    far.f32_mut().iter_mut().for_each(|v| *v += 0.1 * v.signum());
    check(&[far], |t, v| ops::relu(t, &v[0]));
}

#[test]
fn on_a_device() {
    for len in [1, 7, 8, 1031] {
        let (x, y) = (random([len], 1), random([len], 2));
        device::check(&[x.clone(), y], &[], &[], |t, v, _| ops::add(t, &v[0], v[1].clone()));
        // Large enough for an exponential to overflow.
        let mut x = x;
        x.f32_mut()[0] *= 200.0;
        let x = [x];
        device::check(&x, &[], &[], |t, v, _| ops::sigmoid(t, &v[0]));
        device::check(&x, &[], &[], |t, v, _| ops::gelu(t, &v[0]));
        device::check(&x, &[], &[], |t, v, _| ops::relu(t, &v[0]));
    }
}
