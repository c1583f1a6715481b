use amdanet::{Tape, Tensor, Var, ops};

use crate::gradient::{random, relative_error};

#[test]
fn the_first_largest_class_wins() {
    let data = [1.0, 3.0, 3.0, f32::NAN, -2.0, -1.0, 0.0, 0.0, 0.0, f32::NAN, f32::NAN, f32::NAN];
    let x = Var::constant(Tensor::from_slice([1, 2, 1, 2, 3], &data).unwrap());
    let y = ops::argmax(&mut Tape::off(), &x).unwrap();
    assert_eq!(*y.shape(), [2, 1, 2]);
    assert_eq!(y.as_slice::<u8>(), [1, 2, 0, 0]);
}

#[test]
fn probabilities_match_a_plain_loop() {
    for (b, h, w, k) in [(3, 1, 1, 1), (1, 1, 1, 7), (2, 31, 37, 9)] {
        let x = random([1, b, h, w, k], 1);
        let mut want = Vec::new();
        for x in x.f32().chunks(k) {
            let sum: f64 = x.iter().map(|&v| f64::from(v).exp()).sum();
            want.extend(x.iter().map(|&v| (f64::from(v).exp() / sum) as f32));
        }
        let x = Var::constant(x);
        let p = ops::probabilities(&mut Tape::off(), &x).unwrap();
        assert!(relative_error(p.f32(), &want) < 1e-6);
        let classes = ops::argmax(&mut Tape::off(), &x).unwrap();
        for (p, &class) in p.f32().chunks(k).zip(classes.as_slice::<u8>()) {
            assert!(p.iter().all(|v| *v <= p[class as usize]));
        }
    }
}

#[test]
fn misuse_is_an_error() {
    let mut tape = Tape::new();
    let x = tape.leaf(Tensor::zeros([1, 1, 2, 2, 3]));
    assert!(ops::argmax(&mut tape, &x).unwrap_err().to_string().contains("argmax"));
    assert!(ops::probabilities(&mut tape, &x).unwrap_err().to_string().contains("probabilities"));
    assert!(ops::argmax(&mut tape, &x.detach()).is_ok());
    for shape in [[2, 1, 2, 2, 3], [1, 1, 1, 1, 256], [1, 0, 2, 2, 3]] {
        assert!(ops::argmax(&mut tape, &Var::constant(Tensor::zeros(shape))).is_err());
    }
}
