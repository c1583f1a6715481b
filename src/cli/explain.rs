//! `amdanet explain`

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Machine, say, say_json};
use crate::data::{Limits, Pair, Picture, Tile, contact_sheet, overlay, read_pair, write_rgb};
use crate::explain::{Gates, KINDS, Layer, Map, gates, grad_cam};
use crate::model::SMALLEST_SIDE;
use crate::{Error, Result, Tensor, checkpoint};

#[derive(Args)]
pub struct Explain {
    /// Checkpoint of any known kind
    #[arg(long)]
    weights: PathBuf,
    /// The visible picture
    #[arg(long)]
    visible: PathBuf,
    /// The infrared picture
    #[arg(long)]
    infrared: PathBuf,
    /// Folder to write to
    #[arg(long)]
    out: PathBuf,
    /// A class to explain [default: those that occur in the prediction, but for the background]
    #[arg(long, value_name = "NAME")]
    class: Vec<String>,
    /// A layer that Grad-CAM looks at: fused1 to fused4, or encoded or aligned, as aligned1.visible [default: fused1 to
    /// fused4]
    #[arg(long, value_name = "NAME")]
    layer: Vec<String>,
    /// Share of the colours over the picture
    #[arg(long, default_value_t = 0.6)]
    alpha: f32,
    /// Largest picture that is read
    #[arg(long, default_value_t = Limits::default().max_pixels)]
    max_pixels: u64,
    /// ε of the batch norms, if the checkpoint does not say [default: 1e-5]
    #[arg(long, value_name = "EPS")]
    bn_eps: Option<f32>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: Machine,
}

/// Both pictures as tiles of a sheet.
struct Scene {
    visible: Tile,
    infrared: Tile,
    alpha: f32,
}

impl Explain {
    pub fn run(self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.alpha) {
            return Err(Error::Config(format!("--alpha {}: must be 0 to 1", self.alpha)));
        }
        let layers = match &self.layer[..] {
            [] => Layer::fused(),
            names => names.iter().map(|name| Layer::named(name)).collect::<Result<_>>()?,
        };
        let device = self.machine.set_up()?;
        let mut loaded = checkpoint::load(&self.weights, self.bn_eps)?;
        let asked =
            self.class.iter().map(|name| class(&loaded.classes.names, name)).collect::<Result<Vec<_>>>()?;
        let (visible, infrared) = self.pictures()?;
        loaded.model.params.place(&device, self.machine.precision.dtype())?;
        let tensor = |p: &Picture| Tensor::from_slice([1, 1, p.height, p.width, 3], &p.rgb);
        let (vi, ir) = (tensor(&visible)?, tensor(&infrared)?);
        let tile = |p: &Picture| Tile { width: p.width, height: p.height, rgb: p.to_rgb8() };
        let scene = Scene { visible: tile(&visible), infrared: tile(&infrared), alpha: self.alpha };

        let Gates { labels, maps } = gates(&loaded.model, &vi, &ir)?;
        for (kind, _) in KINDS {
            let of_kind: Vec<&Map> = maps.iter().filter(|map| map.name.starts_with(kind)).collect();
            scene.save_gates(&self.out, kind, &of_kind)?;
        }
        let explained = if asked.is_empty() { occurring(&labels, loaded.classes.len()) } else { asked };
        let mut report = Vec::new();
        for class in explained {
            let name = &loaded.classes.names[class];
            let count = labels.iter().filter(|&&label| usize::from(label) == class).count();
            // A class that is predicted nowhere still has scores everywhere.
            let pixels: Vec<bool> =
                labels.iter().map(|&label| count == 0 || usize::from(label) == class).collect();
            let cams = grad_cam(&loaded.model, &vi, &ir, &layers, class, &pixels)?;
            let folder = self.out.join("gradcam");
            let file = format!("{class}_{}", plain(name));
            let ids: Vec<u8> = labels.iter().map(|&label| u8::from(usize::from(label) == class)).collect();
            let color = loaded.classes.palette.get(class).copied().unwrap_or([255; 3]);
            let mut tiles = vec![
                scene.visible.clone(),
                scene.infrared.clone(),
                scene.tile(overlay(&scene.visible.rgb, &ids, &[[0; 3], color], 0.7)),
            ];
            let mut titles = vec!["visible".into(), "infrared".into(), name.clone()];
            for cam in cams {
                let tile = scene.heat(&cam.map, true)?;
                write(&folder.join(format!("{file}.{}.png", cam.layer)), &tile)?;
                tiles.push(tile);
                titles.push(cam.layer.to_string());
            }
            let titles: Vec<_> = titles.iter().map(String::as_str).collect();
            write(&folder.join(format!("{file}.png")), &contact_sheet(&titles, &[tiles]))?;
            report.push((name, count));
        }
        self.report(&report, &maps)
    }

    fn pictures(&self) -> Result<(Picture, Picture)> {
        let pair =
            Pair { name: String::new(), visible: self.visible.clone(), infrared: self.infrared.clone() };
        let (visible, infrared) = read_pair(&pair, Limits { max_pixels: self.max_pixels })?;
        let (w, h) = (visible.width, visible.height);
        if w.min(h) < SMALLEST_SIDE {
            let what = format!("{w}x{h} pixels: the network needs at least {SMALLEST_SIDE} on each side");
            return Err(Error::file(&self.visible, what));
        }
        Ok((visible, infrared))
    }

    fn report(&self, explained: &[(&String, usize)], maps: &[Map]) -> Result<()> {
        let pixels = |count: usize| if count == 0 { "all" } else { "predicted" };
        if self.json {
            let classes: Vec<_> = explained
                .iter()
                .map(|(name, count)| {
                    serde_json::json!({ "name": name, "predicted_pixels": count, "summed_over": pixels(*count) })
                })
                .collect();
            let maps: Vec<_> = maps
                .iter()
                .map(|map| {
                    let (least, most) = map.range();
                    serde_json::json!({ "name": map.name, "min": least, "mean": map.mean(), "max": most })
                })
                .collect();
            return say_json(&serde_json::json!({ "out": self.out, "classes": classes, "maps": maps }));
        }
        say(format!("Grad-CAM in {}:", self.out.join("gradcam").display()));
        if explained.is_empty() {
            say("  everything is background: name a class with --class");
        }
        for (name, count) in explained {
            match count {
                0 => say(format!("  {name}: predicted nowhere, so the logit is summed over all pixels")),
                _ => say(format!("  {name}: the logit summed over the {count} pixels predicted as it")),
            }
        }
        say(format!("gates in {}:", self.out.join("gates").display()));
        for (kind, what) in KINDS {
            let mut of_kind = maps.iter().filter(|map| map.name.starts_with(kind)).peekable();
            if of_kind.peek().is_some() {
                say(format!("  {kind}: {what}"));
            }
            for map in of_kind {
                let (least, most) = map.range();
                say(format!("    {:<20} {least:.3} to {most:.3}, mean {:.3}", map.name, map.mean()));
            }
        }
        Ok(())
    }
}

impl Scene {
    fn tile(&self, rgb: Vec<u8>) -> Tile {
        Tile { rgb, ..self.visible }
    }

    /// The map over the visible picture, stretched from its least number to its largest or as it is.
    fn heat(&self, map: &Map, stretch: bool) -> Result<Tile> {
        let map = map.resized(self.visible.height, self.visible.width)?;
        let map = if stretch { map.stretched() } else { map };
        Ok(self.tile(map.over(&self.visible.rgb, self.alpha)))
    }

    /// Each map on its own, and all of the kind on a sheet: a row for each stream where there are two.
    fn save_gates(&self, out: &Path, kind: &str, maps: &[&Map]) -> Result<()> {
        let (folder, stretch) = (out.join("gates"), kind != "inconsistent");
        let mut rows = [vec![self.visible.clone()], vec![self.infrared.clone()]];
        for map in maps {
            let tile = self.heat(map, stretch)?;
            write(&folder.join(format!("{}.png", map.name)), &tile)?;
            rows[usize::from(map.name.ends_with("infrared"))].push(tile);
        }
        let rows: Vec<_> = rows.into_iter().filter(|row| row.len() > 1).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let titles = ["picture", "level 1", "level 2", "level 3", "level 4"];
        write(&folder.join(format!("{kind}.png")), &contact_sheet(&titles, &rows))
    }
}

fn write(path: &Path, tile: &Tile) -> Result<()> {
    write_rgb(path, tile.width, tile.height, &tile.rgb)
}

/// The id of the class called `name`.
fn class(names: &[String], name: &str) -> Result<usize> {
    names.iter().position(|known| known == name).ok_or_else(|| {
        Error::Config(format!("there is no class {name:?}: the classes are {}", names.join(", ")))
    })
}

/// The classes that occur, but for the background.
fn occurring(labels: &[u8], classes: usize) -> Vec<usize> {
    let mut seen = [false; 256];
    labels.iter().for_each(|&label| seen[usize::from(label)] = true);
    (1..classes).filter(|&class| seen[class]).collect()
}

/// A class's name as a part of a file's: a checkpoint may call a class anything.
fn plain(name: &str) -> String {
    name.chars().take(40).map(|c| if c.is_alphanumeric() || c == '_' || c == '-' { c } else { '_' }).collect()
}
