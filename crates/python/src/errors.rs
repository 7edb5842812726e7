//! Errors and panics of the libraries as Python's exceptions; `errors.py` has the classes.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use navicache_engine::{Error, Kind};
use pyo3::prelude::*;

/// Something went wrong in Rust: what Python is told of it.
pub struct Failure {
    /// [`Kind::name`], or [`Failure::BUG`].
    kind: &'static str,
    field: Option<&'static str>,
    message: String,
}

impl Failure {
    /// A panic: a mistake of ours.
    const BUG: &'static str = "bug";

    /// What was asked for makes no sense.
    pub fn invalid(message: impl ToString) -> Self {
        Failure { kind: Kind::Invalid.name(), field: None, message: message.to_string() }
    }

    /// A panic's message.
    fn panicked(panic: Box<dyn Any + Send>) -> Self {
        let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
        let message = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Failure { kind: Failure::BUG, field: None, message: format!("{message}: please report this") }
    }

    /// The exception.
    pub fn raised(&self, py: Python<'_>) -> PyErr {
        let class = py.import("navicache.errors").and_then(|module| module.getattr("of"));
        match class.and_then(|of| of.call1((self.kind, self.field, self.message.as_str()))) {
            Ok(exception) => PyErr::from_value(exception),
            Err(error) => error,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let field = error.field().map(|field| field.name());
        Failure { kind: error.kind().name(), field, message: error.to_string() }
    }
}

impl From<navicache_metrics::Error> for Failure {
    fn from(error: navicache_metrics::Error) -> Self {
        match error {
            navicache_metrics::Error::Media(error) => Error::from(error).into(),
            navicache_metrics::Error::Weights(error) => Error::from(error).into(),
            error => Failure::invalid(error),
        }
    }
}

/// Does it without the interpreter's lock; a panic is an exception too.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, Failure> + Send) -> PyResult<T> {
    check_process().and_then(|()| py.detach(|| caught(work))).map_err(|failure| failure.raised(py))
}

/// Does it, and makes a failure of a panic.
pub fn caught<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Failure::panicked(panic)))
}

/// The threads that compute stay with the process that started them: in a fork, work would wait for them for ever.
pub fn check_process() -> Result<(), Failure> {
    static PROCESS: OnceLock<u32> = OnceLock::new();
    let (this, first) = (std::process::id(), *PROCESS.get_or_init(std::process::id));
    if this == first {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "process {this} is a fork of {first}, whose threads it does not have: start processes with \
         multiprocessing's \"spawn\", or use navicache in one of the two only"
    )))
}
