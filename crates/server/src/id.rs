//! Names of jobs: `video_` and 26 characters, ordered in time.

use std::time::{SystemTime, UNIX_EPOCH};

/// Crockford's base 32: no letter that is taken for a digit.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const PREFIX: &str = "video_";
const LETTERS: usize = 26;

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as i64)
}

/// Makes names, each greater than the one before: 48 bits of milliseconds and 80 random bits.
#[derive(Default)]
pub struct Names {
    last: u128,
}

impl Names {
    /// Goes on behind a name that is there already.
    pub fn after(last: Option<&str>) -> Self {
        Names { last: last.and_then(number).unwrap_or_default() }
    }

    /// The next one.
    pub fn next(&mut self, now_ms: i64) -> String {
        let random = u128::from_le_bytes(random_bytes()) >> 48;
        self.last = (self.last + 1).max((now_ms as u128) << 80 | random);
        let letter = |place: usize| ALPHABET[(self.last >> (5 * place) & 31) as usize] as char;
        PREFIX.chars().chain((0..LETTERS).rev().map(letter)).collect()
    }
}

/// Whether a text can be the name of a job. Whatever else it is, it is no part of a path.
pub fn is_name(text: &str) -> bool {
    number(text).is_some()
}

fn number(name: &str) -> Option<u128> {
    let letters = name.strip_prefix(PREFIX).filter(|letters| letters.len() == LETTERS)?;
    letters.bytes().try_fold(0u128, |sum, letter| {
        let value = ALPHABET.iter().position(|known| *known == letter)?;
        sum.checked_mul(32)?.checked_add(value as u128)
    })
}

/// Bytes that nobody can guess.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_rise_even_when_the_clock_does_not() {
        let mut names = Names::default();
        let mut last = names.next(1_000);
        for now in [1_000, 1_000, 999, 0, 2_000] {
            let name = names.next(now);
            assert!(name > last && name.len() == 32, "{last} {name}");
            last = name;
        }
        let mut again = Names::after(Some(&last));
        assert!(again.next(0) > last);
    }

    #[test]
    fn what_is_no_name_is_told() {
        let name = Names::default().next(now_ms());
        assert!(is_name(&name));
        for wrong in [
            "",
            "video_",
            "video_../../../etc/passwd12345",
            &name[..31],
            &name.to_lowercase(),
            "video_ZZZZZZZZZZZZZZZZZZZZZZZZZZ",
        ] {
            assert!(!is_name(wrong), "{wrong}");
        }
    }
}
