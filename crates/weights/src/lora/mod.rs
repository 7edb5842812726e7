//! LoRA files (Hu et al. 2021, arXiv 2106.09685): small matrices whose product is added to those of a model,
//! `W + weight * alpha / rank * B A`; and their relatives: LoHa (Hyeon-Woo et al. 2021, arXiv 2108.06098), LoKr
//! (Yeh et al. 2023, arXiv 2309.14859), DoRA (Liu et al. 2024, arXiv 2402.09353) and differences as they are.
//!
//! The change is added in f32 when a matrix is read: once for those that are kept as tensors, at every use for those
//! that stay in their file, so that quantised matrices stay quantised.

mod names;
mod scale;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use candle_core::{Device, Tensor};
use navicache_models::Source;

use self::names::{Leaf, Names};
use self::scale::Scales;
use crate::change::{Change, Form};
use crate::container;
use crate::error::{Error, Result};
use crate::expert::Expert;
use crate::file::{Stored, WeightFile};
use crate::tensors::Tensors;

pub(crate) use names::is_part_of_one;

/// A LoRA file, and how much of it is added.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// The file.
    pub path: PathBuf,
    /// 1 is as it was trained.
    pub weight: f64,
    /// Which of two transformers it is for; `None`: the one that its name says, or both.
    pub expert: Option<Expert>,
}

impl FromStr for Lora {
    type Err = Error;

    /// `FILE` or `FILE:WEIGHT`; `:high` or `:low` after it says which of two transformers is meant.
    fn from_str(text: &str) -> Result<Self> {
        let (text, expert) = match text.rsplit_once(':') {
            Some((text, "high")) => (text, Some(Expert::HighNoise)),
            Some((text, "low")) => (text, Some(Expert::LowNoise)),
            _ => (text, None),
        };
        if let Some((path, weight)) = text.rsplit_once(':')
            && let Ok(weight) = weight.parse::<f64>()
        {
            return match weight.is_finite() && !path.is_empty() {
                true => Ok(Lora { path: path.into(), weight, expert }),
                false => Err(Error::Lora { found: text.to_string() }),
            };
        }
        Ok(Lora { path: text.into(), weight: 1.0, expert })
    }
}

/// A module of a LoRA that was left out, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct LeftOut {
    /// Its name in the file.
    pub module: String,
    /// Why.
    pub reason: String,
}

/// What a file holds for one module.
type Parts = BTreeMap<Leaf, Tensor>;

/// A tensor of the model by its name, and what is added to it.
type Changes = Vec<(String, Change)>;

/// What is wrong with a module.
enum Problem {
    /// It is broken, whatever the model.
    Broken(String),
    /// It is of another model than this.
    Misfit(String),
}

impl From<candle_core::Error> for Problem {
    fn from(error: candle_core::Error) -> Self {
        Problem::Broken(error.to_string())
    }
}

/// Adds a LoRA to the tensors of a transformer, all modules that fit; gives the others.
pub fn add(tensors: &mut Tensors, lora: &Lora) -> Result<Vec<LeftOut>> {
    let wrong = |reason: String| Error::file(&lora.path, reason);
    let file = WeightFile::map(&lora.path)?;
    let (_, listing) = container::open(&file)?;
    let scales = Scales::of(&lora.path, &listing.metadata)?;
    let modules = modules_of(&file, &listing.tensors)?;
    let (names, count) = (Names::of(tensors), modules.len());
    let (mut changes, mut left_out) = (Changes::new(), Vec::new());
    for (module, parts) in modules {
        match changes_of(tensors, &names, &module, parts, &scales, lora.weight) {
            Ok(found) => changes.extend(found),
            Err(Problem::Misfit(reason)) => left_out.push(LeftOut { module, reason }),
            Err(Problem::Broken(reason)) => return Err(wrong(format!("{module}: {reason}"))),
        }
    }
    if changes.is_empty() {
        let first = left_out.first().map_or("there is none".to_string(), |LeftOut { module, reason }| {
            format!("the first is {module}: {reason}")
        });
        return Err(wrong(format!("none of its {count} modules changes this model; {first}")));
    }
    let idle = changes.iter().map(|(_, change)| change.form.is_zero()).collect::<candle_core::Result<Vec<_>>>()?;
    if idle.into_iter().all(|idle| idle) {
        return Err(wrong(format!("it changes nothing: all of its {count} modules are zero, as before training")));
    }
    for (name, change) in changes {
        if let Some(entry) = tensors.entry_mut(&name) {
            entry.changes.push(change);
        }
    }
    Ok(left_out)
}

/// Reads the tensors of a file, by module.
fn modules_of(file: &WeightFile, listed: &BTreeMap<String, Stored>) -> Result<BTreeMap<String, Parts>> {
    let wrong = |reason: String| Error::file(&file.path, reason);
    let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
    for (name, stored) in listed {
        let Some((mut module, mut leaf)) = names::split(name) else {
            return Err(wrong(format!(
                "{name}: expected a LoRA (lora_A and lora_B, lora_down and lora_up, alpha, diff), found this"
            )));
        };
        match leaf {
            Leaf::Unsupported(kind) => return Err(wrong(format!("{name}: {kind} is not supported"))),
            Leaf::Modulation => (module, leaf) = (format!("{module}.modulation"), Leaf::Weight),
            _ => {}
        }
        if modules.entry(module).or_default().insert(leaf, read(file, name, stored)?).is_some() {
            return Err(wrong(format!("{name}: its module has two of this kind")));
        }
    }
    Ok(modules)
}

/// What one module of a file changes.
fn changes_of(
    tensors: &Tensors,
    names: &Names,
    module: &str,
    mut parts: Parts,
    scales: &Scales,
    weight: f64,
) -> Result<Changes, Problem> {
    let targets = names.canonical(module).ok_or_else(|| Problem::Misfit("it is not in this model".to_string()))?;
    let alpha = parts.remove(&Leaf::Alpha).map(|alpha| alpha.flatten_all()?.to_vec1::<f32>()).transpose()?;
    let alpha = alpha.and_then(|alpha| alpha.first().copied());
    let factor = |rank: Option<usize>| match (alpha, rank) {
        (Some(alpha), Some(rank)) => Ok(alpha as f64 / rank as f64),
        (Some(_), None) => Ok(1.0), // as LyCORIS has it for whole matrices
        (None, rank) => scales.factor(module, rank).map_err(Problem::Broken),
    };
    let magnitudes = parts.remove(&Leaf::Magnitude);
    let up_bias = parts.remove(&Leaf::UpBias);
    let sums = [(Leaf::Weight, ".weight"), (Leaf::Bias, ".bias")].map(|(leaf, end)| (parts.remove(&leaf), end));
    let mut changes = Changes::new();
    if let Some((form, rank)) = form_of(parts)? {
        let factor = factor(rank)?;
        if let Some(numbers) = up_bias {
            let change = Change::plain(Form::Sum(numbers), factor, weight);
            changes.extend(spread(tensors, targets, ".bias", change)?);
        }
        let magnitudes = magnitudes.as_ref().map(|m| of_rows(m, form.dims()?.0)).transpose()?;
        let change = Change { magnitudes, ..Change::plain(form, factor, weight) };
        changes.extend(spread(tensors, targets, ".weight", change)?);
    } else if magnitudes.is_some() || up_bias.is_some() {
        return Err(Problem::Broken("expected the matrices of a LoRA, found only what belongs to them".to_string()));
    }
    for (numbers, end) in sums {
        let change = numbers.map(|numbers| Change::plain(Form::Sum(numbers), 1.0, weight));
        changes.extend(change.map(|change| spread(tensors, targets, end, change)).transpose()?.unwrap_or_default());
    }
    Ok(changes)
}

/// What the matrices of a module make together, and their rank.
fn form_of(mut parts: Parts) -> Result<Option<(Form, Option<usize>)>, Problem> {
    let Some(&first) = parts.keys().next() else { return Ok(None) };
    let mut take = |leaf: Leaf| -> Result<Tensor, Problem> {
        let missing = || Problem::Broken("expected both of its matrices, found one".to_string());
        let tensor = parts.remove(&leaf).ok_or_else(missing)?;
        match tensor.rank() {
            0 | 1 => Err(Problem::Broken(format!("expected matrices, found {:?}", tensor.dims()))),
            _ => Ok(tensor.flatten_from(1)?),
        }
    };
    let found = match first {
        Leaf::Down | Leaf::Up => {
            let [up, down] = pair(take(Leaf::Up)?, take(Leaf::Down)?)?;
            let rank = down.dim(0)?;
            (Form::Product { up, down }, Some(rank))
        }
        Leaf::HadaUp1 | Leaf::HadaDown1 | Leaf::HadaUp2 | Leaf::HadaDown2 => {
            let one = pair(take(Leaf::HadaUp1)?, take(Leaf::HadaDown1)?)?;
            let other = pair(take(Leaf::HadaUp2)?, take(Leaf::HadaDown2)?)?;
            let outer = |[up, down]: &[Tensor; 2]| Ok::<_, Problem>((up.dim(0)?, down.dim(1)?));
            if outer(&one)? != outer(&other)? {
                let found = format!("{:?} and {:?}", outer(&one)?, outer(&other)?);
                return Err(Problem::Broken(format!("expected two products of one shape, found {found}")));
            }
            let rank = one[1].dim(0)?;
            (Form::Hadamard([one, other]), Some(rank))
        }
        _ => {
            let mut half = |whole: Leaf, up: Leaf, down: Leaf| match take(whole) {
                Ok(tensor) => Ok((tensor, None)),
                Err(_) => {
                    let [up, down] = pair(take(up)?, take(down)?)?;
                    Ok::<_, Problem>((up.matmul(&down)?, Some(down.dim(0)?)))
                }
            };
            let (left, outer) = half(Leaf::Left, Leaf::LeftUp, Leaf::LeftDown)?;
            let (right, inner) = half(Leaf::Right, Leaf::RightUp, Leaf::RightDown)?;
            (Form::Kronecker { left, right }, inner.or(outer))
        }
    };
    match parts.keys().next() {
        Some(other) => Err(Problem::Broken(format!("expected one kind of change, found {first:?} and {other:?}"))),
        None => Ok(Some(found)),
    }
}

/// Two matrices that can be multiplied.
fn pair(up: Tensor, down: Tensor) -> Result<[Tensor; 2], Problem> {
    let (up_dims, down_dims) = (up.dims2()?, down.dims2()?);
    if up_dims.1 != down_dims.0 || down_dims.0 == 0 {
        let found = format!("{:?} and {:?}", up.dims(), down.dims());
        return Err(Problem::Broken(format!("expected matrices (out, rank) and (rank, in), found {found}")));
    }
    Ok([up, down])
}

/// A number a row; those of columns, which some trainers can have, are another thing.
fn of_rows(magnitudes: &Tensor, rows: usize) -> Result<Tensor, Problem> {
    match magnitudes.dims() {
        [first, rest @ ..] if *first == rows && rest.iter().all(|&dim| dim == 1) => Ok(magnitudes.flatten_all()?),
        other => Err(Problem::Broken(format!("DoRA: expected {rows} norms, one a row, found {other:?}"))),
    }
}

/// A change as those of the tensors that are its rows, one after another; mostly it is one.
fn spread(tensors: &Tensors, targets: &[String], end: &str, change: Change) -> Result<Changes, Problem> {
    let (rows, columns) = change.form.dims()?;
    let mut begin = 0;
    let mut changes = Changes::new();
    for target in targets {
        // What is no module has its numbers under its own name.
        let name = [format!("{target}{end}"), target.clone()].into_iter().find(|name| tensors.shape(name).is_some());
        let name = name.ok_or_else(|| Problem::Misfit(format!("this model has no {target}{end}")))?;
        let shape = tensors.shape(&name).unwrap_or_default();
        let found = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product::<usize>());
        let part = begin..begin + found.0;
        let fits = match &change.form {
            Form::Sum(numbers) if targets.len() == 1 => numbers.dims() == shape,
            _ => columns == found.1 && part.end <= rows && (targets.len() > 1 || part.end == rows),
        };
        if !fits {
            let made =
                if let Form::Sum(numbers) = &change.form { numbers.dims().to_vec() } else { vec![rows, columns] };
            return Err(Problem::Misfit(format!(
                "expected {shape:?}, the shape of {name}, found a change of {made:?}"
            )));
        }
        let mut of_part = change.clone();
        if targets.len() > 1 {
            let norms = of_part.magnitudes.take();
            of_part.magnitudes = norms.map(|norms| norms.narrow(0, part.start, part.len())).transpose()?;
            of_part.rows = Some(part.clone());
        }
        changes.push((name, of_part));
        begin = part.end;
    }
    match targets.len() > 1 && begin != rows {
        true => Err(Problem::Misfit(format!("expected {begin} rows, found {rows}"))),
        false => Ok(changes),
    }
}

fn read(file: &WeightFile, name: &str, stored: &Stored) -> Result<Tensor> {
    let values = file
        .numbers_of(stored)
        .ok_or_else(|| Error::file(&file.path, format!("{name}: expected numbers, found {}", stored.format)))?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::file(&file.path, format!("{name}: expected finite numbers, found NaN or infinity")));
    }
    Ok(Tensor::from_vec(values, stored.shape.as_slice(), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let read = |text: &str| text.parse::<Lora>().unwrap();
        assert_eq!(read("a.safetensors"), Lora { path: "a.safetensors".into(), weight: 1.0, expert: None });
        let of_low = Lora { path: "a.safetensors".into(), weight: 0.5, expert: Some(Expert::LowNoise) };
        assert_eq!(read("a.safetensors:0.5:low"), of_low);
        assert_eq!(read("a.safetensors:high").expert, Some(Expert::HighNoise));
        assert_eq!(read("a.safetensors:-0.5"), Lora { path: "a.safetensors".into(), weight: -0.5, expert: None });
        assert_eq!(read("C:/a.safetensors").path, PathBuf::from("C:/a.safetensors"));
        assert!("a:nan".parse::<Lora>().is_err() && ":1".parse::<Lora>().is_err());
    }
}
