//! Procedurally drawn street scenes by day and by night: a visible picture, the infrared picture a thermal camera
//! would take of the same place, and the exact label of every pixel.
//!
//! A scene is a small world in metres (a straight road along z, pavements, houses, trees, lamps, cars, people)
//! seen by one camera and painted from far to near. Each surface has a colour, a temperature and a class, so the
//! three pictures agree by construction. What makes fusion worthwhile is drawn on purpose: people in the dark,
//! behind smoke or in glare show in the infrared alone; parked cars at ambient temperature show in the visible
//! alone; warm cabinets look like people to a thermal camera and posters of people look like people to the eye.
//!
//! Everything follows from (seed, index) through a counter-based generator; only basic arithmetic, square roots
//! and exponentials are used.

mod canvas;
mod cars;
mod people;
mod place;
mod things;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use image::ImageEncoder;
use image::codecs::png::PngEncoder;
use rayon::prelude::*;

use self::canvas::{Canvas, Rng, mix64};
use self::place::{Stage, ground, sky, skyline};
use self::things::things;
use super::Layout;
use crate::error::{Error, Result};

/// The classes of a scene by id. 0 is everything without a class of its own: signs, bins, cabinets. Pavements
/// count as road, lawns as vegetation.
pub const CLASSES: [&str; 8] =
    ["background", "road", "sky", "building", "vegetation", "person", "car", "lamp"];

/// The colour of each class in pictures of labels.
pub const PALETTE: [[u8; 3]; 8] = [
    [0, 0, 0],
    [128, 96, 128],
    [70, 130, 200],
    [110, 110, 100],
    [66, 150, 60],
    [230, 40, 60],
    [60, 60, 220],
    [250, 210, 60],
];

const BACKGROUND: u8 = 0;
const ROAD: u8 = 1;
const SKY: u8 = 2;
const BUILDING: u8 = 3;
const VEGETATION: u8 = 4;
const PERSON: u8 = 5;
const CAR: u8 = 6;
const LAMP: u8 = 7;

/// The smallest height and width that [`write()`] accepts, which is the smallest the network takes.
const MIN_SIDE: usize = 32;

/// One registered pair and its labels; rows from top to bottom, without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    /// Five digits and `D` for day or `N` for night, as MFNet names its pictures: `00012D`.
    pub name: String,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The visible picture: (height, width, 3), RGB.
    pub visible: Vec<u8>,
    /// The infrared picture: (height, width), white is hot.
    pub infrared: Vec<u8>,
    /// The class of each pixel: (height, width), below `CLASSES.len()`.
    pub label: Vec<u8>,
}

/// Draws scene `index` of the series `seed`: days have even, nights odd indices. The same arguments give the same
/// bytes.
pub fn scene(seed: u64, index: u64, width: usize, height: usize) -> Scene {
    let mut rng = Rng::new(seed ^ mix64(index.wrapping_add(1)));
    let stage = Stage::new(&mut rng, index % 2 == 1, width, height);
    let mut canvas = Canvas::new(width, height);
    sky(&stage, &mut canvas);
    skyline(&stage, &mut canvas, &mut rng);
    ground(&stage, &mut canvas);
    for thing in things(&stage, &mut rng) {
        thing.draw(&stage, &mut canvas);
    }
    let (visible, infrared) = develop(&stage, &canvas, &mut rng);
    let label = canvas.pixels.iter().map(|p| p.label).collect();
    Scene { name: name(index), width, height, visible, infrared, label }
}

/// Writes `pairs` scenes to the folder `out` in the flat layout, as [`write_as`] does.
///
/// # Errors
/// As [`write_as`].
pub fn write(
    out: &Path,
    pairs: usize,
    seed: u64,
    height: usize,
    width: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<()> {
    write_as(Layout::Flat, out, pairs, seed, height, width, progress)
}

/// Writes `pairs` scenes to the folder `out`, in this layout and with a file `classes.toml`: 70, 15 and 15 % of them for
/// training, validation and test, each of which has one from 3 pairs up; where a layout has no validation part, those
/// are trained on. `progress` hears how many pairs are written.
///
/// # Errors
/// [`Error::Config`] for no pairs or a side below 32, [`Error::File`] when `out` holds something, [`Error::Io`] with the path that could not be written.
pub fn write_as(
    layout: Layout,
    out: &Path,
    pairs: usize,
    seed: u64,
    height: usize,
    width: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<()> {
    if pairs == 0 {
        return Err(Error::Config("0 pairs asked for: ask for at least 1".into()));
    }
    if height < MIN_SIDE || width < MIN_SIDE {
        return Err(Error::Config(format!(
            "scenes of {height}x{width} are too small: both sides must be at least {MIN_SIDE}"
        )));
    }
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        let what = "is not empty, and what is there might be overwritten: name a folder of its own";
        return Err(Error::file(out, what));
    }
    let splits = split(pairs, seed);
    let test: HashSet<&String> = splits[2].iter().collect();
    // In portions, because `progress` belongs to this thread alone.
    let portion = 4 * rayon::current_num_threads();
    for first in (0..pairs).step_by(portion) {
        let end = pairs.min(first + portion);
        (first..end).into_par_iter().try_for_each(|i| {
            let scene = scene(seed, i as u64, width, height);
            save(layout, out, &scene, test.contains(&scene.name))
        })?;
        progress(end);
    }
    if matches!(layout, Layout::Flat | Layout::Mfnet) {
        for (file, names) in ["train.txt", "val.txt", "test.txt"].iter().zip(&splits) {
            let path = out.join(file);
            fs::write(&path, names.iter().map(|n| format!("{n}\n")).collect::<String>())
                .map_err(Error::io(&path, "write"))?;
        }
    }
    let path = out.join("classes.toml");
    let classes = CLASSES
        .iter()
        .zip(PALETTE)
        .map(|(name, [r, g, b])| format!("[[class]]\nname = \"{name}\"\ncolor = [{r}, {g}, {b}]\n\n"));
    fs::write(&path, classes.collect::<String>().trim_end()).map_err(Error::io(&path, "write"))
}

fn save(layout: Layout, out: &Path, scene: &Scene, test: bool) -> Result<()> {
    use image::ExtendedColorType::{L8, Rgb8, Rgba8};
    let part = if test { "test" } else { "train" };
    let (visible, infrared, label) = (&scene.visible[..], &scene.infrared[..], &scene.label[..]);
    let four: Vec<u8>;
    let pictures = match layout {
        Layout::Flat | Layout::Fmb => {
            vec![("Visible", visible, Rgb8), ("Infrared", infrared, L8), ("Label", label, L8)]
        }
        Layout::Mfnet => {
            let rgb = visible.as_chunks::<3>().0;
            four = rgb.iter().zip(infrared).flat_map(|(&[r, g, b], &t)| [r, g, b, t]).collect();
            vec![("images", &four[..], Rgba8), ("labels", label, L8)]
        }
        Layout::Pst900 => vec![("rgb", visible, Rgb8), ("thermal", infrared, L8), ("labels", label, L8)],
    };
    let root = if matches!(layout, Layout::Fmb | Layout::Pst900) { out.join(part) } else { out.into() };
    for (folder, bytes, color) in pictures {
        let folder = root.join(folder);
        fs::create_dir_all(&folder).map_err(Error::io(&folder, "create the folder"))?;
        let path = folder.join(format!("{}.png", scene.name));
        let mut png = Vec::new();
        PngEncoder::new(&mut png)
            .write_image(bytes, scene.width as u32, scene.height as u32, color)
            .map_err(|e| Error::file(&path, format!("cannot encode the picture: {e}")))?;
        fs::write(&path, png).map_err(Error::io(&path, "write"))?;
    }
    Ok(())
}

/// Names for training, validation and test: each drawn at random, and from days and nights alternately so that
/// small parts have both.
fn split(pairs: usize, seed: u64) -> [Vec<String>; 3] {
    let mut rng = Rng::new(mix64(seed));
    let mut order: Vec<usize> = (0..pairs).collect();
    // Fisher-Yates within each parity.
    for i in (2..pairs).rev() {
        order.swap(i, i % 2 + 2 * rng.below(i / 2 + 1));
    }
    let part = if pairs < 3 { 0 } else { ((pairs * 15 + 50) / 100).max(1) };
    let names = |indices: &[usize]| {
        let mut indices = indices.to_vec();
        indices.sort_unstable();
        indices.iter().map(|&i| name(i as u64)).collect()
    };
    [names(&order[2 * part..]), names(&order[..part]), names(&order[part..2 * part])]
}

fn name(index: u64) -> String {
    format!("{index:05}{}", if index % 2 == 1 { 'N' } else { 'D' })
}

/// What the two sensors make of the scene: blur, noise and 8 bits.
fn develop(stage: &Stage, canvas: &Canvas, rng: &mut Rng) -> (Vec<u8>, Vec<u8>) {
    let byte = |v: f32| (v * 255.0 + 0.5).clamp(0.0, 255.0) as u8;
    let grain = if stage.night { 0.024 } else { 0.01 };
    let mut visible = Vec::with_capacity(3 * canvas.pixels.len());
    for pixel in &canvas.pixels {
        let (shared, tint) = (rng.normal(), 0.5 * rng.normal());
        for (v, k) in pixel.visible.iter().zip([1.0, -0.3, -0.7]) {
            visible.push(byte(v.max(0.0).sqrt() + grain * (shared + k * tint)));
        }
    }
    // Thermal optics are softer; at small sizes the pixels themselves are coarser than that.
    let side = if canvas.height >= 240 { 0.25 } else { 0.1 };
    let soft = blur(canvas, side);
    let columns: Vec<f32> = (0..canvas.width).map(|_| 0.004 * rng.normal()).collect();
    let infrared =
        soft.iter().enumerate().map(|(i, v)| byte(v + 0.012 * rng.normal() + columns[i % canvas.width]));
    (visible, infrared.collect())
}

/// The infrared picture under the separable kernel (`side`, 1 - 2 `side`, `side`), edges repeated.
fn blur(canvas: &Canvas, side: f32) -> Vec<f32> {
    let (w, h) = (canvas.width, canvas.height);
    let pass = |from: &[f32], dx: usize, dy: usize| -> Vec<f32> {
        let mut to = Vec::with_capacity(from.len());
        for y in 0..h {
            for x in 0..w {
                let before = from[y.saturating_sub(dy) * w + x.saturating_sub(dx)];
                let after = from[(y + dy).min(h - 1) * w + (x + dx).min(w - 1)];
                to.push((1.0 - 2.0 * side) * from[y * w + x] + side * (before + after));
            }
        }
        to
    };
    let sharp: Vec<f32> = canvas.pixels.iter().map(|p| p.infrared).collect();
    pass(&pass(&sharp, 1, 0), 0, 1)
}

#[cfg(test)]
mod tests {
    use super::things::Kind;
    use super::*;

    const SIZE: (usize, usize) = (128, 96);

    fn scenes(first: u64, step: usize, n: usize) -> Vec<Scene> {
        (first..).step_by(step).take(n).map(|i| scene(3, i, SIZE.0, SIZE.1)).collect()
    }

    fn mean(values: impl Iterator<Item = f64>) -> f64 {
        let (sum, n) = values.fold((0.0, 0.0), |(sum, n), v| (sum + v, n + 1.0));
        sum / n
    }

    fn luma(s: &Scene, i: usize) -> f64 {
        let [r, g, b] = [0, 1, 2].map(|c| f64::from(s.visible[3 * i + c]));
        0.299 * r + 0.587 * g + 0.114 * b
    }

    /// The mean of `value` on people less that of their surroundings within three pixels.
    fn contrast(s: &Scene, value: impl Fn(usize) -> f64) -> f64 {
        let is = |x: usize, y: usize| s.label[y * s.width + x] == PERSON;
        let near = |x: usize, y: usize| {
            (y.saturating_sub(3)..(y + 4).min(s.height))
                .any(|v| (x.saturating_sub(3)..(x + 4).min(s.width)).any(|u| is(u, v)))
        };
        let pixels = || (0..s.height).flat_map(|y| (0..s.width).map(move |x| (x, y)));
        let on = mean(pixels().filter(|&(x, y)| is(x, y)).map(|(x, y)| value(y * s.width + x)));
        let around =
            mean(pixels().filter(|&(x, y)| !is(x, y) && near(x, y)).map(|(x, y)| value(y * s.width + x)));
        on - around
    }

    #[test]
    fn the_same_arguments_give_the_same_bytes() {
        let a = scene(7, 12, 64, 48);
        assert_eq!(a, scene(7, 12, 64, 48));
        assert_ne!(a.visible, scene(7, 14, 64, 48).visible);
        assert_ne!(a.visible, scene(8, 12, 64, 48).visible);
        assert_eq!((a.name.as_str(), scene(7, 13, 64, 48).name.as_str()), ("00012D", "00013N"));
    }

    #[test]
    fn any_size_works() {
        for (w, h) in [(32, 32), (33, 47), (47, 33), (200, 40)] {
            for index in 0..6 {
                let s = scene(1, index, w, h);
                assert_eq!([s.visible.len(), s.infrared.len(), s.label.len()], [3 * w * h, w * h, w * h]);
            }
        }
    }

    #[test]
    fn every_class_appears_and_no_other() {
        let mut count = [0usize; CLASSES.len()];
        for s in scenes(0, 1, 20) {
            s.label.iter().for_each(|&l| count[usize::from(l)] += 1);
        }
        for (name, n) in CLASSES.iter().zip(count) {
            assert!(n > 200, "{name} has {n} pixels");
        }
    }

    #[test]
    fn people_stand_out_at_night_in_the_infrared_alone() {
        let nights = scenes(1, 2, 30);
        let mut dim = 0;
        let with_people: Vec<_> =
            nights.iter().filter(|s| s.label.iter().filter(|&&l| l == PERSON).count() > 20).collect();
        for s in &with_people {
            let (heat, light) = (contrast(s, |i| f64::from(s.infrared[i])), contrast(s, |i| luma(s, i)));
            assert!(heat > 50.0, "{}: {heat}", s.name);
            dim += usize::from(light.abs() < 0.3 * heat);
        }
        assert!(with_people.len() > 20, "{}", with_people.len());
        assert!(4 * dim > 3 * with_people.len(), "{dim} of {}", with_people.len());
    }

    #[test]
    fn the_sky_is_colder_than_the_ground() {
        for s in scenes(0, 1, 20) {
            let of = |class| {
                let pixels = s.label.iter().zip(&s.infrared).filter(move |(l, _)| **l == class);
                mean(pixels.map(|(_, v)| f64::from(*v)))
            };
            let (sky, road) = (of(SKY), of(ROAD));
            assert!(sky.is_nan() || sky + 20.0 < road, "{}: {sky} {road}", s.name);
        }
    }

    #[test]
    fn parked_cars_show_in_the_visible_alone() {
        let mut parked = 0;
        for index in 0..20 {
            let mut rng = Rng::new(index);
            let stage = Stage::new(&mut rng, index % 2 == 1, 320, 240);
            for thing in things(&stage, &mut rng) {
                let Kind::Car { running: false, .. } = thing.kind else { continue };
                let mut canvas = Canvas::new(320, 240);
                ground(&stage, &mut canvas);
                thing.draw(&stage, &mut canvas);
                let car = || canvas.pixels.iter().filter(|p| p.label == CAR);
                if car().count() < 50 {
                    continue;
                }
                parked += 1;
                let heat = mean(car().map(|p| f64::from(p.infrared)));
                assert!((heat - f64::from(stage.heat.road)).abs() < 0.04, "{heat}");
            }
        }
        assert!(parked >= 15, "{parked}");
    }

    #[test]
    fn a_written_set_can_be_read_back() {
        let out = tempfile::tempdir().unwrap();
        let mut heard = 0;
        write(out.path(), 7, 5, 32, 40, &mut |n| heard = n).unwrap();
        assert_eq!(heard, 7);
        let mut names: Vec<String> = Vec::new();
        for list in ["train.txt", "val.txt", "test.txt"] {
            let text = fs::read_to_string(out.path().join(list)).unwrap();
            assert!(!text.is_empty(), "{list}");
            names.extend(text.lines().map(String::from));
        }
        names.sort();
        assert_eq!(names, (0..7).map(name).collect::<Vec<_>>());
        let s = scene(5, 3, 40, 32);
        let open = |folder: &str| image::open(out.path().join(folder).join("00003N.png")).unwrap();
        assert_eq!(open("Visible").as_rgb8().unwrap().as_raw(), &s.visible);
        assert_eq!(open("Infrared").as_luma8().unwrap().as_raw(), &s.infrared);
        assert_eq!(open("Label").as_luma8().unwrap().as_raw(), &s.label);
        let classes: toml::Table =
            fs::read_to_string(out.path().join("classes.toml")).unwrap().parse().unwrap();
        let classes = classes["class"].as_array().unwrap();
        assert_eq!(classes.len(), CLASSES.len());
        assert_eq!(classes[5]["name"].as_str(), Some("person"));
    }

    #[test]
    fn splits_hold_days_and_nights() {
        let [train, val, test] = split(40, 9);
        assert_eq!([train.len(), val.len(), test.len()], [28, 6, 6]);
        for part in [val, test] {
            assert_eq!(part.iter().filter(|n| n.ends_with('N')).count(), 3);
        }
        assert_eq!(split(2, 9).map(|part| part.len()), [2, 0, 0]);
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("taken");
        fs::write(&file, "").unwrap();
        let error = write(&file, 3, 0, 32, 32, &mut |_| ()).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("taken"), "{error}");
        assert!(write(out.path(), 0, 0, 32, 32, &mut |_| ()).is_err());
        let error = write(out.path(), 3, 0, 31, 32, &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains("31x32"), "{error}");
    }
}
