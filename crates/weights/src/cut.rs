//! A weight file that another program cuts short while it is mapped: the system ends a program that reads beyond its
//! end (SIGBUS). Here it ends with a message.

#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(crate) use signal::{forget, remember};

/// Lets the program end with a message and exit code 1 when a weight file that it has mapped is cut short. For
/// programs: a library has no business with signals.
pub fn explain_cut_files() {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    signal::install();
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
#[allow(unsafe_code)]
mod signal {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::ptr::{null, null_mut};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicPtr, Ordering};

    /// A mapped file.
    struct Region {
        begin: usize,
        end: usize,
        message: Vec<u8>,
    }

    /// Files that are mapped; more are possible, and end without a message. What is taken out stays in memory, a
    /// hundred bytes a file, as a signal may be reading it.
    static REGIONS: [AtomicPtr<Region>; 256] = [const { AtomicPtr::new(null_mut()) }; 256];
    /// What was done about the signal before.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    pub(crate) fn remember(bytes: &[u8], path: &Path) {
        let begin = bytes.as_ptr() as usize;
        let reason = ": it was cut short while it was in use; leave the files of a model alone while it runs\n";
        let message = [b"\nnavicache: ", path.as_os_str().as_bytes(), reason.as_bytes()].concat();
        let region = Box::into_raw(Box::new(Region { begin, end: begin + bytes.len(), message }));
        let free = |slot: &&AtomicPtr<Region>| {
            slot.compare_exchange(null_mut(), region, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        if REGIONS.iter().find(free).is_none() {
            // SAFETY: it was just made, and no slot has it.
            drop(unsafe { Box::from_raw(region) });
        }
    }

    pub(crate) fn forget(bytes: &[u8]) {
        let begin = bytes.as_ptr() as usize;
        for slot in &REGIONS {
            let region = slot.load(Ordering::Acquire);
            // SAFETY: regions in slots are never freed.
            if unsafe { region.as_ref() }.is_some_and(|region| region.begin == begin) {
                slot.store(null_mut(), Ordering::Release);
            }
        }
    }

    /// It cannot fail: the signal and the pointers are valid.
    pub(super) fn install() {
        // SAFETY: all zeros is a valid sigaction; the handler does nothing that is not allowed in one.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut before: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            if libc::sigaction(libc::SIGBUS, &action, &mut before) == 0 {
                BEFORE.get_or_init(|| before);
            }
        }
    }

    extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the system gives a valid `info`; regions in slots are never freed; `write`, `_exit` and `sigaction`
        // may be called in a handler.
        unsafe {
            let address = (*info).si_addr() as usize;
            for slot in &REGIONS {
                if let Some(region) = slot.load(Ordering::Acquire).as_ref()
                    && (region.begin..region.end).contains(&address)
                {
                    libc::write(libc::STDERR_FILENO, region.message.as_ptr().cast(), region.message.len());
                    libc::_exit(1);
                }
            }
            // Something else: it happens again at once, and is what it was before.
            libc::sigaction(libc::SIGBUS, BEFORE.get().map_or(null(), |before| before), null_mut());
        }
    }
}
