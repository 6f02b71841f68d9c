//! A mount whose server is gone is taken away, without anybody looking at it. Needs the right to mount.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::path::Path;

use lighthouse_fs::connection::mountinfo::{self, Mounted};
use nix::mount::{MsFlags, mount};

/// Leaves a mount that nobody serves, if this process may.
fn dead_mount(at: &Path) -> nix::Result<()> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let device = device.map_err(|_| nix::errno::Errno::EPERM)?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let kind = Some("fuse.lighthouse-fs");
    mount(Some("lighthouse-fs"), at, kind, MsFlags::empty(), Some(options.as_str()))
}

#[test]
fn a_dead_mount_is_recognised_and_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap().join("a b");
    std::fs::create_dir(&place).unwrap();
    if let Err(error) = dead_mount(&place) {
        println!("SKIPPED: a_dead_mount_is_recognised_and_taken_away: this process may not mount ({error})");
        return;
    }
    let before = mountinfo::read().unwrap();
    let detached = mountinfo::detach(&place);
    let after = mountinfo::read().unwrap();
    assert_eq!(detached, Ok(()));
    assert!(mountinfo::at(&before, &place).is_some_and(Mounted::is_ours));
    assert_eq!(mountinfo::at(&after, &place), None);
    assert_eq!(mountinfo::detach(&place), Ok(()), "gone is gone");
}
