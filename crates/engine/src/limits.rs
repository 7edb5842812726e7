//! What sizes and lengths a pipeline can make, and refusals that name the nearest that work.

use crate::field::Field;
use crate::{Error, Result};

/// What a pipeline can make, as far as a request has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Width must be a multiple of this.
    pub width_multiple: usize,
    /// Height must be a multiple of this.
    pub height_multiple: usize,
    /// How many frames.
    pub frames: Frames,
    /// Largest grid of tokens: (frames, height, width) in pixels.
    pub largest: (usize, usize, usize),
}

/// How many frames a pipeline can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frames {
    /// Latent frames stand for 1, `factor`, `factor`, ... frames and are taken `latent_multiple` at a time.
    Causal {
        /// Frames to a latent frame.
        factor: usize,
        /// Latent frames to a token.
        latent_multiple: usize,
    },
    /// One, or so many and more.
    From(usize),
}

impl Limits {
    /// The number of frames nearest to one that was wished for, of those that can be made; of two, the larger.
    pub fn nearest_frames(&self, wished: usize) -> usize {
        let largest = self.largest.0.max(1);
        let wished = wished.clamp(1, largest);
        match self.frames {
            Frames::From(least) if wished >= least => wished,
            Frames::From(least) => {
                if wished - 1 < least - wished {
                    1
                } else {
                    least
                }
            }
            Frames::Causal { factor, latent_multiple: multiple } => {
                let works = |groups: usize| (groups * multiple - 1) * factor + 1;
                let most = (((largest - 1) / factor + 1) / multiple).max(1);
                let below = (((wished - 1) / factor + 1) / multiple).clamp(1, most);
                let above = (below + 1).min(most);
                let distance = |groups: &usize| (works(*groups).abs_diff(wished), usize::MAX - groups);
                works([below, above].into_iter().min_by_key(distance).unwrap_or(below))
            }
        }
    }
}

pub(crate) fn check_multiple(side: &str, found: usize, multiple: usize, largest: usize) -> Result<()> {
    if found > 0 && found.is_multiple_of(multiple) && found <= largest {
        return Ok(());
    }
    let below = (found / multiple * multiple).min(largest / multiple * multiple);
    let nearest = match below {
        0 => format!("the smallest that works is {multiple}"),
        _ if below + multiple > largest => format!("the largest that works is {below}"),
        _ => format!("the nearest that work are {below} and {}", below + multiple),
    };
    Err(Error::Invalid {
        field: Field::Size,
        found: format!("{side} {found}"),
        expected: format!("expected a multiple of {multiple}; {nearest}"),
    })
}

pub(crate) fn check_frames(found: usize, limits: &Limits, largest: usize) -> Result<()> {
    let expected = match limits.frames {
        Frames::From(least) if found == 1 || (least..=largest).contains(&found) => return Ok(()),
        Frames::From(_) if found > largest => format!("expected at most {largest}"),
        Frames::From(least) => format!("expected 1, or {least} or more"),
        Frames::Causal { factor, latent_multiple: multiple } => {
            let works = |latent_frames: usize| (latent_frames - 1) * factor + 1;
            let latent_frames = found.saturating_sub(1) / factor + 1;
            let fits = latent_frames.is_multiple_of(multiple) && works(latent_frames) == found;
            if found > 0 && found <= largest && fits {
                return Ok(());
            }
            let below = latent_frames.min((largest.max(1) - 1) / factor + 1) / multiple * multiple;
            let nearest = match below {
                0 => format!("the smallest that works is {}", works(multiple)),
                _ if works(below + multiple) > largest => format!("the largest that works is {}", works(below)),
                _ => format!("the nearest that work are {} and {}", works(below), works(below + multiple)),
            };
            format!("expected {factor}n+1 frames; {nearest}")
        }
    };
    Err(Error::Invalid { field: Field::Frames, found: found.to_string(), expected })
}

pub(crate) fn check_range(field: Field, found: usize, low: usize, high: usize) -> Result<()> {
    if (low..=high).contains(&found) {
        return Ok(());
    }
    Err(Error::Invalid { field, found: found.to_string(), expected: format!("expected {low} to {high}") })
}

pub(crate) fn check_finite(field: Field, found: f64, low: f64) -> Result<()> {
    if found.is_finite() && found >= low {
        return Ok(());
    }
    Err(Error::Invalid { field, found: found.to_string(), expected: format!("expected a number of {low} or more") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        width_multiple: 16,
        height_multiple: 16,
        frames: Frames::Causal { factor: 4, latent_multiple: 1 },
        largest: (4093, 16384, 16384),
    };

    #[test]
    fn the_nearest_frames_can_be_made() {
        let pairs = Limits { frames: Frames::Causal { factor: 4, latent_multiple: 2 }, ..LIMITS };
        let from = Limits { frames: Frames::From(16), ..LIMITS };
        for (limits, wished, nearest) in [
            (LIMITS, 0, 1),
            (LIMITS, 2, 1),
            (LIMITS, 3, 5),
            (LIMITS, 64, 65),
            (LIMITS, 1_000_000, 4093),
            (pairs, 1, 5),
            (pairs, 9, 13),
            (from, 5, 1),
            (from, 9, 16),
            (from, 51, 51),
        ] {
            assert_eq!(limits.nearest_frames(wished), nearest, "{wished}");
            assert!(check_frames(nearest, &limits, limits.largest.0).is_ok());
        }
    }

    #[test]
    fn frames_of_a_temporal_patch() {
        let limits = Limits { frames: Frames::Causal { factor: 4, latent_multiple: 2 }, ..LIMITS };
        assert!(check_frames(5, &limits, 4093).is_ok());
        let message = check_frames(9, &limits, 4093).unwrap_err().to_string();
        assert!(message.contains("nearest that work are 5 and 13"), "{message}");
    }
}
