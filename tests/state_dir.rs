//! A state directory on a disk that is full.

mod support;

use std::fs;
use std::path::Path;

use lighthouse_fs::config::Backend;
use lighthouse_fs::rollout::{Phase, Pin, Store};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A file system with room for little, for as long as this lives.
struct Tiny<'a>(&'a Path);

impl Drop for Tiny<'_> {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_leaves_the_old_state_whole() {
    let folder = tempfile::tempdir().unwrap();
    let options = Some("size=16k,mode=0700");
    if let Err(error) = mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), options) {
        return support::skip(&format!("a tmpfs cannot be mounted ({error})"));
    }
    let _tiny = Tiny(folder.path());
    let store = Store::new(folder.path(), "projects");
    let old = Phase::Committed { candidate: Backend::Fuse3 };
    store.save(&old).unwrap();
    let pin = |text: String| {
        Phase::RolledBack(Pin {
            reason: "p99".into(),
            since: std::time::SystemTime::UNIX_EPOCH,
            figures: text.into(),
            backend: None,
        })
    };
    // Too much by itself: full in the middle of the file.
    let error = store.save(&pin("x".repeat(64 << 10))).unwrap_err().to_string();
    assert!(
        error.contains("writing a new file: No space left on device") && error.contains("make room there"),
        "{error}"
    );
    assert_eq!(store.load().unwrap(), Some(old.clone()));
    // Filled by others: not even a little.
    let filler = folder.path().join("filler");
    fs::write(&filler, vec![0; 64 << 10]).unwrap_err();
    store.save(&pin("x".into())).unwrap_err();
    assert_eq!(store.load().unwrap(), Some(old));
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    fs::remove_file(filler).unwrap();
    store.save(&pin("x".into())).unwrap();
    assert_eq!(store.load().unwrap(), Some(pin("x".into())));
}
