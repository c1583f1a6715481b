use amdanet::{Tape, Var, ops};

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
