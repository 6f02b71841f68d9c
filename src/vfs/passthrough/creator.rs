//! Who owns what is made. A thread takes on the caller's file-system ids for the one system call that makes a file, and
//! must never come back to the reader loop with them.
//!
//! Two side effects of the kernel's `commit_creds`: the process is not dumpable afterwards, and the thread's own
//! PR_SET_PDEATHSIG is gone.

use std::process;

use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::vfs::{Caller, Errno, Result};

/// What a thread gives up while it creates a file as somebody else: of the capabilities that belong to uid 0's file
/// system rights (`CAP_FS_SET` of the kernel's `capability.h`) all but DAC_OVERRIDE, DAC_READ_SEARCH and MKNOD. The kernel
/// has checked the caller's permissions (`default_permissions`), which it may have through groups that are not known here.
const GIVEN_UP: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::MAC_OVERRIDE);

/// Makes new files belong to the program that asked for them.
///
/// Only root with CAP_SETUID and CAP_SETGID can; files made for others by an ordinary user belong to that user.
#[derive(Clone, Copy, Debug)]
pub(super) struct Creator {
    can_switch: bool,
    uid: Uid,
    gid: Gid,
}

impl Creator {
    /// Looks at the rights of this thread, which the serving threads inherit.
    pub(super) fn of_this_process() -> Result<Self> {
        let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
        let can_switch = geteuid().is_root() && capabilities(None)?.effective.contains(needed);
        Ok(Self { can_switch, uid: geteuid(), gid: getegid() })
    }

    /// Runs `make` with the caller's user and group for whatever it creates.
    ///
    /// # Errors
    /// EPERM when the caller's ids do not exist in this process's user namespace.
    pub(super) fn run_as<T>(&self, caller: &Caller, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let (uid, gid) = (Uid::from_raw(caller.uid), Gid::from_raw(caller.gid));
        if !self.can_switch || (uid, gid) == (self.uid, self.gid) {
            return make();
        }
        let _switched = Switched::to(uid, gid, *self)?;
        make()
    }
}

/// This thread has other file-system ids until it is dropped. `setfsuid(2)` is a matter of one thread.
struct Switched {
    own: Creator,
    capabilities: CapabilitySets,
}

impl Switched {
    fn to(uid: Uid, gid: Gid, own: Creator) -> Result<Self> {
        // Made before the first change: whatever fails below, dropping it puts everything back.
        let switched = Self { own, capabilities: capabilities(None)? };
        setfsgid(gid);
        setfsuid(uid);
        if current_ids() != (uid, gid) {
            return Err(Errno::EPERM);
        }
        // Leaving uid 0 has taken all of CAP_FS_SET away; this gives back what is kept.
        let effective = switched.capabilities.effective - GIVEN_UP;
        set_capabilities(None, CapabilitySets { effective, ..switched.capabilities })?;
        Ok(switched)
    }
}

impl Drop for Switched {
    fn drop(&mut self) {
        setfsuid(self.own.uid);
        setfsgid(self.own.gid);
        let restored = set_capabilities(None, self.capabilities).is_ok();
        if !restored || current_ids() != (self.own.uid, self.own.gid) {
            // The next request on this thread would run with somebody else's rights.
            tracing::error!("the thread's own file-system ids could not be restored after a file was created");
            process::abort();
        }
    }
}

/// Both calls return the present id, and -1 is nobody's: that is how it is read (`setfsuid(2)`).
fn current_ids() -> (Uid, Gid) {
    (setfsuid(Uid::from_raw(u32::MAX)), setfsgid(Gid::from_raw(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn new_files_belong_to_the_caller_and_the_thread_is_root_again() {
        let creator = Creator::of_this_process().unwrap();
        if !creator.can_switch {
            println!("skipped: only root can create files for others");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let before = capabilities(None).unwrap();
        let caller = Caller { uid: 1234, gid: 2345, ..Caller::default() };
        let path = dir.path().join("file");
        // The directory belongs to root, mode 0700: DAC_OVERRIDE must be kept.
        creator.run_as(&caller, || Ok(std::fs::write(&path, "")?)).unwrap();
        let made = path.metadata().unwrap();
        assert_eq!((made.uid(), made.gid()), (1234, 2345));
        assert_eq!(current_ids(), (creator.uid, creator.gid));
        assert_eq!(capabilities(None).unwrap(), before);
    }

    #[test]
    fn ids_that_do_not_exist_are_refused_and_leave_nothing_behind() {
        let creator = Creator::of_this_process().unwrap();
        if !creator.can_switch {
            println!("skipped: only root can create files for others");
            return;
        }
        let before = capabilities(None).unwrap();
        let nobody = Caller { uid: u32::MAX, gid: 7, ..Caller::default() };
        assert_eq!(creator.run_as(&nobody, || Ok(())), Err(Errno::EPERM));
        assert_eq!(current_ids(), (creator.uid, creator.gid));
        assert_eq!(capabilities(None).unwrap(), before);
    }
}
