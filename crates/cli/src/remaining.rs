//! How long a run will still take: the steps that are left, some of them skipped as before, and the decoding.

/// What a run has taken so far.
#[derive(Default)]
pub struct Remaining {
    /// Seconds of steps that were computed, at least in part, and how many they were.
    computed: (f64, usize),
    /// The same of steps that were skipped.
    skipped: (f64, usize),
    /// Computed steps and all steps since the first that was skipped.
    since: (usize, usize),
}

impl Remaining {
    /// A step is done.
    pub fn step(&mut self, seconds: f64, was_skipped: bool) {
        let kind = if was_skipped { &mut self.skipped } else { &mut self.computed };
        *kind = (kind.0 + seconds, kind.1 + 1);
        if self.skipped.1 > 0 {
            self.since = (self.since.0 + usize::from(!was_skipped), self.since.1 + 1);
        }
    }

    /// Seconds of so many more steps. As many of them are computed as since the first one that was skipped; where a
    /// target says how many are to be computed in all, as many as are left of those. Until a step was skipped, all.
    pub fn steps(&self, left: usize, to_compute: Option<f64>) -> f64 {
        let mean = |(seconds, count): (f64, usize)| if count > 0 { seconds / count as f64 } else { 0.0 };
        let left = left as f64;
        let computed = match to_compute {
            Some(all) => (all - self.computed.1 as f64).clamp(0.0, left),
            None if self.since.1 > 0 => left * self.since.0 as f64 / self.since.1 as f64,
            None => left,
        };
        computed * mean(self.computed) + (left - computed) * mean(self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_what_was_skipped() {
        let mut remaining = Remaining::default();
        assert_eq!(remaining.steps(10, None), 0.0);
        remaining.step(2.0, false);
        remaining.step(2.0, false);
        assert_eq!(remaining.steps(10, None), 20.0, "nothing was skipped yet");
        assert_eq!(remaining.steps(10, Some(7.0)), 10.0, "five of them are to be computed");
        assert_eq!(remaining.steps(10, Some(1.0)), 0.0);
        remaining.step(0.0, true);
        remaining.step(2.0, false);
        assert_eq!(remaining.steps(10, None), 10.0, "every second one since then");
        remaining.step(0.0, true);
        remaining.step(0.0, true);
        assert_eq!(remaining.steps(8, None), 4.0, "one of four");
    }
}
