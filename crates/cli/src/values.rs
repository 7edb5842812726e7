//! Values of options that are no type of the libraries.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;

use bytesize::ByteSize;
use navicache_engine::replay::trace::LAGS_MAX;

/// A trace without distances could not be read back, nor one with more than `replay` takes.
pub fn lags(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|lags| (1..=LAGS_MAX).contains(lags));
    number.ok_or_else(|| format!("expected 1 to {LAGS_MAX}"))
}

/// An origin as browsers send it: pages of any other are refused, so that one of another form would allow none.
#[cfg(feature = "server")]
pub fn origin(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_host = |host: &str| !host.is_empty() && !host.contains(|c: char| c == '/' || c.is_whitespace() || c == '*');
    match host {
        Some(host) if is_host(host) => Ok(text.to_string()),
        _ => Err("expected one origin, without a path, as in https://example.org".to_string()),
    }
}

/// A server that takes no steps makes nothing.
#[cfg(feature = "server")]
pub fn steps(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|steps| *steps > 0).ok_or_else(|| "expected 1 or more".to_string())
}

pub fn file(text: &str) -> Result<PathBuf, String> {
    match text {
        "-" => {
            Err("expected the name of a file, as in out.mp4; for a pipe, take a name made by `mkfifo out.y4m`".into())
        }
        _ => Ok(PathBuf::from(text)),
    }
}

/// Where pictures of a video that is being made go.
#[derive(Debug, Clone, PartialEq)]
pub enum Preview {
    Off,
    Terminal,
    File(PathBuf),
}

pub fn preview(text: &str) -> Result<Preview, String> {
    match text {
        "off" => return Ok(Preview::Off),
        "terminal" => return Ok(Preview::Terminal),
        _ => {}
    }
    let path = PathBuf::from(text);
    navicache_media::Picture::check_destination(&path).map_err(|e| format!("{e}; or terminal, or off"))?;
    Ok(Preview::File(path))
}

pub fn bytes(text: &str) -> Result<u64, String> {
    let size = text.parse::<ByteSize>().map_err(|_| "expected a size, as in 500MB or 2GiB".to_string())?;
    Ok(size.as_u64())
}

/// A time: `30s`, `15min`, `12h` or `7d`.
#[cfg(feature = "server")]
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    const MOST: u64 = 36_500 * 24 * 60 * 60;
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text[end..].trim() {
        "s" | "" => Some(1),
        "min" | "m" => Some(60),
        "h" => Some(60 * 60),
        "d" => Some(24 * 60 * 60),
        _ => None,
    };
    let seconds = text[..end].parse::<u64>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    let seconds = seconds.filter(|seconds| *seconds <= MOST);
    seconds
        .map(std::time::Duration::from_secs)
        .ok_or_else(|| "expected a time, as in 30s, 15min, 12h or 7d".to_string())
}

/// Size and frames of a video: `832x480x81`.
#[cfg(feature = "server")]
pub fn video(text: &str) -> Result<(navicache_engine::Size, usize), String> {
    let parts = text.rsplit_once('x').and_then(|(size, frames)| {
        let size: navicache_engine::Size = size.parse().ok()?;
        Some((size, frames.parse().ok()?)).filter(|(size, frames)| size.width > 0 && size.height > 0 && *frames > 0)
    });
    parts.ok_or_else(|| "expected WIDTHxHEIGHTxFRAMES, as in 832x480x81".to_string())
}

/// A seed: a number, or `random` (elsewhere `-1`), which the report then has.
pub fn seed(text: &str) -> Result<u64, String> {
    match text {
        "random" | "-1" => Ok(RandomState::new().build_hasher().finish() >> 32), // short enough to be typed again
        _ => text.parse().map_err(|_| "expected a number from 0 on, or random".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lags_that_can_be_read_back() {
        assert_eq!(lags("1"), Ok(1));
        for wrong in ["0", "-1", "100000", "many"] {
            assert!(lags(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory() {
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("1.5 MB"), Ok(1_500_000));
        assert_eq!(bytes("17"), Ok(17));
        for wrong in ["", "GiB", "-1MB", "lots", "1TBs", "inf"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[cfg(feature = "server")]
    #[test]
    fn times_and_videos() {
        assert_eq!(duration("90").map(|time| time.as_secs()), Ok(90));
        assert_eq!(duration("15min").map(|time| time.as_secs()), Ok(900));
        assert_eq!(duration("7d").map(|time| time.as_secs()), Ok(604_800));
        for wrong in ["", "d", "7w", "-1s", "1.5h", "99999999999999999999d", "18446744073709551615d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            video("832x480x81").map(|(size, frames)| (size.to_string(), frames)),
            Ok(("832x480".to_string(), 81))
        );
        assert_eq!(origin("http://localhost:3000"), Ok("http://localhost:3000".to_string()));
        assert!(["", "*", "example.org", "https://", "https://a/b"].iter().all(|wrong| origin(wrong).is_err()));
        assert_eq!(steps("100"), Ok(100));
        assert!(steps("0").unwrap_err().contains("1 or more"));
        assert!(video("832x480").is_err() && video("0x480x81").is_err() && video("832x480x0").is_err());
    }

    #[test]
    fn what_is_refused_says_what_would_work() {
        assert!(file("-").unwrap_err().contains("out.mp4"));
    }

    #[test]
    fn seeds_as_people_ask_for_them() {
        assert_eq!(seed("7"), Ok(7));
        let (first, second) = (seed("random").unwrap(), seed("-1").unwrap());
        assert!(first <= u64::from(u32::MAX) && first != second);
        assert!(seed("-2").unwrap_err().contains("or random"));
    }
}
