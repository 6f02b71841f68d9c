//! Set-user-ID and set-group-ID bits. The source's kernel takes them from a file when it is written, truncated or
//! punched, unless the writer has CAP_FSETID; so the serving threads do without it, and take it back only to set the bits.
//! With `FUSE_HANDLE_KILLPRIV_V2` the kernel leaves this to us; without, it costs it a request before each write.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::vfs::Result;

/// Gives up CAP_FSETID for this thread and those it will start. A server calls this before it has threads.
///
/// Root inside the mount then loses the bits by writing too, which natively it does not.
///
/// # Errors
/// What `capset(2)` gives; it allows everybody to give up a capability.
pub fn strip_set_id_on_write() -> Result<()> {
    let own = capabilities(None)?;
    set_capabilities(None, CapabilitySets { effective: own.effective - CapabilitySet::FSETID, ..own })?;
    Ok(())
}

/// Changes a mode by `change`. The kernel has decided already whether the caller may set the group bit, and takes it
/// from whoever is neither in the file's group nor has CAP_FSETID.
pub(super) fn keep<T>(mode: u32, change: impl FnOnce() -> Result<T>) -> Result<T> {
    if mode & libc::S_ISGID == 0 {
        return change();
    }
    let own = capabilities(None)?;
    if own.effective.contains(CapabilitySet::FSETID) || !own.permitted.contains(CapabilitySet::FSETID) {
        return change();
    }
    set_capabilities(None, CapabilitySets { effective: own.effective | CapabilitySet::FSETID, ..own })?;
    let result = change();
    set_capabilities(None, own)?;
    result
}
