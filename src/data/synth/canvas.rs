//! What pictures are painted with: random numbers, noise, colours, shapes, and the canvas itself.

use rayon::prelude::*;

use super::BACKGROUND;

/// The finaliser of splitmix64.
#[inline]
pub(super) fn mix64(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// splitmix64: value number n is a function of key and n.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(key: u64) -> Self {
        Self(mix64(key ^ 0x9e37_79b9_7f4a_7c15))
    }

    #[inline]
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.0)
    }

    pub(super) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    pub(super) fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(super) fn chance(&mut self, p: f32) -> bool {
        self.unit() < p
    }

    pub(super) fn sign(&mut self) -> f32 {
        if self.chance(0.5) { 1.0 } else { -1.0 }
    }

    pub(super) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Nearly normal, from the four 16-bit parts of one number: good enough for sensor noise and fast.
    #[inline]
    pub(super) fn normal(&mut self) -> f32 {
        let n = self.next();
        let sum = (n & 0xffff) + ((n >> 16) & 0xffff) + ((n >> 32) & 0xffff) + (n >> 48);
        (sum as f32 / 65536.0 - 2.0) * 1.732
    }
}

/// A value in [0, 1) for a lattice point.
#[inline]
pub(super) fn lattice(key: u32, x: i32, y: i32) -> f32 {
    let h = key ^ (x as u32).wrapping_mul(0x85eb_ca6b) ^ (y as u32).wrapping_mul(0xc2b2_ae35);
    let h = (h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d);
    ((h ^ (h >> 13)) & 0xff_ffff) as f32 / (1 << 24) as f32
}

/// `f32::floor` is a call into the C library on plain x86-64, and this is asked for at every pixel.
#[inline]
pub(super) fn floor(x: f32) -> i32 {
    let i = x as i32;
    i - i32::from(x < i as f32)
}

/// What is left of `x` above the whole number below it.
#[inline]
pub(super) fn fraction(x: f32) -> f32 {
    x - floor(x) as f32
}

/// Smooth noise in [0, 1) with features of size 1.
#[inline]
pub(super) fn noise(key: u32, x: f32, y: f32) -> f32 {
    let (ix, iy) = (floor(x), floor(y));
    let ease = |t: f32| t * t * (3.0 - 2.0 * t);
    let (u, v) = (ease(x - ix as f32), ease(y - iy as f32));
    let row = |j: i32| {
        let (a, b) = (lattice(key, ix, j), lattice(key, ix.wrapping_add(1), j));
        a + (b - a) * u
    };
    let (top, bottom) = (row(iy), row(iy.wrapping_add(1)));
    top + (bottom - top) * v
}

/// Noise of `octaves` sizes in [0, 1): clouds, smoke, foliage.
#[inline]
pub(super) fn fractal(key: u32, x: f32, y: f32, octaves: u32) -> f32 {
    let (mut sum, mut weight, mut scale) = (0.0, 0.5, 1.0);
    for octave in 0..octaves {
        sum += weight * noise(key.wrapping_add(octave * 7919), x * scale, y * scale);
        weight *= 0.5;
        scale *= 2.0;
    }
    sum / (1.0 - 2.0 * weight)
}

/// Linear light: red, green, blue.
pub(super) type Rgb = [f32; 3];

/// A colour as pictures store it, in linear light (gamma 2).
pub(super) fn rgb(hex: u32) -> Rgb {
    [16, 8, 0].map(|shift| {
        let v = ((hex >> shift) & 255) as f32 / 255.0;
        v * v
    })
}

#[inline]
pub(super) fn scale(c: Rgb, k: f32) -> Rgb {
    c.map(|v| v * k)
}

#[inline]
pub(super) fn add(a: Rgb, b: Rgb) -> Rgb {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

#[inline]
pub(super) fn mul(a: Rgb, b: Rgb) -> Rgb {
    [a[0] * b[0], a[1] * b[1], a[2] * b[2]]
}

#[inline]
pub(super) fn blend(a: Rgb, b: Rgb, t: f32) -> Rgb {
    [0, 1, 2].map(|i| a[i] + (b[i] - a[i]) * t)
}

/// 1 between `low` and `high`, 0 outside, edges softened over `soft`.
#[inline]
pub(super) fn band(x: f32, low: f32, high: f32, soft: f32) -> f32 {
    let sharp = 1.0 / soft.max(1e-3);
    ((x - low) * sharp + 0.5).clamp(0.0, 1.0) * ((high - x) * sharp + 0.5).clamp(0.0, 1.0)
}

/// Across and down in pixels, or across and up in metres.
pub(super) type Point = [f32; 2];

/// A shape by its signed distance, which gives antialiased edges and exact labels alike.
pub(super) enum Shape {
    /// Half planes (normal, offset) and the box around them.
    Convex(Vec<[f32; 3]>, [f32; 4]),
    Ellipse(Point, Point),
    /// A segment whose radius changes from one end to the other.
    Capsule(Point, Point, f32, f32),
}

impl Shape {
    /// The convex hull of points in any order.
    pub(super) fn hull(points: &[Point]) -> Self {
        let mut sorted = points.to_vec();
        sorted.sort_by(|a, b| a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1])));
        let turn =
            |a: Point, b: Point, c: Point| (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
        let chain = |points: &mut dyn Iterator<Item = Point>| {
            let mut chain: Vec<Point> = Vec::new();
            for p in points {
                while chain.len() > 1 && turn(chain[chain.len() - 2], chain[chain.len() - 1], p) <= 0.0 {
                    chain.pop();
                }
                chain.push(p);
            }
            chain.pop();
            chain
        };
        let mut corners = chain(&mut sorted.iter().copied());
        corners.extend(chain(&mut sorted.iter().rev().copied()));
        let mut around = [f32::MAX, f32::MAX, f32::MIN, f32::MIN];
        for p in &corners {
            around = [around[0].min(p[0]), around[1].min(p[1]), around[2].max(p[0]), around[3].max(p[1])];
        }
        let planes = (0..corners.len()).filter_map(|i| {
            let (a, b) = (corners[i], corners[(i + 1) % corners.len()]);
            let (nx, ny) = (b[1] - a[1], a[0] - b[0]);
            let length = (nx * nx + ny * ny).sqrt();
            (length > 1e-6).then(|| [nx / length, ny / length, -(nx * a[0] + ny * a[1]) / length])
        });
        Self::Convex(planes.collect(), around)
    }

    pub(super) fn bounds(&self) -> [f32; 4] {
        match self {
            Self::Convex(_, around) => *around,
            Self::Ellipse(c, r) => [c[0] - r[0], c[1] - r[1], c[0] + r[0], c[1] + r[1]],
            Self::Capsule(a, b, ra, rb) => {
                let r = ra.max(*rb);
                [a[0].min(b[0]) - r, a[1].min(b[1]) - r, a[0].max(b[0]) + r, a[1].max(b[1]) + r]
            }
        }
    }

    #[inline]
    pub(super) fn distance(&self, x: f32, y: f32) -> f32 {
        match self {
            Self::Convex(planes, _) => {
                planes.iter().map(|[nx, ny, c]| nx * x + ny * y + c).fold(f32::MIN, f32::max)
            }
            Self::Ellipse(c, r) => {
                let (u, v) = ((x - c[0]) / r[0].max(0.3), (y - c[1]) / r[1].max(0.3));
                ((u * u + v * v).sqrt() - 1.0) * r[0].min(r[1]).max(0.3)
            }
            Self::Capsule(a, b, ra, rb) => {
                let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
                let t = ((x - a[0]) * dx + (y - a[1]) * dy) / (dx * dx + dy * dy).max(1e-6);
                let t = t.clamp(0.0, 1.0);
                let (ex, ey) = (x - a[0] - t * dx, y - a[1] - t * dy);
                (ex * ex + ey * ey).sqrt() - (ra + t * (rb - ra)).max(0.35)
            }
        }
    }
}

/// What both sensors see at one place, and its class.
#[derive(Clone, Copy)]
pub(super) struct Pixel {
    pub(super) visible: Rgb,
    pub(super) infrared: f32,
    pub(super) label: u8,
}

pub(super) struct Canvas {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<Pixel>,
}

impl Canvas {
    pub(super) fn new(width: usize, height: usize) -> Self {
        let blank = Pixel { visible: [0.0; 3], infrared: 0.0, label: BACKGROUND };
        Self { width, height, pixels: vec![blank; width * height] }
    }

    /// Calls `f` with each pixel in a box and its centre.
    pub(super) fn within(&mut self, around: [f32; 4], f: impl Fn(&mut Pixel, f32, f32) + Sync) {
        // Float to integer casts saturate, so boxes far outside the picture come out empty.
        let (left, top) = ((around[0] - 1.0).max(0.0) as usize, (around[1] - 1.0).max(0.0) as usize);
        let right = ((around[2] + 2.0).max(0.0) as usize).min(self.width);
        let bottom = ((around[3] + 2.0).max(0.0) as usize).min(self.height);
        if left >= right || top >= bottom {
            return;
        }
        let row = |y: usize, pixels: &mut [Pixel]| {
            for (x, pixel) in (left..right).zip(&mut pixels[left..right]) {
                f(pixel, x as f32 + 0.5, y as f32 + 0.5);
            }
        };
        let rows = &mut self.pixels[top * self.width..bottom * self.width];
        // Sky, ground and near walls are most of the work; for the rest threads cost more than they save.
        if (right - left) * (bottom - top) < 8192 {
            rows.chunks_mut(self.width).enumerate().for_each(|(i, pixels)| row(top + i, pixels));
        } else {
            let rows = rows.par_chunks_mut(self.width).with_min_len(8).enumerate();
            rows.for_each(|(i, pixels)| row(top + i, pixels));
        }
    }

    /// Paints a shape: `paint` gives the light and the temperature at a pixel's centre.
    pub(super) fn fill(&mut self, shape: &Shape, label: u8, paint: impl Fn(f32, f32) -> (Rgb, f32) + Sync) {
        self.within(shape.bounds(), |pixel, x, y| {
            let distance = shape.distance(x, y);
            if distance < 0.5 {
                let cover = (0.5 - distance).min(1.0);
                let (light, heat) = paint(x, y);
                pixel.visible = blend(pixel.visible, light, cover);
                pixel.infrared += (heat - pixel.infrared) * cover;
                if cover >= 0.5 {
                    pixel.label = label;
                }
            }
        });
    }

    /// Adds light around a source, in the visible alone: a halo that falls to nothing at `radius`.
    pub(super) fn glow(&mut self, at: Point, radius: f32, light: Rgb) {
        let around = Shape::Ellipse(at, [radius, radius]).bounds();
        self.within(around, |pixel, x, y| {
            let d2 = ((x - at[0]) * (x - at[0]) + (y - at[1]) * (y - at[1])) / (radius * radius);
            if d2 < 1.0 {
                let k = (1.0 - d2) * (1.0 - d2) / (1.0 + 30.0 * d2);
                pixel.visible = add(pixel.visible, scale(light, k));
            }
        });
    }
}
