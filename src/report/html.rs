//! The page. Text is escaped by the macro `html!`, and so whatever a file or a class is called.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::gallery::{EXACT_FROM, Gallery, Shown, TILES, data_uri};
use super::matrix::matrix;
use crate::Result;
use crate::data::ClassSet;
use crate::evaluate::{Evaluation, Part};
use crate::metrics::{FusionMetrics, Scores};

/// The whole report: scores, confusion matrix, the pairs of `gallery`, and `facts` on where they come from.
///
/// # Errors
/// When a picture of the gallery cannot be encoded.
pub fn page(
    title: &str,
    evaluation: &Evaluation,
    classes: &ClassSet,
    gallery: &Gallery,
    facts: &[(&str, String)],
) -> Result<String> {
    let best = gallery.best().iter().map(encoded).collect::<Result<Vec<_>>>()?;
    let worst = gallery.worst().map(encoded).collect::<Result<Vec<_>>>()?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                header {
                    h1 { (title) }
                    p.lead { (measured(evaluation)) }
                }
                main {
                    section #summary { h2 { "Summary" } (summary(evaluation)) }
                    section #classes { h2 { "Classes" } (class_table(evaluation, classes)) }
                    section #confusion {
                        h2 { "Confusion matrix" }
                        p {
                            "Rows are labels, columns predictions. The number and the shade are the share of "
                            "the row’s pixels, in percent; a dot is less than half a percent. Pixels labelled as "
                            "ignored do not count."
                        }
                        div.wide tabindex="0" role="group" aria-label="Confusion matrix" {
                            (matrix(&classes.names, &evaluation.confusion))
                        }
                    }
                    section #fusion { h2 { "Fused pictures" } (fusion(evaluation)) }
                    section #splits { h2 { "Day and night" } (splits(evaluation, classes)) }
                    section #best { h2 { "Best pairs" } (pairs(&best, classes)) }
                    @if !worst.is_empty() {
                        section #worst { h2 { "Worst pairs" } (pairs(&worst, classes)) }
                    }
                    section #configuration {
                        h2 { "Configuration" }
                        dl { @for (what, value) in facts { dt { (what) } dd { (value) } } }
                    }
                }
            }
        }
    };
    Ok(page.into_string())
}

fn measured(evaluation: &Evaluation) -> String {
    let pairs = if evaluation.pairs == 1 { "1 pair".into() } else { format!("{} pairs", evaluation.pairs) };
    let blank = match evaluation.options.blank {
        Some(crate::evaluate::Modality::Visible) => "; visible pictures blanked",
        Some(crate::evaluate::Modality::Infrared) => "; infrared pictures blanked",
        None => "",
    };
    format!("{pairs}; {}{blank}.", evaluation.options.modes)
}

fn summary(evaluation: &Evaluation) -> Markup {
    let s = &evaluation.scores;
    let tiles = [
        ("mIoU", s.miou, "mean over classes of IoU"),
        ("mAcc", s.macc, "mean over classes of accuracy; the paper’s Table 4 calls it mAP"),
        ("mAP", s.map, "mean over classes of average precision"),
        ("Pixel accuracy", s.pixel_accuracy, "share of pixels with the right class"),
        ("fwIoU", s.fwiou, "IoU weighted by the classes’ pixels"),
    ];
    html! {
        ul.tiles {
            @for (name, value, what) in tiles {
                li {
                    span.what { (name) }
                    strong { (percent(value)) @if value.is_some() { small { " %" } } }
                    span.note { (what) }
                }
            }
            li {
                span.what { "Pairs" }
                strong { (evaluation.pairs) }
                span.note {
                    @for (i, (name, part)) in evaluation.splits.iter().enumerate() {
                        @if i > 0 { ", " }
                        (part.pairs) " by " (name)
                    }
                }
            }
        }
    }
}

fn class_table(evaluation: &Evaluation, classes: &ClassSet) -> Markup {
    let confusion = &evaluation.confusion;
    let share = |c: usize| {
        let total = confusion.total();
        (total > 0).then(|| confusion.labelled(c) as f64 / total as f64)
    };
    html! {
        div.wide {
            table.classes {
                thead {
                    tr {
                        th scope="col" { "class" }
                        th.bars scope="col" { "IoU %" }
                        th scope="col" { "accuracy %" }
                        th scope="col" { "AP %" }
                        th scope="col" { "labels %" }
                    }
                }
                tbody {
                    @for (c, class) in evaluation.scores.classes.iter().enumerate() {
                        tr {
                            th scope="row" { (class_name(&class.name, color(classes, c))) }
                            td.bars { (bar(class.iou)) }
                            td { (percent(class.accuracy)) }
                            td { (percent(class.ap)) }
                            td { (percent(share(c))) }
                        }
                    }
                }
                tfoot {
                    @let s = &evaluation.scores;
                    tr {
                        th scope="row" { "mean" }
                        td.bars { (bar(s.miou)) }
                        td { (percent(s.macc)) }
                        td { (percent(s.map)) }
                        td {}
                    }
                }
            }
        }
        p.note {
            "A dash: the class occurs neither in labels nor in predictions (IoU), or in no label (accuracy, AP)."
        }
    }
}

fn bar(value: Option<f64>) -> Markup {
    let width = format!("width:{:.2}%", 100.0 * value.unwrap_or(0.0));
    html! {
        span.bar aria-hidden="true" { span style=(width) {} }
        span.value { (percent(value)) }
    }
}

fn color(classes: &ClassSet, c: usize) -> [u8; 3] {
    classes.palette.get(c).copied().unwrap_or_default()
}

/// The name of a class beside its colour.
fn class_name(name: &str, [r, g, b]: [u8; 3]) -> Markup {
    html! {
        span.class {
            span.swatch aria-hidden="true" style=(format!("background:rgb({r},{g},{b})")) {}
            span { (name) }
        }
    }
}

/// How a score is taken out of all of them.
type Get<From, To> = fn(&From) -> To;

/// Name, definition and value of each score of a fused picture.
const FUSION: [(&str, &str, Get<FusionMetrics, f64>); 4] = [
    ("EN", "entropy in bits", |f| f.en),
    ("SD", "standard deviation", |f| f.sd),
    ("SF", "spatial frequency", |f| f.sf),
    ("SCD", "sum of the correlations of differences", |f| f.scd),
];

fn fusion(evaluation: &Evaluation) -> Markup {
    let [plain, stretched] = &evaluation.fusion;
    let stretch = evaluation.options.stretch;
    let used = if stretch { "stretched" } else { "as saved" };
    html! {
        div.wide {
            table {
                thead {
                    tr {
                        th scope="col" { "score" }
                        th scope="col" { "as saved" }
                        th scope="col" { "stretched" }
                    }
                }
                tbody {
                    @for (name, what, value) in FUSION {
                        tr {
                            th scope="row" { (name) " " span.note { (what) } }
                            td.used[!stretch] { (number(plain.as_ref().map(value))) }
                            td.used[stretch] { (number(stretched.as_ref().map(value))) }
                        }
                    }
                }
            }
        }
        p.note {
            "On the luminance of the 8-bit pictures, averaged over pairs. Stretched: each fused picture from its "
            "minimum to its maximum first, as the published scripts save them. Wherever else scores of fused "
            "pictures appear, they are " strong { (used) } "."
        }
    }
}

fn splits(evaluation: &Evaluation, classes: &ClassSet) -> Markup {
    if evaluation.splits.is_empty() {
        let why =
            "The names of these pairs do not tell day from night: a digit and D or N at their end would.";
        return html! { p { (why) } };
    }
    let all = Part { pairs: evaluation.pairs, scores: evaluation.scores.clone() };
    let columns: Vec<(&str, &Part)> = std::iter::once(("all", &all))
        .chain(evaluation.splits.iter().map(|(name, part)| (*name, part)))
        .collect();
    let scores: [(&str, Get<Scores, Option<f64>>); 5] = [
        ("mIoU %", |s| s.miou),
        ("mAcc %", |s| s.macc),
        ("mAP %", |s| s.map),
        ("pixel accuracy %", |s| s.pixel_accuracy),
        ("fwIoU %", |s| s.fwiou),
    ];
    html! {
        div.wide {
            table {
                thead { tr { td {} @for (name, _) in &columns { th scope="col" { (name) } } } }
                tbody {
                    tr { th scope="row" { "pairs" } @for (_, part) in &columns { td { (part.pairs) } } }
                    @for (name, value) in scores {
                        tr {
                            th scope="row" { (name) }
                            @for (_, part) in &columns { td { (percent(value(&part.scores))) } }
                        }
                    }
                    @for (name, _, value) in FUSION {
                        tr {
                            th scope="row" { (name) }
                            @for (_, part) in &columns { td { (number(part.scores.fusion.as_ref().map(value))) } }
                        }
                    }
                }
                tbody {
                    tr { th.note colspan=(1 + columns.len()) { "IoU % of each class" } }
                    @for (c, class) in evaluation.scores.classes.iter().enumerate() {
                        tr {
                            th scope="row" { (class_name(&class.name, color(classes, c))) }
                            @for (_, part) in &columns {
                                td { (percent(part.scores.classes.get(c).and_then(|class| class.iou))) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A pair with its pictures encoded.
struct Encoded<'a> {
    pair: &'a Shown,
    pictures: Vec<(&'static str, String)>,
}

fn encoded(pair: &Shown) -> Result<Encoded<'_>> {
    let encode = |(i, (tile, name))| Ok((name, data_uri(tile, i >= EXACT_FROM)?));
    let pictures = pair.tiles.iter().zip(TILES).enumerate().map(encode).collect::<Result<_>>()?;
    Ok(Encoded { pair, pictures })
}

fn pairs(list: &[Encoded], classes: &ClassSet) -> Markup {
    html! {
        @if list.is_empty() { p { "No pair has a pixel that counts." } }
        @for Encoded { pair, pictures } in list {
            article {
                h3 { (pair.name) span.score { "mIoU " (percent(Some(pair.miou))) " %" } }
                div.pictures {
                    @for (i, ((name, uri), tile)) in pictures.iter().zip(&pair.tiles).enumerate() {
                        figure {
                            @let alt = format!("{}: {name}", pair.name);
                            img.exact[i >= EXACT_FROM] src=(uri) width=(tile.width) height=(tile.height) alt=(alt);
                            figcaption { (name) }
                        }
                    }
                }
            }
        }
        ul.legend {
            @for (name, &color) in classes.names.iter().zip(&classes.palette) {
                li { (class_name(name, color)) }
            }
            li { (class_name("ignored", [255; 3])) }
        }
        p.note { "mIoU over the classes of the pair alone. Errors: orange is wrong, blue does not count." }
    }
}

fn percent(value: Option<f64>) -> String {
    value.map_or("–".into(), |v| format!("{:.2}", 100.0 * v))
}

fn number(value: Option<f64>) -> String {
    value.map_or("–".into(), |v| format!("{v:.3}"))
}
