//! The Rust part of the Python package `navicache`: translation only. No maths, no defaults, no formats.

use pyo3::prelude::*;

/// `navicache._core`
#[pymodule]
mod _core {
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
