//! The roofline picture (Williams, Waterman, Patterson, "Roofline", 2009) as SVG: how many operations a second each
//! kernel reaches, by the operations that it does for each byte, below what the device can do at best.

use std::fmt::Write;

/// A kernel.
pub struct Dot {
    /// Its launch.
    pub name: String,
    /// Operations a byte.
    pub intensity: f64,
    /// Operations a second.
    pub rate: f64,
    /// Seconds of all its launches in one step: the area of the dot.
    pub seconds: f64,
}

/// Width and height of the picture, and the plot's left, right, top and bottom edge.
const SIZE: (f64, f64) = (860.0, 560.0);
const PLOT: (f64, f64, f64, f64) = (80.0, 830.0, 70.0, 490.0);
/// Colours that can be told apart whatever eyes look.
const COLOURS: [&str; 2] = ["#0072b2", "#d55e00"];
const STYLE: &str = "text { font: 13px sans-serif; fill: #222 } .title { font-size: 16px; font-weight: bold } \
                     .grid { stroke: #e2e2e2 } .roof { stroke: #222; stroke-width: 2; fill: none } \
                     .dot { fill-opacity: 0.45 } .end { text-anchor: end } .middle { text-anchor: middle }";

/// A logarithmic axis over whole decades.
struct Axis {
    decades: (i32, i32),
    pixels: (f64, f64),
}

impl Axis {
    /// That holds all `values`.
    fn over(values: impl Iterator<Item = f64> + Clone, pixels: (f64, f64)) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min).log10().floor() as i32;
        let high = values.fold(0.0, f64::max).log10().ceil() as i32;
        Self { decades: (low, high.max(low + 1)), pixels }
    }

    fn at(&self, value: f64) -> f64 {
        let (low, high) = self.decades;
        let share = (value.log10() - f64::from(low)) / f64::from(high - low);
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    fn ends(&self) -> (f64, f64) {
        (10f64.powi(self.decades.0), 10f64.powi(self.decades.1))
    }
}

/// The picture: ceilings in bytes and in operations a second, and the kernels of each part by its name.
pub fn svg(title: &str, copy: f64, product: f64, parts: &[(&str, Vec<Dot>)]) -> String {
    let (left, right, top, bottom) = PLOT;
    let ridge = product / copy;
    let dots = parts.iter().flat_map(|(_, dots)| dots);
    let x =
        Axis::over(dots.clone().map(|dot| dot.intensity).chain([ridge / 10.0, ridge * 10.0]), (left, right));
    let y = Axis::over(dots.map(|dot| dot.rate).chain([product, product / 1e3]), (bottom, top));

    let mut out = String::new();
    let mut add = |line: std::fmt::Arguments| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{line}");
    };
    let (width, height) = SIZE;
    add(format_args!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\">"));
    add(format_args!("<style>{STYLE}</style>"));
    add(format_args!("<rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#fff\"/>"));
    add(format_args!("<text x=\"{left}\" y=\"30\" class=\"title\">{}</text>", escaped(title)));
    let (gigabytes, teraflops) = (copy / 1e9, product / 1e12);
    add(format_args!(
        "<text x=\"{left}\" y=\"52\">ceilings measured in this run: copies {gigabytes:.0} GB/s, products \
         {teraflops:.1} TFLOP/s; a larger dot takes more of a step</text>"
    ));
    for decade in x.decades.0..=x.decades.1 {
        let (at, text) = (x.at(10f64.powi(decade)), decimal(decade, 0));
        add(format_args!("<path class=\"grid\" d=\"M{at:.1} {top}V{bottom}\"/>"));
        add(format_args!("<text x=\"{at:.1}\" y=\"{}\" class=\"middle\">{text}</text>", bottom + 20.0));
    }
    for decade in y.decades.0..=y.decades.1 {
        let (at, text) = (y.at(10f64.powi(decade)), decimal(decade, 9));
        add(format_args!("<path class=\"grid\" d=\"M{left} {at:.1}H{right}\"/>"));
        add(format_args!("<text x=\"{}\" y=\"{:.1}\" class=\"end\">{text}</text>", left - 8.0, at + 4.0));
    }
    let middle = (left + right) / 2.0;
    add(format_args!(
        "<text x=\"{middle}\" y=\"{}\" class=\"middle\">operations a byte</text>",
        bottom + 44.0
    ));
    add(format_args!("<text x=\"{}\" y=\"{}\" class=\"end\">GFLOP/s</text>", left - 8.0, top - 12.0));

    for ((part, dots), (index, colour)) in parts.iter().zip(COLOURS.iter().enumerate()) {
        let all: f64 = dots.iter().map(|dot| dot.seconds).sum();
        for Dot { name, intensity, rate, seconds } in dots {
            let (cx, cy, share) = (x.at(*intensity), y.at(*rate), seconds / all);
            let (radius, share) = (3.0 + 25.0 * share.sqrt(), 100.0 * share);
            add(format_args!(
                "<circle class=\"dot\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{radius:.1}\" fill=\"{colour}\"><title>{}: \
                 {:.3} TFLOP/s, {share:.1} % of the time of {part}</title></circle>",
                escaped(name),
                rate / 1e12,
            ));
        }
        let at = bottom - 40.0 + 20.0 * index as f64;
        add(format_args!("<circle cx=\"{}\" cy=\"{}\" r=\"6\" fill=\"{colour}\"/>", right - 120.0, at - 4.0));
        add(format_args!("<text x=\"{}\" y=\"{at}\">{}</text>", right - 108.0, escaped(part)));
    }
    // The slope is cut off where it leaves the plot.
    let start = x.ends().0.max(y.ends().0 / copy);
    add(format_args!(
        "<path class=\"roof\" d=\"M{:.1} {:.1}L{:.1} {:.1}H{right}\"/>",
        x.at(start),
        y.at(start * copy),
        x.at(ridge),
        y.at(product)
    ));
    add(format_args!("</svg>"));
    out
}

/// 10^`decade` in units of 10^`unit`, without an exponent.
fn decimal(decade: i32, unit: i32) -> String {
    let places = (unit - decade).max(0) as usize;
    format!("{:.places$}", 10f64.powi(decade - unit))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_below_the_roof_and_in_the_plot() {
        let dot = |name: &str, intensity, rate| Dot { name: name.into(), intensity, rate, seconds: 1e-5 };
        let parts = [
            ("inference", vec![dot("softmax<<<1, 2>>>", 0.3, 5e11), dot("product", 150.0, 4e14)]),
            ("training step", vec![dot("tiny", 0.02, 3e6)]),
        ];
        let svg = svg("cuda:0, a & b", 4e12, 8e14, &parts);
        assert!(
            svg.contains("softmax&lt;&lt;&lt;1, 2&gt;&gt;&gt;: 0.500 TFLOP/s") && svg.contains("a &amp; b")
        );
        let (left, right, top, bottom) = PLOT;
        let number = |line: &str, key: &str| -> f64 {
            line.split_once(&format!(" {key}=\"")).unwrap().1.split_once('"').unwrap().0.parse().unwrap()
        };
        let dots: Vec<&str> = svg.lines().filter(|line| line.contains("class=\"dot\"")).collect();
        assert_eq!(dots.len(), 3);
        for line in &dots {
            let (x, y) = (number(line, "cx"), number(line, "cy"));
            assert!((left..=right).contains(&x) && (top..=bottom).contains(&y), "{line}");
        }
        // A kernel at half of the copies' rate lies below the slope, which rises with the operations a byte.
        let roof = svg.lines().find(|line| line.contains("class=\"roof\"")).unwrap();
        let ends: Vec<f64> =
            roof.split(['M', 'L', 'H', ' ', '"']).filter_map(|word| word.parse().ok()).collect();
        let [x0, y0, x1, y1, ..] = ends[..] else { panic!("{roof}") };
        let below = |line: &str| number(line, "cy") > y0 + (number(line, "cx") - x0) / (x1 - x0) * (y1 - y0);
        assert!(dots.iter().all(|line| below(line)), "{svg}");
        assert_eq!(decimal(-2, 0) + " " + &decimal(3, 0) + " " + &decimal(10, 9), "0.01 1000 10");
    }
}
