//! People, and what only looks like them.

use super::canvas::*;
use super::things::Pen;

/// Someone standing or walking, along the road or across it.
pub(super) struct Figure {
    pub(super) tall: f32,
    pub(super) across: f32,
    pub(super) stride: f32,
    pub(super) coat: bool,
    pub(super) bag: bool,
    pub(super) skin: Rgb,
    pub(super) hair: Rgb,
    pub(super) upper: Rgb,
    pub(super) lower: Rgb,
    /// Face, upper body, legs, bag.
    pub(super) heat: [f32; 4],
}

impl Figure {
    pub(super) fn new(rng: &mut Rng, dark: f32) -> Self {
        const DARK: [u32; 5] = [0x181a20, 0x20242e, 0x28221e, 0x1a2028, 0x2c2c30];
        const BRIGHT: [u32; 8] =
            [0xb03030, 0x3058a0, 0xd8d4c8, 0xc8a040, 0x588860, 0x7c6ca0, 0x606870, 0xd07848];
        let dark = rng.chance(dark);
        let (fever, coat) = (rng.range(-0.05, 0.08), rng.chance(0.3));
        let upper = if coat { rng.range(0.52, 0.6) } else { rng.range(0.58, 0.74) };
        Self {
            tall: if rng.chance(0.12) { rng.range(0.65, 0.8) } else { rng.range(0.9, 1.08) },
            across: if rng.chance(0.5) { rng.sign() } else { 0.0 },
            stride: if rng.chance(0.75) { rng.range(0.3, 1.0) * rng.sign() } else { 0.1 },
            coat,
            bag: rng.chance(0.25),
            skin: rgb(rng.pick(&[0xd8a888, 0xb88060, 0x7c5440, 0xe0b89c])),
            hair: rgb(rng.pick(&[0x1c1814, 0x3c2c1c, 0x6c5438, 0x8c8880])),
            upper: rgb(if dark { rng.pick(&DARK) } else { rng.pick(&BRIGHT) }),
            lower: rgb(if dark || rng.chance(0.5) {
                rng.pick(&DARK)
            } else {
                rng.pick(&[0x303c58, 0x6c6458, 0x48484c])
            }),
            heat: [0.86, upper, rng.range(0.55, 0.68), 0.3].map(|t| t + fever),
        }
    }

    pub(super) fn draw(&self, pen: &Pen, canvas: &mut Canvas) {
        let up = |x: f32, y: f32| [x * self.tall, y * self.tall];
        let thick = |a: f32, b: f32| [a * self.tall, b * self.tall];
        let [face, chest, legs, bag] = self.heat;
        // Seen from the side steps are wide and shoulders narrow.
        let walks = self.across != 0.0;
        let (step, shoulder) = if walks { (0.3 * self.stride, 0.06) } else { (0.05 * self.stride, 0.2) };
        let hip = if walks { 0.03 } else { 0.09 };
        for (side, shade) in [(-1.0, 0.75), (1.0, 1.0)] {
            let color = scale(self.lower, shade);
            let lift = if walks { 0.0 } else { 0.05 * (self.stride * side).max(0.0) };
            let bend = 0.06 * self.across * step.abs();
            let knee = up(side * (hip + 0.45 * step.abs()) + bend, 0.48 + lift);
            let foot = up(side * (hip + step.abs()), 0.06 + lift);
            pen.limb(canvas, up(side * hip, 0.88), knee, thick(0.095, 0.075), color, legs);
            pen.limb(canvas, knee, foot, thick(0.07, 0.05), color, legs - 0.03);
            let toe = [foot[0] + 0.1 * self.across, foot[1] - 0.02];
            pen.limb(canvas, foot, toe, thick(0.05, 0.045), scale(self.hair, 0.8), legs - 0.18);
        }
        let swing = |side: f32| if walks { -side * 0.28 * self.stride } else { side * 0.09 };
        let arm = |canvas: &mut Canvas, side: f32, shade: f32| {
            let joint = up(side * shoulder, 1.38);
            let elbow = up(side * shoulder + 0.5 * swing(side) + 0.03 * side, 1.12);
            let hand = up(side * shoulder + swing(side) + 0.06 * self.across, 0.88);
            pen.limb(canvas, joint, elbow, thick(0.06, 0.05), scale(self.upper, shade), chest - 0.02);
            pen.limb(canvas, elbow, hand, thick(0.05, 0.04), scale(self.upper, shade), chest - 0.02);
            pen.ball(canvas, hand, thick(0.05, 0.05), self.skin, face - 0.06);
        };
        arm(canvas, -1.0, 0.7);
        let (wide, waist) = if walks { (0.13, 0.12) } else { (0.21, 0.15) };
        let hem = if self.coat { 0.6 } else { 0.86 };
        let flare = if self.coat { 1.25 } else { 1.0 };
        let torso = [
            up(-wide, 1.38),
            up(-0.6 * wide, 1.46),
            up(0.6 * wide, 1.46),
            up(wide, 1.38),
            up(waist * flare, hem),
            up(-waist * flare, hem),
        ];
        pen.plate(canvas, &torso, self.upper, chest);
        arm(canvas, 1.0, 0.9);
        if self.bag {
            let x = if walks { -self.across * 0.17 } else { 0.2 };
            pen.ball(canvas, up(x, 1.15), thick(0.1, 0.2), scale(self.upper, 0.4), bag);
        }
        pen.limb(
            canvas,
            up(0.0, 1.45),
            up(0.0, 1.52),
            thick(0.055, 0.055),
            scale(self.skin, 0.8),
            face - 0.04,
        );
        pen.ball(canvas, up(-0.015 * self.across, 1.645), thick(0.115, 0.135), self.hair, face - 0.14);
        pen.ball(canvas, up(0.03 * self.across, 1.61), thick(0.09, 0.115), self.skin, face);
    }
}

pub(super) fn person(pen: &Pen, canvas: &mut Canvas, rng: &mut Rng) {
    let dark = if pen.stage.night { 0.75 } else { 0.4 };
    pen.shadow(canvas, 0.45);
    Figure::new(rng, dark).draw(pen, canvas);
}

/// The same figures as real people, as cold as the wall behind them.
pub(super) fn poster(pen: &Pen, canvas: &mut Canvas, rng: &mut Rng) {
    let wall = pen.stage.heat.wall;
    let mut figure = Figure::new(rng, 0.4);
    figure.heat = [0.0, 0.01, -0.01, 0.0].map(|t| wall + t);
    if rng.chance(0.5) {
        let paper = rgb(rng.pick(&[0xd8d0b8, 0xa8c0d0, 0xd0a8a0]));
        pen.plate(canvas, &[[-0.5, 0.0], [0.5, 0.0], [0.5, 2.0], [-0.5, 2.0]], paper, wall - 0.01);
    } else {
        pen.shadow(canvas, 0.4);
    }
    figure.draw(pen, canvas);
}
