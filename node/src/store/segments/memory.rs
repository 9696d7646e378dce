//! Memory that is no longer needed, given back to the system.

/// Gives back what was freed. glibc keeps what lies below something that is still in use: after sled was read, as much as
/// the table itself. Elsewhere the allocator sees to it.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "glibc has no safe way to be asked for it")]
    // SAFETY: it may be called at any time from any thread, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
