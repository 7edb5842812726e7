//! How a download goes on.

/// How a download goes on. Answer [`ControlFlow::Break`](std::ops::ControlFlow::Break) to stop; what is there stays and
/// is used again.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// What will be downloaded.
    Planned {
        /// Files of the model.
        files: usize,
        /// Their bytes.
        bytes: u64,
        /// Of these, how many are here already.
        here: u64,
    },
    /// Some of a file has come.
    Progress {
        /// The file.
        file: &'a str,
        /// Bytes of all files that are here.
        done: u64,
        /// Bytes of all files.
        bytes: u64,
    },
    /// A connection broke; it is tried again.
    Retry {
        /// The file.
        file: &'a str,
        /// Why.
        reason: &'a str,
    },
}
