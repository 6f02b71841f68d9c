//! `mount -o remount`: the kernel's own options of what is mounted, changed in place. The daemon is not asked: writing,
//! set-user-ID bits, devices and programs are refused by the kernel before it asks anybody.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::super::fail;
use super::exit;
use crate::config::Mount;
use crate::connection::mountinfo::{self, Mounted};

/// An attribute that nothing has.
const NO_ATTRIBUTE: &str = "user.lighthouse-fs.none";

/// Changes what is mounted at the mount point to what is wanted.
pub(super) fn run(wanted: &Mount) -> ExitCode {
    match change(wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => fail(exit::FAILED, format_args!("{} cannot be remounted: {why}", wanted.mountpoint.display())),
    }
}

fn change(wanted: &Mount) -> Result<(), String> {
    let table = mountinfo::read().map_err(|error| format!("/proc/self/mountinfo cannot be read: {error}"))?;
    if !mountinfo::at(&table, &wanted.mountpoint).is_some_and(Mounted::is_ours) {
        return Err("Lighthouse FS is not mounted there; mount it without `remount`".into());
    }
    set(wanted)?;
    if !wanted.read_only && refuses_writing(&wanted.mountpoint) {
        set(&Mount { read_only: true, ..wanted.clone() })?;
        return Err("it was mounted `ro`, or its source is: `umount` it, and mount it again with `rw`".into());
    }
    Ok(())
}

/// Times of access are not among the flags: the kernel keeps none for FUSE.
fn set(wanted: &Mount) -> Result<(), String> {
    let mut flags = MsFlags::MS_REMOUNT;
    flags.set(MsFlags::MS_RDONLY, wanted.read_only);
    flags.set(MsFlags::MS_NOSUID, !wanted.suid);
    flags.set(MsFlags::MS_NODEV, !wanted.dev);
    flags.set(MsFlags::MS_NOEXEC, !wanted.exec);
    flags.set(MsFlags::MS_SYNCHRONOUS, wanted.sync);
    mount(None::<&str>, &wanted.mountpoint, None::<&str>, flags, None::<&str>).map_err(|error| match error {
        Errno::EBUSY => "files are open for writing there; `fuser -vm` shows by whom".into(),
        Errno::EPERM => "only root may do that".into(),
        error => io::Error::from(error).to_string(),
    })
}

/// Whether the server refuses what the kernel lets through. Asks for a change that changes nothing.
fn refuses_writing(place: &Path) -> bool {
    rustix::fs::removexattr(place, NO_ATTRIBUTE) == Err(rustix::io::Errno::ROFS)
}
