//! The confusion matrix as a picture.

use maud::{Markup, html};

use crate::metrics::Confusion;

/// Side of a cell.
const CELL: usize = 34;
/// Letters of a class name that are shown; the whole name is its title.
const LETTERS: usize = 16;
/// Width of a letter, generously.
const LETTER: usize = 8;
/// With more classes than this, cells hold no numbers.
const NUMBERED: usize = 24;

/// Shares above which a dark and a light scheme write in the colour for dark and light grounds.
const MIDDLE: f64 = 0.57;
const HIGH: f64 = 0.8;

/// Rows are labels, columns predictions; a cell's shade and number are its share of the row's pixels, in percent.
pub fn matrix(names: &[String], confusion: &Confusion) -> Markup {
    let n = confusion.classes();
    let cell = if n > NUMBERED { CELL / 2 } else { CELL };
    let name = |c: usize| names.get(c).cloned().unwrap_or_else(|| c.to_string());
    let letters = (0..n).map(|c| short(&name(c)).chars().count()).max().unwrap_or(0);
    // Names lie at the left, and slanted above, where the last one needs room at the right too.
    let (left, top) = (letters * LETTER + 12, letters * LETTER * 4 / 5 + 20);
    let side = n * cell;
    let (width, height) = (left + side + letters * LETTER * 2 / 3, top + side + 2);
    html! {
        svg.matrix viewBox=(format!("0 0 {width} {height}")) width=(width) height=(height) role="img"
            aria-label="Confusion matrix: rows are labels, columns are predictions" {
            @for c in 0..n {
                @let middle = c * cell + cell / 2;
                g.name {
                    title { (name(c)) }
                    text x=(left - 8) y=(top + middle + 4) text-anchor="end" { (short(&name(c))) }
                }
                g.name {
                    title { (name(c)) }
                    @let place = format!("translate({} {}) rotate(-50)", left + middle + 4, top - 8);
                    text transform=(place) { (short(&name(c))) }
                }
            }
            rect.ground x=(left) y=(top) width=(side) height=(side) {}
            @for at in (0..n).map(|c| c * cell) {
                rect.diagonal x=(left + at + 1) y=(top + at + 1) width=(cell - 2) height=(cell - 2) {}
            }
            @for (label, predicted) in (0..n).flat_map(|l| (0..n).map(move |p| (l, p))) {
                @let count = confusion.count(label, predicted);
                @if count > 0 {
                    @let share = count as f64 / confusion.labelled(label) as f64;
                    @let (x, y) = (left + predicted * cell, top + label * cell);
                    g {
                        title {
                            (name(label)) " taken for " (name(predicted)) ": " (count) " pixels, "
                            (format!("{:.2}", 100.0 * share)) " %"
                        }
                        rect.cell x=(x + 1) y=(y + 1) width=(cell - 2) height=(cell - 2)
                            fill-opacity=(format!("{share:.3}")) {}
                        @if n <= NUMBERED {
                            @let (x, y) = (x + cell / 2, y + cell / 2 + 4);
                            text.middle[share > MIDDLE].high[share > HIGH] x=(x) y=(y) text-anchor="middle" {
                                (percent(share))
                            }
                        }
                    }
                }
            }
            rect.frame x=(left) y=(top) width=(side) height=(side) {}
        }
    }
}

/// Whole percents; what is there but rounds to nothing shows as a dot.
fn percent(share: f64) -> String {
    let whole = (100.0 * share).round();
    if whole < 1.0 { "·".into() } else { whole.to_string() }
}

fn short(name: &str) -> String {
    if name.chars().count() <= LETTERS {
        return name.into();
    }
    name.chars().take(LETTERS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_hold_the_share_of_their_row() {
        let mut confusion = Confusion::new(2);
        confusion.add(&[0, 0, 0, 0, 1, 255], &[0, 0, 0, 1, 1, 0]).unwrap();
        let svg = matrix(&["a<b".into(), "a very long name of a class".into()], &confusion).into_string();
        assert!(
            svg.contains(">75</text>") && svg.contains(">25</text>") && svg.contains(">100</text>"),
            "{svg}"
        );
        assert_eq!(svg.matches("class=\"cell\"").count(), 3);
        assert!(svg.contains("a&lt;b taken for a very long name of a class: 1 pixels, 25.00 %"), "{svg}");
        assert!(svg.contains(">a very long nam…</text>"), "{svg}");
    }

    #[test]
    fn small_shares_are_not_called_nothing() {
        assert_eq!([0.001, 0.004_999, 0.005, 0.994, 1.0].map(percent), ["·", "·", "1", "99", "100"]);
    }
}
