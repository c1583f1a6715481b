use amdanet::{DType, Device, Tape, Tensor, Var, ops};

use crate::device;
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
fn on_a_device() {
    let tied = [1.0, 3.0, 3.0, f32::NAN, -2.0, -1.0, 0.0, 0.0, 0.0, f32::NAN, f32::NAN, f32::NAN];
    let mut inputs = vec![(Tensor::from_slice([1, 2, 1, 2, 3], &tied).unwrap(), false)];
    for shape in [[1, 1, 1, 1, 1], [1, 2, 31, 37, 9], [1, 3, 5, 7, 16], [1, 1, 30, 40, 40], [1, 1, 7, 9, 255]]
    {
        let mut x = random(shape, 1);
        x.f32_mut().iter_mut().for_each(|v| *v *= 9.0);
        inputs.push((x, true));
    }
    for (x, is_finite) in inputs {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let rounded = x.cast(dtype).unwrap();
            let widened = Var::constant(rounded.cast(DType::F32).unwrap());
            let classes = ops::argmax(&mut Tape::off(), &widened).unwrap();
            let want = ops::probabilities(&mut Tape::off(), &widened).unwrap();
            for device in device::all() {
                // The second copy begins at an address that is no multiple of 16 where the length is none.
                let twice = [widened.value().f32(), widened.value().f32()].concat();
                let twice = Tensor::from_slice([2, x.len()], &twice).unwrap().cast(dtype).unwrap();
                let twice = twice.to(device).unwrap();
                for half in 0..2 {
                    let x = twice.narrow(half..half + 1).unwrap().reshape(x.shape()).unwrap();
                    let x = Var::constant(x);
                    let got = ops::argmax(&mut Tape::off(), &x).unwrap().to(&Device::Cpu).unwrap();
                    assert_eq!(got.shape(), classes.shape());
                    assert_eq!(got.as_slice::<u8>(), classes.as_slice::<u8>(), "{dtype} {device:?}");
                    if is_finite {
                        let got = ops::probabilities(&mut Tape::off(), &x).unwrap();
                        assert_eq!((got.shape(), got.dtype()), (want.shape(), DType::F32));
                        let got = got.to(&Device::Cpu).unwrap();
                        device::assert_error(&got, &want, &format!("{dtype} {device:?}"));
                    }
                }
            }
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
