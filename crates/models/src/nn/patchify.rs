//! Latents to tokens and back.

use candle_core::Tensor;

use crate::{Error, Result};

/// Tokens along each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Along time.
    pub frames: usize,
    /// Along the vertical.
    pub height: usize,
    /// Along the horizontal.
    pub width: usize,
}

impl Grid {
    /// The grid of latents, (1, c, f, h, w), cut into patches; refuses others than of so many channels and of whole
    /// patches.
    pub fn of(latents: &Tensor, channels: usize, patch: [usize; 3]) -> Result<Self> {
        let (_, found, frames, height, width) = latents.dims5()?;
        let [pf, ph, pw] = patch;
        if found != channels || frames % pf != 0 || height % ph != 0 || width % pw != 0 {
            return Err(Error::Input {
                what: "shape of the latents",
                expected: format!("{channels} channels, and frames, height and width divisible by {patch:?}"),
                found: format!("{:?}", latents.dims()),
            });
        }
        Ok(Grid { frames: frames / pf, height: height / ph, width: width / pw })
    }

    /// All tokens.
    pub fn tokens(self) -> usize {
        self.frames * self.height * self.width
    }
}

/// Cuts latents into patches, row by row: (1, c, f, h, w) -> (tokens, c * pf * ph * pw).
pub fn patchify(latents: &Tensor, patch: [usize; 3], grid: Grid) -> Result<Tensor> {
    let [pf, ph, pw] = patch;
    let c = latents.dim(1)?;
    let x = latents.reshape(&[c, grid.frames, pf, grid.height, ph, grid.width, pw][..])?;
    let x = x.permute(vec![1, 3, 5, 0, 2, 4, 6])?; // (f, h, w, c, pf, ph, pw)
    Ok(x.reshape((grid.tokens(), c * pf * ph * pw))?)
}

/// Puts predicted patches together, channels last within a patch: (tokens, pf * ph * pw * c) -> (1, c, f, h, w).
pub fn unpatchify(tokens: &Tensor, channels: usize, patch: [usize; 3], grid: Grid) -> Result<Tensor> {
    let [pf, ph, pw] = patch;
    let x = tokens.reshape(&[grid.frames, grid.height, grid.width, pf, ph, pw, channels][..])?;
    let x = x.permute(vec![6, 0, 3, 1, 4, 2, 5])?; // (c, f, pf, h, ph, w, pw)
    Ok(x.reshape((1, channels, grid.frames * pf, grid.height * ph, grid.width * pw))?)
}
