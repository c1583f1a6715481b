//! The place: camera, light, temperatures, sky, ground and houses. Metres; x to the right, y up, z ahead; the road
//! is |x| < `road`.

use super::canvas::*;
use super::{BUILDING, ROAD, SKY, VEGETATION};

/// Temperatures of a scene's surroundings on the infrared picture's scale from 0 to 1.
pub(super) struct Heat {
    pub(super) sky: f32,
    pub(super) road: f32,
    pub(super) walk: f32,
    pub(super) grass: f32,
    pub(super) wall: f32,
    pub(super) leaves: f32,
}

pub(super) struct Lantern {
    pub(super) x: f32,
    pub(super) z: f32,
    pub(super) light: Rgb,
}

pub(super) struct House {
    pub(super) side: f32,
    pub(super) wall: f32,
    pub(super) near: f32,
    pub(super) far: f32,
    pub(super) height: f32,
    pub(super) color: Rgb,
    pub(super) lit: f32,
    pub(super) key: u32,
}

pub(super) struct Stage {
    pub(super) night: bool,
    pub(super) focal: f32,
    pub(super) center: f32,
    pub(super) horizon: f32,
    pub(super) eye: Point,
    pub(super) key: u32,
    pub(super) ambient: Rgb,
    /// 0 under clouds and at night.
    pub(super) sun: f32,
    pub(super) sun_side: f32,
    pub(super) headlights: f32,
    pub(super) haze: Rgb,
    pub(super) fog: f32,
    pub(super) road: f32,
    pub(super) walk: f32,
    pub(super) heat: Heat,
    pub(super) lanterns: Vec<Lantern>,
    pub(super) houses: Vec<House>,
}

impl Stage {
    pub(super) fn new(rng: &mut Rng, night: bool, width: usize, height: usize) -> Self {
        let (w, h) = (width as f32, height as f32);
        let overcast = rng.chance(0.35);
        let drift = rng.range(-0.03, 0.03);
        let heat =
            if night { [0.05, 0.23, 0.21, 0.15, 0.20, 0.18] } else { [0.06, 0.35, 0.32, 0.23, 0.31, 0.25] };
        let [sky, road_heat, walk_heat, grass, wall, leaves] = heat.map(|t| t + drift);
        let road = rng.range(3.6, 5.2);
        let walk = road + rng.range(1.8, 3.0);
        let (ambient, haze, fog) = if night {
            (scale(rgb(0x90a0d0), rng.range(0.03, 0.09)), rgb(0x0a0c12), rng.range(0.002, 0.008))
        } else {
            let fog = if rng.chance(0.2) { 0.02 } else { 0.004 };
            (scale(rgb(0xd8e4f8), if overcast { 0.95 } else { 0.55 }), rgb(0xd4dde4), fog)
        };
        let mut stage = Self {
            night,
            focal: 0.45 * (w + h),
            center: w * rng.range(0.36, 0.64),
            horizon: h * rng.range(0.42, 0.52),
            eye: [rng.range(-0.45, 0.45) * road, rng.range(1.45, 1.75)],
            key: rng.next() as u32,
            ambient,
            sun: if night || overcast { 0.0 } else { rng.range(0.7, 1.1) },
            sun_side: rng.sign(),
            headlights: if night && rng.chance(0.5) { rng.range(0.15, 0.6) } else { 0.0 },
            haze,
            fog,
            road,
            walk,
            heat: Heat { sky, road: road_heat, walk: walk_heat, grass, wall, leaves },
            lanterns: Vec::new(),
            houses: Vec::new(),
        };
        stage.lay_lanterns(rng);
        stage.lay_houses(rng);
        stage
    }

    pub(super) fn lay_lanterns(&mut self, rng: &mut Rng) {
        let tint = rng.pick(&[rgb(0xffd090), rgb(0xffe8c8), rgb(0xe8f0ff)]);
        let (step, mut z, mut side) = (rng.range(11.0, 20.0), rng.range(7.0, 16.0), rng.sign());
        while z < 80.0 {
            let on = if self.night && rng.chance(0.75) { rng.range(0.5, 1.3) } else { 0.0 };
            self.lanterns.push(Lantern { x: side * (self.road + 0.4), z, light: scale(tint, on) });
            z += step * rng.range(0.8, 1.2);
            side = -side;
        }
    }

    pub(super) fn lay_houses(&mut self, rng: &mut Rng) {
        const COLORS: [u32; 8] =
            [0x9c8878, 0xb8a890, 0x8a5a48, 0x989898, 0xc8c0b0, 0x70767e, 0xa87058, 0xd0ccc4];
        for side in [-1.0, 1.0] {
            let mut z = rng.range(-2.0, 14.0);
            let park = rng.range(0.1, 0.5);
            while z < 110.0 {
                let length = rng.range(8.0, 20.0);
                if !rng.chance(park) {
                    self.houses.push(House {
                        side,
                        wall: self.walk + rng.pick(&[0.0, 0.0, 1.5, 3.0]),
                        near: z.max(1.2),
                        far: z.max(1.2) + length,
                        height: 3.2 * (1 + rng.below(6)) as f32 + rng.range(0.8, 2.0),
                        color: rgb(rng.pick(&COLORS)),
                        lit: if self.night { rng.range(0.05, 0.45) } else { 0.0 },
                        key: rng.next() as u32,
                    });
                }
                z += length + if rng.chance(0.4) { rng.range(2.0, 6.0) } else { 0.0 };
            }
        }
    }

    pub(super) fn project(&self, x: f32, y: f32, z: f32) -> Point {
        let k = self.focal / z;
        [self.center + (x - self.eye[0]) * k, self.horizon + (self.eye[1] - y) * k]
    }

    /// Whether the sun reaches a place at the height of a person.
    #[inline]
    pub(super) fn sunlit(&self, x: f32, z: f32) -> bool {
        let shaded = |h: &House| {
            // The sun stands obliquely behind us, so shadows lean away with the distance from the wall.
            let out = h.wall - x * h.side;
            let lean = z - 0.5 * out;
            lean > h.near && lean < h.far && out < (0.45 * h.height).min(self.road + 4.0)
        };
        !self.houses.iter().filter(|h| h.side == self.sun_side).any(shaded)
    }

    /// The light that falls on a place near the ground.
    #[inline]
    pub(super) fn light(&self, x: f32, z: f32) -> Rgb {
        if !self.night {
            let sun = if self.sun > 0.0 && self.sunlit(x, z) { self.sun } else { 0.0 };
            return add(self.ambient, scale([1.0, 0.93, 0.8], sun));
        }
        let mut light = self.ambient;
        for lantern in &self.lanterns {
            let (dx, dz) = (x - lantern.x, z - lantern.z);
            let d2 = dx * dx + dz * dz;
            if d2 < 600.0 {
                let fall = 1.0 / (1.0 + d2 / 7.0);
                light = add(light, scale(lantern.light, fall * fall));
            }
        }
        if self.headlights == 0.0 {
            return light;
        }
        let (u, v) = ((x - self.eye[0]) / (0.8 + 0.22 * z), z / 9.0);
        let beam = self.headlights * (-u * u).exp() * v / (1.0 + v * v * v);
        add(light, scale([1.0, 0.95, 0.85], beam))
    }

    /// Light that leaves a surface, dimmed by the haze up to it.
    #[inline]
    pub(super) fn through(&self, light: Rgb, z: f32) -> Rgb {
        blend(self.haze, light, (-z * self.fog).exp())
    }
}

pub(super) fn sky(stage: &Stage, canvas: &mut Canvas) {
    let overcast = !stage.night && stage.sun == 0.0;
    let (top, low) = match (stage.night, overcast) {
        (true, _) => (rgb(0x06080f), rgb(0x1a1d2c)),
        (_, true) => (rgb(0x9aa4b0), rgb(0xdde2e6)),
        _ => (rgb(0x3f78c4), rgb(0xcfe2f2)),
    };
    let thin = if overcast { 0.3 } else { 0.48 };
    let (sun, size) = (sun_or_moon(stage), 0.025 * stage.focal);
    canvas.within([0.0, 0.0, f32::MAX, stage.horizon], |pixel, x, y| {
        let rise = (stage.horizon - y) / stage.focal;
        let down = (-3.0 * rise.max(0.0)).exp();
        let (u, v) = ((x - stage.center) / stage.focal, 1.0 / (0.15 + rise.max(0.0)));
        let cloud = ((fractal(stage.key, u * v * 1.5, v * 1.5, 3) - thin) * 3.5).clamp(0.0, 1.0);
        let mut light = blend(top, low, down);
        if stage.night {
            light = blend(light, rgb(0x202430), 0.5 * cloud);
            let star = lattice(stage.key, (u * 260.0) as i32, (rise * 260.0) as i32);
            if star > 0.996 && cloud < 0.2 {
                light = add(light, [0.12 * (star - 0.995) * 200.0; 3]);
            }
        } else {
            let shade = if overcast { rgb(0xb4bac2) } else { rgb(0xf4f6f8) };
            light = blend(light, shade, 0.85 * cloud);
        }
        pixel.visible = light;
        pixel.infrared = stage.heat.sky + 0.05 * cloud + 0.05 * down;
        pixel.label = SKY;
    });
    if stage.night {
        let disc = Shape::Ellipse(sun, [0.6 * size, 0.6 * size]);
        let heat = stage.heat.sky;
        canvas.fill(&disc, SKY, |_, _| (rgb(0xe8e4d0), heat));
        canvas.glow(sun, 3.0 * size, [0.1, 0.1, 0.12]);
    } else if !overcast {
        canvas.glow(sun, 9.0 * size, [3.0, 2.8, 2.4]);
    }
}

pub(super) fn sun_or_moon(stage: &Stage) -> Point {
    let across = lattice(stage.key, 1, 2);
    let up = 0.25 + 0.2 * lattice(stage.key, 3, 4);
    [stage.center + stage.sun_side * (0.05 + 0.4 * across) * stage.focal, stage.horizon - up * stage.focal]
}

/// Distant houses and trees that close the view along the road.
pub(super) fn skyline(stage: &Stage, canvas: &mut Canvas, rng: &mut Rng) {
    let tower = rgb(rng.pick(&[0x8890a0, 0xa09890]));
    for _ in 0..14 {
        let (x, width, height) = (rng.range(-130.0, 130.0), rng.range(8.0, 20.0), rng.range(8.0, 32.0));
        let [left, top] = stage.project(x, height, 170.0);
        let [right, bottom] = stage.project(x + width, -1.0, 170.0);
        let light = stage.through(mul(tower, scale(stage.ambient, 0.9)), 90.0);
        let lit = if stage.night { rng.range(0.05, 0.3) } else { 0.0 };
        let (key, cell, wall) = (rng.next() as u32, 0.02 * stage.focal, stage.heat.wall - 0.05);
        canvas.fill(
            &Shape::hull(&[[left, top], [right, top], [left, bottom], [right, bottom]]),
            BUILDING,
            |x, y| {
                let on = lattice(key, (x / cell) as i32, (y / cell * 1.2) as i32) < lit;
                (if on { add(light, [0.25, 0.2, 0.1]) } else { light }, wall)
            },
        );
    }
    for _ in 0..30 {
        let (x, r) = (rng.range(-110.0, 110.0), rng.range(3.0, 7.0));
        let at = stage.project(x, 0.3 * r, 130.0);
        let k = stage.focal / 130.0;
        let green = scale(rgb(rng.pick(&[0x3c5a34, 0x4c6a3c, 0x566438])), rng.range(0.7, 1.2));
        foliage(stage, canvas, at, [1.4 * r * k, r * k], mul(green, stage.ambient), 110.0, rng.next() as u32);
    }
}

pub(super) fn ground(stage: &Stage, canvas: &mut Canvas) {
    let dirt = stage.key ^ 0x51;
    let asphalt = blend(rgb(0x50535a), rgb(0x6c6a68), lattice(stage.key, 5, 6));
    let (paving, grass, white, stone) = (rgb(0x8d8880), rgb(0x54703a), rgb(0xdcdcd4), rgb(0xb4b0a8));
    let crossing = 9.0 + 16.0 * lattice(stage.key, 7, 8);
    canvas.within([0.0, stage.horizon + 0.5, f32::MAX, f32::MAX], |pixel, px, py| {
        let below = py - stage.horizon;
        if below <= 0.0 {
            return;
        }
        let z = (stage.focal * stage.eye[1] / below).min(400.0);
        // The size of a pixel on the ground softens what is painted there.
        let (soft, long) = (z / stage.focal, z * z / (stage.focal * stage.eye[1]));
        let x = stage.eye[0] + (px - stage.center) * soft;
        let on_road = band(x, -stage.road, stage.road, soft);
        let on_walk = band(x, -stage.walk, stage.walk, soft);
        let worn = 0.75 + 0.5 * fractal(dirt, x * 1.3, z * 0.5, 2);
        let mut albedo = scale(paving, worn);
        if on_walk < 1.0 {
            let lawn = scale(grass, 0.4 + 1.2 * fractal(dirt ^ 9, x * 5.0, z * 2.5, 3));
            albedo = blend(lawn, albedo, on_walk);
        }
        if on_road < 1.0 {
            albedo = blend(albedo, scale(albedo, 0.6), joints([x, z], [soft, long]) * on_walk);
        }
        if on_road > 0.0 {
            let marking = markings(stage.road, crossing, [x, z], [soft, long]);
            albedo = blend(albedo, blend(scale(asphalt, worn), white, marking), on_road);
        }
        let curb = band(x.abs(), stage.road - 0.02, stage.road + 0.16, soft);
        albedo = blend(albedo, stone, curb);
        pixel.visible = stage.through(mul(albedo, stage.light(x, z)), z);
        let h = &stage.heat;
        let mut heat = h.grass + (h.walk - h.grass) * on_walk;
        heat += (h.road - heat) * on_road + 0.03 * (worn - 1.0);
        pixel.infrared = heat;
        pixel.label = if on_walk >= 0.5 { ROAD } else { VEGETATION };
    });
}

/// How much of a place (x, z) on the road is white: dashes, edge lines and a zebra crossing, softened over a pixel's
/// size across and along.
#[inline]
fn markings(road: f32, crossing: f32, [x, z]: Point, [soft, long]: Point) -> f32 {
    let x = x.abs();
    let dashes = band(x, 0.0, 0.07, soft) * band(fraction(z / 5.0), 0.15, 0.65, long / 5.0);
    let edges = band(x, road - 0.35, road - 0.22, soft);
    let stripes = band(fraction(x / 0.9), 0.0, 0.5, soft / 0.9) * band(x, -1.0, road - 0.5, soft);
    dashes.max(edges).max(stripes * band(z, crossing, crossing + 2.5, long))
}

/// How much of a place (x, z) on the pavement is the joint between two slabs.
#[inline]
fn joints([x, z]: Point, [soft, long]: Point) -> f32 {
    let joint = |at: f32, soft: f32| band(fraction(at / 1.2), 0.0, 0.04, soft / 1.2);
    joint(z, long).max(joint(x, soft))
}

/// A ragged ball of leaves; `light` is what full leaves send out.
pub(super) fn foliage(stage: &Stage, canvas: &mut Canvas, at: Point, r: Point, light: Rgb, z: f32, key: u32) {
    let grain = 7.0 / r[0].max(1.0);
    let heat = stage.heat.leaves + 0.03 * lattice(key, 1, 1);
    canvas.within(Shape::Ellipse(at, [1.2 * r[0], 1.2 * r[1]]).bounds(), |pixel, x, y| {
        let (u, v) = ((x - at[0]) / r[0], (y - at[1]) / r[1]);
        let d2 = u * u + v * v;
        if d2 > 1.44 {
            return;
        }
        let leaf = fractal(key, x * grain, y * grain, 3);
        // Leaves eat into the edge, over about a pixel where the tree is too small to show them.
        let cover = ((1.0 - d2.sqrt() + 0.9 * (leaf - 0.5)) * r[1].max(1.0) + 0.5).clamp(0.0, 1.0);
        let sent = scale(light, (0.75 - 0.4 * v.clamp(-1.0, 1.0)) * (0.15 + 1.7 * leaf));
        pixel.visible = blend(pixel.visible, stage.through(sent, z), cover);
        pixel.infrared += (heat + 0.08 * (leaf - 0.5) - pixel.infrared) * cover;
        if cover >= 0.5 {
            pixel.label = VEGETATION;
        }
    });
}

/// A block of flats or offices: the wall along the road in perspective and the gable that faces us.
pub(super) fn house(stage: &Stage, canvas: &mut Canvas, house: &House) {
    let x = house.side * house.wall;
    let corner = |x, y, z| stage.project(x, y, z);
    let (near, far, top) = (house.near, house.far, house.height);
    let faces_sun = stage.sun > 0.0 && house.side != stage.sun_side;
    let side =
        Shape::hull(&[corner(x, 0.0, near), corner(x, 0.0, far), corner(x, top, far), corner(x, top, near)]);
    let reach = house.side * (x - stage.eye[0]).abs().max(0.1);
    canvas.fill(&side, BUILDING, |px, py| {
        let z = (stage.focal * reach / (px - stage.center)).clamp(near, far);
        let y = stage.eye[1] - (py - stage.horizon) * z / stage.focal;
        let light = if stage.night {
            stage.light(house.side * (house.wall - 0.5 - 0.8 * y.max(0.0)), z)
        } else {
            add(stage.ambient, scale([1.0, 0.93, 0.8], if faces_sun { 0.8 * stage.sun } else { 0.0 }))
        };
        facade(stage, house, z - near, y, z, light, if faces_sun { 0.08 } else { 0.0 })
    });
    let out = x + house.side * 14.0;
    let gable = Shape::hull(&[
        corner(x, 0.0, near),
        corner(out, 0.0, near),
        corner(out, top, near),
        corner(x, top, near),
    ]);
    let light = scale(stage.light(x, near), 0.8);
    canvas.fill(&gable, BUILDING, |px, py| {
        let k = near / stage.focal;
        let along = stage.eye[0] + (px - stage.center) * k - x;
        facade(stage, house, along.abs(), stage.eye[1] - (py - stage.horizon) * k, near, light, -0.02)
    });
}

/// A wall's light and temperature at `u` metres along it and `y` metres up.
pub(super) fn facade(
    stage: &Stage,
    house: &House,
    u: f32,
    y: f32,
    z: f32,
    light: Rgb,
    warmth: f32,
) -> (Rgb, f32) {
    let soft = 1.5 * z / stage.focal;
    let (column, storey) = (floor(u / 2.6), floor(y / 3.2));
    let (s, t) = (fraction(u / 2.6), fraction(y / 3.2));
    let storeys = floor((house.height - 0.7) / 3.2);
    let under_roof = if storey < storeys { band(y, 0.2, house.height, soft) } else { 0.0 };
    let shop = storey == 0 && house.key.is_multiple_of(3);
    let [left, right, sill, lintel] = if shop { [0.06, 0.94, 0.12, 0.78] } else { [0.22, 0.78, 0.28, 0.8] };
    let pane = band(s, left, right, soft / 2.6) * band(t, sill, lintel, soft / 3.2) * under_roof;
    let frame = band(s, left - 0.05, right + 0.05, soft / 2.6)
        * band(t, sill - 0.05, lintel + 0.05, soft / 3.2)
        * under_roof;
    let cell = lattice(house.key, column, storey);
    let stain = 0.8 + 0.4 * fractal(house.key, u * 0.6, y * 0.6, 2);
    let ledge = band(t, 0.0, 0.05, soft / 3.2).max(band(y, house.height - 0.4, house.height, soft));
    let wall = blend(scale(house.color, stain), scale(house.color, 1.4), ledge);
    let wall = blend(wall, scale(house.color, 0.6), frame - pane);
    let glass = blend(rgb(0x1c242c), rgb(0x7c94a8), if stage.night { 0.1 } else { 0.2 + 0.5 * cell });
    let mut seen = mul(blend(wall, glass, pane), light);
    let mut heat = stage.heat.wall + warmth + 0.06 * (stain - 1.0) + 0.03 * ledge - 0.06 * pane;
    if cell < house.lit {
        let glow = blend(rgb(0xffcf80), rgb(0xf4f4e0), lattice(house.key ^ 3, column, storey));
        let curtain = 0.35 + 0.65 * noise(house.key, u * 2.0, y * 1.2);
        seen = blend(seen, scale(glow, curtain), pane);
        heat += 0.09 * pane;
    }
    (stage.through(seen, z), heat)
}
