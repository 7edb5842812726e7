//! The table of a comparison for papers: CSV and LaTeX.

use std::fmt::Write as _;

use navicache_metrics::Metric;

use super::results::{Results, Summary};

/// A column: its name in CSV, its head in LaTeX, digits behind the point there, and the value.
type Column = (&'static str, String, usize, Box<dyn Fn(&Summary) -> Option<f64>>);

fn columns(results: &Results) -> Vec<Column> {
    let column = |key, head: &str, digits, value: fn(&Summary) -> Option<f64>| -> Column {
        (key, head.to_string(), digits, Box::new(value))
    };
    let mut columns = vec![
        column("videos", "videos", 0, |m| Some(m.runs as f64)),
        column("speedup", "speed-up", 2, |m| m.speedup),
        column("work", "work, \\%", 0, |m| Some(100.0 * m.work)),
        column("psnr", "PSNR, dB", 2, |m| m.psnr),
        column("psnr_deviation", "$\\pm$", 2, |m| m.psnr_deviation),
        column("psnr_worst", "worst, dB", 2, |m| m.psnr_worst),
        column("psnr_of_video", "whole, dB", 2, |m| m.psnr_of_video),
    ];
    let is_measured = |metric: &&Metric| results.methods.iter().any(|m| m.get(metric).is_some());
    columns.extend(Summary::other_metrics().filter(is_measured).map(|metric| -> Column {
        (metric.key, metric.name.to_string(), metric.digits, Box::new(|m: &Summary| m.get(metric)))
    }));
    columns.extend([
        column("motion_kept", "motion", 3, |m| m.motion_kept),
        column("kept_mb", "kept, MB", 1, |m| Some(m.store_bytes as f64 / 1e6)),
        column("denoise_seconds", "denoising, s", 2, |m| Some(m.seconds.denoise)),
    ]);
    columns
}

/// A line a method, all digits; what was not measured is empty.
pub(super) fn csv(results: &Results) -> String {
    let columns = columns(results);
    let mut text = String::from("method");
    columns.iter().for_each(|(key, ..)| text.extend([",", key]));
    for summary in &results.methods {
        let _ = write!(text, "\n\"{}\"", summary.method.replace('"', "\"\"")); // a String does not fail
        for (.., value) in &columns {
            text.push(',');
            let _ = value(summary).map_or(Ok(()), |value| write!(text, "{value}"));
        }
    }
    text + "\n"
}

/// A `tabular` as the package booktabs has it.
pub(super) fn latex(results: &Results) -> String {
    let columns = columns(results);
    let heads: Vec<&str> = columns.iter().map(|(_, head, ..)| head.as_str()).collect();
    let mut text = format!(
        "% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{l{}}}\n\\toprule\nmethod & {} \\\\\n\\midrule\n",
        "r".repeat(columns.len()),
        heads.join(" & ")
    );
    for summary in &results.methods {
        text.push_str(&format!("\\texttt{{{}}}", plain(&summary.method)));
        for (.., digits, value) in &columns {
            match value(summary) {
                Some(value) => text.push_str(&format!(" & {value:.digits$}")),
                None => text.push_str(" & --"),
            }
        }
        text.push_str(" \\\\\n");
    }
    text + "\\bottomrule\n\\end{tabular}\n"
}

/// A text in which nothing is a command.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            '\\' => plain.push_str("\\textbackslash{}"),
            '~' => plain.push_str("\\textasciitilde{}"),
            '^' => plain.push_str("\\textasciicircum{}"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => plain.extend(['\\', c]),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_is_a_command() {
        assert_eq!(plain(r"a_b%\x{}"), r"a\_b\%\textbackslash{}x\{\}");
    }
}
