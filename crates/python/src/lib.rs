//! The Rust part of the Python package `navicache`: translation only. No maths, no defaults, no formats.

mod background;
mod engine;
mod errors;
mod job;
mod method;
mod metrics;
mod offline;
mod samples;
mod session;

use pyo3::prelude::*;

/// `navicache._core`
#[pymodule]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::engine::{Pipeline, bytes_of, inspect, methods, models, request_fields, use_threads};
    #[pymodule_export]
    use super::job::{Job, Video};
    #[pymodule_export]
    use super::method::Method;
    #[pymodule_export]
    use super::metrics::compare;
    #[pymodule_export]
    use super::offline::{Trace, predict, replay, save_preset, seconds_saved, tune, write_whole};

    #[pymodule_export]
    use super::session::Session;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
