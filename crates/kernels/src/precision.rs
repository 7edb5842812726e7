//! What products multiply.

/// What is multiplied; sums are always f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// Both sides rounded to bf16.
    Bf16,
}
