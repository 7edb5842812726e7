//! Sizes of videos as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::field::Field;
use crate::{Error, Result};

/// Width and height in pixels. As text: `832x480`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// How large, as a number of lines. As text: `480p`. Some families know `2k` and `4k` too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Resolution(String);

/// Width over height. As text: `16:9`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AspectRatio {
    /// The first number.
    pub width: f64,
    /// The second.
    pub height: f64,
}

impl FromStr for Size {
    type Err = Error;

    /// `832x480`, and `832*480` as in the authors' repositories.
    fn from_str(text: &str) -> Result<Self> {
        let pair = text.split_once(['x', 'X', '*', '×']);
        let sides = pair.and_then(|(width, height)| Some((width.trim().parse().ok()?, height.trim().parse().ok()?)));
        let (width, height) = sides.ok_or_else(|| invalid(Field::Size, text, "WIDTHxHEIGHT, as in 832x480"))?;
        Ok(Size { width, height })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl From<(usize, usize)> for Size {
    fn from((width, height): (usize, usize)) -> Self {
        Size { width, height }
    }
}

impl Resolution {
    /// Lines, from 16 to 8192; `None` for a name that a family has to know.
    pub fn lines(&self) -> Option<f64> {
        let lines = self.0.strip_suffix('p')?.parse::<f64>().ok()?;
        (16.0..=8192.0).contains(&lines).then_some(lines)
    }
}

impl FromStr for Resolution {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let resolution = Resolution(text.trim().to_lowercase());
        let known = resolution.lines().is_some() || ["2k", "4k"].contains(&resolution.0.as_str());
        known.then_some(resolution).ok_or_else(|| invalid(Field::Resolution, text, "a number of lines, as in 480p"))
    }
}

impl fmt::Display for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AspectRatio {
    /// Width over height.
    pub fn value(self) -> f64 {
        self.width / self.height
    }
}

impl FromStr for AspectRatio {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| (0.01..=1e4).contains(n));
        let pair = text.split_once(':').and_then(|(width, height)| Some((number(width)?, number(height)?)));
        let ratio = pair.map(|(width, height)| AspectRatio { width, height });
        ratio
            .filter(|ratio| (0.05..=20.0).contains(&ratio.value()))
            .ok_or_else(|| invalid(Field::AspectRatio, text, "WIDTH:HEIGHT, as in 16:9"))
    }
}

impl fmt::Display for AspectRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.width, self.height)
    }
}

fn invalid(field: Field, found: &str, expected: &str) -> Error {
    Error::Invalid { field, found: found.to_string(), expected: format!("expected {expected}") }
}

/// In JSON they are texts.
macro_rules! as_text {
    ($($name:ident),*) => {
        $(
            impl TryFrom<String> for $name {
                type Error = Error;

                fn try_from(text: String) -> Result<Self> {
                    text.parse()
                }
            }

            impl From<$name> for String {
                fn from(value: $name) -> Self {
                    value.to_string()
                }
            }
        )*
    };
}
as_text!(Size, Resolution, AspectRatio);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for text in ["832x480", "832*480", "832X480", " 832 x 480 "] {
            assert_eq!(text.parse::<Size>().unwrap(), Size { width: 832, height: 480 }, "{text}");
        }
        for wrong in ["832", "832x", "x480", "-1x2", "832x480x3", ""] {
            let message = wrong.parse::<Size>().unwrap_err().to_string();
            assert_eq!(message, format!("`size` {wrong}: expected WIDTHxHEIGHT, as in 832x480"));
        }
    }

    #[test]
    fn resolutions_and_ratios() {
        assert_eq!("480P".parse::<Resolution>().unwrap().lines(), Some(480.0));
        assert_eq!("4k".parse::<Resolution>().unwrap().lines(), None);
        for wrong in ["480", "p", "1p", "99999p", "NaNp", "5k"] {
            assert!(wrong.parse::<Resolution>().is_err(), "{wrong}");
        }
        assert_eq!("16:9".parse::<AspectRatio>().unwrap().value(), 16.0 / 9.0);
        assert_eq!("2.39:1".parse::<AspectRatio>().unwrap().to_string(), "2.39:1");
        for wrong in ["16", "16:", ":9", "0:9", "16:0", "1000:1", "NaN:1", "-16:9"] {
            assert!(wrong.parse::<AspectRatio>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn they_are_texts_in_json() {
        assert_eq!(serde_json::to_string(&Size { width: 8, height: 4 }).unwrap(), "\"8x4\"");
        assert_eq!(serde_json::from_str::<AspectRatio>("\"9:16\"").unwrap(), AspectRatio { width: 9.0, height: 16.0 });
        let message = serde_json::from_str::<Resolution>("\"480\"").unwrap_err().to_string();
        assert!(message.contains("expected a number of lines, as in 480p"), "{message}");
    }
}
