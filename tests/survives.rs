//! What programs hold on a mount stays as it was through every switch, in both directions.

// A build with one backend has nothing to switch to.
#![cfg(all(feature = "fuse2", feature = "fuse3"))]

#[macro_use]
mod support;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use memmap2::{Advice, MmapMut, MmapOptions};
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use rustix::fs::inotify;
use support::{Backend, Mount, Way, unless_skipped};

const SWITCHES: usize = 20;
const PAGE: usize = 4096;

/// Runs a test on a mount; as the mount's user, since the kernel admits nobody else.
fn on_a_mount(test: impl FnOnce(&Mount) + Send) {
    let way = Way::any();
    unless_skipped(way.possible(), || {
        let mount = Mount::builder(Backend::Fuse2, way).start();
        mount.act(|| test(&mount));
        mount.stop();
    });
}

/// Switches back and forth, and looks after each switch whether what is held is still right.
fn through_switches(mount: &Mount, mut look: impl FnMut(usize)) {
    for switch in 0..SWITCHES {
        let to = mount.active().other();
        let switched = mount.switch(to);
        assert_eq!((switched.from, switched.to), (to.other(), to));
        assert_eq!(switched.answered_for_hung, 0, "nothing hangs here");
        look(switch);
    }
    mount.assert_all_answered();
}

/// Bytes that tell where they belong.
fn block(number: usize) -> Vec<u8> {
    (0..PAGE).map(|position| (number * 31 + position) as u8).collect()
}

#[test]
fn a_file_open_for_reading() {
    on_a_mount(|mount| {
        let content: Vec<u8> = (0..SWITCHES).flat_map(block).collect();
        fs::write(mount.source_path("file"), &content).unwrap();
        // One that reads on from where it was, and one that reads everything again.
        let mut file = File::open(mount.path("file")).unwrap();
        let again = File::open(mount.path("file")).unwrap();
        let mut read = vec![0; PAGE];
        through_switches(mount, |switch| {
            file.read_exact(&mut read).unwrap();
            assert_eq!(read, block(switch));
            let mut all = vec![0; content.len()];
            again.read_exact_at(&mut all, 0).unwrap();
            assert!(all == content, "another content after switch {switch}");
        });
    });
}

#[test]
fn a_file_open_for_writing() {
    on_a_mount(|mount| {
        let mut file = File::create_new(mount.path("file")).unwrap();
        through_switches(mount, |switch| {
            file.write_all(&block(switch)).unwrap();
            let source = fs::read(mount.source_path("file")).unwrap();
            assert!(
                source == (0..=switch).flat_map(block).collect::<Vec<_>>(),
                "another content after switch {switch}"
            );
        });
        file.sync_all().unwrap();
        file.set_len(7).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 7);
    });
}

#[test]
fn a_file_open_for_appending() {
    on_a_mount(|mount| {
        fs::write(mount.source_path("log"), "begin\n").unwrap();
        let mut file = OpenOptions::new().append(true).open(mount.path("log")).unwrap();
        let mut other = OpenOptions::new().append(true).open(mount.path("log")).unwrap();
        let mut expected = String::from("begin\n");
        through_switches(mount, |switch| {
            for (name, file) in [("one", &mut file), ("other", &mut other)] {
                let line = format!("{name} {switch}\n");
                file.write_all(line.as_bytes()).unwrap();
                expected += &line;
            }
            assert_eq!(fs::read_to_string(mount.source_path("log")).unwrap(), expected);
        });
    });
}

#[test]
fn a_file_open_past_the_page_cache() {
    on_a_mount(|mount| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_DIRECT)
            .open(mount.path("direct"))
            .unwrap();
        // Page-aligned, as O_DIRECT wants its memory.
        let mut buffer = MmapMut::map_anon(PAGE).unwrap();
        through_switches(mount, |switch| {
            let offset = (switch * PAGE) as u64;
            buffer.copy_from_slice(&block(switch));
            assert_eq!(file.write_at(&buffer, offset).unwrap(), PAGE);
            for written in 0..=switch {
                assert_eq!(file.read_at(&mut buffer, (written * PAGE) as u64).unwrap(), PAGE);
                assert_eq!(buffer[..], block(written)[..], "block {written} after switch {switch}");
            }
        });
    });
}

#[test]
fn an_unlinked_open_file() {
    on_a_mount(|mount| {
        let path = mount.path("gone");
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        through_switches(mount, |switch| {
            file.write_all(&block(switch)).unwrap();
            let mut read = Vec::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_end(&mut read).unwrap();
            assert!(read == (0..=switch).flat_map(block).collect::<Vec<_>>(), "another content after switch {switch}");
            assert_eq!(file.metadata().unwrap().nlink(), 0);
            assert!(!path.exists());
        });
        assert_eq!(fs::read_dir(mount.path("")).unwrap().count(), 0, "nothing stays under another name");
    });
}

#[test]
fn a_shared_memory_map() {
    on_a_mount(|mount| {
        fs::write(mount.source_path("map"), (0..2 * SWITCHES).flat_map(block).collect::<Vec<_>>()).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(mount.path("map")).unwrap();
        // SAFETY: nobody truncates the file; that its content changes under the map is the point of the test, and no
        // reference into the map is held while it does.
        let mut map = unsafe { MmapMut::map_mut(&file) }.unwrap();
        map.advise(Advice::Random).unwrap();
        through_switches(mount, |switch| {
            // A page that was never touched has to come from the backend that serves now.
            let (fresh, written) = (SWITCHES + switch, switch);
            assert_eq!(map[fresh * PAGE..][..PAGE], block(fresh)[..]);
            map[written * PAGE..][..PAGE].copy_from_slice(&block(written + 100));
            map.flush().unwrap();
            let mut source = vec![0; PAGE];
            let served = File::open(mount.source_path("map")).unwrap();
            served.read_exact_at(&mut source, (written * PAGE) as u64).unwrap();
            assert_eq!(source, block(written + 100), "page {written} after switch {switch}");
        });
    });
}

#[test]
fn a_private_memory_map() {
    on_a_mount(|mount| {
        let content: Vec<u8> = (0..2 * SWITCHES).flat_map(block).collect();
        fs::write(mount.source_path("map"), &content).unwrap();
        let file = File::open(mount.path("map")).unwrap();
        // SAFETY: nobody truncates or changes the file.
        let mut map = unsafe { MmapOptions::new().map_copy(&file) }.unwrap();
        map.advise(Advice::Random).unwrap();
        through_switches(mount, |switch| {
            let fresh = SWITCHES + switch;
            assert_eq!(map[fresh * PAGE..][..PAGE], block(fresh)[..]);
            map[switch * PAGE..][..PAGE].copy_from_slice(&block(switch + 100));
            for own in 0..=switch {
                assert_eq!(map[own * PAGE..][..PAGE], block(own + 100)[..], "page {own} after switch {switch}");
            }
        });
        assert!(fs::read(mount.source_path("map")).unwrap() == content, "a private map has reached the file");
    });
}

/// A child process that answers each line on its standard input with one on its standard output.
struct Respondent {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Respondent {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    fn ask(&mut self) -> String {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn a_working_directory() {
    on_a_mount(|mount| {
        let directory = mount.path("deep/down");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("here"), "found").unwrap();
        // /bin/pwd asks getcwd(2), where the shell's own `pwd` would only remember.
        let mut shell = mount.sandbox.client("sh");
        shell.args(["-c", "while read -r _; do echo \"$(/bin/pwd -P) $(cat here) $(ls ..)\"; done"]);
        let mut shell = Respondent::start(shell.current_dir(&directory));
        let expected = format!("{} found down", directory.display());
        through_switches(mount, |_| assert_eq!(shell.ask(), expected));
        shell.end();
    });
}

#[test]
fn a_listing_of_ten_thousand_names() {
    const NAMES: usize = 10_000;
    on_a_mount(|mount| {
        let name = |number: usize| format!("a name long enough to make many replies {number:05}");
        fs::create_dir(mount.source_path("many")).unwrap();
        for number in 0..NAMES {
            File::create_new(mount.source_path("many").join(name(number))).unwrap();
        }
        let mut listing = fs::read_dir(mount.path("many")).unwrap();
        let mut names = BTreeSet::new();
        let mut take = |number: usize| {
            for entry in listing.by_ref().take(number) {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(names.insert(name.clone()), "twice in one listing: {name}");
            }
        };
        through_switches(mount, |_| take(NAMES / SWITCHES));
        take(usize::MAX);
        assert_eq!(names.len(), NAMES, "names in the listing");
        assert!(names.into_iter().eq((0..NAMES).map(name)), "other names than there are");
    });
}

#[test]
fn a_flock_held_by_another_process() {
    on_a_mount(|mount| {
        let path = mount.path("lock");
        fs::write(&path, "").unwrap();
        // `flock` runs `cat` once it has the lock, so an answer says that it is held.
        let mut holder = Respondent::start(mount.sandbox.client("flock").arg("--exclusive").arg(&path).arg("cat"));
        through_switches(mount, |switch| {
            holder.ask();
            let refused = Flock::lock(File::open(&path).unwrap(), FlockArg::LockSharedNonblock);
            assert!(matches!(refused, Err((_, nix::errno::Errno::EWOULDBLOCK))), "not locked after switch {switch}");
        });
        holder.end();
        Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock)
            .expect("a lock that its holder has left");
    });
}

#[test]
fn a_posix_lock_held_by_another_process() {
    on_a_mount(|mount| {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(mount.path("lock")).unwrap();
        let first_half = record_lock(0, 100);
        let mut holder = mount.sandbox.client("cat");
        // SAFETY: the descriptor is open for as long as `file` lives, which is longer than the command is used.
        let inherited = unsafe { BorrowedFd::borrow_raw(file.as_raw_fd()) };
        // SAFETY: fcntl(2) is safe between fork and exec. The lock belongs to the process that takes it, through exec, until
        // it closes any descriptor of the file.
        unsafe {
            holder.pre_exec(move || {
                rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::empty())?;
                fcntl(inherited, FcntlArg::F_SETLK(&first_half))?;
                Ok(())
            });
        }
        let mut holder = Respondent::start(&mut holder);
        let holder_pid: i32 = holder.child.id().try_into().unwrap();
        through_switches(mount, |switch| {
            holder.ask();
            assert_eq!(owner_of(&file, record_lock(0, 1)), Some(holder_pid), "not locked after switch {switch}");
            assert_eq!(owner_of(&file, record_lock(100, 1)), None, "locked past its end after switch {switch}");
            fcntl(&file, FcntlArg::F_SETLK(&record_lock(0, 1))).expect_err("an exclusive lock, given twice");
        });
        holder.end();
        fcntl(&file, FcntlArg::F_SETLK(&record_lock(0, 1))).expect("a lock that its holder has left");
    });
}

fn record_lock(start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

/// The process that holds a lock which conflicts with this one.
fn owner_of(file: &File, mut lock: libc::flock) -> Option<i32> {
    fcntl(file, FcntlArg::F_GETLK(&mut lock)).unwrap();
    (lock.l_type != libc::F_UNLCK as i16).then_some(lock.l_pid)
}

#[test]
fn an_inotify_watch() {
    on_a_mount(|mount| {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, mount.path(""), inotify::WatchFlags::CREATE).unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        through_switches(mount, |switch| {
            let name = format!("file {switch}");
            File::create_new(mount.path(&name)).unwrap();
            let mut events = inotify::Reader::new(&watch, &mut buffer);
            let event = events.next().unwrap_or_else(|error| panic!("no event after switch {switch}: {error}"));
            assert_eq!(event.events(), inotify::ReadFlags::CREATE);
            assert_eq!(event.file_name().unwrap().to_str().unwrap(), name);
        });
    });
}

#[test]
fn device_and_inode_numbers() {
    on_a_mount(|mount| {
        fs::create_dir(mount.path("directory")).unwrap();
        fs::write(mount.path("directory/file"), "").unwrap();
        let file = File::open(mount.path("directory/file")).unwrap();
        let numbers = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let all = || {
            let of_path = |name: &str| numbers(fs::symlink_metadata(mount.path(name)).unwrap());
            let of_file = numbers(file.metadata().unwrap());
            [of_path(""), of_path("directory"), of_path("directory/file"), of_file]
        };
        let (before, connection) = (all(), mount.connection_id());
        let device = rustix::fs::minor(before[0].0);
        assert_eq!(device, connection, "the kernel's connection is named after the device");
        through_switches(mount, |switch| {
            assert_eq!(all(), before, "after switch {switch}");
            assert_eq!(mount.connection_id(), connection);
        });
    });
}
