//! What can be said of mounts before anything is mounted, without touching a FUSE mount.
//!
//! [`check_all`] finds what is wrong in itself, for all mounts together, and changes nothing. [`check`] finds what is
//! wrong here and now, for one mount at the moment when it is to be mounted.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::slice;

use rustix::process::{Resource, getrlimit};

use super::dead_mount;
use crate::config::Mount;
use crate::connection::mountinfo::{self, Mounted};

/// Symbolic links that the kernel follows in one path (path_resolution(7)).
const MOST_LINKS: usize = 40;
/// Descriptors that serving begins with, daemon or server, with some to spare. With fewer they run out half way, when
/// even the mount that was just made cannot be found any more.
const DESCRIPTORS: u64 = 64;

/// Why a mount is not even tried.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Wrong in itself, on any machine.
    #[error("{0}")]
    Configuration(String),
    /// Wrong here and now.
    #[error("{0}")]
    World(String),
}

/// A file or folder that the daemon needs while it serves. In one of its own mounts it would wait for itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Own {
    what: &'static str,
    path: PathBuf,
    remedy: &'static str,
}

impl Own {
    /// The control socket.
    #[must_use]
    pub fn socket(path: impl Into<PathBuf>) -> Self {
        Self { what: "control socket", path: path.into(), remedy: "choose another `socket`" }
    }

    /// The file that it reads again after SIGHUP.
    #[must_use]
    pub fn configuration(path: impl Into<PathBuf>) -> Self {
        Self { what: "configuration file", path: path.into(), remedy: "keep it elsewhere" }
    }

    /// Where it keeps pins and the progress of rollouts.
    #[must_use]
    pub fn state(path: impl Into<PathBuf>) -> Self {
        Self { what: "state directory", path: path.into(), remedy: "choose another daemon.state_dir" }
    }

    /// The file of the API's token.
    #[must_use]
    pub fn token(path: impl Into<PathBuf>) -> Self {
        Self { what: "token file", path: path.into(), remedy: "keep it elsewhere, and set api.token_file to that" }
    }

    /// What this process was started with: the file behind its standard error, and its temporary folder.
    #[must_use]
    pub fn of_this_process() -> Vec<Self> {
        let log = fs::read_link("/proc/self/fd/2").ok().filter(|path| path.is_absolute());
        let log = log.map(|path| Self { what: "log", path, remedy: "send standard error elsewhere" });
        let folder = Self { what: "temporary folder", path: std::env::temp_dir(), remedy: "set TMPDIR to one outside" };
        log.into_iter().chain([folder]).collect()
    }
}

/// Checks what is wrong in itself with mounts and their shadows, one by one and together, and returns where mountinfo will
/// show each. Changes nothing. `own` is what the daemon needs.
///
/// No mount point may lie in any source or in another mount point, and no source in any mount point, also where it would
/// make no loop: of two mounts that hang together, a stuck one takes the other with it, and they have to be started and
/// stopped in the right order.
///
/// # Errors
/// The names of the mounts that are wrong, and why; [`Refusal::World`] only where mountinfo cannot be read.
pub fn check_all(mounts: &[Mount], own: &[Own]) -> Result<Vec<PathBuf>, Vec<(String, Refusal)>> {
    let table = mounted()
        .map_err(|refusal| mounts.iter().map(|mount| (mount.name.clone(), refusal.clone())).collect::<Vec<_>>())?;
    let with_shadows: Vec<_> =
        mounts.iter().flat_map(|mount| [Some(mount.clone()), mount.shadow()]).flatten().collect();
    check_all_against(&with_shadows, own, &table)
}

/// Checks a mount that is to be made now, and returns where mountinfo will show it. `own` is what the daemon needs. Takes
/// away what an earlier crash has left at the mount point; for that it may wait seconds.
///
/// # Errors
/// When it cannot work; the message says why and what to do.
pub fn check(mount: &Mount, own: &[Own]) -> Result<PathBuf, Refusal> {
    check_descriptors()?;
    let table = mounted()?;
    // A shadow is checked by its own keeper: what is wrong with it must not stop the mount.
    let places = check_all_against(slice::from_ref(mount), own, &table);
    let place = places.map_err(|mut refused| refused.swap_remove(0).1)?.swap_remove(0);
    let mounts = mounted()?;
    check_source_against(&mount.source, &mounts)?;
    check_surroundings(&place, &mounts)?;
    let mounts = dead_mount::clear(&place, mounts).map_err(Refusal::World)?;
    check_place(&place, &mounts)?;
    Ok(place)
}

/// Checks the source alone, for a mount that is somebody else's.
///
/// # Errors
/// As [`check`].
pub fn check_source(source: &Path) -> Result<(), Refusal> {
    check_descriptors()?;
    check_source_against(source, &mounted()?)
}

/// Where mountinfo shows, or would show, a mount at this mount point.
#[must_use]
pub fn place(mountpoint: &Path) -> PathBuf {
    mounted().map_or_else(|_| mountpoint.into(), |mounts| settled(mountpoint, &mounts))
}

fn check_descriptors() -> Result<(), Refusal> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let free = limit.saturating_sub(open as u64);
    if free >= DESCRIPTORS {
        return Ok(());
    }
    Err(Refusal::World(format!(
        "only {free} more files can be opened, and serving begins with {DESCRIPTORS}: raise the limit (`ulimit -n`, LimitNOFILE= of the unit)"
    )))
}

fn mounted() -> Result<Vec<Mounted>, Refusal> {
    mountinfo::read()
        .map_err(|error| Refusal::World(format!("/proc/self/mountinfo cannot be read: {error}; mount /proc")))
}

/// A mount, and where its two paths lead.
struct Settled<'a> {
    mount: &'a Mount,
    source: PathBuf,
    place: PathBuf,
}

impl<'a> Settled<'a> {
    fn of(mount: &'a Mount, table: &[Mounted]) -> Self {
        // The source may be a link as a whole; what it leads to is served.
        let source = walked(&mount.source, LastLink::Followed, table);
        Self { mount, source, place: settled(&mount.mountpoint, table) }
    }
}

fn check_all_against(mounts: &[Mount], own: &[Own], table: &[Mounted]) -> Result<Vec<PathBuf>, Vec<(String, Refusal)>> {
    let settled_mounts: Vec<_> = mounts.iter().map(|mount| Settled::of(mount, table)).collect();
    let mut refused = Vec::new();
    for (number, one) in settled_mounts.iter().enumerate() {
        let wrong = check_alone(one)
            .and_then(|()| own.iter().try_for_each(|own| check_outside(own, &one.place, table)))
            .and_then(|()| settled_mounts[..number].iter().try_for_each(|earlier| check_pair(earlier, one)));
        refused.extend(wrong.err().map(|why| (one.mount.name.clone(), Refusal::Configuration(why))));
    }
    if refused.is_empty() { Ok(settled_mounts.into_iter().map(|one| one.place).collect()) } else { Err(refused) }
}

fn check_alone(Settled { source, place, .. }: &Settled<'_>) -> Result<(), String> {
    if overlap(source, place) {
        return Err(format!(
            "source {} and mount point {} lie in each other: every look into one would ask the other; choose a mount point elsewhere",
            source.display(),
            place.display()
        ));
    }
    Ok(())
}

fn check_outside(own: &Own, place: &Path, table: &[Mounted]) -> Result<(), String> {
    // It may be a link, in the mount or into it.
    let paths = [LastLink::Kept, LastLink::Followed].map(|last| walked(&own.path, last, table));
    if let Some(path) = paths.iter().find(|path| path.starts_with(place)) {
        return Err(format!(
            "the {} {} lies in the mount point {}: the daemon must not depend on what it serves; {}",
            own.what,
            path.display(),
            place.display(),
            own.remedy
        ));
    }
    Ok(())
}

fn check_pair(earlier: &Settled<'_>, one: &Settled<'_>) -> Result<(), String> {
    let names = format!("mounts \"{}\" and \"{}\"", earlier.mount.name, one.mount.name);
    if earlier.mount.name == one.mount.name {
        return Err(format!("two mounts are called \"{}\": give each a name of its own", one.mount.name));
    }
    if overlap(&earlier.place, &one.place) {
        return Err(format!(
            "{names} have mount points in each other, {} and {}: choose places side by side",
            earlier.place.display(),
            one.place.display()
        ));
    }
    for (below, above) in [(earlier, one), (one, earlier)] {
        if let Ok(rest) = below.source.strip_prefix(&above.place) {
            return Err(format!(
                "{names} hang together: source {} lies in mount point {}; serve {} instead, which is the same",
                below.source.display(),
                above.place.display(),
                above.source.join(rest).display()
            ));
        }
        if above.place.starts_with(&below.source) {
            return Err(format!(
                "{names} hang together: mount point {} lies in source {}; choose a mount point elsewhere",
                above.place.display(),
                below.source.display()
            ));
        }
    }
    Ok(())
}

fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// That the mount point lies in no mount of ours: the two would hang together.
fn check_surroundings(place: &Path, mounts: &[Mounted]) -> Result<(), Refusal> {
    match place.parent().and_then(|parent| mountinfo::holding(mounts, parent)) {
        Some(outer) if outer.is_ours() => Err(Refusal::World(format!(
            "the mount point {} lies in {}, which Lighthouse FS serves: choose a mount point elsewhere",
            place.display(),
            outer.place.display()
        ))),
        _ => Ok(()),
    }
}

/// The mount point itself is looked at only where no FUSE mount can be in the way.
fn check_place(place: &Path, mounts: &[Mounted]) -> Result<(), Refusal> {
    let refusal = |why: &str| Err(Refusal::World(format!("the mount point {} {why}", place.display())));
    if let Some(other) = mountinfo::at(mounts, place).filter(|mounted| mounted.is_fuse()) {
        return refusal(&format!("is taken by a mount of type {}: unmount it, or name another directory", other.kind));
    }
    if on_fuse(place, mounts) {
        return Ok(());
    }
    match fs::symlink_metadata(place) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(metadata) if metadata.is_symlink() => {
            return refusal("is a symbolic link: name the directory that it leads to");
        }
        Ok(_) => return refusal("is not a directory: name a directory as `mountpoint`"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refusal("does not exist: make it, or name another `mountpoint`");
        }
        Err(error) => return refusal(&format!("cannot be used: {error}; see the owner and mode of its parents")),
    }
    match fs::read_dir(place).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            refusal("is not empty: the mount would hide what is in it; move that away, or name another directory")
        }
        // Whoever mounts it need not be able to read it.
        Ok(false) | Err(_) => Ok(()),
    }
}

fn check_source_against(source: &Path, mounts: &[Mounted]) -> Result<(), Refusal> {
    let place = walked(source, LastLink::Followed, mounts);
    // What lies on a FUSE mount is not looked at, since that may hang: the server will, and its start has a deadline.
    if on_fuse(&place, mounts) {
        return Ok(());
    }
    let refusal = |why: &str| Err(Refusal::World(format!("the source {} {why}", source.display())));
    match fs::metadata(&place) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return refusal("is not a directory: name the directory to serve as `source`"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refusal("does not exist: make it, or name another `source`");
        }
        Err(error) => return refusal(&format!("cannot be used: {error}; see the owner and mode of its parents")),
    }
    // To list it, and to go into it.
    match fs::read_dir(&place).and_then(|_| fs::metadata(place.join("."))) {
        Ok(_) => Ok(()),
        Err(error) => refusal(&format!("cannot be read: {error}; see its owner and mode, or serve as a user who may")),
    }
}

fn on_fuse(path: &Path, mounts: &[Mounted]) -> bool {
    mountinfo::holding(mounts, path).is_some_and(Mounted::is_fuse)
}

/// What becomes of a symbolic link that is the last component.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastLink {
    /// It counts as what it leads to.
    Followed,
    /// It is not looked at: it may be a dead mount.
    Kept,
}

/// The path as mountinfo would show a mount there. The last component, which may be a dead mount, is not looked at.
fn settled(path: &Path, mounts: &[Mounted]) -> PathBuf {
    walked(path, LastLink::Kept, mounts)
}

/// Where the path leads: links are followed, as long as nothing on the way is a FUSE mount. What is not there stays as it
/// is; whoever looks for it says so.
fn walked(path: &Path, last: LastLink, mounts: &[Mounted]) -> PathBuf {
    let mut place = PathBuf::from("/");
    let mut rest = parts(path);
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            place.pop();
            continue;
        }
        place.push(part);
        let is_kept = last == LastLink::Kept && rest.is_empty();
        if is_kept || links == MOST_LINKS || on_fuse(&place, mounts) {
            continue;
        }
        if let Ok(target) = fs::read_link(&place) {
            links += 1;
            place.pop();
            if target.is_absolute() {
                place = PathBuf::from("/");
            }
            let mut target = parts(&target);
            target.append(&mut rest);
            rest = target;
        }
    }
    place
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names.map(|part| part.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::os::unix::fs::symlink;

    fn mounted_at(place: impl Into<PathBuf>, kind: &str) -> Mounted {
        Mounted { id: 9, device: (0, 31), place: place.into(), kind: kind.into() }
    }

    /// What is wrong in itself with mounts called a, b, …
    fn wrong(mounts: &[(&str, &str)], own: &[Own]) -> Vec<(String, String)> {
        let mounts: Vec<_> = mounts
            .iter()
            .zip('a'..)
            .map(|((source, mountpoint), name)| Mount::new(name, *source, *mountpoint))
            .collect();
        let refused = check_all_against(&mounts, own, &[]).err().unwrap_or_default();
        refused
            .into_iter()
            .map(|(name, refusal)| match refusal {
                Refusal::Configuration(why) => (name, why),
                Refusal::World(why) => panic!("{name}: not wrong in itself: {why}"),
            })
            .collect()
    }

    #[rstest]
    #[case("/srv/a", "/srv/a/mnt")]
    #[case("/srv/a/b", "/srv/a")]
    #[case("/srv/a", "/srv/a")]
    #[case("/srv/a", "/srv/b/../a/c")]
    fn nested_pairs_are_wrong_in_themselves(#[case] source: &str, #[case] mountpoint: &str) {
        let wrong = wrong(&[(source, mountpoint)], &[]);
        assert!(wrong[0].1.contains("lie in each other"), "{wrong:?}");
    }

    #[rstest]
    #[case::places_alike("/src/1", "/mnt/1", "/src/2", "/mnt/1", "have mount points in each other")]
    #[case::places_nested("/src/1", "/mnt/1", "/src/2", "/mnt/1/2", "have mount points in each other")]
    #[case::places_nested_the_other_way("/src/1", "/mnt/1/2", "/src/2", "/mnt/1", "have mount points in each other")]
    #[case::a_loop("/mnt/2", "/mnt/1", "/mnt/1", "/mnt/2", "hang together")]
    #[case::stacked("/src/1", "/mnt/1", "/mnt/1/x/y", "/mnt/2", "serve /src/1/x/y instead")]
    #[case::stacked_the_other_way("/mnt/2/x", "/mnt/1", "/src/2", "/mnt/2", "serve /src/2/x instead")]
    #[case::seen_through("/src", "/mnt/1", "/src2", "/src/mnt", "choose a mount point elsewhere")]
    #[case::seen_through_the_other_way("/src2", "/src/mnt", "/src", "/mnt/1", "choose a mount point elsewhere")]
    fn mounts_that_hang_together(
        #[case] source: &str,
        #[case] mountpoint: &str,
        #[case] source2: &str,
        #[case] mountpoint2: &str,
        #[case] why: &str,
    ) {
        let wrong = wrong(&[(source, mountpoint), (source2, mountpoint2)], &[]);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert_eq!(wrong[0].0, "b", "the later one of the file is to be changed");
        assert!(wrong[0].1.starts_with("mounts \"a\" and \"b\" ") && wrong[0].1.contains(why), "{wrong:?}");
    }

    #[test]
    fn mounts_side_by_side_are_right() {
        let side_by_side = [("/src", "/mnt/1"), ("/src", "/mnt/2"), ("/src/sub", "/mnt/10")];
        assert_eq!(wrong(&side_by_side, &[]), []);
        let alike = [Mount::new("x", "/src", "/mnt/1"), Mount::new("x", "/src", "/mnt/2")];
        let refused = check_all_against(&alike, &[], &[]).unwrap_err();
        assert!(refused[0].1.to_string().starts_with("two mounts are called \"x\""), "{refused:?}");
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let wrong = wrong(&[("/src/1", "/src/1"), ("/src/2", "/mnt/2"), ("/src/3", "/src/3/x")], &[]);
        assert_eq!(wrong.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[rstest]
    #[case(Own::socket("/mnt/control.sock"), "the control socket /mnt/control.sock lies in the mount point /mnt:")]
    fn what_the_daemon_needs_lies_outside(#[case] own: Own, #[case] why: &str) {
        let wrong = wrong(&[("/srv", "/mnt")], &[Own::socket("/mnt2/control.sock"), own]);
        assert!(wrong[0].1.contains(why), "{wrong:?}");
    }

    #[test]
    fn what_the_daemon_needs_may_be_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        symlink(real.join("mnt/state"), real.join("state")).unwrap();
        let mountpoint = real.join("mnt");
        let wrong = wrong(&[("/srv", mountpoint.to_str().unwrap())], &[Own::state(real.join("state"))]);
        assert!(wrong[0].1.contains("mnt/state lies in the mount point"), "{wrong:?}");
    }

    #[test]
    fn a_name_that_only_begins_alike_is_not_nested() {
        assert_eq!(wrong(&[("/srv/a", "/srv/a.mnt")], &[Own::socket("/srv/a.mnt.sock")]), []);
    }

    #[test]
    fn links_are_followed_but_not_into_fuse() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        fs::create_dir(real.join("sub")).unwrap();
        symlink("sub/..", folder.path().join("link")).unwrap();
        symlink("again", folder.path().join("again")).unwrap();
        let at = |name: &str, last, mounts: &[Mounted]| walked(&folder.path().join(name), last, mounts);
        assert_eq!(at("link/mnt", LastLink::Kept, &[]), real.join("mnt"));
        assert_eq!(at("link", LastLink::Kept, &[]), real.join("link"));
        assert_eq!(at("link", LastLink::Followed, &[]), real);
        assert_eq!(at("sub/../x/.", LastLink::Followed, &[]), real.join("x"));
        assert_eq!(at("again/x", LastLink::Followed, &[]), real.join("again/x"), "a loop ends");
        // The link itself lies on a mount that could hang.
        assert_eq!(at("link", LastLink::Followed, &[mounted_at(&real, "fuse.sshfs")]), real.join("link"));
    }

    #[test]
    fn a_source_is_a_directory_that_exists() {
        let refusal = |source| check_source_against(Path::new(source), &[]).unwrap_err().to_string();
        assert_eq!(
            refusal("/nonexistent"),
            "the source /nonexistent does not exist: make it, or name another `source`"
        );
        assert!(refusal("/etc/passwd").contains("is not a directory"));
        let on_fuse = [mounted_at("/nonexistent", "fuse.sshfs")];
        assert_eq!(check_source_against(Path::new("/nonexistent/x"), &on_fuse), Ok(()), "not looked at");
    }

    #[rstest]
    #[case("/nonexistent", "fuse.sshfs", "is taken by a mount of type fuse.sshfs")]
    #[case("/nonexistent", "tmpfs", "does not exist")]
    #[case("/other", "fuse.sshfs", "does not exist")]
    fn a_mount_point_is_free(#[case] taken: &str, #[case] kind: &str, #[case] why: &str) {
        let refusal = check_place(Path::new("/nonexistent"), &[mounted_at(taken, kind)]).unwrap_err();
        assert!(matches!(&refusal, Refusal::World(said) if said.contains(why)), "{refusal}");
    }

    #[test]
    fn a_mount_point_is_in_no_mount_of_ours() {
        let mounts = [mounted_at("/mnt", "fuse.lighthouse-fs")];
        let refusal = check_surroundings(Path::new("/mnt/x"), &mounts).unwrap_err();
        assert!(refusal.to_string().contains("lies in /mnt, which Lighthouse FS serves"), "{refusal}");
        assert_eq!(check_surroundings(Path::new("/mnt"), &mounts), Ok(()), "the place itself is looked at later");
    }
}
