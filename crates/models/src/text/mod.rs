//! Text encoders.

pub mod clip;
pub mod llama;
pub mod t5;

/// UMT5, which is T5 with a position bias of its own in every block.
pub mod umt5 {
    pub use super::t5::{Config, T5 as Umt5};
}

use crate::{Error, Result};

/// Refuses token ids that an encoder's embedding has no row for.
fn check_ids(ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => Err(Error::Input {
            what: "token of the prompt",
            expected: format!("less than the text encoder's vocab_size {vocab_size}"),
            found: format!("{id}: tokenizer and text encoder do not belong together"),
        }),
    }
}
