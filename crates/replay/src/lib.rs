//! Cache policies played against recorded numbers, without a model: what a run measured ([`trace`]), a policy that
//! walks through it ([`player`]), the best setting for a target ([`tune`]), predictors of the output change
//! ([`predict`]), and what every method is tried with ([`samples`]).
#![warn(missing_docs)]

pub mod player;
pub mod predict;
pub mod samples;
pub mod trace;
pub mod tune;
