//! What stands in the place: where it is put, and how all but people, cars and houses is painted.

use super::canvas::*;
use super::cars::{car_across, car_along};
use super::people::{person, poster};
use super::place::{Lantern, Stage, foliage, house};
use super::{BACKGROUND, BUILDING, LAMP, PERSON, ROAD, VEGETATION};

pub(super) enum Kind {
    House(usize),
    Tree,
    Hedge,
    Lamp(usize),
    Post,
    /// A cabinet or bollard the size of a person; a warm one is a decoy in the infrared.
    Cabinet {
        warm: bool,
        label: u8,
    },
    Manhole,
    /// Seen from the side it drives across; otherwise along the road, its front or its rear towards us.
    Car {
        side: bool,
        front: bool,
        running: bool,
    },
    Person,
    /// A life-sized cardboard figure or poster at a wall: a person in the visible alone.
    Poster,
    Smoke,
}

pub(super) struct Thing {
    pub(super) kind: Kind,
    pub(super) x: f32,
    pub(super) z: f32,
    /// Where it comes in the order of painting: its far end.
    pub(super) far: f32,
    pub(super) seed: u64,
}

/// Everything in the scene from far to near.
pub(super) fn things(stage: &Stage, rng: &mut Rng) -> Vec<Thing> {
    let mut layout = Layout { stage, all: Vec::new(), cars: Vec::new(), seed: rng.next() };
    for (i, h) in stage.houses.iter().enumerate() {
        layout.put(Kind::House(i), h.side * h.wall, h.near, h.far);
    }
    for (i, l) in stage.lanterns.iter().enumerate() {
        layout.put(Kind::Lamp(i), l.x, l.z, l.z);
    }
    layout.greenery(rng);
    layout.traffic(rng);
    layout.people(rng);
    layout.clutter(rng);
    let mut all = layout.all;
    all.sort_by(|a, b| b.far.total_cmp(&a.far));
    all
}

pub(super) struct Layout<'a> {
    pub(super) stage: &'a Stage,
    pub(super) all: Vec<Thing>,
    pub(super) cars: Vec<Point>,
    pub(super) seed: u64,
}

impl Layout<'_> {
    pub(super) fn put(&mut self, kind: Kind, x: f32, z: f32, far: f32) {
        let seed = mix64(self.seed.wrapping_add(self.all.len() as u64));
        self.all.push(Thing { kind, x, z, far, seed });
    }

    /// Trees and hedges where no house stands, and along some pavements.
    pub(super) fn greenery(&mut self, rng: &mut Rng) {
        let stage = self.stage;
        for side in [-1.0, 1.0] {
            let avenue = rng.chance(0.4);
            let mut z = rng.range(7.0, 20.0);
            while z < 90.0 {
                let open =
                    !stage.houses.iter().any(|h| h.side == side && z > h.near - 2.0 && z < h.far + 1.0);
                if open {
                    let x = side * (stage.walk + rng.range(1.5, 5.0));
                    let kind = if rng.chance(0.75) { Kind::Tree } else { Kind::Hedge };
                    self.put(kind, x, z, z);
                } else if avenue {
                    self.put(Kind::Tree, side * (stage.road + 0.5), z, z);
                }
                z += rng.range(4.0, 9.0);
            }
        }
    }

    /// Claims a place for a car, unless another is too close.
    pub(super) fn claim(&mut self, x: f32, z: f32) -> bool {
        let clear = self.cars.iter().all(|c| (c[0] - x).abs() > 2.1 || (c[1] - z).abs() > 5.5);
        if clear {
            self.cars.push([x, z]);
        }
        clear
    }

    /// Cars parked on one side, cars driving in both lanes (on the right: what is on the left comes towards us),
    /// and sometimes one that crosses.
    pub(super) fn traffic(&mut self, rng: &mut Rng) {
        let road = self.stage.road;
        let side = rng.sign();
        for _ in 0..1 + rng.below(4) {
            let (x, z) = (side * (road - 1.1), rng.range(6.5, 26.0));
            if self.claim(x, z) {
                self.put(Kind::Car { side: false, front: side < 0.0, running: false }, x, z, z + 3.0);
            }
        }
        for _ in 0..1 + rng.below(3) {
            let lane = rng.sign();
            let (x, z) = (lane * 0.42 * road, rng.range(8.0, 34.0));
            if self.claim(x, z) {
                self.put(Kind::Car { side: false, front: lane < 0.0, running: true }, x, z, z + 3.0);
            }
        }
        if rng.chance(0.4) {
            let (x, z) = (rng.range(-0.8, 0.8) * road, rng.range(9.0, 20.0));
            if self.claim(x - 1.2, z) && self.claim(x + 1.2, z) {
                let running = rng.chance(0.6);
                self.put(Kind::Car { side: true, front: false, running }, x, z, z);
            }
        }
    }

    /// People on the pavements and on the road, alone and in pairs, some behind smoke.
    pub(super) fn people(&mut self, rng: &mut Rng) {
        let stage = self.stage;
        for _ in 0..3 + rng.below(5) {
            let walk = rng.range(stage.road + 0.3, stage.walk - 0.3) * rng.sign();
            let x = if rng.chance(0.6) { walk } else { rng.range(-0.9, 0.9) * stage.road };
            let u = rng.unit();
            let z = 5.0 + 20.0 * u * u.sqrt();
            if self.cars.iter().any(|c| (c[0] - x).abs() < 1.3 && z > c[1] - 0.6 && z < c[1] + 5.0) {
                continue;
            }
            self.put(Kind::Person, x, z, z);
            if rng.chance(0.25) {
                let (beside, behind) = (rng.sign() * rng.range(0.5, 0.7), z + rng.range(-0.3, 0.3));
                self.put(Kind::Person, x + beside, behind, behind);
            }
            if rng.chance(0.12) {
                self.put(Kind::Smoke, x + rng.range(-0.5, 0.5), z - 0.5, z - 0.5);
            }
        }
    }

    /// Decoys for either sensor at the walls and on the pavements, and cold odds and ends.
    pub(super) fn clutter(&mut self, rng: &mut Rng) {
        let stage = self.stage;
        for _ in 0..2 + rng.below(4) {
            let (side, z) = (rng.sign(), rng.range(6.0, 22.0));
            let wall = stage.houses.iter().find(|h| h.side == side && z > h.near + 0.5 && z < h.far - 0.5);
            let warm = rng.chance(0.7);
            match wall {
                Some(h) if rng.chance(0.55) => self.put(Kind::Poster, side * (h.wall - 0.5), z, z + 0.5),
                Some(h) => {
                    self.put(Kind::Cabinet { warm, label: BUILDING }, side * (h.wall - 0.4), z, z + 0.5);
                }
                None => {
                    let x = side * rng.range(stage.road + 0.4, stage.walk + 0.5);
                    self.put(Kind::Cabinet { warm, label: BACKGROUND }, x, z, z);
                }
            }
        }
        for _ in 0..rng.below(3) {
            let (x, z) = (rng.sign() * (stage.road + 0.5), rng.range(6.0, 30.0));
            self.put(Kind::Post, x, z, z);
        }
        for _ in 0..1 + rng.below(2) {
            let (x, z) = (rng.range(-0.7, 0.7) * stage.road, rng.range(4.5, 15.0));
            self.put(Kind::Manhole, x, z, z + 1.0);
        }
    }
}

impl Thing {
    pub(super) fn draw(&self, stage: &Stage, canvas: &mut Canvas) {
        let mut rng = Rng::new(self.seed);
        match self.kind {
            Kind::House(i) => house(stage, canvas, &stage.houses[i]),
            Kind::Lamp(i) => lamp(stage, canvas, &stage.lanterns[i]),
            Kind::Car { side: true, running, .. } => car_across(stage, canvas, self, running, &mut rng),
            Kind::Car { front, running, .. } => car_along(stage, canvas, self, front, running, &mut rng),
            Kind::Person => person(&Pen::new(stage, self, PERSON), canvas, &mut rng),
            Kind::Poster => poster(&Pen::new(stage, self, BUILDING), canvas, &mut rng),
            Kind::Tree => tree(&Pen::new(stage, self, VEGETATION), canvas, &mut rng),
            Kind::Hedge => hedge(&Pen::new(stage, self, VEGETATION), canvas, &mut rng),
            Kind::Post => post(&Pen::new(stage, self, BACKGROUND), canvas, &mut rng),
            Kind::Cabinet { warm, label } => cabinet(&Pen::new(stage, self, label), canvas, warm, &mut rng),
            Kind::Manhole => manhole(&Pen::new(stage, self, ROAD), canvas, &mut rng),
            Kind::Smoke => smoke(&Pen::new(stage, self, BACKGROUND), canvas, &mut rng),
        }
    }
}

/// Draws upright flat things at one place: offsets (to the right, up) from its foot in metres.
pub(super) struct Pen<'a> {
    pub(super) stage: &'a Stage,
    pub(super) foot: Point,
    pub(super) metre: f32,
    pub(super) z: f32,
    pub(super) light: Rgb,
    pub(super) label: u8,
}

impl<'a> Pen<'a> {
    pub(super) fn new(stage: &'a Stage, thing: &Thing, label: u8) -> Self {
        let (x, z) = (thing.x, thing.z);
        Self {
            stage,
            foot: stage.project(x, 0.0, z),
            metre: stage.focal / z,
            z,
            light: stage.light(x, z),
            label,
        }
    }

    pub(super) fn at(&self, p: Point) -> Point {
        [self.foot[0] + p[0] * self.metre, self.foot[1] - p[1] * self.metre]
    }

    pub(super) fn paint(&self, canvas: &mut Canvas, shape: &Shape, albedo: Rgb, heat: f32) {
        let light = self.stage.through(mul(albedo, self.light), self.z);
        canvas.fill(shape, self.label, |_, _| (light, heat));
    }

    pub(super) fn limb(&self, canvas: &mut Canvas, a: Point, b: Point, r: Point, albedo: Rgb, heat: f32) {
        let shape = Shape::Capsule(self.at(a), self.at(b), r[0] * self.metre, r[1] * self.metre);
        self.paint(canvas, &shape, albedo, heat);
    }

    pub(super) fn ball(&self, canvas: &mut Canvas, at: Point, r: Point, albedo: Rgb, heat: f32) {
        self.paint(canvas, &Shape::Ellipse(self.at(at), r.map(|v| v * self.metre)), albedo, heat);
    }

    pub(super) fn plate(&self, canvas: &mut Canvas, points: &[Point], albedo: Rgb, heat: f32) {
        let points: Vec<Point> = points.iter().map(|&p| self.at(p)).collect();
        self.paint(canvas, &Shape::hull(&points), albedo, heat);
    }

    /// Darkens the ground underfoot, in the visible alone.
    pub(super) fn shadow(&self, canvas: &mut Canvas, half: f32) {
        shadow(canvas, self.foot, [half * self.metre, 0.22 * half * self.metre]);
    }
}

pub(super) fn shadow(canvas: &mut Canvas, at: Point, r: Point) {
    let blob = Shape::Ellipse(at, r);
    canvas.within(blob.bounds(), |pixel, x, y| {
        let (u, v) = ((x - at[0]) / r[0].max(0.5), (y - at[1]) / r[1].max(0.5));
        let k = (1.2 * (1.0 - u * u - v * v)).clamp(0.0, 0.6);
        pixel.visible = scale(pixel.visible, 1.0 - k);
    });
}

pub(super) fn lamp(stage: &Stage, canvas: &mut Canvas, lantern: &Lantern) {
    let here = Thing { kind: Kind::Post, x: lantern.x, z: lantern.z, far: lantern.z, seed: 0 };
    let pen = Pen::new(stage, &here, LAMP);
    let inward = -lantern.x.signum();
    let (steel, heat) = (rgb(0x5c6468), stage.heat.wall - 0.04);
    pen.shadow(canvas, 0.3);
    pen.limb(canvas, [0.0, 0.0], [0.0, 5.2], [0.09, 0.06], steel, heat);
    pen.limb(canvas, [0.0, 5.2], [inward * 1.1, 5.5], [0.05, 0.05], steel, heat);
    let head = Shape::Capsule(
        pen.at([inward * 0.8, 5.45]),
        pen.at([inward * 1.4, 5.5]),
        0.12 * pen.metre,
        0.15 * pen.metre,
    );
    let on = lantern.light[0] > 0.0;
    let color = if on { scale(lantern.light, 3.0) } else { mul(rgb(0xb0b4b4), pen.light) };
    canvas.fill(&head, LAMP, |_, _| (color, if on { heat + 0.2 } else { heat }));
    if on {
        canvas.glow(pen.at([inward * 1.1, 5.4]), (2.6 * pen.metre).max(6.0), scale(lantern.light, 0.8));
    }
}

pub(super) fn tree(pen: &Pen, canvas: &mut Canvas, rng: &mut Rng) {
    let size = rng.range(0.75, 1.25);
    let bark = rgb(0x4e3f32);
    pen.shadow(canvas, 1.2 * size);
    let lean = rng.range(-0.2, 0.2);
    pen.limb(
        canvas,
        [0.0, 0.0],
        [lean, 2.8 * size],
        [0.2 * size, 0.13 * size],
        bark,
        pen.stage.heat.leaves + 0.03,
    );
    for _ in 0..3 {
        let tip = [lean + rng.range(-1.2, 1.2) * size, rng.range(3.2, 4.5) * size];
        pen.limb(
            canvas,
            [lean, 2.4 * size],
            tip,
            [0.08 * size, 0.05 * size],
            bark,
            pen.stage.heat.leaves + 0.02,
        );
    }
    let green = rgb(rng.pick(&[0x4a7434, 0x5c8040, 0x3e6438, 0x8a8438, 0x6a7c34]));
    let light = add(scale(pen.stage.ambient, 0.8), scale(pen.light, 0.5));
    for i in 0..20 {
        let (u, v) = (rng.range(-1.0, 1.0), rng.range(-1.0, 1.0));
        let at = pen.at([lean + 1.5 * u * (1.0 - 0.35 * v.abs()) * size, (4.5 + 1.4 * v) * size]);
        let r = rng.range(0.45, 0.9) * size * pen.metre;
        let shade = if i < 6 { 0.6 } else { rng.range(0.7, 1.2) };
        foliage(
            pen.stage,
            canvas,
            at,
            [1.15 * r, r],
            scale(mul(green, light), shade),
            pen.z,
            rng.next() as u32,
        );
    }
}

pub(super) fn hedge(pen: &Pen, canvas: &mut Canvas, rng: &mut Rng) {
    let green = mul(rgb(rng.pick(&[0x3e6438, 0x56702e])), pen.light);
    for i in 0..9 {
        let at = pen.at([0.5 * (i as f32 - 4.0), rng.range(0.3, 0.6)]);
        let r = rng.range(0.5, 0.75) * pen.metre;
        foliage(pen.stage, canvas, at, [r, r], green, pen.z, rng.next() as u32);
    }
}

/// A road sign or a bin: cold clutter.
pub(super) fn post(pen: &Pen, canvas: &mut Canvas, rng: &mut Rng) {
    let heat = pen.stage.heat.walk - 0.03;
    pen.shadow(canvas, 0.3);
    if rng.chance(0.6) {
        pen.limb(canvas, [0.0, 0.0], [0.0, 2.4], [0.04, 0.04], rgb(0x9a9c9c), heat);
        let face = rgb(rng.pick(&[0xc03028, 0x2858b0, 0xe0b030]));
        pen.ball(canvas, [0.0, 2.4], [0.32, 0.32], face, heat - 0.03);
        pen.ball(canvas, [0.0, 2.4], [0.22, 0.22], rgb(0xe8e8e4), heat - 0.03);
    } else {
        pen.plate(canvas, &[[-0.28, 0.0], [0.28, 0.0], [0.32, 0.9], [-0.32, 0.9]], rgb(0x3c5040), heat);
        pen.ball(canvas, [0.0, 0.92], [0.33, 0.12], rgb(0x2c3830), heat);
    }
}

pub(super) fn cabinet(pen: &Pen, canvas: &mut Canvas, warm: bool, rng: &mut Rng) {
    let stage = pen.stage;
    let body = if warm { rng.range(0.55, 0.78) } else { stage.heat.walk };
    let color = rgb(rng.pick(&[0x7c8480, 0x8c8878, 0x5c6c64, 0xa8a49c]));
    pen.shadow(canvas, 0.5);
    if rng.chance(0.5) {
        // A chimney or pillar with a rounded, hotter head: to a thermal camera, much like a person.
        let height = rng.range(1.3, 1.6);
        pen.limb(canvas, [0.0, 0.2], [0.0, height - 0.35], [0.2, 0.22], color, body);
        pen.ball(
            canvas,
            [0.0, height],
            [0.13, 0.16],
            scale(color, 1.2),
            if warm { body + 0.12 } else { body },
        );
    } else {
        let (half, height) = (rng.range(0.24, 0.4), rng.range(1.3, 1.8));
        pen.plate(canvas, &[[-half, 0.0], [half, 0.0], [half, height], [-half, height]], color, body);
        for i in 0..4 {
            let y = height * (0.55 + 0.09 * i as f32);
            pen.limb(canvas, [-0.7 * half, y], [0.7 * half, y], [0.02, 0.02], scale(color, 0.4), body + 0.05);
        }
    }
}

pub(super) fn manhole(pen: &Pen, canvas: &mut Canvas, rng: &mut Rng) {
    let heat = pen.stage.heat.road + if rng.chance(0.6) { rng.range(0.2, 0.4) } else { -0.04 };
    let flat = 0.42 * pen.stage.eye[1] / pen.z;
    pen.ball(canvas, [0.0, 0.0], [0.42, flat], rgb(0x34363a), heat);
    pen.ball(canvas, [0.0, 0.0], [0.33, 0.8 * flat], rgb(0x4a4a4c), heat);
}

/// Smoke or steam, opaque to the eye and clear to a thermal camera; the label is what is behind.
pub(super) fn smoke(pen: &Pen, canvas: &mut Canvas, rng: &mut Rng) {
    let gray = scale([0.5, 0.5, 0.52], rng.range(0.5, 1.1));
    let light = mul(gray, add(pen.light, scale(pen.stage.ambient, 0.4)));
    let (drift, key) = (rng.sign() * rng.range(0.1, 0.35), rng.next() as u32);
    for step in 0..7 {
        let rise = step as f32 * 0.32;
        let at = pen.at([drift * rise * rise + rng.range(-0.25, 0.25), 0.35 + rise]);
        let r = rng.range(0.5, 0.8) * (1.0 + 0.25 * rise) * pen.metre;
        let thick = 1.0 - 0.09 * step as f32;
        canvas.within(Shape::Ellipse(at, [r, r]).bounds(), |pixel, x, y| {
            let (u, v) = ((x - at[0]) / r, (y - at[1]) / r);
            let puff = fractal(key, x / r * 2.2, y / r * 2.2, 3);
            let edge = (1.0 - u * u - v * v).max(0.0);
            let dense = (edge * (0.25 + 1.9 * puff)).clamp(0.0, 0.9) * thick;
            pixel.visible = blend(pixel.visible, scale(light, 0.6 + 0.8 * puff), dense);
        });
    }
}
