//! Random numbers by counting: Philox4x32-10.
//!
//! Every number is a function of (seed, stream, index) alone, so a mask is the same on any number of threads and on
//! any device, and a run that resumes needs no generator state. Source: Salmon et al., "Parallel random numbers: as
//! easy as 1, 2, 3", SC 2011.

use rayon::prelude::*;

/// Philox4x32-10: four random words for each `counter` under each `key`.
#[inline(always)]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [c0, c1, c2, c3] = counter;
        let (p0, p1) = (u64::from(c0) * 0xD251_1F53, u64::from(c2) * 0xCD9E_8D57);
        counter = [(p1 >> 32) as u32 ^ c1 ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ c3 ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// A number in [0, 1) from the upper 24 bits of a random word: every value is exact in f32.
#[inline(always)]
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// Two independent standard normal numbers from two random words (Box and Muller).
fn normal_pair(a: u32, b: u32) -> [f32; 2] {
    // 1 − u is in (0, 1], so the logarithm is finite; the largest magnitude is √(−2·ln 2⁻²⁴) = 5.8.
    let radius = (-2.0 * f64::from(1.0 - unit(a)).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * f64::from(unit(b))).sin_cos();
    [(radius * cos) as f32, (radius * sin) as f32]
}

/// One of 2⁶⁴ independent sequences of a seed. Word i is lane i mod 4 of the counter i / 4.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    seed: u64,
    stream: u64,
}

impl Stream {
    /// The sequence `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream }
    }

    /// Words 4·`index` … 4·`index` + 3.
    #[inline(always)]
    pub fn block(&self, index: u64) -> [u32; 4] {
        let (i, s, k) = (index, self.stream, self.seed);
        philox([i as u32, (i >> 32) as u32, s as u32, (s >> 32) as u32], [k as u32, (k >> 32) as u32])
    }

    /// Word `index`.
    #[inline(always)]
    pub fn word(&self, index: u64) -> u32 {
        self.block(index / 4)[(index % 4) as usize]
    }

    /// The number in [0, 1) made of word `index`.
    #[inline(always)]
    pub fn uniform(&self, index: u64) -> f32 {
        unit(self.word(index))
    }

    /// Fills `out` with normal numbers of mean 0: element i depends on (seed, stream, i) alone. In parallel.
    ///
    /// None is more than 5.8 `std` from 0, so for `std` up to 0.3 this is also the normal distribution truncated to
    /// [−2, 2], PyTorch's `trunc_normal_` with its default bounds.
    pub fn fill_normal(&self, out: &mut [f32], std: f32) {
        const CHUNK: usize = 4096;
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
            for (i, out) in out.chunks_mut(4).enumerate() {
                let [a, b, c, d] = self.block((chunk * CHUNK / 4 + i) as u64);
                let ([a, b], [c, d]) = (normal_pair(a, b), normal_pair(c, d));
                for (y, x) in out.iter_mut().zip([a, b, c, d]) {
                    *y = x * std;
                }
            }
        });
    }
}

/// Draws the numbers of a [`Stream`] one after the other.
#[derive(Clone, Debug)]
pub struct Philox {
    stream: Stream,
    next: u64,
    block: [u32; 4],
}

impl Philox {
    /// Starts at the beginning of the sequence `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { stream: Stream::new(seed, stream), next: 0, block: [0; 4] }
    }

    /// A random word.
    pub fn u32(&mut self) -> u32 {
        let lane = (self.next % 4) as usize;
        if lane == 0 {
            self.block = self.stream.block(self.next / 4);
        }
        self.next += 1;
        self.block[lane]
    }

    /// Two random words.
    pub fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    /// Uniform in [0, 1), of 24 bits.
    pub fn f32(&mut self) -> f32 {
        unit(self.u32())
    }

    /// Uniform in 0 … `n` − 1; 0 when `n` is 0. No value is favoured by more than n / 2⁶⁴.
    pub fn range(&mut self, n: usize) -> usize {
        ((u128::from(self.u64()) * n as u128) >> 64) as usize
    }

    /// Puts `items` in random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.range(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        // philox4x32 with 10 rounds, from kat_vectors in the Random123 distribution.
        for (counter, key, want) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), want);
        }
    }

    #[test]
    fn drawing_in_order_and_by_index_agree() {
        let (stream, mut draw) = (Stream::new(7 << 40 | 3, 5), Philox::new(7 << 40 | 3, 5));
        for i in 0..11 {
            assert_eq!(draw.u32(), stream.word(i));
        }
        assert_ne!(Stream::new(1, 2).word(0), Stream::new(2, 1).word(0));
        assert_ne!(Stream::new(0, 1 << 32).word(0), Stream::new(0, 0).word(0));
    }

    #[test]
    fn distributions_have_their_moments() {
        let mut draw = Philox::new(1, 0);
        let n = 100_000;
        let mean = |f: &mut dyn FnMut() -> f64| (0..n).map(|_| f()).sum::<f64>() / f64::from(n);
        assert!((mean(&mut || f64::from(draw.f32())) - 0.5).abs() < 0.005);
        let mut counts = [0; 7];
        (0..70_000).for_each(|_| counts[draw.range(7)] += 1);
        assert!(counts.iter().all(|c| (9_500..10_500).contains(c)), "{counts:?}");
        assert_eq!(draw.range(0), 0);
        assert!((0..1000).all(|_| draw.f32() < 1.0));

        let mut filled = vec![0.0; 10_001];
        Stream::new(1, 1).fill_normal(&mut filled, 0.02);
        assert!(filled.iter().map(|&x| f64::from(x)).sum::<f64>().abs() / 10_001.0 < 0.001);
        let square = filled.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 10_001.0;
        assert!((square.sqrt() - 0.02).abs() < 0.0005);
        let mut start = vec![0.0; 6];
        Stream::new(1, 1).fill_normal(&mut start, 0.02);
        assert_eq!(start, filled[..6]);
    }

    #[test]
    fn shuffling_keeps_every_item() {
        let mut items: Vec<u32> = (0..50).collect();
        Philox::new(3, 0).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
