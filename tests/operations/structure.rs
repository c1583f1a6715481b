use amdanet::{DType, Device, Tape, Tensor, Var, ops};

use crate::device;
use crate::gradient::{check, random};

#[test]
fn concat_streams_puts_channels_side_by_side() {
    let x = Var::constant(random([2, 3, 5], 1));
    let y = ops::concat_streams(&mut Tape::off(), &x).unwrap();
    assert_eq!(*y.shape(), [1, 3, 10]);
    let (x, y) = (x.value().f32(), y.value().f32());
    for (row, c) in (0..3).flat_map(|r| (0..5).map(move |c| (r, c))) {
        assert_eq!((y[row * 10 + c], y[row * 10 + 5 + c]), (x[row * 5 + c], x[15 + row * 5 + c]));
    }
}

#[test]
fn gradients() {
    let x = random([2, 3, 5], 1);
    check(std::slice::from_ref(&x), |t, v| ops::concat_streams(t, &v[0]));
    check(std::slice::from_ref(&x), |t, v| ops::select(t, &v[0], 1));
    check(std::slice::from_ref(&x), |t, v| ops::reshape(t, &v[0], [5, 6]));
    // Both halves used, one of them twice: contributions add up.
    check(&[x], |t, v| {
        let (a, b) = (ops::select(t, &v[0], 0)?, ops::select(t, &v[0], 1)?);
        let sum = ops::add(t, &a, b)?;
        ops::add(t, &a, sum)
    });
}

#[test]
fn on_a_device() {
    for [rows, c] in [[1, 1], [3, 5], [7, 8], [300, 3], [130, 24], [33, 64]] {
        let x = [random([2, 3, rows, c], 1)];
        device::check(&x, &[], &[], |t, v, _| ops::concat_streams(t, &v[0]));
        device::check(&x, &[], &[], |t, v, _| ops::select(t, &v[0], 0));
        device::check(&x, &[], &[], |t, v, _| ops::select(t, &v[0], 1));
        device::check(&x, &[], &[], |t, v, _| ops::reshape(t, &v[0], [rows, 6 * c]));
        for (from, to) in [(0, c), (c / 2, c), (c / 3, c / 3 + 1), (8.min(c - 1), c)] {
            device::check(&x, &[], &[], |t, v, _| ops::select_channels(t, &v[0], from..to));
        }
    }
    let x = [random([5, 6], 1)];
    device::check(&x, &[], &[], |t, v, _| ops::select(t, &v[0], 3));
}

#[test]
fn weights_of_taps_on_a_device() {
    for [o, from, s, c, inputs] in
        [[1, 0, 1, 1, 1], [5, 3, 2, 3, 14], [16, 32, 2, 16, 134], [16, 32, 2, 16, 136]]
    {
        let weight = [random([1, o, 3, 3, inputs], 1)];
        device::check(&weight, &[], &[], |t, v, _| ops::tap_weights(t, &v[0], from, s, c));
    }
}

#[test]
fn parts_follow_one_another_on_a_device() {
    for device in device::all() {
        let (a, b) = (random([3, 5], 1).to(device).unwrap(), random([1, 5], 2).to(device).unwrap());
        let all = Tensor::concat(&[&a.narrow(1..3).unwrap(), &b]).unwrap().to(&Device::Cpu).unwrap();
        assert_eq!(*all.shape(), [3, 5]);
        assert_eq!(all.f32()[..10], random([3, 5], 1).f32()[5..]);
        assert_eq!(all.f32()[10..], *random([1, 5], 2).f32());
        assert!(Tensor::concat(&[&a, &random([1, 5], 2)]).is_err());
        let ones = Tensor::filled_on(device, [7], DType::U8, 1).unwrap().to(&Device::Cpu).unwrap();
        assert_eq!(ones.as_slice::<u8>(), [1; 7]);
    }
}
