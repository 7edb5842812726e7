//! Pictures in the terminal, each drawn over the last: by kitty's or iTerm2's protocol, elsewhere by half blocks of two
//! colours.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use navicache_media::{Filter, Picture};

/// Most lines that a picture takes.
const ROWS: usize = 12;
/// A character is about twice as tall as it is wide.
const TALL: usize = 2;
/// kitty takes this many characters at once.
const CHUNK: usize = 4096;
/// What kitty calls our picture.
const ID: u32 = 7;

/// How a terminal shows a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Kitty,
    ITerm2,
    /// Half blocks in 24-bit colours.
    TrueColor,
    /// Half blocks in the 216 colours of the usual palette.
    Palette,
}

impl Way {
    /// What the terminal says of itself can do, by its variables.
    pub fn of(variable: impl Fn(&str) -> String) -> Option<Way> {
        let (term, program) = (variable("TERM"), variable("TERM_PROGRAM"));
        let is_inside_of_another = !variable("TMUX").is_empty() || term.starts_with("screen");
        let is_one_of = |names: &[&str]| names.iter().any(|name| program == *name);
        if !is_inside_of_another {
            if term.contains("kitty") || !variable("KITTY_WINDOW_ID").is_empty() || is_one_of(&["ghostty"]) {
                return Some(Way::Kitty);
            }
            if is_one_of(&["iTerm.app", "WezTerm", "mintty"]) {
                return Some(Way::ITerm2);
            }
        }
        match variable("COLORTERM").as_str() {
            "truecolor" | "24bit" => Some(Way::TrueColor),
            _ if term.contains("256color") || term.contains("direct") => Some(Way::Palette),
            _ => None,
        }
    }

    /// Characters across and lines down for a picture, in a terminal of so many.
    pub fn cells(self, picture: &Picture, columns: usize, lines: usize) -> (usize, usize) {
        let rows = ROWS.min(lines / 3).max(1);
        let across = |rows: usize| (TALL * rows * picture.width / picture.height.max(1)).max(1);
        let rows = (1..=rows).rev().find(|rows| across(*rows) < columns).unwrap_or(1);
        (across(rows).min(columns.saturating_sub(1).max(1)), rows)
    }

    /// What is written where the picture begins; the cursor ends on the line below it.
    pub fn drawn(self, picture: &Picture, (columns, rows): (usize, usize)) -> String {
        match self {
            Way::Kitty => with_room(rows, &kitty(picture, columns, rows)),
            Way::ITerm2 => with_room(rows, &iterm2(picture, columns, rows)),
            Way::TrueColor => half_blocks(picture, columns, rows, |[r, g, b]| format!("2;{r};{g};{b}")),
            Way::Palette => half_blocks(picture, columns, rows, |rgb| format!("5;{}", of_palette(rgb))),
        }
    }

    /// What removes it, written on the line below it.
    pub fn removed(self, rows: usize) -> String {
        let picture = if self == Way::Kitty { format!("\x1b_Ga=d,d=I,i={ID},q=2\x1b\\") } else { String::new() };
        format!("{picture}{}\x1b[J", up(rows))
    }
}

/// To the beginning of the line that many lines up.
pub fn up(rows: usize) -> String {
    format!("\r\x1b[{rows}A")
}

/// A picture that does not move the cursor: room for it is made first.
fn with_room(rows: usize, picture: &str) -> String {
    let room = "\n".repeat(rows);
    format!("{room}{}{picture}\r\x1b[{rows}B", up(rows))
}

/// <https://sw.kovidgoyal.net/kitty/graphics-protocol/>
fn kitty(picture: &Picture, columns: usize, rows: usize) -> String {
    let Picture { width, height, rgb } = picture;
    let data = STANDARD.encode(rgb);
    let mut chunks = data.as_bytes().chunks(CHUNK).peekable();
    let mut head = format!("a=T,f=24,s={width},v={height},i={ID},p=1,q=2,C=1,c={columns},r={rows},");
    let mut text = String::new();
    while let Some(chunk) = chunks.next() {
        let more = u8::from(chunks.peek().is_some());
        let _ = write!(text, "\x1b_G{head}m={more};{}\x1b\\", String::from_utf8_lossy(chunk));
        head.clear();
    }
    text
}

/// <https://iterm2.com/documentation-images.html>
fn iterm2(picture: &Picture, columns: usize, rows: usize) -> String {
    let png = picture.png();
    let size = png.len();
    let data = STANDARD.encode(png);
    format!("\x1b]1337;File=inline=1;size={size};width={columns};height={rows};doNotMoveCursor=1:{data}\x07")
}

/// The upper half of a character in one colour, the lower in another.
fn half_blocks(picture: &Picture, columns: usize, rows: usize, color: impl Fn([u8; 3]) -> String) -> String {
    let small = picture.resized(columns, TALL * rows, Filter::Bicubic);
    let mut text = String::new();
    let pixel = |x: usize, y: usize| {
        let at = 3 * (y * columns + x);
        [small.rgb[at], small.rgb[at + 1], small.rgb[at + 2]]
    };
    for row in 0..rows {
        let mut last = None;
        for x in 0..columns {
            let both = (pixel(x, TALL * row), pixel(x, TALL * row + 1));
            if last != Some(both) {
                let _ = write!(text, "\x1b[38;{};48;{}m", color(both.0), color(both.1));
                last = Some(both);
            }
            text.push('▀');
        }
        text.push_str("\x1b[0m\n");
    }
    text
}

/// The nearest of the six levels a colour of the palette of 256.
fn of_palette(rgb: [u8; 3]) -> u32 {
    let level = |value: u8| (u32::from(value) * 5 + 127) / 255;
    16 + 36 * level(rgb[0]) + 6 * level(rgb[1]) + level(rgb[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(variables: &[(&str, &str)]) -> Option<Way> {
        Way::of(|name| variables.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value).to_string())
    }

    #[test]
    fn terminals_are_told_by_their_variables() {
        assert_eq!(way(&[("TERM", "xterm-kitty")]), Some(Way::Kitty));
        assert_eq!(way(&[("TERM", "xterm-256color"), ("TERM_PROGRAM", "iTerm.app")]), Some(Way::ITerm2));
        assert_eq!(way(&[("TERM", "xterm-256color"), ("COLORTERM", "truecolor")]), Some(Way::TrueColor));
        assert_eq!(way(&[("TERM", "screen-256color"), ("KITTY_WINDOW_ID", "1")]), Some(Way::Palette));
        assert_eq!(way(&[("TERM", "xterm-256color")]), Some(Way::Palette));
        assert_eq!(way(&[("TERM", "vt100")]), None);
    }

    fn picture(width: usize, height: usize) -> Picture {
        Picture { width, height, rgb: [255, 0, 0].repeat(width * height) }
    }

    #[test]
    fn a_picture_fits_into_the_terminal() {
        let wide = picture(64, 32);
        assert_eq!(Way::TrueColor.cells(&wide, 80, 40), (48, 12));
        let (columns, rows) = Way::TrueColor.cells(&wide, 40, 40);
        assert!(columns < 40 && rows == 9, "{columns} {rows}");
        assert_eq!(Way::TrueColor.cells(&picture(10, 10), 80, 2), (2, 1));
        assert!(Way::TrueColor.cells(&picture(4000, 10), 20, 24).0 < 20);
    }

    #[test]
    fn each_way_ends_on_the_line_below() {
        let red = picture(8, 8);
        let blocks = Way::TrueColor.drawn(&red, (4, 2));
        assert_eq!(blocks, "\x1b[38;2;255;0;0;48;2;255;0;0m▀▀▀▀\x1b[0m\n".repeat(2));
        assert!(Way::Palette.drawn(&red, (1, 1)).starts_with("\x1b[38;5;196;48;5;196m▀"));
        let kitty = Way::Kitty.drawn(&picture(64, 64), (4, 2));
        assert!(kitty.starts_with("\n\n\r\x1b[2A\x1b_Ga=T,f=24,s=64,v=64") && kitty.ends_with("\r\x1b[2B"));
        assert_eq!(kitty.matches("\x1b_G").count(), (64 * 64 * 3usize).div_ceil(3) * 4 / CHUNK);
        assert!(kitty.contains("m=0;") && kitty.contains("\x1b_Gm=1;"));
        assert!(Way::ITerm2.drawn(&red, (4, 2)).contains("\x1b]1337;File=inline=1;size="));
    }
}
