//! `lighthouse-fs serve`: one directory served at one mount point, for each backend and each way to mount.

#[macro_use]
mod support;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

use nix::mount::MsFlags;
use procfs::process::{FDTarget, Process};
use support::{Backend, Helper, Mount, ROOT_DIRECT, Sandbox, Way, processes_of, require_root, run_as, unless_skipped};

for_each_way! {
    files_and_directories
    what_is_written_is_in_the_source_and_back
    the_mount_belongs_to_its_user
    a_read_only_mount_refuses_writing
    the_daemon_ends_when_somebody_else_unmounts
}

/// The backend for tests to which it does not matter.
fn any_backend() -> Backend {
    Backend::ALL.into_iter().find(|backend| backend.is_built_in()).expect("a build with a backend")
}

fn files_and_directories(backend: Backend, way: Way) {
    let mount = Mount::builder(backend, way).start();
    mount.act(|| {
        let path = |name: &str| mount.path(name);
        fs::create_dir(path("directory")).unwrap();
        fs::write(path("directory/file"), "one").unwrap();
        OpenOptions::new().append(true).open(path("directory/file")).unwrap().write_all(b" two").unwrap();
        assert_eq!(fs::read_to_string(path("directory/file")).unwrap(), "one two");

        fs::hard_link(path("directory/file"), path("link")).unwrap();
        assert_eq!(fs::metadata(path("link")).unwrap().nlink(), 2);
        symlink("directory/file", path("symlink")).unwrap();
        assert_eq!(fs::read_link(path("symlink")).unwrap(), Path::new("directory/file"));
        assert_eq!(fs::read_to_string(path("symlink")).unwrap(), "one two");

        fs::set_permissions(path("link"), Permissions::from_mode(0o640)).unwrap();
        assert_eq!(fs::metadata(path("directory/file")).unwrap().mode() & 0o7777, 0o640);
        let file = OpenOptions::new().write(true).open(path("link")).unwrap();
        file.set_len(3).unwrap();
        let time = std::time::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789);
        file.set_modified(time).unwrap();
        assert_eq!(file.metadata().unwrap().modified().unwrap(), time);
        drop(file);
        assert_eq!(fs::read_to_string(path("link")).unwrap(), "one");

        fs::rename(path("link"), path("directory/renamed")).unwrap();
        assert_eq!(fs::metadata(path("link")).unwrap_err().kind(), ErrorKind::NotFound);
        let listing = fs::read_dir(path("directory")).unwrap();
        let mut names: Vec<_> = listing.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["file", "renamed"]);

        assert_eq!(fs::remove_dir(path("directory")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
        for name in ["directory/file", "directory/renamed", "symlink"] {
            fs::remove_file(path(name)).unwrap();
        }
        fs::remove_dir(path("directory")).unwrap();
        assert_eq!(fs::read_dir(path("")).unwrap().count(), 0);
        assert!(rustix::fs::statvfs(path("")).unwrap().f_blocks > 0);
    });
    mount.assert_all_answered();
    mount.stop();
}

fn what_is_written_is_in_the_source_and_back(backend: Backend, way: Way) {
    // Larger than any single request, and no multiple of a page.
    let content: Vec<u8> = (0..3_000_017_u32).map(|number| (number % 251) as u8).collect();
    let mount = Mount::builder(backend, way).start();
    mount.act(|| {
        fs::write(mount.path("through the mount"), &content).unwrap();
        fs::write(mount.source_path("in the source"), &content).unwrap();
        assert!(fs::read(mount.source_path("through the mount")).unwrap() == content);
        assert!(fs::read(mount.path("in the source")).unwrap() == content);
    });
    mount.stop();
}

fn the_mount_belongs_to_its_user(backend: Backend, way: Way) {
    let mount = Mount::builder(backend, way).start();
    let (uid, gid) = way.user.ids();
    mount.act(|| {
        fs::write(mount.path("file"), "").unwrap();
        let metadata = fs::metadata(mount.path("file")).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (uid, gid));
    });
    assert_eq!(fs::metadata(mount.source_path("file")).unwrap().uid(), uid);
    let options = mount.kernel().options;
    for expected in ["nosuid", "nodev", "default_permissions"] {
        assert!(options.contains(expected), "{expected} is missing in {options}");
    }
    // Without allow_other nobody else gets in, not even root.
    if require_root().is_ok() {
        let stranger = 65533;
        let refused = run_as(stranger, stranger, || fs::metadata(mount.path("file"))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    }
    mount.stop();
}

fn a_read_only_mount_refuses_writing(backend: Backend, way: Way) {
    let mount = Mount::builder(backend, way).read_only().start();
    mount.act(|| {
        fs::write(mount.source_path("file"), "content").unwrap();
        assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "content");
        let refusals = [
            fs::write(mount.path("file"), "other"),
            fs::write(mount.path("new"), ""),
            fs::create_dir(mount.path("directory")),
            fs::remove_file(mount.path("file")),
            fs::rename(mount.path("file"), mount.path("renamed")),
            fs::set_permissions(mount.path("file"), Permissions::from_mode(0o600)),
        ];
        for refusal in refusals {
            assert_eq!(refusal.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        }
        assert_eq!(fs::read_to_string(mount.source_path("file")).unwrap(), "content");
    });
    mount.stop();
}

fn the_daemon_ends_when_somebody_else_unmounts(backend: Backend, way: Way) {
    let mut mount = Mount::builder(backend, way).start();
    let mountpoint = mount.sandbox.mountpoint();
    let unmounted = mount.act(|| match way.helper {
        Helper::Direct => mount.sandbox.client("umount").arg(&mountpoint).status(),
        helper => mount.sandbox.client(helper.name()).arg("-u").arg(&mountpoint).status(),
    });
    assert!(unmounted.unwrap().success());
    assert!(mount.wait().success(), "an unmounted mount is no failure");
    mount.sandbox.assert_nothing_left();
}

#[test]
fn several_users_with_allow_other() {
    unless_skipped(require_root(), || {
        Backend::ALL.into_iter().filter(|backend| backend.is_built_in()).for_each(several_users);
    });
}

fn several_users(backend: Backend) {
    let mount = Mount::builder(backend, ROOT_DIRECT).allow_other().start();
    let (alice, bob) = (60001, 60002);
    mount.act(|| fs::set_permissions(mount.path(""), Permissions::from_mode(0o1777)).unwrap());
    run_as(alice, alice, || {
        fs::write(mount.path("private"), "alice's").unwrap();
        fs::set_permissions(mount.path("private"), Permissions::from_mode(0o600)).unwrap();
        fs::write(mount.path("public"), "for all").unwrap();
        fs::set_permissions(mount.path("public"), Permissions::from_mode(0o644)).unwrap();
    });
    run_as(bob, bob, || {
        assert_eq!(fs::read_to_string(mount.path("public")).unwrap(), "for all");
        let refusals = [
            fs::read(mount.path("private")).map(drop),
            fs::write(mount.path("public"), "bob's"),
            fs::remove_file(mount.path("public")),
            chown(mount.path("private"), Some(bob), None),
        ];
        for refusal in refusals {
            assert_eq!(refusal.unwrap_err().kind(), ErrorKind::PermissionDenied);
        }
        fs::create_dir(mount.path("bob's")).unwrap();
    });
    let owner = |name: &str| fs::metadata(mount.source_path(name)).unwrap().uid();
    assert_eq!((owner("private"), owner("bob's")), (alice, bob), "files are created as the caller");
    chown(mount.path("private"), Some(bob), Some(bob)).unwrap();
    assert_eq!(owner("private"), bob);
    mount.stop();
}

#[test]
fn a_descriptor_that_is_mounted_already() {
    unless_skipped(require_root(), || {
        let mut mount = Mount::builder(any_backend(), ROOT_DIRECT).start_on_descriptor(mount_without_negotiating);
        fs::write(mount.path("file"), "content").unwrap();
        assert_eq!(fs::read_to_string(mount.source_path("file")).unwrap(), "content");
        assert!(mount.terminate().success());
        // Whoever has mounted it unmounts it: it was lent.
        mount.kernel().end();
        mount.sandbox.assert_nothing_left();
    });
}

/// The daemon cannot know where: it finds nothing to ask through, and nothing to be healthy about but its server.
#[test]
fn a_descriptor_that_is_mounted_nobody_says_where() {
    unless_skipped(require_root(), || {
        for backend in Backend::ALL.into_iter().filter(|backend| backend.is_built_in()) {
            let builder = Mount::builder(backend, ROOT_DIRECT).without_place();
            let mut mount = builder.start_on_descriptor(mount_without_negotiating);
            fs::write(mount.path("file"), "content").unwrap();
            let status = mount.status();
            assert_eq!((&status["health"], &status["probe"]["state"]), (&"healthy".into(), &"not probed".into()));
            let why = "where the descriptor is mounted is not known: say it with --mounted-at";
            assert_eq!(status["probe"]["reason"], why);
            assert_eq!(fs::read_to_string(mount.source_path("file")).unwrap(), "content");
            let holds_device = |process: &Process| {
                let fds = process.fd().unwrap().flatten();
                fds.into_iter().any(|fd| matches!(fd.target, FDTarget::Path(path) if path.ends_with("fuse")))
            };
            let holders = processes_of(mount.sandbox.path()).into_iter().filter(holds_device).map(|holder| holder.pid);
            assert_eq!(holders.collect::<Vec<_>>(), [mount.server_pid().unwrap()], "the server's alone");
            assert!(mount.terminate().success(), "{}", mount.log());
            assert_eq!(mount.sandbox.mounts().len(), 1, "it was lent");
            let error = fs::metadata(mount.path("file")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
            mount.kernel().end();
            mount.sandbox.assert_nothing_left();
        }
    });
}

/// What a privileged helper does for a daemon that may not mount: the kernel's FUSE_INIT waits in the descriptor.
fn mount_without_negotiating(sandbox: &Sandbox) -> OwnedFd {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions", device.as_raw_fd());
    nix::mount::mount(
        Some("lighthouse-fs"),
        &sandbox.mountpoint(),
        Some("fuse.lighthouse-fs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .unwrap();
    device.into()
}

#[test]
fn sigterm_unmounts_a_mount_that_is_in_use() {
    unless_skipped(Way::any().possible(), || {
        let mut mount = Mount::builder(any_backend(), Way::any()).start();
        let open = mount.act(|| File::create(mount.path("file")).unwrap());
        assert!(mount.terminate().success());
        mount.sandbox.assert_nothing_left();
        assert!(!mount.sandbox.socket().exists(), "the control socket stays behind");
        drop(open);
    });
}

/// Ends the daemon of a mount that something was done to from outside; returns its exit code.
fn code_after_sigterm(mount: &mut Mount) -> Option<i32> {
    mount.terminate().code()
}

#[test]
fn what_others_mount_on_top_stays() {
    unless_skipped(require_root(), || {
        let mut mount = Mount::builder(any_backend(), ROOT_DIRECT).limit(Duration::from_secs(90)).start();
        let place = mount.sandbox.mountpoint();
        nix::mount::mount(Some("theirs"), &place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(place.join("theirs"), "").unwrap();
        assert_eq!(code_after_sigterm(&mut mount), Some(1), "ours is left behind, and that is a failure");
        assert!(place.join("theirs").exists(), "somebody else's mount was unmounted");
        nix::mount::umount(&place).unwrap();
    });
}

#[test]
fn a_mount_that_was_moved_is_found() {
    unless_skipped(require_root(), || {
        let mut mount = Mount::builder(any_backend(), ROOT_DIRECT).start();
        let moved = mount.sandbox.path().join("moved");
        fs::create_dir(&moved).unwrap();
        let nothing = None::<&str>;
        match nix::mount::mount(Some(&mount.sandbox.mountpoint()), &moved, nothing, MsFlags::MS_MOVE, nothing) {
            // Where mounts are shared with other name spaces, they cannot be moved.
            Err(nix::errno::Errno::EINVAL) => return support::skip("mounts cannot be moved here"),
            moved => moved.unwrap(),
        }
        assert_eq!(code_after_sigterm(&mut mount), Some(0));
        mount.sandbox.assert_nothing_left();
    });
}

/// Crate fuse3 runs what lies in the server's temporary folders.
#[cfg(feature = "fuse3")]
#[test]
fn what_the_server_executes_is_its_own() {
    unless_skipped(Way::any().possible(), || {
        let mount = Mount::builder(Backend::Fuse3, Way::any()).start();
        let folders: Vec<_> = fs::read_dir(mount.sandbox.path().join("tmp")).unwrap().map(Result::unwrap).collect();
        assert!(!folders.is_empty(), "the link to the helper");
        for folder in folders {
            let mode = folder.metadata().unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, 0o700, "{} can be changed by others", folder.path().display());
        }
        mount.stop();
    });
}
