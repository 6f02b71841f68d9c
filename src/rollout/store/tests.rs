//! What is read after whatever has gone wrong.

use super::*;
use crate::config::Backend;
use crate::rollout::Pin;
use proptest::prelude::*;
use rstest::rstest;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::SystemTime;

const OLD: Phase = Phase::Committed { candidate: Backend::Fuse3 };

fn new() -> Phase {
    let figures = serde_json::json!({"text": "long enough to be torn apart ".repeat(9)});
    Phase::RolledBack(Pin { reason: "p99".into(), since: SystemTime::UNIX_EPOCH, figures, backend: None })
}

/// A folder on a disk that may lose its power: what was not synced may be there after it, or not, or in part.
#[derive(Default)]
struct PowerlessDisk {
    inner: RefCell<Inner>,
}

#[derive(Default, Clone)]
struct Inner {
    /// Contents by number: what was written, and how much of it is synced.
    files: Vec<(Vec<u8>, usize)>,
    /// Names as programs see them.
    names: BTreeMap<PathBuf, usize>,
    /// Changes of names since the folder was synced; after a loss of power, some of the first of them have happened.
    unsynced: Vec<(PathBuf, Option<usize>)>,
    synced_names: BTreeMap<PathBuf, usize>,
    /// Steps until the power goes, or until one fails.
    left: Option<usize>,
    /// Whether that is a step that fails, and no loss of power.
    fails: bool,
    is_off: bool,
}

impl PowerlessDisk {
    /// Takes a step; an error if it does not take place.
    fn step(&self) -> io::Result<std::cell::RefMut<'_, Inner>> {
        let mut inner = self.inner.borrow_mut();
        if inner.is_off {
            return Err(io::Error::other("no power"));
        }
        if let Some(left) = &mut inner.left {
            if *left == 0 {
                inner.is_off = !inner.fails;
                inner.left = None;
                return Err(io::ErrorKind::StorageFull.into());
            }
            *left -= 1;
        }
        Ok(inner)
    }

    /// So many steps take place, then one fails, or the power goes.
    fn stop_after(&self, steps: usize, fails: bool) {
        let mut inner = self.inner.borrow_mut();
        (inner.left, inner.fails) = (Some(steps), fails);
    }

    /// What a program reads now.
    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let inner = self.inner.borrow();
        inner.names.get(path).map(|file| inner.files[*file].0.clone())
    }

    /// What a program reads after a loss of power: `names` of the unsynced changes of names have happened, and of the
    /// bytes that were not synced `bytes` (of 100) are there, the rest being lost or zeros.
    fn read_after_loss(&self, path: &Path, names: usize, bytes: usize, zeros: bool) -> Option<Vec<u8>> {
        let inner = self.inner.borrow();
        let mut there = inner.synced_names.clone();
        for (name, file) in inner.unsynced.iter().take(names) {
            match file {
                Some(file) => there.insert(name.clone(), *file),
                None => there.remove(name),
            };
        }
        let (written, synced) = &inner.files[*there.get(path)?];
        let kept = synced + (written.len() - synced) * bytes / 100;
        let mut content = written[..kept].to_vec();
        if zeros {
            content.resize(written.len(), 0);
        }
        Some(content)
    }
}

impl Inner {
    fn name(&mut self, path: &Path, file: Option<usize>) {
        match file {
            Some(file) => self.names.insert(path.into(), file),
            None => self.names.remove(path),
        };
        self.unsynced.push((path.into(), file));
    }
}

impl Disk for &PowerlessDisk {
    type File = usize;

    fn make_folder(&self, _: &Path) -> io::Result<()> {
        self.step().map(drop)
    }

    fn create(&self, path: &Path) -> io::Result<usize> {
        let mut inner = self.step()?;
        let file = inner.files.len();
        inner.files.push((Vec::new(), 0));
        inner.name(path, Some(file));
        Ok(file)
    }

    fn write(&self, file: &mut usize, bytes: &[u8]) -> io::Result<()> {
        // In two halves: the disk may be full, or the power gone, in between.
        for half in bytes.chunks(bytes.len().div_ceil(2)) {
            self.step()?.files[*file].0.extend(half);
        }
        Ok(())
    }

    fn sync(&self, file: &usize) -> io::Result<()> {
        let mut inner = self.step()?;
        let (written, synced) = &mut inner.files[*file];
        *synced = written.len();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.step()?;
        let file = inner.names[from];
        inner.names.remove(from);
        inner.name(to, Some(file));
        Ok(())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        let mut inner = self.step()?;
        inner.unsynced.clear();
        inner.synced_names = inner.names.clone();
        Ok(())
    }

    fn remove(&self, path: &Path) {
        if let Ok(mut inner) = self.step() {
            inner.name(path, None);
        }
    }
}

fn folder() -> &'static Path {
    Path::new("/state")
}

fn with_old() -> PowerlessDisk {
    let disk = PowerlessDisk::default();
    replace(&&disk, folder(), "a.json", &OLD).unwrap();
    disk
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// The power goes at any step, a save before may have failed, and the disk keeps as much of what was not synced as it likes.
    #[test]
    fn a_loss_of_power_leaves_the_old_or_the_new(
        step in 0_usize..12,
        failed_before in proptest::option::of(0_usize..8),
        names in 0_usize..8,
        bytes in 0_usize..=100,
        zeros in any::<bool>(),
    ) {
        let disk = with_old();
        if let Some(left) = failed_before {
            disk.stop_after(left, true);
            let _ = replace(&&disk, folder(), "a.json", &OLD);
        }
        disk.stop_after(step, false);
        let saved = replace(&&disk, folder(), "a.json", &new());
        let read = disk.read_after_loss(&folder().join("a.json"), names, bytes, zeros).expect("it was there before");
        let phase = understand(&read);
        match saved {
            // What was reported as kept is.
            Ok(()) => prop_assert_eq!(phase, Ok(new())),
            Err(_) => prop_assert!(phase == Ok(OLD) || phase == Ok(new()), "{:?}", phase),
        }
    }
}

/// A step that fails, with the power on: the old state is whole, and nothing is left. Only after the very last one the new
/// one is there, and said to be in doubt.
#[test]
fn a_step_that_fails_leaves_the_old() {
    let steps = ["the folder", "a new file", "writing", "writing", "syncing a new", "its place", "syncing the folder"];
    for (step, what) in steps.into_iter().enumerate() {
        let disk = with_old();
        disk.stop_after(step, true);
        let error = replace(&&disk, folder(), "a.json", &new()).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("make room there"), "{step}: {error}");
        let expected = if step + 1 < steps.len() { OLD } else { new() };
        assert_eq!(understand(&disk.read(&folder().join("a.json")).unwrap()), Ok(expected), "{step}");
        assert_eq!(disk.inner.borrow().names.len(), 1, "{step}: something is left");
    }
    let disk = with_old();
    disk.stop_after(steps.len(), true);
    replace(&&disk, folder(), "a.json", &new()).unwrap();
}

#[rstest]
#[case::newer(r#"{"version": 2, "rollout": 7}"#, Wrong::Newer(2))]
#[case::much_newer(r#"{"version": 18446744073709551615}"#, Wrong::Newer(u64::MAX))]
fn a_later_version_is_known_by_its_number(#[case] text: &str, #[case] expected: Wrong) {
    assert_eq!(understand(text.as_bytes()), Err(expected));
}

#[rstest]
#[case::empty("")]
#[case::zeros("\0\0\0\0")]
#[case::cut(r#"{"version": 1, "rollout": {"state": "rol"#)]
#[case::other("[]")]
#[case::no_version(r#"{"rollout": {"state": "idle"}}"#)]
#[case::version_zero(r#"{"version": 0, "rollout": {"state": "idle"}}"#)]
#[case::version_text(r#"{"version": "1", "rollout": {"state": "idle"}}"#)]
#[case::no_state(r#"{"version": 1}"#)]
#[case::unknown_state(r#"{"version": 1, "rollout": {"state": "unreadable", "why": ""}}"#)]
#[case::two(r#"{"version": 1, "rollout": {"state": "idle"}}{}"#)]
fn what_is_damaged_is_told_and_left(#[case] text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), "projects");
    std::fs::write(store.file(), text).unwrap();
    let error = store.load().unwrap_err();
    assert!(matches!(error, LoadError::Damaged { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(store.file()).unwrap(), text);
}

/// The format is a promise to later versions.
#[test]
fn the_format_stays() {
    let text = r#"{"version": 1, "rollout": {"state": "running", "candidate": "fuse3", "fleet": false, "step": 1,
        "trial": {"weight": 10}, "elapsed": "1m 30s", "entered": "2023-11-14T22:13:20Z", "paused": null, "deaths": 0,
        "of a later version": true}}"#;
    let Ok(Phase::Running(progress)) = understand(text.as_bytes()) else { panic!("{:?}", understand(text.as_bytes())) };
    assert_eq!((progress.step, progress.elapsed.as_secs()), (1, 90));
    let pin = r#"{"version": 1, "rollout": {"state": "rolled_back", "reason": "operator", "since": "2023-11-14T22:13:20Z",
        "figures": null}}"#;
    assert!(matches!(understand(pin.as_bytes()), Ok(Phase::RolledBack(_))));
}

#[test]
fn neither_folder_nor_fifo_nor_too_much_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), "projects");
    std::fs::create_dir(store.file()).unwrap();
    assert!(matches!(store.load(), Err(LoadError::Unreadable { .. })));
    std::fs::remove_dir(store.file()).unwrap();
    nix::unistd::mkfifo(&store.file(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(store.load().is_err());
    std::fs::remove_file(store.file()).unwrap();
    File::create(store.file()).unwrap().set_len(1 << 42).unwrap();
    assert!(matches!(store.load(), Err(LoadError::Damaged { .. })));
}

#[test]
fn only_its_user_reads_it() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path().join("a/b"), "projects");
    store.save(&OLD).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&store.file()), mode(&store.folder)), (0o600, 0o700));
    let names: Vec<_> = std::fs::read_dir(&store.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["projects.json"]);
}

/// What lies in the way of the new file is not written through.
#[test]
fn a_link_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), "projects");
    store.save(&OLD).unwrap();
    let target = folder.path().join("precious");
    std::fs::write(&target, "precious").unwrap();
    std::os::unix::fs::symlink(&target, folder.path().join(".projects.json.new")).unwrap();
    store.save(&new()).unwrap_err();
    assert_eq!(std::fs::read_to_string(target).unwrap(), "precious");
    assert_eq!(store.load().unwrap(), Some(OLD));
    // And it is out of the way now.
    store.save(&new()).unwrap();
}

#[rstest]
#[case("projects", "projects.json")]
#[case("a.b_c-D9", "a.b_c-D9.json")]
#[case("..", "%2E..json")]
#[case("/mnt/a b", "%2Fmnt%2Fa%20b.json")]
#[case("ü%", "%C3%BC%25.json")]
#[case("", ".json")]
fn a_name_leads_nowhere_else(#[case] name: &str, #[case] file: &str) {
    assert_eq!(file_name(name), file);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn names_are_told_apart(one in "\\PC{0,90}", other in "\\PC{0,90}", tail in "[a-z]{300,400}") {
        for (one, other) in [(one.clone(), other.clone()), (format!("{tail}{one}"), format!("{tail}{other}"))] {
            let [first, second] = [&one, &other].map(|name| file_name(name));
            prop_assert_eq!(first == second, one == other);
            prop_assert!(first.len() <= 240 && !first.contains('/'), "{}", first);
        }
    }
}
