//! How many files this process may have open, and so how many connections it can take.

/// Connections, where files allow as many.
const CONNECTIONS: usize = 1024;
/// Files beside connections: the store, the worker's pipes, blobs that are put away.
const OTHERS: usize = 96;
/// A connection, and the video that is sent over it.
const A_CONNECTION: usize = 2;
/// Fewer make no server.
const LEAST: usize = 8;

/// How many connections are taken.
pub fn connections() -> usize {
    let connections = fitting(limit());
    if connections < CONNECTIONS {
        let files = CONNECTIONS * A_CONNECTION + OTHERS;
        eprintln!("navicache: {connections} connections at a time; {CONNECTIONS} want {files} open files (ulimit -n)");
    }
    connections
}

fn fitting(files: Option<u64>) -> usize {
    let Some(files) = files else { return CONNECTIONS };
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    (files.saturating_sub(OTHERS) / A_CONNECTION).clamp(LEAST, CONNECTIONS)
}

/// Files that this process may have open. `None`: there is no limit, or none that is known.
fn limit() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        for (files, expected) in
            [(None, 1024), (Some(1 << 20), 1024), (Some(1024), 464), (Some(256), 80), (Some(64), 8)]
        {
            assert_eq!(fitting(files), expected, "{files:?}");
        }
        #[cfg(target_os = "linux")]
        assert!(limit().is_none_or(|files| files >= 64));
    }
}
