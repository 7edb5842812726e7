//! What ran, as a line of characters: `SS|SS|..|SS|` is four steps of two branches, the third of them reused.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What became of one branch of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ran {
    /// All of it was computed. `S`
    #[serde(rename = "compute")]
    Computed,
    /// All of it was approximated from earlier results. `.`
    #[serde(rename = "reuse")]
    Reused,
    /// Some spans of it were computed. `m`
    #[serde(rename = "mixed")]
    Mixed,
}

impl Ran {
    /// The character in a strip.
    pub fn symbol(self) -> char {
        match self {
            Ran::Computed => 'S',
            Ran::Reused => '.',
            Ran::Mixed => 'm',
        }
    }
}

/// The record of a run, step by step, branch by branch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Strip {
    steps: Vec<Vec<Ran>>,
}

impl Strip {
    /// Adds a step: what became of each branch, in order.
    pub fn push(&mut self, branches: Vec<Ran>) {
        self.steps.push(branches);
    }

    /// The steps so far.
    pub fn steps(&self) -> &[Vec<Ran>] {
        &self.steps
    }

    /// How many forwards (a branch of a step) ended as `ran`.
    pub fn count(&self, ran: Ran) -> usize {
        self.steps.iter().flatten().filter(|&&r| r == ran).count()
    }

    /// How many steps had no branch computed, not even in part.
    pub fn steps_reused(&self) -> usize {
        self.steps.iter().filter(|step| step.iter().all(|&r| r == Ran::Reused)).count()
    }
}

impl fmt::Display for Strip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            for ran in step {
                write!(f, "{}", ran.symbol())?;
            }
            write!(f, "|")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_documented() {
        let mut strip = Strip::default();
        strip.push(vec![Ran::Computed, Ran::Computed]);
        strip.push(vec![Ran::Reused, Ran::Reused]);
        strip.push(vec![Ran::Mixed, Ran::Reused]);
        assert_eq!(strip.to_string(), "SS|..|m.|");
        assert_eq!((strip.count(Ran::Computed), strip.count(Ran::Reused), strip.steps_reused()), (2, 3, 1));
    }
}
