//! Which level is the fastest on this machine: measured, not assumed.
//!
//! More lanes are faster everywhere; whether an instruction for bf16 is faster than f32's is not known from its name:
//! `vdpbf16ps` does twice as much a second as an f32 FMA on Zen 4, and half as much on Xeons. So each is timed on
//! numbers that are in registers already, and what was found is remembered where [`remember_in`] says: the same machine
//! and program choose the same, and so compute the same bits.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use crate::level::Level;
use crate::peak::operations;
use crate::precision::Precision;

/// What the rate of f32 is called.
const F32: &str = "f32";

/// How fast products are on this machine, and the level that follows.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The fastest, or what [`VARIABLE`] names.
    pub level: Level,
    /// Floating point operations a second of one thread: of f32, and of bf16 at each level that has an instruction for
    /// it. Empty where the level was named.
    pub rates: Vec<(&'static str, f64)>,
}

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Lets what is measured be remembered in a folder, which need not be there yet. To be called before anything is
/// computed.
pub fn remember_in(folder: PathBuf) {
    let _ = FOLDER.set(folder);
}

/// The environment variable that names a level.
pub const VARIABLE: &str = "NAVICACHE_KERNELS";

/// The level that the environment names, if it names one.
///
/// # Errors
///
/// It names one that this machine does not have: the message lists those it has.
pub fn named_level() -> Result<Option<Level>, String> {
    let Some(name) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) else { return Ok(None) };
    let level = name.to_str().and_then(Level::named);
    let here = || Level::available().iter().map(|level| level.name()).collect::<Vec<_>>().join(", ");
    level.map(Some).ok_or_else(|| format!("{VARIABLE} is {name:?}: expected one that this machine has: {}", here()))
}

/// What this process uses outside of [`Level::scope`]: measured at the first call, in a few milliseconds, unless it is
/// remembered.
pub fn choice() -> &'static Choice {
    static CHOICE: OnceLock<Choice> = OnceLock::new();
    CHOICE.get_or_init(|| {
        // A program says what is wrong with the name before it computes anything; here it is too late for that.
        if let Some(level) = named_level().ok().flatten() {
            return Choice { level, rates: Vec::new() };
        }
        let file = FOLDER.get().map(|folder| folder.join("kernels"));
        if let Some(choice) = file.as_deref().and_then(|file| parsed(&std::fs::read_to_string(file).ok()?, &machine()))
        {
            return choice;
        }
        let choice = chosen(measured());
        if let Some(file) = file {
            // Where nothing can be written, it is measured again next time.
            let _ = write(&file, &written(&choice, &machine()));
        }
        choice
    })
}

impl Level {
    /// That of the innermost [`Level::scope`], or else the one that was chosen, see [`choice`].
    pub fn current() -> Level {
        Level::forced().unwrap_or_else(|| choice().level)
    }
}

impl Level {
    /// Whether convolutions are faster here when what they multiply is rounded to bf16.
    pub fn convolves_bf16(self) -> bool {
        static MEASURED: OnceLock<Vec<(&str, f64)>> = OnceLock::new();
        let rates = match &choice().rates[..] {
            [] => MEASURED.get_or_init(measured),
            rates => rates,
        };
        self.multiplies_bf16() && is_faster_convolving(self.name(), rates)
    }
}

/// Convolutions in f32 need 2.25 times fewer products, so that twice the rate of f32 is not enough; nor is a little
/// more worth the rounding.
fn is_faster_convolving(way: &str, rates: &[(&'static str, f64)]) -> bool {
    const ENOUGH: f64 = 3.0;
    let rate = |name: &str| rates.iter().find(|(way, _)| *way == name).map(|(_, rate)| *rate);
    rate(way).zip(rate(F32)).is_some_and(|(bf16, f32)| bf16 > ENOUGH * f32)
}

/// The fastest level without an instruction for bf16.
fn vectors() -> Level {
    Level::available().iter().rev().find(|level| !level.multiplies_bf16()).copied().unwrap_or(Level::PLAIN)
}

/// The rates of this machine, of each the best of a few trials that take turns.
fn measured() -> Vec<(&'static str, f64)> {
    const ROUNDS: usize = 1 << 14;
    const TRIALS: usize = 8;
    let pairs = Level::available().iter().filter(|level| level.multiplies_bf16());
    let ways: Vec<_> = [(F32, vectors())].into_iter().chain(pairs.map(|level| (level.name(), *level))).collect();
    let mut rates = vec![0f64; ways.len()];
    for _ in 0..TRIALS {
        for ((_, level), rate) in ways.iter().zip(&mut rates) {
            let precision = if level.multiplies_bf16() { Precision::Bf16 } else { Precision::F32 };
            let clock = Instant::now();
            let operations = operations(*level, precision, ROUNDS);
            *rate = rate.max(operations as f64 / clock.elapsed().as_secs_f64());
        }
    }
    ways.into_iter().zip(rates).map(|((name, _), rate)| (name, rate)).collect()
}

/// The level of the fastest way.
fn chosen(rates: Vec<(&'static str, f64)>) -> Choice {
    let fastest = rates.iter().max_by(|a, b| a.1.total_cmp(&b.1)).and_then(|(name, _)| Level::named(name));
    Choice { level: fastest.unwrap_or_else(vectors), rates }
}

/// What the choice holds for: the processor, this version of the program, and what the system lets it use.
fn machine() -> String {
    let levels: Vec<_> = Level::available().iter().map(|level| level.name()).collect();
    format!("{} | {} | {}", processor(), env!("CARGO_PKG_VERSION"), levels.join(" "))
}

#[cfg(target_arch = "x86_64")]
fn processor() -> String {
    use std::arch::x86_64::__cpuid;

    let signature = __cpuid(1).eax;
    let parts = if __cpuid(0x8000_0000).eax < 0x8000_0004 { 0..0 } else { 2..5 };
    let words = parts.map(|i| __cpuid(0x8000_0000 + i)).flat_map(|found| [found.eax, found.ebx, found.ecx, found.edx]);
    let name: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|byte| *byte != 0).collect();
    format!("{} {signature:x}", String::from_utf8_lossy(&name).trim())
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> String {
    std::env::consts::ARCH.to_string()
}

/// A line for the machine, one for the level, one for each way.
fn written(choice: &Choice, machine: &str) -> String {
    let rates: String = choice.rates.iter().map(|(name, rate)| format!("{name} {rate:.3e}\n")).collect();
    format!("{machine}\n{}\n{rates}", choice.level.name())
}

/// What was written, if it was for this machine and is whole.
fn parsed(text: &str, machine: &str) -> Option<Choice> {
    let mut lines = text.lines();
    if lines.next()? != machine {
        return None;
    }
    let level = Level::named(lines.next()?)?;
    let rates = lines.map(|line| {
        let (name, rate) = line.split_once(' ')?;
        let name = if name == F32 { F32 } else { Level::named(name)?.name() };
        Some((name, rate.parse().ok()?))
    });
    Some(Choice { level, rates: rates.collect::<Option<_>>()? })
}

/// Whole or not at all: other processes may write the same at the same time.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let part = file.with_extension(format!("part-{}", std::process::id()));
    std::fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    std::fs::write(&part, text)?;
    std::fs::rename(&part, file).inspect_err(|_| {
        let _ = std::fs::remove_file(&part);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_is_chosen() {
        let pairs: Vec<_> = Level::available().iter().filter(|level| level.multiplies_bf16()).collect();
        for level in &pairs {
            assert_eq!(chosen(vec![(F32, 2.0), (level.name(), 4.0)]).level, **level);
            assert_eq!(chosen(vec![(F32, 2.0), (level.name(), 1.0)]).level, vectors());
        }
        assert_eq!(chosen(vec![(F32, 2.0)]).level, vectors());
    }

    #[test]
    fn convolutions_are_of_bf16_where_it_is_much_faster() {
        assert!(is_faster_convolving("amx", &[(F32, 1.0), ("avx512bf16", 0.5), ("amx", 14.0)]));
        assert!(!is_faster_convolving("avx512bf16", &[(F32, 1.0), ("avx512bf16", 2.0)]));
        assert!(!is_faster_convolving("amx", &[(F32, 1.0)]));
        assert!(!Level::PLAIN.convolves_bf16());
    }

    #[test]
    fn what_was_written_is_read_on_the_same_machine() {
        let choice = chosen(measured());
        assert!(choice.rates.iter().all(|(_, rate)| *rate > 1e6), "{choice:?}");
        let rounded = parsed(&written(&choice, "a machine"), "a machine").unwrap();
        assert_eq!((rounded.level, rounded.rates.len()), (choice.level, choice.rates.len()));
        assert_eq!(parsed(&written(&choice, "a machine"), "another"), None);
        for broken in ["", "a machine", "a machine\nx", "a machine\nplain\nf32", "a machine\nplain\nf32 x"] {
            assert_eq!(parsed(broken, "a machine"), None, "{broken}");
        }
    }

    #[test]
    fn files_are_whole() {
        let folder = std::env::temp_dir().join(format!("navicache-kernels-{}", std::process::id()));
        let file = folder.join("kernels");
        write(&file, "first").unwrap();
        write(&file, "second").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "second");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(write(Path::new("/proc/no/folder/kernels"), "x").is_err());
    }
}
