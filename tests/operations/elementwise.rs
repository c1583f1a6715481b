use amdanet::{DType, Device, Tensor, ops};

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

/// All at once rounds as one after the other does, whatever the lengths and the alignment.
#[test]
fn casts_all_at_once() {
    for place in device::all() {
        for dtype in [DType::F16, DType::BF16] {
            let lengths = [1, 5, 4096, 16_384, 16_385, 128, 40_000];
            let place = |(i, &len): (usize, &usize)| device::placed(&random([len], i as u64), place, i % 3);
            let tensors: Vec<Tensor> = lengths.iter().enumerate().map(place).collect();
            let all = Tensor::cast_all(&tensors.iter().collect::<Vec<_>>(), dtype).unwrap();
            assert_eq!(all.len(), tensors.len());
            for (x, y) in tensors.iter().zip(&all) {
                let [want, got] = [&x.cast(dtype).unwrap(), y].map(|y| {
                    assert_eq!((y.shape(), y.dtype()), (x.shape(), dtype));
                    y.to(&Device::Cpu).unwrap().cast(DType::F32).unwrap()
                });
                assert_eq!(got.f32(), want.f32());
            }
            let halves = all[0].clone();
            assert!(Tensor::cast_all(&[&tensors[0], &halves], dtype).is_err());
        }
    }
}
