//! Frames a second.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// Frames a second: a whole number, or a fraction such as television's 24000/1001. In JSON a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Rate {
    frames: u32,
    seconds: u32,
}

/// What a rate may be.
const EXPECTED: &str = "expected 1 to 1000 frames a second, as in 24, 23.976 or 24000/1001";
/// The largest rate.
const MOST: f64 = 1000.0;
/// The largest denominator: that of television.
const LARGEST_DENOMINATOR: u32 = 1001;
/// How far from television's rate a number is that means it: 23.98 is 24000/1001.
const ROUNDED: f64 = 0.005;
/// Less than half the distance between two fractions with such denominators.
const SAME: f64 = 1e-7;

impl Rate {
    /// Whole frames a second; of none, one.
    pub const fn whole(frames: u32) -> Self {
        Rate { frames: if frames == 0 { 1 } else { frames }, seconds: 1 }
    }

    /// The rate that a number means: the whole one, television's (a whole one times 1000/1001), or the fraction with
    /// the smallest denominator. `None` beyond the bounds.
    pub fn near(number: f64) -> Option<Self> {
        if !(1.0..=MOST).contains(&number) {
            return None;
        }
        let fraction = |seconds: u32| Rate { frames: (number * f64::from(seconds)).round() as u32, seconds };
        let is_near = |rate: &Rate, distance: f64| (rate.number() - number).abs() < distance;
        let whole = Some(fraction(1)).filter(|rate| is_near(rate, SAME));
        let television = || {
            let frames = (number * 1.001).round() as u32 * 1000;
            Some(Rate { frames, seconds: 1001 }).filter(|rate| is_near(rate, ROUNDED) && !frames.is_multiple_of(1001))
        };
        let others = || (2..=LARGEST_DENOMINATOR).map(fraction).find(|rate| is_near(rate, SAME));
        // The nearest of a denominator that every decimal of three digits has.
        whole.or_else(television).or_else(others).or(Some(fraction(1000)))
    }

    /// As a number.
    pub fn number(self) -> f64 {
        f64::from(self.frames) / f64::from(self.seconds)
    }

    /// So many frames ...
    pub fn frames(self) -> u32 {
        self.frames
    }

    /// ... in so many seconds.
    pub fn seconds(self) -> u32 {
        self.seconds
    }
}

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.trim().parse::<f64>().ok();
        let number = match text.split_once('/') {
            Some((frames, seconds)) => number(frames).zip(number(seconds)).map(|(frames, seconds)| frames / seconds),
            None => number(text),
        };
        number.and_then(Rate::near).ok_or(EXPECTED)
    }
}

impl TryFrom<f64> for Rate {
    type Error = &'static str;

    fn try_from(number: f64) -> Result<Self, Self::Error> {
        Rate::near(number).ok_or(EXPECTED)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.seconds {
            1 => serializer.serialize_u32(self.frames),
            _ => serializer.serialize_f64(self.number()),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.seconds {
            1 => write!(f, "{}", self.frames),
            seconds => write!(f, "{}/{seconds}", self.frames),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_as_people_write_them() {
        for (text, expected) in [
            ("24", "24"),
            ("24.0", "24"),
            ("23.976", "24000/1001"),
            ("23.98", "24000/1001"),
            ("29.97", "30000/1001"),
            ("59.94", "60000/1001"),
            ("24000/1001", "24000/1001"),
            ("50/2", "25"),
            ("12.5", "25/2"),
            ("1", "1"),
            ("1000", "1000"),
            ("16.667", "16667/1000"),
            ("33.333333333333336", "100/3"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.to_string(), expected, "{text}");
            assert_eq!(rate.to_string().parse(), Ok(rate));
            assert_eq!(serde_json::from_str::<Rate>(&serde_json::to_string(&rate).unwrap()).unwrap(), rate, "{text}");
        }
        for wrong in ["", "0", "0.5", "1000.5", "-24", "nan", "inf", "24/0", "24/", "many", "24fps"] {
            assert_eq!(wrong.parse::<Rate>(), Err(EXPECTED), "{wrong}");
        }
        assert_eq!(serde_json::to_string(&Rate::whole(24)).unwrap(), "24");
        assert!(serde_json::from_str::<Rate>("0").unwrap_err().to_string().contains("23.976"));
    }
}
