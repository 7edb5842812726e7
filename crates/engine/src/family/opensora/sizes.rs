//! Sizes by the names that users of Open-Sora know: a resolution and an aspect ratio. Their tables have
//! height over width; here it is width over height, as everywhere.

use crate::field::Field;
use crate::size::{AspectRatio, Resolution, Size};
use crate::{Error, Result};

/// What is taken where one of the two is not given.
const RESOLUTION: &str = "240p";
const ASPECT_RATIO: AspectRatio = AspectRatio { width: 16.0, height: 9.0 };

/// Height over width, as the authors name them.
const RATIOS: [&str; 17] = [
    "3:8", "9:21", "12:25", "1:2", "9:17", "27:50", "9:16", "5:8", "2:3", "3:4", "1:1", "4:3", "3:2", "16:9", "17:9",
    "2:1", "50:27",
];

/// Height x width for every ratio. Source: Open-Sora v1.2, `datasets/aspect.py`.
#[rustfmt::skip]
const SIZES: [(&str, &str); 8] = [
    ("144p", "117x312 125x291 133x277 135x270 139x262 141x260 144x256 151x241 156x234 166x221 192x192 221x165 235x156 256x144 263x139 271x135 277x132"),
    ("240p", "196x522 210x490 222x462 226x452 232x438 236x436 240x426 252x404 262x393 276x368 320x320 370x278 392x262 426x240 440x232 452x226 462x222"),
    ("360p", "294x784 314x732 332x692 340x680 350x662 352x652 360x640 380x608 392x588 416x554 480x480 554x416 588x392 640x360 660x350 678x340 692x332"),
    ("480p", "392x1046 420x980 444x925 452x904 466x880 470x870 480x854 506x810 522x784 554x738 640x640 740x555 784x522 854x480 880x466 906x454 924x444"),
    ("720p", "588x1568 628x1466 666x1388 678x1356 698x1318 706x1306 720x1280 758x1212 784x1176 832x1110 960x960 1108x832 1176x784 1280x720 1320x698 1358x680 1386x666"),
    ("1080p", "882x2352 942x2198 998x2080 1018x2036 1048x1980 1058x1958 1080x1920 1138x1820 1176x1764 1248x1664 1440x1440 1662x1246 1764x1176 1920x1080 1980x1048 2036x1018 2078x998"),
    ("2k", "1176x3136 1256x2930 1330x2770 1358x2716 1398x2640 1412x2612 1440x2560 1518x2428 1568x2352 1662x2216 1920x1920 2218x1664 2352x1568 2560x1440 2638x1396 2716x1358 2772x1330"),
    ("4k", "1764x4704 1886x4400 1996x4158 2036x4072 2096x3960 2118x3918 2160x3840 2276x3642 2352x3528 2494x3326 2880x2880 3326x2494 3528x2352 3840x2160 3958x2096 4072x2036 4156x1994"),
];

/// Width and height of a resolution and an aspect ratio; what is not given is the authors' default.
pub(super) fn of(resolution: Option<&Resolution>, ratio: Option<AspectRatio>) -> Result<Size> {
    let refuse = |field, found: &str, known: Vec<String>| Error::Invalid {
        field,
        found: found.to_string(),
        expected: format!("expected one of {}; or give {}", known.join(", "), Field::Size),
    };
    let resolution = resolution.map_or(RESOLUTION.to_string(), Resolution::to_string);
    let row = SIZES.iter().find(|(name, _)| *name == resolution).map(|(_, row)| row);
    let names = || SIZES.iter().map(|(name, _)| name.to_string()).collect();
    let row = row.ok_or_else(|| refuse(Field::Resolution, &resolution, names()))?;
    let ratio = ratio.unwrap_or(ASPECT_RATIO);
    let column = RATIOS.iter().position(|name| turned(name) == ratio.to_string());
    let size = column.and_then(|column| row.split(' ').nth(column)?.split_once('x'));
    match size.map(|(height, width)| (width.parse(), height.parse())) {
        Some((Ok(width), Ok(height))) => Ok(Size { width, height }),
        _ => Err(refuse(Field::AspectRatio, &ratio.to_string(), RATIOS.iter().map(|name| turned(name)).collect())),
    }
}

/// `16:9` of `9:16`.
fn turned(ratio: &str) -> String {
    ratio.split(':').rev().collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(resolution: &str, ratio: &str) -> Result<(usize, usize)> {
        let Size { width, height } = of(Some(&resolution.parse()?), Some(ratio.parse()?))?;
        Ok((width, height))
    }

    #[test]
    fn every_name_is_a_size() {
        for (resolution, row) in SIZES {
            assert_eq!(row.split(' ').count(), RATIOS.len());
            for ratio in RATIOS.map(turned) {
                let (width, height) = named(resolution, &ratio).unwrap();
                let asked = ratio.parse::<AspectRatio>().unwrap().value();
                // The published table is not exact: 144p 50:27 is 277x132.
                assert!((width as f64 / height as f64 / asked - 1.0).abs() < 0.15, "{resolution} {ratio}");
            }
        }
        assert_eq!(named("480p", "16:9").unwrap(), (854, 480));
        assert_eq!(named("720P", "1:1").unwrap(), (960, 960));
        assert_eq!(of(None, None).unwrap(), Size { width: 426, height: 240 });
    }

    #[test]
    fn other_names_are_refused_with_those_that_are_known() {
        let message = named("481p", "16:9").unwrap_err().to_string();
        assert!(message.contains("`resolution` 481p: expected one of 144p"), "{message}");
        let message = named("480p", "7:5").unwrap_err().to_string();
        assert!(message.contains("`aspect_ratio` 7:5: expected one of 8:3"), "{message}");
    }
}
