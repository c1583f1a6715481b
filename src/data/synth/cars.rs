//! Cars, along the road and across it.

use super::CAR;
use super::canvas::*;
use super::place::Stage;
use super::things::{Pen, Thing, shadow};

/// The paint and temperatures of a car.
pub(super) struct Finish {
    pub(super) paint: Rgb,
    pub(super) body: f32,
    pub(super) glass: f32,
    pub(super) tyre: f32,
    pub(super) engine: f32,
    pub(super) lights: bool,
}

impl Finish {
    pub(super) fn new(stage: &Stage, running: bool, rng: &mut Rng) -> Self {
        const COLORS: [u32; 8] =
            [0xb82c28, 0x2850a0, 0xd8d8d4, 0x404448, 0xa8acb0, 0x2c6c48, 0xd0a83c, 0x70241c];
        let ambient = stage.heat.road + rng.range(-0.02, 0.02);
        let warm = |low, high, rng: &mut Rng| if running { rng.range(low, high) } else { ambient };
        Self {
            paint: rgb(rng.pick(&COLORS)),
            body: ambient + if running { 0.06 } else { 0.0 },
            glass: ambient - if running { 0.06 } else { 0.015 },
            tyre: warm(0.45, 0.6, rng),
            engine: warm(0.55, 0.75, rng),
            lights: running && (stage.night || rng.chance(0.25)),
        }
    }
}

/// A car that drives or parks along the road: a box with a cabin, its front or rear towards us at `z`.
pub(super) fn car_along(
    stage: &Stage,
    canvas: &mut Canvas,
    car: &Thing,
    front: bool,
    running: bool,
    rng: &mut Rng,
) {
    let finish = Finish::new(stage, running, rng);
    let pen = Pen::new(stage, car, CAR);
    let tall = rng.range(1.4, 1.75);
    let length = rng.range(3.8, 4.5);
    let at = |x: f32, y: f32, z: f32| stage.project(car.x + x, y, car.z + z);
    let paint = |k: f32| scale(finish.paint, k);
    // The side that shows is the one towards the middle of the view.
    let seen = if car.x > stage.eye[0] { -1.0 } else { 1.0 };
    let boxed = |half: f32, low: f32, high: f32, near: f32, far: f32| {
        let mut points = Vec::new();
        for x in [-half, half] {
            points.extend([at(x, low, near), at(x, high, near), at(x, low, far), at(x, high, far)]);
        }
        points
    };
    let under = at(0.0, 0.0, 0.6);
    shadow(canvas, under, [1.25 * pen.metre, 0.35 * pen.metre]);
    let roof =
        [at(-0.6, tall, 1.2), at(0.6, tall, 1.2), at(-0.6, tall, length - 1.0), at(0.6, tall, length - 1.0)];
    let bonnet = if front { 1.0 } else { 0.45 };
    // Wheels first: the body hides their upper halves.
    for z in [0.8, length - 0.8] {
        let hub = at(seen * 0.82, 0.32, z);
        let wide = (at(seen * 0.82, 0.3, z - 0.33)[0] - at(seen * 0.82, 0.3, z + 0.33)[0]).abs() / 2.0;
        let r = 0.33 * stage.focal / (car.z + z);
        pen.paint(canvas, &Shape::Ellipse(hub, [wide.max(0.12 * r), r]), rgb(0x1c1c1e), finish.tyre);
    }
    for x in [-0.7, 0.7] {
        pen.limb(canvas, [x, 0.12], [x, 0.4], [0.12, 0.12], rgb(0x161618), finish.tyre);
    }
    pen.paint(canvas, &Shape::hull(&boxed(0.86, 0.3, 0.9, 0.05, length)), paint(0.55), finish.body);
    let flank = [
        at(seen * 0.86, 0.3, 0.5),
        at(seen * 0.86, 0.8, 0.5),
        at(seen * 0.86, 0.3, 1.3),
        at(seen * 0.86, 0.8, 1.3),
    ];
    if front {
        let heat = finish.body + 0.5 * (finish.engine - finish.body);
        pen.paint(canvas, &Shape::hull(&flank), paint(0.55), heat);
    }
    let mut cabin = roof.to_vec();
    cabin.extend([
        at(-0.8, 0.9, bonnet),
        at(0.8, 0.9, bonnet),
        at(-0.8, 0.9, length - 0.4),
        at(0.8, 0.9, length - 0.4),
    ]);
    pen.paint(canvas, &Shape::hull(&cabin), paint(0.75), finish.body);
    let glass = rgb(0x28323a);
    let side = [
        at(seen * 0.79, 0.95, bonnet + 0.5),
        at(seen * 0.64, tall - 0.1, 1.4),
        at(seen * 0.64, tall - 0.1, length - 1.2),
        at(seen * 0.79, 0.95, length - 0.8),
    ];
    pen.paint(canvas, &Shape::hull(&side), glass, finish.glass);
    let screen = [
        at(-0.7, 0.94, bonnet + 0.05),
        at(0.7, 0.94, bonnet + 0.05),
        at(-0.54, tall - 0.07, 1.15),
        at(0.54, tall - 0.07, 1.15),
    ];
    pen.paint(canvas, &Shape::hull(&screen), scale(glass, 1.3), finish.glass);
    let hood = [at(-0.82, 0.78, 0.0), at(0.82, 0.78, 0.0), at(-0.76, 0.93, bonnet), at(0.76, 0.93, bonnet)];
    pen.paint(
        canvas,
        &Shape::hull(&hood),
        paint(1.15),
        if front { finish.engine - 0.05 } else { finish.body },
    );
    let face = [
        [-0.86, 0.34],
        [0.86, 0.34],
        [0.88, 0.6],
        [0.82, 0.8],
        [-0.82, 0.8],
        [-0.88, 0.6],
        [-0.78, 0.24],
        [0.78, 0.24],
    ];
    let warm = finish.body + if front { 0.6 * (finish.engine - finish.body) } else { 0.0 };
    pen.plate(canvas, &face, finish.paint, warm);
    if front {
        pen.plate(
            canvas,
            &[[-0.42, 0.38], [0.42, 0.38], [0.46, 0.62], [-0.46, 0.62]],
            rgb(0x141416),
            finish.engine,
        );
    } else {
        pen.plate(
            canvas,
            &[[-0.8, 0.24], [0.8, 0.24], [0.8, 0.36], [-0.8, 0.36]],
            rgb(0x202022),
            finish.body,
        );
        pen.ball(canvas, [0.5, 0.22], [0.13, 0.1], rgb(0x303030), if running { 0.85 } else { finish.body });
    }
    pen.plate(
        canvas,
        &[[-0.24, 0.42], [0.24, 0.42], [0.24, 0.53], [-0.24, 0.53]],
        rgb(0xe0e0d8),
        finish.body,
    );
    for x in [-0.64, 0.64] {
        headlight(&pen, canvas, [x, 0.68], front, &finish);
    }
}

/// A head- or taillight with its glare.
pub(super) fn headlight(pen: &Pen, canvas: &mut Canvas, at: Point, front: bool, finish: &Finish) {
    let off = if front { rgb(0xc8ccd0) } else { rgb(0x8c1c18) };
    pen.ball(canvas, at, [0.17, 0.1], off, finish.body);
    if !finish.lights {
        return;
    }
    let light = if front { [1.0, 0.96, 0.85] } else { [0.8, 0.04, 0.03] };
    let lens = Shape::Ellipse(pen.at(at), [0.15 * pen.metre, 0.09 * pen.metre]);
    canvas.fill(&lens, CAR, |_, _| (scale(light, 1.2), finish.body + 0.05));
    let (radius, strength) = match (pen.stage.night, front) {
        (true, true) => (2.6, 1.1),
        (true, false) => (0.9, 0.5),
        (false, _) => (0.4, 0.3),
    };
    canvas.glow(pen.at(at), (radius * pen.metre).max(4.0), scale(light, strength));
}

/// A car that crosses the road, seen from its side.
pub(super) fn car_across(stage: &Stage, canvas: &mut Canvas, car: &Thing, running: bool, rng: &mut Rng) {
    let finish = Finish::new(stage, running, rng);
    let pen = Pen::new(stage, car, CAR);
    let ahead = rng.sign();
    let part = |points: &[Point]| points.iter().map(|p| [ahead * p[0], p[1]]).collect::<Vec<Point>>();
    shadow(canvas, pen.at([0.0, 0.05]), [2.4 * pen.metre, 0.3 * pen.metre]);
    let roof = rng.range(1.4, 1.65);
    let cabin = part(&[[-1.75, 0.85], [-1.2, roof], [0.35, roof], [1.1, 0.85]]);
    pen.plate(canvas, &cabin, scale(finish.paint, 0.8), finish.body);
    let body = part(&[
        [-2.15, 0.35],
        [-2.15, 0.75],
        [-1.9, 0.95],
        [1.1, 0.95],
        [2.0, 0.78],
        [2.2, 0.55],
        [2.15, 0.28],
        [-2.0, 0.28],
    ]);
    pen.plate(canvas, &body, finish.paint, finish.body);
    pen.plate(
        canvas,
        &part(&[[1.1, 0.5], [1.1, 0.93], [2.0, 0.76], [2.15, 0.5]]),
        finish.paint,
        finish.engine,
    );
    let (glass, high) = (rgb(0x28323a), roof - 0.1);
    pen.plate(canvas, &part(&[[-1.45, 0.92], [-1.1, high], [-0.4, high], [-0.4, 0.92]]), glass, finish.glass);
    pen.plate(canvas, &part(&[[-0.3, 0.92], [-0.3, high], [0.3, high], [0.85, 0.92]]), glass, finish.glass);
    pen.limb(canvas, [-2.0 * ahead, 0.3], [2.0 * ahead, 0.3], [0.06, 0.06], rgb(0x202022), finish.body);
    for x in [-1.35, 1.35] {
        pen.ball(canvas, [ahead * x, 0.34], [0.36, 0.36], rgb(0x161618), finish.tyre);
        pen.ball(
            canvas,
            [ahead * x, 0.34],
            [0.2, 0.2],
            rgb(0x90949a),
            finish.tyre + if running { 0.08 } else { 0.0 },
        );
    }
    headlight(&pen, canvas, [2.05 * ahead, 0.64], true, &finish);
    pen.ball(canvas, [-2.1 * ahead, 0.68], [0.08, 0.1], rgb(0xa01c18), finish.body);
}
