//! What a candidate has answered is gone from the kernel's caches after a rollback, and nothing else is.

// A build with one backend has no candidate.
#![cfg(all(feature = "fuse2", feature = "fuse3"))]

#[macro_use]
mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lighthouse_fs::bench::{Crew, load::Kind};
use memmap2::MmapMut;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;
use rustix::fs::inotify;
use serde_json::Value;
use support::service::{Service, mount_of};
use support::{Backend, COMMAND_LIMIT, ROOT_DIRECT, Tier, require_root, unless_skipped, wait_for};

/// For the workers to finish what they are at, on a loaded machine.
const WORKERS_LIMIT: Duration = Duration::from_secs(60);
const SEED: u64 = 20_261_124;

/// A service whose mount `tried` has this candidate, and whose kernel may keep everything for an hour.
fn start(candidate: Backend, more: &str) -> Service {
    let service = Service::start(ROOT_DIRECT, |sandbox| {
        let table = format!(
            "backend = \"{}\"\ndrill = true\n{more}\n\
             [mount.cache]\nattributes = \"1h\"\nentries = \"1h\"\nnegative = \"1h\"\n\
             [mount.rollout]\ncandidate = \"{candidate}\"\nsteps = [{{ weight = 100, for = \"1h\" }}]\n",
            candidate.other()
        );
        support::service::mount(sandbox, "tried", &table)
    });
    service.wait_until("serves what is tried", |status| mount_of(status, "tried")["health"] == "healthy");
    service
}

fn on_a_service(candidate: Backend, more: &str, test: impl FnOnce(&mut Service)) {
    unless_skipped(require_root(), || {
        let mut service = start(candidate, more);
        test(&mut service);
        service.stop();
    });
}

fn order(service: &Service, words: &[&str]) -> Value {
    let output = service.ask(&[words, &["--json"]].concat());
    assert!(output.status.success(), "{words:?}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The candidate serves alone.
fn try_it(service: &Service, candidate: Backend) {
    order(service, &["rollout", "start", "tried"]);
    service.wait_until("the candidate alone", |status| mount_of(status, "tried")["active"][candidate.name()] == 100);
}

fn roll_back(service: &Service, candidate: Backend) {
    let answer = order(service, &["rollback", "tried"]);
    assert_eq!(answer["active"][candidate.other().name()], 100, "{answer}");
}

/// How often the kernel has been told all.
fn rounds(service: &Service) -> usize {
    service.log().matches("the kernel has forgotten").count()
}

fn wait_for_round(service: &Service, before: usize) {
    wait_for("the kernel to have forgotten", COMMAND_LIMIT, || (rounds(service) > before).then_some(()));
}

fn read_from_start(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; 100];
    let length = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(length);
    bytes
}

#[rstest]
fn wrong_answers_are_gone(#[values(Backend::Fuse2, Backend::Fuse3)] candidate: Backend) {
    on_a_service(candidate, "", |service| {
        let (place, source) = (service.place("tried"), service.sandbox.source().join("tried"));
        fs::create_dir(source.join("folder")).unwrap();
        for name in ["file", "folder/nested", "opened", "same size"] {
            fs::write(source.join(name), "content").unwrap();
        }
        try_it(service, candidate);
        // Nothing but its pages can be wrong: size and time are those of the source.
        let same = File::open(place.join("same size")).unwrap();
        assert_eq!(read_from_start(&same), b"content");
        order(service, &["drill", "tried", "--backend", candidate.name(), "--fault", "diverge", "--for", "10m"]);
        let size = |name: &str| fs::metadata(place.join(name)).map(|found| found.len());
        let opened = File::open(place.join("opened")).unwrap();
        let seen = || {
            let missing = ["late", "folder/late"].map(|name| size(name).ok());
            (["file", "folder/nested"].map(|name| size(name).unwrap()), missing, [&opened, &same].map(read_from_start))
        };
        let wrong = ([8; 2], [None; 2], [b"conten".to_vec(), b"content".to_vec()]);
        assert_eq!(seen(), wrong);
        let of_source = File::options().write(true).open(source.join("same size")).unwrap();
        let modified = of_source.metadata().unwrap().modified().unwrap();
        of_source.write_all_at(b"CONTENT", 0).unwrap();
        of_source.set_modified(modified).unwrap();
        for name in ["late", "folder/late"] {
            fs::write(source.join(name), "12345").unwrap();
        }
        order(service, &["drill", "tried", "--stop"]);
        assert_eq!(seen(), wrong, "it is kept");

        roll_back(service, candidate);
        let right = ([7; 2], [Some(5); 2], [b"content".to_vec(), b"CONTENT".to_vec()]);
        let began = Instant::now();
        wait_for("the right answers", COMMAND_LIMIT, || (seen() == right).then_some(()));
        println!("seen after {:?}", began.elapsed());
    });
}

/// A program whose working directory is in the mount.
struct Resident(std::process::Child);

impl Resident {
    fn of(service: &Service, directory: &Path) -> Self {
        let mut command: Command = service.sandbox.client("sh");
        command.args(["-c", "while read -r _; do /bin/pwd; cat in-it; done"]).current_dir(directory);
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn says(&mut self, length: usize) -> String {
        writeln!(self.0.stdin.as_mut().expect("a pipe")).unwrap();
        let mut said = vec![0; length];
        self.0.stdout.as_mut().expect("a pipe").read_exact(&mut said).unwrap();
        String::from_utf8(said).unwrap()
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.0.stdin = None;
        // It has gone already: fine.
        let _ = self.0.wait();
    }
}

/// Taken away when dropped.
struct Inner(PathBuf);

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[rstest]
fn what_programs_use_survives(#[values(Backend::Fuse2, Backend::Fuse3)] candidate: Backend) {
    on_a_service(candidate, "", |service| {
        let (place, source) = (service.place("tried"), service.sandbox.source().join("tried"));
        for folder in ["home", "below"] {
            fs::create_dir_all(source.join(folder).join("inner")).unwrap();
        }
        fs::write(source.join("home/in-it"), "here").unwrap();
        fs::write(source.join("mapped"), vec![b'.'; 64 << 10]).unwrap();
        try_it(service, candidate);

        let opened = OpenOptions::new().read(true).write(true).open(place.join("mapped")).unwrap();
        // SAFETY: nobody makes the file shorter.
        let mut map = unsafe { MmapMut::map_mut(&opened) }.unwrap();
        let mut resident = Resident::of(service, &place.join("home/inner/.."));
        let said = format!("{}\nhere", place.join("home").display());
        let inner = Inner(place.join("below/inner"));
        mount(Some("none"), &inner.0, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(inner.0.join("on top"), "").unwrap();
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, &place, inotify::WatchFlags::CREATE).unwrap();

        map[..5].copy_from_slice(b"dirty");
        map[40 << 10] = b'!';
        roll_back(service, candidate);
        wait_for_round(service, 0);

        assert_eq!((&map[..6], map[40 << 10]), (&b"dirty."[..], b'!'), "what was written is there");
        let kept = fs::read(source.join("mapped")).unwrap();
        assert_eq!((&kept[..6], kept[40 << 10], kept.len()), (&b"dirty."[..], b'!', 64 << 10), "and in the source");
        map[..5].copy_from_slice(b"again");
        map.flush().unwrap();
        opened.write_all_at(b"!", 5).unwrap();
        assert_eq!(&read_from_start(&opened)[..6], b"again!");
        assert_eq!(&fs::read(source.join("mapped")).unwrap()[..6], b"again!");
        let name = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).unwrap();
        assert_eq!(name, place.join("mapped"));
        assert_eq!(resident.says(said.len()), said);
        assert!(inner.0.join("on top").exists(), "what is mounted inside stays");
        File::create_new(place.join("made")).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        assert_eq!(events.next().unwrap().file_name().unwrap().to_str(), Ok("made"));
    });
}

#[rstest]
fn no_operation_fails_meanwhile(#[values(Backend::Fuse2, Backend::Fuse3)] candidate: Backend) {
    let times = if Tier::current() == Tier::Quick { 2 } else { 20 };
    on_a_service(candidate, "", |service| {
        let place = service.place("tried");
        let crew = Crew::start(service.sandbox.program_path(), &place, &Kind::ALL, SEED).expect("workers");
        for before in 0..times {
            try_it(service, candidate);
            roll_back(service, candidate);
            wait_for_round(service, before);
            order(service, &["unpin", "tried"]);
        }
        let tally = crew.stop(WORKERS_LIMIT);
        assert!(tally.is_clean(), "{tally:#?}");
        assert!(!service.log().contains("the kernel did not forget"), "{}", service.log());
    });
}

/// Calls that hang in their handlers, each with the lock of its directory, under the stable backend.
fn hang(service: &Service, stable: Backend, folders: &[PathBuf]) -> Vec<std::thread::JoinHandle<io::Error>> {
    order(
        service,
        &["drill", "tried", "--backend", stable.name(), "--fault", "hang", "--operation", "mkdir", "--for", "10m"],
    );
    let make = |folder: &PathBuf| {
        let made = folder.join("made");
        std::thread::spawn(move || fs::create_dir(made).expect_err("its server dies"))
    };
    folders.iter().map(make).collect()
}

fn wait_until_held(service: &Service, requests: usize) {
    service.wait_until("calls hang", |status| mount_of(status, "tried")["in_flight"] == requests);
}

fn wait_until_waiting(service: &Service) {
    let server = service.server("tried");
    wait_for("the kernel to wait for a lock", COMMAND_LIMIT, || {
        let threads = fs::read_dir(format!("/proc/{server}/task")).ok()?;
        threads.flatten().find(|thread| {
            let said = |file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            said("comm").trim() == "notify" && said("stat").contains(" D ")
        })
    });
}

/// Threads of this process that the kernel keeps until a request is answered.
fn waiting_for_answers() -> usize {
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let waits = |wchan: String| wchan.contains("request_wait_answer");
    threads.filter(|thread| fs::read_to_string(thread.path().join("wchan")).is_ok_and(waits)).count()
}

fn kill_server(service: &Service) -> i64 {
    let server = service.server("tried");
    kill(Pid::from_raw(server.try_into().expect("a process id")), Signal::SIGKILL).unwrap();
    server
}

fn wait_for_successor(service: &Service, server: i64) {
    wait_for("another server", COMMAND_LIMIT * 2, || {
        let status = service.status()?;
        let mount = mount_of(&status, "tried");
        let is_served = matches!(mount["health"].as_str(), Some("healthy" | "degraded"));
        (is_served && mount["server_pid"].as_i64().is_some_and(|pid| pid != server)).then_some(())
    });
}

/// The kernel waits for the lock of a directory, and meanwhile everything else is served; and a server that is killed then
/// can be replaced.
#[rstest]
fn whoever_holds_a_lock_holds_up_nobody_else(#[values(Backend::Fuse2, Backend::Fuse3)] candidate: Backend) {
    on_a_service(candidate, "", |service| {
        let (place, source) = (service.place("tried"), service.sandbox.source().join("tried"));
        for folder in ["held", "free"] {
            fs::create_dir(source.join(folder)).unwrap();
            fs::write(source.join(folder).join("file"), "").unwrap();
        }
        let held = hang(service, candidate.other(), &[place.join("held")]);
        wait_until_held(service, 1);
        roll_back(service, candidate);
        wait_until_waiting(service);
        for number in 0..100 {
            fs::write(place.join("free").join(number.to_string()), "served").unwrap();
        }
        roll_back(service, candidate);
        assert_eq!(rounds(service), 0, "it waits still");
        let server = kill_server(service);
        for thread in held {
            assert_eq!(thread.join().unwrap().raw_os_error(), Some(libc::ECONNABORTED));
        }
        wait_for_successor(service, server);
        assert!(place.join("free/99").exists());
    });
}

/// Who holds the lock waits for a request that nobody has read, and after the server's death nobody will.
#[test]
fn a_server_that_outlives_its_death_is_replaced() {
    on_a_service(Backend::Fuse3, "[mount.io]\nthreads = 2", |service| {
        let (place, source) = (service.place("tried"), service.sandbox.source().join("tried"));
        let folders = ["unread", "read", "read too"].map(|name| place.join(name));
        for name in ["unread", "read", "read too"] {
            fs::create_dir(source.join(name)).unwrap();
        }
        // The kernel is told of them in this order.
        for folder in &folders {
            fs::metadata(folder).unwrap();
            fs::read_dir(folder).unwrap().for_each(drop);
            assert!(!folder.join("made").exists());
        }
        fs::write(source.join("unread/file"), "").unwrap();
        let mut held = hang(service, Backend::Fuse2, &folders[1..]);
        wait_until_held(service, 2);
        held.extend({
            let made = folders[0].join("made");
            [std::thread::spawn(move || fs::create_dir(made).expect_err("its server dies"))]
        });
        wait_for("a request that nobody reads", COMMAND_LIMIT, || (waiting_for_answers() == 3).then_some(()));
        roll_back(service, Backend::Fuse3);
        wait_until_waiting(service);
        let server = kill_server(service);
        for thread in held {
            thread.join().unwrap();
        }
        wait_for_successor(service, server);
        assert!(service.log().contains("its connection is aborted"), "{}", service.log());
    });
}
