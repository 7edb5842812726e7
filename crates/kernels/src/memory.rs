//! Large blocks of memory in huge pages, kept for the next that need as much.
//!
//! A tensor of a video is tens of megabytes, used once and given back; the next one has the same size. In pages of 4
//! KiB, the system spends a tenth of a matrix product on handing them out and taking them back. Linux gives pages of 2
//! MiB, but in its usual setting ("madvise") only to who asks.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::{Mutex, PoisonError};

/// The system's allocator, but on Linux for large blocks: those are huge pages, and some stay at hand when they are
/// given back.
///
/// For the programs that use the kernels: `#[global_allocator] static MEMORY: HugePages = HugePages;`
#[derive(Debug, Clone, Copy)]
pub struct HugePages;

/// Bytes of a huge page, and alignment of every large block.
const PAGE: usize = 2 << 20;
/// Bytes from which on a block is large.
const LARGE: usize = 2 * PAGE;
/// Bytes of blocks that are kept.
const KEPT: usize = 256 << 20;

fn is_large(layout: Layout) -> bool {
    cfg!(target_os = "linux") && layout.size() >= LARGE && layout.align() <= PAGE
}

// SAFETY: small blocks are the system allocator's. Large ones are mappings of their own, at least as long and as
// strictly aligned as was asked for, zero when they are new, and unmapped with the size that they were made for. Which
// of the two a block is follows from its layout alone.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return take(layout.size()).unwrap_or_else(|| map_or_free(layout.size()));
        }
        // SAFETY: the caller keeps the contract of `GlobalAlloc`, which is the system allocator's too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return match take(layout.size()) {
                Some(block) => {
                    // SAFETY: the block is of this size, and nobody else's.
                    unsafe { block.write_bytes(0, layout.size()) };
                    block
                }
                None => map_or_free(layout.size()),
            };
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_large(layout) {
            keep(block, layout.size());
        } else {
            // SAFETY: as above; the block came from the system allocator.
            unsafe { System.dealloc(block, layout) }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size, rounded up to the alignment, does not overflow.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if !is_large(layout) && !is_large(new) {
            // SAFETY: as above.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: both blocks are as long as what is copied, and a new block does not overlap an old one.
        unsafe {
            let moved = self.alloc(new);
            if !moved.is_null() {
                std::ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

/// Blocks that were given back, the oldest first: where, and of what size.
static BLOCKS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// A block that was kept, of just this size; its contents are left from its last use.
fn take(size: usize) -> Option<*mut u8> {
    let mut blocks = BLOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    let newest = blocks.iter().rposition(|(_, kept)| *kept == size)?;
    Some(std::ptr::with_exposed_provenance_mut(blocks.remove(newest).0))
}

/// Keeps a block, and gives the oldest back to the system when they are too much.
fn keep(block: *mut u8, size: usize) {
    let mut blocks = BLOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    blocks.push((block.expose_provenance(), size));
    let mut bytes: usize = blocks.iter().map(|(_, size)| size).sum();
    while bytes > KEPT {
        let (block, size) = blocks.remove(0);
        bytes -= size;
        unmap(std::ptr::with_exposed_provenance_mut(block), size);
    }
}

/// Fresh zeros, or null. Where the system has no room, blocks that were kept are given back first.
fn map_or_free(size: usize) -> *mut u8 {
    let block = map(size);
    if !block.is_null() {
        return block;
    }
    let mut blocks = BLOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    if blocks.is_empty() {
        return block;
    }
    for (kept, size) in blocks.drain(..) {
        unmap(std::ptr::with_exposed_provenance_mut(kept), size);
    }
    map(size)
}

/// Fresh zeros from a boundary of huge pages on, or null.
#[cfg(target_os = "linux")]
fn map(size: usize) -> *mut u8 {
    let Some(length) = size.checked_add(PAGE) else { return std::ptr::null_mut() };
    // SAFETY: a new private mapping, of which what lies before and after the block is given back. `start` is within it,
    // as it is longer than the block by a huge page. Advice changes no contents; without it the block works as well,
    // slower.
    unsafe {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let mapped = libc::mmap(std::ptr::null_mut(), length, access, kind, -1, 0);
        if mapped == libc::MAP_FAILED {
            return std::ptr::null_mut();
        }
        let before = mapped.cast::<u8>().align_offset(PAGE);
        let start = mapped.cast::<u8>().add(before);
        if before > 0 {
            libc::munmap(mapped, before);
        }
        let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(PAGE);
        let end = start.add(size.next_multiple_of(page));
        let after = mapped.cast::<u8>().add(length).offset_from(end);
        if after > 0 {
            libc::munmap(end.cast(), after.cast_unsigned());
        }
        libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE);
        start
    }
}

/// Gives back what [`map`] gave.
#[cfg(target_os = "linux")]
fn unmap(block: *mut u8, size: usize) {
    // SAFETY: the block is a mapping of this size, rounded up to pages, and nobody uses it any more.
    unsafe { libc::munmap(block.cast(), size) };
}

#[cfg(not(target_os = "linux"))]
fn map(_: usize) -> *mut u8 {
    std::ptr::null_mut()
}

#[cfg(not(target_os = "linux"))]
fn unmap(_: *mut u8, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_all_sizes() {
        for size in [1, 4096, LARGE - 1, LARGE, LARGE + 1, 5 * PAGE + 4097] {
            for align in [1, 64, PAGE] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the block is used within its size and given back with the layout it has.
                unsafe {
                    let block = HugePages.alloc_zeroed(layout);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align));
                    assert!(std::slice::from_raw_parts(block, size).iter().all(|byte| *byte == 0));
                    block.write_bytes(7, size);
                    for other in [2 * LARGE, size / 2 + 1] {
                        let kept = size.min(other);
                        let copy = HugePages.alloc(layout);
                        copy.copy_from_nonoverlapping(block, size);
                        let copy = HugePages.realloc(copy, layout, other);
                        assert!(copy.addr().is_multiple_of(align));
                        assert!(std::slice::from_raw_parts(copy, kept).iter().all(|byte| *byte == 7));
                        HugePages.dealloc(copy, Layout::from_size_align(other, align).unwrap());
                    }
                    HugePages.dealloc(block, layout);
                }
            }
        }
    }

    #[test]
    fn too_much_is_null() {
        let layout = Layout::from_size_align(isize::MAX as usize / PAGE * PAGE, 64).unwrap();
        // SAFETY: nothing is done with the block.
        assert!(unsafe { HugePages.alloc(layout) }.is_null());
    }
}
