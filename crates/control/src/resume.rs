//! What the states that a run is gone on from have in common.

/// A saved state does not belong to the run that is to go on from it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {saved} was saved, {here} here")]
pub struct ResumeError {
    /// What of it.
    pub what: String,
    /// What the state says.
    pub saved: String,
    /// What the run says.
    pub here: String,
}

impl ResumeError {
    /// The two sides of a difference.
    pub(crate) fn new(what: impl Into<String>, saved: impl ToString, here: impl ToString) -> Self {
        ResumeError { what: what.into(), saved: saved.to_string(), here: here.to_string() }
    }

    /// Refuses a difference.
    pub(crate) fn unless(same: bool, what: &str, saved: impl ToString, here: impl ToString) -> Result<(), Self> {
        if same { Ok(()) } else { Err(ResumeError::new(what, saved, here)) }
    }
}

/// What is done with a value of a state, given its name in the state.
pub type Convert<'a, V, W, E> = &'a mut dyn FnMut(&str, V) -> Result<W, E>;
