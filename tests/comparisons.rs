//! Comparison sessions over sockets, without a mount: both backends decode each call the same and answer it the same, and
//! each difference that is seeded into the candidate is found.

// With one backend there is nothing to compare.
#![cfg(all(feature = "fuse2", feature = "fuse3"))]

#[path = "support/prepared.rs"]
mod prepared;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;

use lighthouse_fs::backend::drill::{Drill, Fault, Plan};
use lighthouse_fs::config::{Backend, Cache};
use lighthouse_fs::connection::Negotiated;
use lighthouse_fs::ledger::{Ledger, Operation};
use lighthouse_fs::shadow::{Call, Comparer, Comparing, Conditions, Contender, Sample, Shadow, Verdict};
use lighthouse_fs::vfs::{
    Access, Attr, Caller, Created, DirEntry, Entry, Errno, HandleId, ListFlow, NodeId, PassThrough, ROOT, Result,
    SetAttr, StatFs, TimeSet, Timestamp, Vfs, XattrSize,
};
use prepared::in_prepared_child;
use rustix::fs::{AtFlags, Timespec, Timestamps};

const CALLER: Caller = Caller { uid: 1000, gid: 1001, pid: 42, umask: 0 };

fn conditions() -> Conditions {
    let negotiated = Negotiated {
        kernel_minor: 31,
        features: u32::MAX,
        max_write: 1 << 20,
        max_readahead: 1 << 17,
        can_resend: false,
    };
    Conditions { cache: Cache::default(), negotiated, drill: None, limit: Duration::from_secs(20) }
}

/// A source, and the numbers by which its files are known.
struct Source {
    _folder: tempfile::TempDir,
    vfs: Arc<PassThrough>,
    file: NodeId,
    handle: HandleId,
    link: NodeId,
    many: NodeId,
}

impl Source {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "some content").unwrap();
        fs::write(path("large"), vec![b'x'; 200_000]).unwrap();
        symlink("where it leads", path("link")).unwrap();
        let old = [-2, -3].map(|sec| Timespec { tv_sec: sec, tv_nsec: 250_000_000 });
        let times = Timestamps { last_access: old[0], last_modification: old[1] };
        fs::write(path("old"), "").unwrap();
        rustix::fs::utimensat(rustix::fs::CWD, path("old"), &times, AtFlags::empty()).unwrap();
        fs::create_dir(path("many")).unwrap();
        for number in 0..400 {
            fs::write(path(&format!("many/{}{number}", "long name ".repeat(number % 20))), "").unwrap();
        }
        let vfs = Arc::new(PassThrough::new(folder.path(), Access::ReadWrite).unwrap());
        let find = |name: &str| vfs.lookup(&CALLER, ROOT, OsStr::new(name)).unwrap().attr.node;
        let (file, link, many) = (find("large"), find("link"), find("many"));
        let handle = vfs.open(&CALLER, file, libc::O_RDWR).unwrap();
        Self { _folder: folder, vfs, file, handle, link, many }
    }

    /// Each call that reads, in every form; also such as fail.
    fn reading(&self) -> Vec<Call> {
        let Self { file, handle, link, many, .. } = *self;
        let name = |name: &str| OsStr::new(name).into();
        vec![
            Call::Lookup { parent: ROOT, name: name("file") },
            Call::Lookup { parent: ROOT, name: name("old") },
            Call::Lookup { parent: ROOT, name: name("link") },
            Call::Lookup { parent: ROOT, name: name("many") },
            Call::Lookup { parent: ROOT, name: name("nothing") },
            Call::Lookup { parent: NodeId(1 << 40), name: name("file") },
            Call::GetAttr { node: file, handle: None },
            Call::GetAttr { node: file, handle: Some(handle) },
            Call::GetAttr { node: NodeId(1 << 40), handle: None },
            Call::ReadLink { node: link },
            Call::ReadLink { node: file },
            Call::Read { node: file, handle, offset: 0, size: 65536 },
            Call::Read { node: file, handle, offset: 199_999, size: 4096 },
            Call::Read { node: file, handle, offset: 1 << 40, size: 4096 },
            Call::Read { node: file, handle: HandleId(1 << 40), offset: 0, size: 4096 },
            Call::ReadDir { node: ROOT, offset: 0 },
            Call::ReadDir { node: many, offset: 0 },
            Call::ReadDir { node: file, offset: 0 },
            Call::ReadDirPlus { node: ROOT, offset: 0 },
            Call::ReadDirPlus { node: many, offset: 0 },
            Call::StatFs { node: ROOT },
            Call::GetXattr { node: file, name: name("user.nothing"), size: 0 },
            Call::GetXattr { node: file, name: name("user.nothing"), size: 100 },
            Call::ListXattr { node: file, size: 0 },
            Call::ListXattr { node: file, size: 4096 },
            Call::Access { node: file, mask: libc::R_OK as u32 },
            Call::LSeek { node: file, handle, offset: 5, whence: libc::SEEK_HOLE },
            Call::LSeek { node: file, handle, offset: 1 << 40, whence: libc::SEEK_DATA },
        ]
    }
}

/// Each call that changes something, in every form. None of them is run.
fn changing() -> Vec<Sample> {
    let name = |name: &str| OsStr::new(name).into();
    let (node, handle, parent) = (NodeId(0x1234_5678_9abc), HandleId(0xfedc_ba98), NodeId(77));
    let time = |sec, nsec| Some(TimeSet::At(Timestamp { sec, nsec }));
    let set = |set| Call::SetAttr { node, handle: None, set };
    let none = SetAttr::default();
    let calls = vec![
        set(none),
        set(SetAttr { mode: Some(0o4755), uid: Some(7), gid: Some(8), size: Some(1 << 40), ..none }),
        set(SetAttr { atime: time(1_700_000_000, 999_999_999), mtime: time(1_800_000_000, 1), ..none }),
        set(SetAttr { mtime: time(-2, 750_000_000), ..none }),
        set(SetAttr { mtime: time(-2, 0), ..none }),
        set(SetAttr { atime: time(0, 0), mtime: time(1 << 33, 0), ..none }),
        set(SetAttr { atime: Some(TimeSet::Now), mtime: time(1_700_000_000, 5), ..none }),
        set(SetAttr { mtime: Some(TimeSet::Now), ..none }),
        Call::SetAttr { node, handle: Some(handle), set: SetAttr { size: Some(0), ..none } },
        Call::Symlink { parent, name: name("link"), target: name("../a target") },
        Call::MkNod { parent, name: name("fifo"), mode: libc::S_IFIFO | 0o640, rdev: 0 },
        Call::MkNod { parent, name: name("null"), mode: libc::S_IFCHR | 0o666, rdev: 0x103 },
        Call::MkDir { parent, name: name("folder"), mode: 0o750 },
        Call::Unlink { parent, name: name("gone") },
        Call::RmDir { parent, name: name("gone") },
        Call::Rename { parent, name: name("a"), new_parent: node, new_name: name("b"), flags: 0 },
        Call::Rename { parent, name: name("a"), new_parent: node, new_name: name("b"), flags: libc::RENAME_EXCHANGE },
        Call::Link { node, new_parent: parent, new_name: name("another") },
        Call::Open { node, flags: libc::O_RDWR | libc::O_APPEND | libc::O_TRUNC },
        Call::Create { parent, name: name("new"), mode: libc::S_IFREG | 0o644, flags: libc::O_RDWR | libc::O_CREAT },
        Call::Write { node, handle, offset: 1 << 33, data: (&b"some data"[..]).into() },
        Call::Write { node, handle, offset: 0, data: (&[b'x'; 16 << 10][..]).into() },
        Call::Flush { node, handle },
        Call::Release { node, handle },
        Call::FSync { node, handle, data_only: false },
        Call::FSync { node, handle, data_only: true },
        Call::OpenDir { node, flags: libc::O_RDONLY | libc::O_DIRECTORY },
        Call::ReleaseDir { node, handle },
        Call::FSyncDir { node, handle, data_only: false },
        Call::SetXattr { node, name: name("user.a"), value: (&b"value"[..]).into(), flags: libc::XATTR_CREATE },
        Call::RemoveXattr { node, name: name("user.a") },
        Call::FAllocate { node, handle, offset: 1, length: 1 << 33, mode: libc::FALLOC_FL_PUNCH_HOLE },
        Call::CopyFileRange { from: (node, handle, 5), to: (parent, HandleId(9), 6), length: 7 << 10 },
    ];
    let sample = |call: Call| {
        let caller = match call {
            Call::Create { .. } | Call::MkNod { .. } | Call::MkDir { .. } => Caller { umask: 0o027, ..CALLER },
            Call::Release { .. } | Call::ReleaseDir { .. } => Caller::default(),
            _ => CALLER,
        };
        Sample { caller, call }
    };
    calls.into_iter().map(sample).collect()
}

/// Others use the file system of the source too, so what statfs(2) says of it may change in between.
fn compare(comparer: &mut Comparer, sample: &Sample) -> Verdict {
    let mut looks = std::iter::repeat_with(|| comparer.compare(sample)).take(100);
    looks.find(|verdict| *verdict != Verdict::Noise).unwrap_or(Verdict::Noise)
}

fn contenders(source: &Source, candidate: Backend) -> (Contender, Contender) {
    let of = |backend| Contender::new(backend, source.vfs.clone());
    (of(candidate.other()), of(candidate))
}

#[test]
fn both_decode_and_answer_the_same() {
    in_prepared_child("both_decode_and_answer_the_same", || {
        let source = Source::new();
        for candidate in Backend::ALL {
            let (reference, contender) = contenders(&source, candidate);
            let mut comparer = Comparer::new(&reference, &contender, &conditions());
            let reading = source.reading().into_iter().map(|call| Sample { caller: CALLER, call });
            for sample in reading.chain(changing()) {
                assert_eq!(compare(&mut comparer, &sample), Verdict::Same, "{candidate}: {sample:?}");
            }
        }
    });
}

#[test]
fn every_operation_of_the_vfs_is_compared() {
    let source = Source::new();
    let compared: Vec<_> =
        source.reading().iter().chain(changing().iter().map(|sample| &sample.call)).map(Call::operation).collect();
    // FORGET has no answer; ioctl is refused before it is decoded.
    let left_out = [Operation::Forget, Operation::IoCtl, Operation::Other];
    for operation in Operation::ALL.iter().filter(|operation| !left_out.contains(operation)) {
        assert!(compared.contains(operation), "{operation:?}");
    }
}

#[test]
fn nothing_of_a_comparison_remains() {
    in_prepared_child("nothing_of_a_comparison_remains", || {
        let source = Source::new();
        let before = source.vfs.counts();
        {
            let (reference, contender) = contenders(&source, Backend::Fuse3);
            let mut comparer = Comparer::new(&reference, &contender, &conditions());
            for call in source.reading() {
                comparer.compare(&Sample { caller: CALLER, call });
            }
        }
        let began = std::time::Instant::now();
        // A FORGET has no answer that could be waited for.
        while source.vfs.counts() != before && began.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        assert_eq!(source.vfs.counts(), before);
    });
}

/// What is wrong with a candidate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seed {
    WrongSize,
    MissingEntry,
    WrongErrno,
    TimeOffByOne,
    ShortRead,
    DroppedUmask,
    NowIsATime,
}

type At = (NodeId, HandleId, u64);

/// A file system with a fault between it and its backend.
struct Faulty(Arc<dyn Vfs>, Seed);

impl Faulty {
    fn attr(&self, attr: Attr) -> Attr {
        match self.1 {
            Seed::WrongSize => Attr { size: attr.size + 1, ..attr },
            Seed::TimeOffByOne => Attr { mtime: Timestamp { nsec: attr.mtime.nsec ^ 1, ..attr.mtime }, ..attr },
            _ => attr,
        }
    }

    fn caller(&self, caller: &Caller) -> Caller {
        if self.1 == Seed::DroppedUmask { Caller { umask: 0, ..*caller } } else { *caller }
    }
}

macro_rules! as_it_is {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => { $(
        fn $name(&self, $($argument: $kind),*) -> $answer {
            self.0.$name($($argument),*)
        }
    )* };
}

impl Vfs for Faulty {
    fn lookup(&self, caller: &Caller, parent: NodeId, name: &OsStr) -> Result<Entry> {
        match self.0.lookup(caller, parent, name) {
            Ok(entry) => Ok(Entry { attr: self.attr(entry.attr), ..entry }),
            Err(error) if error == Errno::ENOENT && self.1 == Seed::WrongErrno => Err(Errno::from_raw(libc::EACCES)),
            Err(error) => Err(error),
        }
    }

    fn getattr(&self, caller: &Caller, node: NodeId, handle: Option<HandleId>) -> Result<Attr> {
        self.0.getattr(caller, node, handle).map(|attr| self.attr(attr))
    }

    fn read(&self, caller: &Caller, node: NodeId, handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let length = self.0.read(caller, node, handle, offset, buffer)?;
        Ok(if self.1 == Seed::ShortRead { length.saturating_sub(1) } else { length })
    }

    fn readdir(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> ListFlow,
    ) -> Result<()> {
        self.0.readdir(caller, node, handle, offset, &mut |entry| match self.1 {
            Seed::MissingEntry if entry.name == "link" => ListFlow::Taken,
            _ => sink(entry),
        })
    }

    fn create(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, flags: i32) -> Result<Created> {
        self.0.create(&self.caller(caller), parent, name, mode, flags)
    }

    fn mknod(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, rdev: u64) -> Result<Entry> {
        self.0.mknod(&self.caller(caller), parent, name, mode, rdev)
    }

    fn mkdir(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry> {
        self.0.mkdir(&self.caller(caller), parent, name, mode)
    }

    fn setattr(&self, caller: &Caller, node: NodeId, handle: Option<HandleId>, set: &SetAttr) -> Result<Attr> {
        let stamped = |time: Option<TimeSet>| match time {
            Some(TimeSet::Now) if self.1 == Seed::NowIsATime => Some(TimeSet::At(std::time::SystemTime::now().into())),
            time => time,
        };
        let set = SetAttr { atime: stamped(set.atime), mtime: stamped(set.mtime), ..*set };
        self.0.setattr(caller, node, handle, &set)
    }

    as_it_is! {
        fn forget(node: NodeId, count: u64) -> ();
        fn readlink(caller: &Caller, node: NodeId) -> Result<Vec<u8>>;
        fn symlink(caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry>;
        fn unlink(caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()>;
        fn rmdir(caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()>;
        fn rename(caller: &Caller, parent: NodeId, name: &OsStr, to: NodeId, new: &OsStr, flags: u32) -> Result<()>;
        fn link(caller: &Caller, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry>;
        fn open(caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId>;
        fn write(caller: &Caller, node: NodeId, handle: HandleId, offset: u64, data: &[u8]) -> Result<u32>;
        fn release(node: NodeId, handle: HandleId) -> ();
        fn fsync(caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()>;
        fn opendir(caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId>;
        fn releasedir(node: NodeId, handle: HandleId) -> ();
        fn fsyncdir(caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()>;
        fn statfs(caller: &Caller, node: NodeId) -> Result<StatFs>;
        fn getxattr(caller: &Caller, node: NodeId, name: &OsStr, size: XattrSize<'_>) -> Result<usize>;
        fn listxattr(caller: &Caller, node: NodeId, size: XattrSize<'_>) -> Result<usize>;
        fn lseek(caller: &Caller, node: NodeId, handle: HandleId, offset: i64, whence: i32) -> Result<i64>;
        fn access(caller: &Caller, node: NodeId, mask: u32) -> Result<()>;
        fn flush(caller: &Caller, node: NodeId, handle: HandleId) -> Result<()>;
        fn removexattr(caller: &Caller, node: NodeId, name: &OsStr) -> Result<()>;
        fn setxattr(caller: &Caller, node: NodeId, name: &OsStr, value: &[u8], flags: i32) -> Result<()>;
        fn fallocate(caller: &Caller, node: NodeId, handle: HandleId, offset: u64, length: u64, mode: i32) -> Result<()>;
        fn copy_file_range(caller: &Caller, from: At, to: At, length: u64) -> Result<usize>;
    }
}

/// What is said of each call that a candidate with this fault answers differently.
fn found(source: &Source, seed: Seed, candidate: Backend) -> Vec<(Operation, String)> {
    let (reference, contender) = contenders(source, candidate);
    let contender = match seed {
        Seed::DroppedUmask | Seed::NowIsATime => contender.with_recorder(|vfs| Arc::new(Faulty(vfs, seed))),
        _ => Contender::new(candidate, Arc::new(Faulty(source.vfs.clone(), seed))),
    };
    let mut comparer = Comparer::new(&reference, &contender, &conditions());
    let reading = source.reading().into_iter().map(|call| Sample { caller: CALLER, call });
    let compared = reading.chain(changing()).map(|sample| (sample.call.operation(), compare(&mut comparer, &sample)));
    let diverged = compared.filter_map(|(operation, verdict)| match verdict {
        Verdict::Diverged(what) => Some((operation, what)),
        Verdict::Same => None,
        other => panic!("{operation:?}: {other:?}"),
    });
    diverged.collect()
}

#[test]
fn seeded_differences_are_found() {
    use Operation as O;
    in_prepared_child("seeded_differences_are_found", || {
        let source = Source::new();
        let assert_found = |seed: Seed, candidate: Backend, what: &[(Operation, &str)]| {
            let found = found(&source, seed, candidate);
            for (operation, saying) in what {
                let is_so = found.iter().any(|(of, what)| of == operation && what.contains(saying));
                assert!(is_so, "{seed:?} in {candidate}: {operation:?} saying {saying:?} is not among {found:?}");
            }
            // And nothing else is.
            let is_meant = |(of, _): &(Operation, String)| what.iter().any(|(operation, _)| of == operation);
            assert!(found.iter().all(is_meant), "{seed:?} in {candidate}: {found:?}");
        };
        for candidate in Backend::ALL {
            let size = [
                (O::Lookup, "size 13 instead of 12"),
                (O::GetAttr, "size 200001 instead of 200000"),
                (O::ReadDirPlus, "size "),
            ];
            assert_found(Seed::WrongSize, candidate, &size);
            let missing = "\"link\"";
            assert_found(Seed::MissingEntry, candidate, &[(O::ReadDir, missing), (O::ReadDirPlus, missing)]);
            assert_found(Seed::WrongErrno, candidate, &[(O::Lookup, "EACCES")]);
            let time = "mtimensec ";
            assert_found(
                Seed::TimeOffByOne,
                candidate,
                &[(O::Lookup, time), (O::GetAttr, time), (O::ReadDirPlus, time)],
            );
            assert_found(Seed::ShortRead, candidate, &[(O::Read, "data")]);
        }
        let umask = "umask: 0 }";
        let dropped = [(O::MkDir, umask), (O::Create, umask), (O::MkNod, umask)];
        assert_found(Seed::DroppedUmask, Backend::Fuse2, &dropped);
        assert_found(Seed::NowIsATime, Backend::Fuse2, &[(O::SetAttr, "instead of mtime: Some(Now)")]);
        // What crate fuse3 itself makes of the rest is permitted to it.
        assert_found(Seed::DroppedUmask, Backend::Fuse3, &dropped[..1]);
        assert_found(Seed::NowIsATime, Backend::Fuse3, &[]);
    });
}

#[test]
fn a_drill_of_wrong_answers_strikes_comparisons_and_another_one_does_not() {
    in_prepared_child("a_drill_of_wrong_answers_strikes_comparisons_and_another_one_does_not", || {
        let source = Source::new();
        let drill = Arc::<Drill>::default();
        let conditions = Conditions { drill: Some(drill.clone()), ..conditions() };
        let (reference, contender) = contenders(&source, Backend::Fuse3);
        let mut comparer = Comparer::new(&reference, &contender, &conditions);
        let sample = Sample { caller: CALLER, call: Call::GetAttr { node: source.file, handle: None } };
        for fault in Fault::ALL {
            drill.start(Plan::new(Backend::Fuse3, fault)).unwrap();
            let verdict = comparer.compare(&sample);
            assert_eq!(matches!(verdict, Verdict::Diverged(_)), fault == Fault::Diverge, "{fault}: {verdict:?}");
            drill.stop();
        }
        assert_eq!(comparer.compare(&sample), Verdict::Same);
    });
}

/// A file system whose attributes take a while.
struct Slow(Arc<PassThrough>, Duration);

impl Vfs for Slow {
    fn getattr(&self, caller: &Caller, node: NodeId, handle: Option<HandleId>) -> Result<Attr> {
        std::thread::sleep(self.1);
        self.0.getattr(caller, node, handle)
    }

    fn readdir(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> ListFlow,
    ) -> Result<()> {
        self.0.readdir(caller, node, handle, offset, sink)
    }

    fn rename(&self, _: &Caller, _: NodeId, _: &OsStr, _: NodeId, _: &OsStr, _: u32) -> Result<()> {
        Err(Errno::EIO)
    }

    as_it_is! {
        fn lookup(caller: &Caller, parent: NodeId, name: &OsStr) -> Result<Entry>;
        fn read(caller: &Caller, node: NodeId, handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize>;
        fn create(caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, flags: i32) -> Result<Created>;
        fn mknod(caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, rdev: u64) -> Result<Entry>;
        fn mkdir(caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry>;
        fn setattr(caller: &Caller, node: NodeId, handle: Option<HandleId>, set: &SetAttr) -> Result<Attr>;
        fn forget(node: NodeId, count: u64) -> ();
        fn readlink(caller: &Caller, node: NodeId) -> Result<Vec<u8>>;
        fn symlink(caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry>;
        fn unlink(caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()>;
        fn rmdir(caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()>;
        fn link(caller: &Caller, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry>;
        fn open(caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId>;
        fn write(caller: &Caller, node: NodeId, handle: HandleId, offset: u64, data: &[u8]) -> Result<u32>;
        fn release(node: NodeId, handle: HandleId) -> ();
        fn fsync(caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()>;
        fn opendir(caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId>;
        fn releasedir(node: NodeId, handle: HandleId) -> ();
        fn fsyncdir(caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()>;
        fn statfs(caller: &Caller, node: NodeId) -> Result<StatFs>;
    }
}

/// Of which nothing can be said, nothing is said: not that both are the same either.
#[test]
fn noise_is_no_evidence() {
    in_prepared_child("noise_is_no_evidence", || {
        let source = Source::new();
        let ledger = Ledger::create().unwrap();
        let slow = Arc::new(Slow(source.vfs.clone(), Duration::from_millis(1500)));
        let (mut shadow, sampled) = Shadow::over(slow, &ledger);
        let comparing = Comparing { reference: Backend::Fuse2, candidate: Backend::Fuse3, rate: 1. };
        let conditions = || Conditions { limit: Duration::from_millis(500), ..conditions() };
        shadow.compare(Some(comparing), conditions).unwrap();
        sampled.getattr(&CALLER, source.file, None).unwrap();
        let began = std::time::Instant::now();
        while shadow.told().noise.is_empty() {
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}", shadow.told());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!((shadow.told().noise[&Operation::GetAttr], ledger.comparisons().total().compared), (1, 0));
        sampled.readlink(&CALLER, source.link).unwrap();
        while ledger.comparisons().get(Operation::ReadLink).compared == 0 {
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}", shadow.told());
            // A session that was silent is replaced after a second.
            sampled.readlink(&CALLER, source.link).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn a_candidate_that_does_not_answer_diverges_and_gets_a_fresh_session() {
    in_prepared_child("a_candidate_that_does_not_answer_diverges_and_gets_a_fresh_session", || {
        let source = Source::new();
        let conditions = Conditions { limit: Duration::from_millis(500), ..conditions() };
        let slow = Arc::new(Slow(source.vfs.clone(), Duration::from_secs(2)));
        let sample = |call| Sample { caller: CALLER, call };
        let attributes = sample(Call::GetAttr { node: source.file, handle: None });
        let link = sample(Call::ReadLink { node: source.link });
        for backend in Backend::ALL {
            let (reference, _) = contenders(&source, backend);
            let hanging = Contender::new(backend, slow.clone());
            let mut comparer = Comparer::new(&reference, &hanging, &conditions);
            let verdict = comparer.compare(&attributes);
            let is_found =
                matches!(&verdict, Verdict::Diverged(what) if what.starts_with("no answer within 500ms instead"));
            assert!(is_found, "{backend}: {verdict:?}");
            let verdict = comparer.compare(&link);
            assert!(matches!(&verdict, Verdict::Nothing(why) if why.contains("has died")), "{verdict:?}");
            let began = std::time::Instant::now();
            while comparer.compare(&link) != Verdict::Same {
                assert!(began.elapsed() < Duration::from_secs(30), "no fresh session of {backend}");
                std::thread::sleep(Duration::from_millis(20));
            }
            // A reference that does not answer is nobody's fault.
            let mut comparer = Comparer::new(&hanging, &reference, &conditions);
            assert_eq!(comparer.compare(&attributes), Verdict::Noise);
        }
    });
}
