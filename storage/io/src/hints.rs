//! Hints about memory: that some will be needed soon, that much of it will be used at random.
//!
//! Owns the two calls. They change nothing that a program can see but time.
#![expect(unsafe_code, reason = "the processor and the kernel are told of memory by its address")]

use std::mem::MaybeUninit;

/// Has the processor bring the cache line where `value` begins nearer, and does not wait for it.
///
/// Worth it where the place is known some hundred nanoseconds before it is needed, and is probably far away. On processors
/// other than x86-64 it does nothing.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction is part of every x86-64; it reads nothing that a program can see, writes nothing and never
        // faults, whatever the address, and this one is of a reference.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(core::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Asks the kernel for huge pages where it has not yet given any for `memory`: what is used at random and larger than a few
/// megabytes waits for addresses to be translated more than for the memory itself.
///
/// The first use of each then takes 2 MiB. Where the kernel does not want to, all stays as it is.
pub fn prefer_huge_pages<T>(memory: &mut [MaybeUninit<T>]) {
    const PAGE: usize = 4096;
    let bytes = size_of_val(memory);
    let start = memory.as_mut_ptr().cast::<u8>();
    let before = start.align_offset(PAGE);
    let len = bytes.saturating_sub(before) / PAGE * PAGE;
    if len > 0 {
        // SAFETY: the pages lie within `memory`, which is borrowed; the advice leaves what is in them as it is.
        unsafe { libc::madvise(start.add(before).cast(), len, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_change_nothing() {
        let mut numbers: Vec<u64> = Vec::with_capacity(1 << 20);
        prefer_huge_pages(numbers.spare_capacity_mut());
        prefer_huge_pages::<u64>(&mut []);
        numbers.extend(0..1 << 20);
        prefer_huge_pages(&mut numbers.spare_capacity_mut()[..0]);
        numbers.iter().for_each(prefetch);
        assert!(numbers.iter().copied().eq(0..1 << 20));
    }
}
