//! What the machine says of itself. Every answer may be missing: these are for reports, and for refusing what cannot
//! fit.

use std::path::Path;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::field::Field;
use crate::{Error, Result};

/// The processor's name.
pub fn cpu_name() -> String {
    let system = System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    let name = system.cpus().first().map(|cpu| cpu.brand().trim().to_string());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

/// Threads that computations use.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Starts the threads that all computations of this process use: so many as are asked for; else as many as the
/// environment says (`RAYON_NUM_THREADS`), but no more than the machine has. To be called before anything is computed.
///
/// # Errors
///
/// The system refuses so many, or threads were started already.
pub fn use_threads(threads: Option<usize>) -> Result<()> {
    let machine = std::thread::available_parallelism().map_or(1, usize::from);
    let set = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok()).filter(|set| *set > 0);
    let threads = threads.unwrap_or_else(|| set.map_or(machine, |set: usize| set.min(machine)));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|e| Error::Invalid {
        field: Field::Threads,
        found: threads.to_string(),
        expected: format!("they cannot be started ({e}); ask for fewer, or raise the limit of processes (ulimit -u)"),
    })
}

/// Does it on one of the threads that compute. From there, work is shared with the others at little cost; from any
/// other thread, every operation would wait for two changes of threads.
pub(crate) fn computing<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// Most memory this process has held resident so far, in bytes.
pub(crate) fn peak_memory_bytes() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM:")
}

/// Memory that can be taken without swapping, in bytes; in a container, what its limit leaves.
pub fn available_memory_bytes() -> Option<u64> {
    let memory = MemoryRefreshKind::nothing().with_ram();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(memory));
    let machine = Some(system.available_memory()).filter(|bytes| *bytes > 0);
    machine.into_iter().chain(container_memory_bytes()).min()
}

/// What the limit of the control group leaves. Pages of files count as used there, but are given up when something else
/// needs memory; sysinfo, which knows everything else, counts them too.
fn container_memory_bytes() -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let files = read("memory.stat")?.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
    let used = number("memory.current")?.saturating_sub(files.unwrap_or(0));
    Some(number("memory.max")?.saturating_sub(used))
}

fn kibibytes(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
