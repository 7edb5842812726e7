//! Plots as SVG: for files beside the page, and for the page itself. Colours are those of all pages.

use std::fmt::Write as _;

use html_escape::encode_safe as escaped;
use navicache_page::{PALETTE, PLOT};

use super::results::{Results, Run};

/// Colours there are; more methods begin again.
const COLORS: usize = 10;

/// A drawing that stands for itself.
pub(super) fn whole(drawing: &str) -> String {
    let style = format!("<style>{PALETTE}{PLOT}svg {{ background: var(--paper); }}</style>");
    match drawing.split_once('>') {
        Some((svg, rest)) => format!("{svg}>{style}{rest}\n"),
        None => drawing.to_string(),
    }
}

/// How wide a drawing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// Names stand beside their dots.
    Wide,
    /// For phones, where text keeps its size: dots have numbers, which are explained below.
    Narrow,
}

/// Speed-up against PSNR: a dot a method, a faint one for each of its runs, a bar from the worst to the best of them.
/// The methods that no other beats in both are joined by a dashed line (the Pareto front).
pub(super) fn frontier(results: &Results, width: Width) -> String {
    const LEGEND_LINE: f64 = 20.0;
    const LEFT: f64 = 40.0;
    const RIGHT: f64 = 24.0;
    const TOP: f64 = 34.0;
    const BOTTOM: f64 = 46.0;
    let size = match width {
        Width::Wide => (960.0, 400.0),
        Width::Narrow => (360.0, 360.0),
    };
    let place = |run: &Run| Some((results.speedup(run)?, run.psnr()?));
    let runs: Vec<(f64, f64)> = results.runs.iter().filter_map(place).collect();
    let means: Vec<(usize, &str, f64, f64)> = results
        .methods
        .iter()
        .enumerate()
        .filter_map(|(i, method)| Some((i, method.method.as_str(), method.speedup?, method.psnr?)))
        .collect();
    let xs = runs.iter().map(|run| run.0).chain([1.0]);
    let ys = runs.iter().map(|run| run.1);
    let (x_axis, y_axis) = (Axis::over(xs, (size.0 / 110.0) as usize), Axis::over(ys, 6));
    let x = |v: f64| LEFT + x_axis.part(v) * (size.0 - LEFT - RIGHT);
    let y = |v: f64| size.1 - BOTTOM - y_axis.part(v) * (size.1 - TOP - BOTTOM);

    // Names of the methods by their numbers, below a narrow drawing.
    let is_numbered = width == Width::Narrow;
    let legend = if is_numbered { means.len() as f64 * LEGEND_LINE + 8.0 } else { 0.0 };

    let words: Vec<String> =
        means.iter().map(|(_, method, speedup, psnr)| format!("{method}: {speedup:.2} times, {psnr:.1} dB")).collect();
    let mut svg = Svg::new((size.0, size.1 + legend), &format!("Speed-up against PSNR. {}", words.join("; ")));
    for v in x_axis.ticks() {
        svg.put(format!(
            "<line class='grid' x1='{0:.1}' x2='{0:.1}' y1='{1:.1}' y2='{2:.1}'/>",
            x(v),
            TOP,
            size.1 - BOTTOM
        ));
        let digits = x_axis.digits();
        svg.put(format!(
            "<text class='soft' x='{:.1}' y='{:.1}' text-anchor='middle'>{v:.digits$}×</text>",
            x(v),
            size.1 - BOTTOM + 18.0
        ));
    }
    for v in y_axis.ticks() {
        let digits = y_axis.digits();
        svg.put(format!("<line class='grid' x1='{LEFT}' x2='{:.1}' y1='{1:.1}' y2='{1:.1}'/>", size.0 - RIGHT, y(v)));
        svg.put(format!(
            "<text class='soft' x='{:.1}' y='{:.1}' text-anchor='end'>{v:.digits$}</text>",
            LEFT - 8.0,
            y(v) + 4.0
        ));
    }
    svg.put(format!("<text x='{LEFT}' y='16'>PSNR to the uncached video, dB</text>"));
    let (middle, base) = ((LEFT + size.0 - RIGHT) / 2.0, size.1 - 8.0);
    svg.put(format!("<text x='{middle}' y='{base}' text-anchor='middle'>speed-up of denoising</text>"));

    // Many settings are drawn as curves, one a method, which has its colour and its name at its fast end.
    let curves = means.len() > COLORS;
    let bases: Vec<&str> = means.iter().map(|mean| method_of(mean.1)).collect();
    let hue = |i: usize, method: &str| {
        let mut before: Vec<&str> = bases.iter().copied().take_while(|other| *other != method_of(method)).collect();
        before.dedup();
        color(if curves { before.len() } else { i })
    };
    for (i, method, speedup, _) in &means {
        for (vx, vy) in results.of_method(method).filter_map(place).filter(|_| !curves) {
            let fill = hue(*i, method);
            svg.put(format!(
                "<circle cx='{:.1}' cy='{:.1}' r='3' fill='{fill}' opacity='.35'><title>{}: {vx:.2} times, {vy:.1} dB</title></circle>",
                x(vx),
                y(vy),
                escaped(method)
            ));
        }
        let spread = || results.of_method(method).filter_map(|run| run.psnr()).map(&y);
        let (top, bottom) = (spread().fold(f64::INFINITY, f64::min), spread().fold(0.0, f64::max));
        if !curves && bottom > top {
            let (px, fill) = (x(*speedup), hue(*i, method));
            svg.put(format!("<path d='M{px:.1} {top:.1}V{bottom:.1}' stroke='{fill}' stroke-width='2' opacity='.5'/>"));
        }
    }
    let front: Vec<String> = front(means.iter().map(|mean| (mean.2, mean.3)).collect())
        .into_iter()
        .map(|(vx, vy)| format!("{:.1},{:.1}", x(vx), y(vy)))
        .collect();
    if front.len() > 1 {
        svg.put(format!(
            "<polyline points='{}' class='front' fill='none' stroke-dasharray='5 4'><title>no other method is both faster and closer</title></polyline>",
            front.join(" ")
        ));
    }
    // Names stand beside their dots, on the side with more room, moved apart where they would overlap.
    let mut names: Vec<(f64, f64, usize, &str)> =
        means.iter().map(|(i, method, vx, vy)| (x(*vx), y(*vy), *i, *method)).collect();
    names.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut above = f64::NEG_INFINITY;
    for &(px, py, i, method) in &names {
        let of_curve = || names.iter().filter(|other| method_of(other.3) == method_of(method));
        if curves && of_curve().any(|other| other.0 > px) {
            continue;
        }
        if curves {
            let mut points: Vec<(f64, f64)> = of_curve().map(|point| (point.0, point.1)).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let points: Vec<String> = points.iter().map(|(px, py)| format!("{px:.1},{py:.1}")).collect();
            svg.put(format!("<polyline points='{}' stroke='{}' fill='none'/>", points.join(" "), hue(i, method)));
        }
        let line = py.max(above + 16.0);
        above = line;
        let (side, anchor) = if px > size.0 * 0.6 { (-1.0, "end") } else { (1.0, "start") };
        let (near, far, text) = (px + side * 6.0, px + side * 13.0, px + side * 16.0);
        svg.put(format!("<path d='M{near:.1} {py:.1}L{far:.1} {line:.1}' stroke='{}' fill='none'/>", hue(i, method)));
        let number = (i + 1).to_string();
        let label = if is_numbered {
            &number
        } else if curves {
            method_of(method)
        } else {
            method
        };
        let label = escaped(label);
        svg.put(format!("<text x='{text:.1}' y='{:.1}' text-anchor='{anchor}'>{label}</text>", line + 4.0));
    }
    for (px, py, i, method) in &names {
        let radius = if curves { 3 } else { 6 };
        svg.put(format!("<circle cx='{px:.1}' cy='{py:.1}' r='{radius}' fill='{}'/>", hue(*i, method)));
    }
    for (row, (i, method, ..)) in means.iter().enumerate().filter(|_| is_numbered) {
        let line = size.1 + (row as f64 + 0.7) * LEGEND_LINE;
        svg.put(format!("<circle cx='12' cy='{:.1}' r='5' fill='{}'/>", line - 4.0, hue(*i, method)));
        let name = shortened(method, 40);
        svg.put(format!("<text x='24' y='{line:.1}'>{} {}</text>", i + 1, escaped(&name)));
    }
    svg.end()
}

/// What ran, a row a method and branch, a cell a step; of the first video.
pub(super) fn strips(results: &Results) -> String {
    const NAME: f64 = 190.0;
    const ROW: f64 = 16.0;
    const CELL: f64 = 12.0;
    let Some(first) = results.runs.first() else { return String::new() };
    let of_first = |run: &&Run| run.prompt == first.prompt && run.seed == first.seed;
    let runs: Vec<&Run> = results.runs.iter().filter(of_first).collect();
    let steps = runs.iter().map(|run| run.steps()).max().unwrap_or(0);
    let branches = |run: &Run| run.measured.strip.split('|').next().map_or(1, str::len).max(1);
    let height: f64 = runs.iter().map(|run| branches(run) as f64 * ROW + 8.0).sum();
    let size = (NAME + steps as f64 * CELL + 16.0, height + 58.0);
    let words: Vec<String> = runs.iter().map(|run| format!("{}: {}", run.method, run.measured.strip)).collect();
    let mut svg =
        Svg::new(size, &format!("What ran of each step. S computed, . reused, m in part. {}", words.join("; ")));
    svg.put(format!("<text x='8' y='20'>{}, seed {}</text>", escaped(&shortened(&first.prompt, 70)), first.seed));
    let mut top = 32.0;
    for run in &runs {
        let middle = top + branches(run) as f64 * ROW / 2.0 + 4.0;
        svg.put(format!("<text x='8' y='{middle:.1}'>{}</text>", escaped(&shortened(&run.method, 26))));
        for (step, symbols) in run.measured.strip.split_terminator('|').enumerate() {
            for (row, symbol) in symbols.chars().enumerate() {
                let (px, py) = (NAME + step as f64 * CELL, top + row as f64 * ROW);
                let class = if symbol == '.' { "off".to_string() } else { symbol.to_string() };
                svg.put(format!(
                    "<rect class='{class}' x='{px}' y='{py}' width='{}' height='{}'/>",
                    CELL - 1.0,
                    ROW - 2.0
                ));
            }
        }
        top += branches(run) as f64 * ROW + 8.0;
    }
    let mut left = NAME;
    for (class, name) in [("S", "computed"), ("m", "in part"), ("off", "reused")] {
        svg.put(format!("<rect class='{class}' x='{left}' y='{top}' width='11' height='14'/>"));
        svg.put(format!("<text class='soft' x='{}' y='{}'>{name}</text>", left + 17.0, top + 12.0));
        left += 90.0;
    }
    svg.end()
}

/// Of points, those that no other is right of and above, from left to right.
fn front(mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    points.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let mut highest = f64::NEG_INFINITY;
    points.retain(|point| {
        let is_higher = point.1 > highest;
        highest = highest.max(point.1);
        is_higher
    });
    points.reverse();
    points
}

/// A method without its settings.
fn method_of(method: &str) -> &str {
    method.split([':', ',']).next().unwrap_or(method)
}

/// The colour of a method, by its place among all.
pub(super) fn color(method: usize) -> String {
    format!("var(--m{})", method % COLORS)
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.to_string() } else { text.chars().take(most - 1).chain(['…']).collect() }
}

/// A drawing under way.
struct Svg(String);

impl Svg {
    fn new((width, height): (f64, f64), words: &str) -> Self {
        let words = escaped(words);
        let mut svg = Svg(String::new());
        svg.put(format!(
            "<svg xmlns='http://www.w3.org/2000/svg' class='plot' viewBox='0 0 {width} {height}' role='img' aria-label='{words}'>"
        ));
        svg
    }

    fn put(&mut self, text: String) {
        let _ = writeln!(self.0, "{text}"); // a String does not fail
    }

    fn end(mut self) -> String {
        self.put("</svg>".to_string());
        self.0
    }
}

/// A range of round numbers.
#[derive(Debug, PartialEq)]
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// Over values, with about so many ticks.
    fn over(values: impl Iterator<Item = f64>, ticks: usize) -> Self {
        let finite: Vec<f64> = values.filter(|v| v.is_finite()).collect();
        let low = finite.iter().copied().reduce(f64::min).unwrap_or(0.0);
        let high = finite.iter().copied().reduce(f64::max).unwrap_or(1.0);
        let rough = ((high - low) / ticks as f64).max(1e-2);
        let ten = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * ten).find(|step| *step >= rough * 0.999).unwrap_or(rough);
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        Axis { low, high: if high > low { high } else { low + step }, step }
    }

    fn part(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        let Axis { low, step, .. } = *self;
        (0..=count).map(move |i| low + i as f64 * step)
    }

    fn digits(&self) -> usize {
        (-self.step.log10().floor()).clamp(0.0, 3.0) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_nothing_beats() {
        let points = vec![(2.0, 40.0), (1.5, 50.0), (1.4, 45.0), (3.0, 30.0), (2.0, 39.0)];
        assert_eq!(front(points), [(1.5, 50.0), (2.0, 40.0), (3.0, 30.0)]);
        assert!(front(Vec::new()).is_empty());
    }

    #[test]
    fn axes_have_round_numbers() {
        let axis = Axis::over([1.0, 2.26].into_iter(), 8);
        assert_eq!((axis.low, axis.step, axis.digits()), (1.0, 0.2, 1));
        assert!((axis.high - 2.4).abs() < 1e-9);
        let one = Axis::over([50.0].into_iter(), 6);
        assert!(one.high > one.low && one.part(50.0).is_finite());
        assert!(Axis::over([].into_iter(), 6).high.is_finite());
    }
}
