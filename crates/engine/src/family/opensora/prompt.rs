//! stand-in
pub(super) fn prepare(prompt: &str) -> Result<String, String> {
    Ok(prompt.to_lowercase())
}
