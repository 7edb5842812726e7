//! Where a token stands: sines that are added (2B), a learned table that is added (5B of pictures), or angles by which
//! queries and keys turn (all but 2B).

use candle_core::{DType, Device, Tensor};

use super::TransformerConfig;
use crate::nn::Grid;
use crate::{Error, Result, Weights};

/// Base of all frequencies.
const THETA: f64 = 10000.0;

/// What is added to the tokens of text and video.
pub(super) enum Added {
    Nothing,
    Sines,
    /// (text tokens + tokens of the size that the model was made for, dim)
    Learned(Tensor),
}

impl Added {
    pub fn new(config: &TransformerConfig, w: &Weights) -> Result<Self> {
        if config.use_learned_positional_embeddings {
            let patch = config.patch_size;
            let frame = (config.sample_height / patch) * (config.sample_width / patch);
            let rows = config.max_text_seq_length + config.sample_latent_frames() * frame;
            return Ok(Added::Learned(w.f32("pos_embedding", &[1, rows, config.dim()])?.squeeze(0)?));
        }
        Ok(if config.use_rotary_positional_embeddings { Added::Nothing } else { Added::Sines })
    }

    /// What is added to the video's tokens, and to the text's. // (tokens, dim), (text tokens, dim)
    ///
    /// A learned table is of one size of frames. A video of another length has sines in its place, as in the reference.
    pub fn of(
        &self,
        config: &TransformerConfig,
        grid: Grid,
        stay: Option<&[Vec<usize>; 3]>,
        device: &Device,
    ) -> Result<Option<(Tensor, Option<Tensor>)>> {
        let (rows, columns) = (config.sample_height / config.patch_size, config.sample_width / config.patch_size);
        let all: [Vec<usize>; 3] = [(0..grid.frames).collect(), (0..grid.height).collect(), (0..grid.width).collect()];
        match self {
            Added::Nothing => Ok(None),
            Added::Learned(table) => {
                let [frames, tall, wide] = stay.unwrap_or(&all);
                let of_size = |places: &[usize], size: usize| places.iter().all(|&place| place < size);
                let whole = stay.is_none() && (grid.height, grid.width) != (rows, columns);
                if whole || !of_size(tall, rows) || !of_size(wide, columns) {
                    return Err(Error::Input {
                        what: "tokens along height and width",
                        expected: format!("{rows} and {columns}, the size that the model's table of places is of"),
                        found: format!("{} and {}", grid.height, grid.width),
                    });
                }
                if grid.frames != config.sample_latent_frames() && stay.is_none() {
                    return Ok(Some((sines(config, grid, device)?, None)));
                }
                let text = config.max_text_seq_length;
                let place = |frame: usize, row: usize, column: usize| {
                    (text + (frame.min(config.sample_latent_frames() - 1) * rows + row) * columns + column) as u32
                };
                let places = frames.iter().flat_map(|&frame| {
                    tall.iter().flat_map(move |&row| wide.iter().map(move |&column| place(frame, row, column)))
                });
                let places: Vec<u32> = places.collect();
                let video = table.index_select(&Tensor::new(places, device)?, 0)?;
                Ok(Some((video, Some(table.narrow(0, 0, text)?))))
            }
            Added::Sines => Ok(Some((sines(config, grid, device)?, None))),
        }
    }
}

/// Of every token: a quarter of the channels for time, then three eighths for the column and for the row; of each the
/// sines, then the cosines. // (tokens, dim)
fn sines(config: &TransformerConfig, grid: Grid, device: &Device) -> Result<Tensor> {
    let dim = config.dim();
    let (of_time, of_place) = (dim / 4, dim / 4 * 3 / 2);
    let row = |place: f64, channels: usize| {
        let half = channels / 2;
        let angle = move |k: usize| place / THETA.powf(k as f64 / half as f64);
        let sines = (0..half).map(move |k| angle(k).sin() as f32);
        sines.chain((0..half).map(move |k| angle(k).cos() as f32))
    };
    let table = |places: usize, scale: f64, channels: usize| -> Vec<Vec<f32>> {
        (0..places).map(|place| row(place as f64 / scale, channels).collect()).collect()
    };
    let times = table(grid.frames, config.temporal_interpolation_scale, of_time);
    let rows = table(grid.height, config.spatial_interpolation_scale, of_place);
    let columns = table(grid.width, config.spatial_interpolation_scale, of_place);
    let mut values: Vec<f32> = Vec::with_capacity(grid.tokens() * dim);
    for time in &times {
        for row in &rows {
            for column in &columns {
                values.extend(time.iter().chain(column).chain(row));
            }
        }
    }
    Ok(Tensor::from_vec(values, (grid.tokens(), dim), device)?)
}

/// Cosines and sines by which neighbouring channels of a head turn, a quarter of them by time, three eighths by the row
/// and by the column. // (tokens, head dim / 2) each
///
/// In the first version any size spans the places of the size that the model was made for, cut to its aspect ratio; in
/// 1.5 tokens are counted.
pub(super) fn rotations(config: &TransformerConfig, grid: Grid, device: &Device) -> Result<(Tensor, Tensor)> {
    let (tall, wide) = (config.sample_height / config.patch_size, config.sample_width / config.patch_size);
    let counted = |n: usize| (0..n).map(|i| i as f64).collect::<Vec<_>>();
    let (rows, columns) = match config.patch_size_t {
        None => spanned(grid, tall, wide),
        Some(_) => {
            if grid.height > tall || grid.width > wide {
                return Err(Error::Input {
                    what: "tokens along height and width",
                    expected: format!("at most {tall} and {wide}"),
                    found: format!("{} and {}", grid.height, grid.width),
                });
            }
            (counted(grid.height), counted(grid.width))
        }
    };
    let head = config.attention_head_dim;
    let table = |places: &[f64], channels: usize| -> Result<Tensor> {
        let pairs = channels / 2;
        let angles = places
            .iter()
            .flat_map(|&place| (0..pairs).map(move |i| (place / THETA.powf(2.0 * i as f64 / channels as f64)) as f32));
        Ok(Tensor::from_vec(angles.collect::<Vec<_>>(), (places.len(), pairs), device)?)
    };
    let (t, h) = (head / 4, head / 8 * 3);
    let (times, rows, columns) = (table(&counted(grid.frames), t)?, table(&rows, h)?, table(&columns, h)?);
    let spread = |table: &Tensor, shape: (usize, usize, usize)| -> Result<Tensor> {
        let pairs = table.dim(1)?;
        let table = table.reshape((shape.0, shape.1, shape.2, pairs))?;
        Ok(table.broadcast_as((grid.frames, grid.height, grid.width, pairs))?.contiguous()?)
    };
    let angles = [
        spread(&times, (grid.frames, 1, 1))?,
        spread(&rows, (1, grid.height, 1))?,
        spread(&columns, (1, 1, grid.width))?,
    ];
    let angles = Tensor::cat(&angles, 3)?.reshape((grid.tokens(), head / 2))?.to_dtype(DType::F32)?;
    Ok((angles.cos()?, angles.sin()?))
}

/// Places of rows and columns of a grid that is made as large as fits into another, in the middle of it.
fn spanned(grid: Grid, tall: usize, wide: usize) -> (Vec<f64>, Vec<f64>) {
    let (height, width) = (grid.height as f64, grid.width as f64);
    let (base_height, base_width) = (tall as f64, wide as f64);
    let (rows, columns) = if height / width > base_height / base_width {
        (base_height, (base_height / height * width).round_ties_even())
    } else {
        ((base_width / width * height).round_ties_even(), base_width)
    };
    let start = |base: f64, size: f64| ((base - size) / 2.0).round_ties_even();
    let span = |start: f64, size: f64, n: usize| {
        let end = (start + size) * (n as f64 - 1.0) / n as f64;
        let intervals = n.saturating_sub(1).max(1) as f64;
        (0..n).map(|i| start + (end - start) * i as f64 / intervals).collect::<Vec<_>>()
    };
    (span(start(base_height, rows), rows, grid.height), span(start(base_width, columns), columns, grid.width))
}
