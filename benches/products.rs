//! The engine's products beside the `gemm` crate's, on one thread, at the network's shapes: `cargo bench --bench products`.

use std::time::Instant;

use amdanet::cpu::matmul::{Matrix, Write, product as gemm};
use amdanet::infer::product::{Finish, Grid, Instructions, Packed, product};

/// Rows that the engine multiplies at once.
const ROWS: usize = 96;

fn best(mut f: impl FnMut()) -> f64 {
    (0..15)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn main() {
    println!("{:>6} {:>5} {:>5}  {:>22} {:>10}", "m", "k", "n", "engine GFLOP/s", "gemm");
    let shapes = [
        (1200, 320, 1280),
        (1200, 1280, 320),
        (1200, 320, 320),
        (300, 1280, 320),
        (300, 320, 640),
        (1200, 64, 300),
        (1200, 300, 64),
        (4800, 128, 512),
        (4800, 512, 128),
        (4800, 128, 128),
        (19200, 64, 256),
        (19200, 256, 64),
        (19200, 64, 64),
        (300, 512, 2048),
        (300, 2048, 512),
        (300, 4096, 64),
        (19200, 64, 512),
    ];
    for (m, k, n) in shapes {
        let a: Vec<f32> = (0..m * k).map(|i| (i % 17) as f32 * 0.1).collect();
        let w: Vec<f32> = (0..n * k).map(|i| (i % 13) as f32 * 0.1).collect();
        let packed = Packed::new(&w, k, n, None);
        let stride = n.next_multiple_of(32);
        let mut c = vec![0.0f32; m * stride];
        let gflop = 2e-9 * (m * n * k) as f64;
        let mut line = format!("{m:>6} {k:>5} {n:>5}  ");
        for instructions in Instructions::available() {
            let time = best(|| {
                for (a, c) in a.chunks(ROWS * k).zip(c.chunks_mut(ROWS * stride)) {
                    let grids = (Grid::rows(k), Grid::rows(stride));
                    product(
                        instructions,
                        a.len() / k,
                        (a, grids.0),
                        packed.view(),
                        (c, grids.1),
                        Finish::default(),
                    );
                }
            });
            line += &format!(" {instructions:?} {:.1}", gflop / time);
        }
        let time = best(|| {
            gemm(&mut c, stride, (m, n, k), Matrix::rows(&a, k), Matrix::rows(&w, k).t(), 1.0, Write::Assign);
        });
        println!("{line}   gemm {:.1}", gflop / time);
    }
}
