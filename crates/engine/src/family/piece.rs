//! Weights and the configuration that goes with them.

use navicache_models::Configuration;
use navicache_weights::Found;
use navicache_weights::layout::{Piece, config_beside};
use serde::de::DeserializeOwned;

use crate::Result;

/// Weights with the `config.json` beside them, where it calls what it describes by this name and fits them; otherwise
/// with the configuration that the caller makes of them. What is not used is added to the notes.
///
/// # Errors
/// The configuration cannot be run, or is not of these weights.
pub(super) fn piece<C: Configuration + DeserializeOwned>(
    found: Found,
    name: &str,
    notes: &mut Vec<String>,
    otherwise: impl FnOnce(&Found) -> Result<C>,
) -> Result<Piece<C>> {
    let beside = config_beside(&found, name, notes)?;
    let config = beside.map_or_else(|| otherwise(&found), Ok)?;
    config.agree(&found.tensors)?;
    Ok(Piece { config, tensors: found.tensors })
}
