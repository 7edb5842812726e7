//! Places where a test may end the process, as a power cut would: between any two things that must survive one. In
//! builds for use there is nothing of it.

/// Ends the process where `NAVICACHE_FAIL_POINT` names a file that says `NAME N`: at the N-th time that the place is
/// passed, by whichever process, and once.
#[cfg(debug_assertions)]
pub fn fail_point(name: &str) {
    let Some(file) = std::env::var_os("NAVICACHE_FAIL_POINT") else { return };
    let Ok(order) = std::fs::read_to_string(&file) else { return }; // it is done
    let Some(times) = order.trim().strip_prefix(name).and_then(|times| times.strip_prefix(' ')) else { return };
    match times.parse::<u32>() {
        Ok(1) if std::fs::remove_file(&file).is_ok() => std::process::abort(),
        Ok(times @ 2..) => drop(std::fs::write(&file, format!("{name} {}", times - 1))),
        _ => {}
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub fn fail_point(_name: &str) {}
