//! Half precision and matrix instructions against plain Rust.

use amdanet::cuda::driver::Arg;
use bytemuck::Pod;
use emulator::Options;
use half::{bf16, f16};

use crate::bench::{Bench, every_mode, pointer};

/// A 16-bit type: its name in kernels, and its conversions.
trait Half: Pod {
    const NAME: &'static str;
    fn of_bits(bits: u16) -> Self;
    fn of(x: f32) -> Self;
    fn f32(self) -> f32;
}

impl Half for f16 {
    const NAME: &'static str = "f16";
    fn of_bits(bits: u16) -> Self {
        Self::from_bits(bits)
    }
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn f32(self) -> f32 {
        self.to_f32()
    }
}

impl Half for bf16 {
    const NAME: &'static str = "bf16";
    fn of_bits(bits: u16) -> Self {
        Self::from_bits(bits)
    }
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn f32(self) -> f32 {
        self.to_f32()
    }
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

fn conversions<T: Half>() {
    let bench = Bench::new(Options::default());
    let all: Vec<_> = (0..=u16::MAX).map(T::of_bits).collect();
    let (x, y) = (bench.buffer(&all), bench.empty(all.len() * 4));
    bench.launch(&format!("planted_from_{}", T::NAME), 256, 256, 0, &[pointer(&x), pointer(&y)]).unwrap();
    let wide = bench.read::<f32>(&y, all.len());
    for (narrow, wide) in all.iter().zip(&wide) {
        assert!(same(narrow.f32(), *wide), "{} {wide}", narrow.f32());
    }

    // Every number of 16 bits, what lies half-way to the next, and the neighbours of both; and numbers of all sizes.
    let mut floats: Vec<f32> = wide.iter().filter(|x| !x.is_nan()).copied().collect();
    // The bits of f32 that T does not have; in f16's denormal range halves are half-way further up, too.
    let halfway =
        |x: &f32| [12, 13, 14, 15, 16, 18, 20, 22].map(|bit| f32::from_bits(x.to_bits() ^ 1 << bit));
    floats.extend(wide.iter().filter(|x| x.is_finite()).flat_map(halfway).collect::<Vec<_>>());
    let neighbours: Vec<_> = floats
        .iter()
        .flat_map(|x| [-1, 1].map(|d| f32::from_bits(x.to_bits().wrapping_add_signed(d))))
        .collect();
    floats.extend(neighbours);
    floats.extend((0..1u32 << 20).map(|i| f32::from_bits(i.wrapping_mul(0x9E37_79B9))));
    let (x, y) = (bench.buffer(&floats), bench.empty(floats.len() * 2));
    let args = [pointer(&x), pointer(&y), Arg::I32(floats.len() as i32)];
    bench
        .launch(&format!("planted_to_{}", T::NAME), floats.len().div_ceil(256) as u32, 256, 0, &args)
        .unwrap();
    for (wide, narrow) in floats.iter().zip(bench.read::<T>(&y, floats.len())) {
        let expected = T::of(*wide);
        assert!(
            same(expected.f32(), narrow.f32()),
            "{wide:e}: {} instead of {}",
            narrow.f32(),
            expected.f32()
        );
    }
}

#[test]
fn f16_converts_as_the_half_crate() {
    conversions::<f16>();
}

#[test]
fn bf16_converts_as_the_half_crate() {
    conversions::<bf16>();
}

fn mma<T: Half>() {
    // Small integers: every order of summation gives the same.
    let number = |i: usize| ((i * 7919 + i / 16 * 31) % 17) as f32 - 8.0;
    let a: Vec<_> = (0..256).map(|i| T::of(number(i))).collect();
    let b: Vec<_> = (0..128).map(|i| T::of(number(i + 1000))).collect();
    let d: Vec<_> = (0..128).map(|i| number(i + 2000)).collect();
    let mut expected = d.clone();
    for (i, d) in expected.iter_mut().enumerate() {
        *d += (0..16).map(|k| a[i / 8 * 16 + k].f32() * b[k * 8 + i % 8].f32()).sum::<f32>();
    }
    for options in every_mode() {
        let bench = Bench::new(options);
        let (a, b, d) = (bench.buffer(&a), bench.buffer(&b), bench.buffer(&d));
        let args = [pointer(&a), pointer(&b), pointer(&d)];
        bench.launch(&format!("planted_mma_{}", T::NAME), 1, 32, 768, &args).unwrap();
        assert_eq!(bench.read::<f32>(&d, 128), expected);
        assert!(bench.launch(&format!("planted_mma_{}", T::NAME), 1, 16, 768, &args).is_err());
    }
}

#[test]
fn a_matrix_instruction_multiplies_f16() {
    mma::<f16>();
}

#[test]
fn a_matrix_instruction_multiplies_bf16() {
    mma::<bf16>();
}

#[test]
fn ldmatrix_spreads_rows_and_columns() {
    for options in every_mode() {
        let bench = Bench::new(options);
        let y = bench.empty(128 * 4);
        for transposed in [false, true] {
            bench
                .launch("planted_ldmatrix", 1, 32, 512, &[pointer(&y), Arg::I32(transposed.into())])
                .unwrap();
            let registers = bench.read::<u32>(&y, 128);
            for (i, register) in registers.iter().enumerate() {
                let (lane, matrix) = (i as u32 / 4, i as u32 % 4);
                let at =
                    |row, column| matrix * 64 + if transposed { column * 8 + row } else { row * 8 + column };
                let (row, column) = (lane / 4, lane % 4 * 2);
                assert_eq!(*register, at(row, column) | at(row, column + 1) << 16);
            }
        }
        // The last row lies outside.
        let args = [pointer(&y), Arg::I32(0)];
        if options.checked {
            assert!(
                bench.launch("planted_ldmatrix", 1, 32, 511, &args).unwrap_err().contains("out of bounds")
            );
        }
    }
}
