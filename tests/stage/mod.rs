//! A serving process whose file system can be told to hang: the test program, started once more.
//!
//! Orders come on its standard input, one a line; each is answered by one line of JSON on its standard output.

// Each test program compiles this module for itself and uses its own part of it.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use lighthouse_fs::config::{Backend, BackendChoice, Deadlines, Mount};
use lighthouse_fs::connection::Connection;
use lighthouse_fs::ledger::{Cause, Ledger};
use lighthouse_fs::server::orders::Switched;
use lighthouse_fs::server::{Consequence, Served};
use lighthouse_fs::vfs::{
    Access, Attr, Caller, Created, DirEntry, Entry, HandleId, ListFlow, NodeId, Operation, PassThrough, Result,
    SetAttr, StatFs, Vfs, XattrSize,
};
use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use crate::support::{COMMAND_LIMIT, PROGRAM, Sandbox, User, wait_for};

/// How long requests in hand have before they are answered EIO.
pub const DRAIN: Duration = Duration::from_millis(1500);
const MARK: &str = "LIGHTHOUSE_FS_TEST_STAGE";
/// No test needs a handler to hang longer.
const LONGEST_HANG: Duration = Duration::from_secs(120);

/// Where the vfs is called from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handlers {
    /// Wherever the backend likes; for `fuse3` that is its runtime's own thread.
    Inline,
    /// It says of every call that it may block.
    OnPool,
}

/// A pass-through that can be told to hang.
struct Faulty {
    inner: PassThrough,
    handlers: Handlers,
    told: Mutex<Told>,
    released: Condvar,
    hanging: AtomicUsize,
}

#[derive(Default)]
struct Told {
    operation: String,
    releases: u64,
}

impl Faulty {
    fn call<T>(&self, operation: Operation, call: impl FnOnce(&PassThrough) -> T) -> T {
        let mut told = self.told.lock();
        if told.operation == operation.name() {
            let releases = told.releases;
            self.hanging.fetch_add(1, SeqCst);
            self.released.wait_while_for(&mut told, |told| told.releases == releases, LONGEST_HANG);
            self.hanging.fetch_sub(1, SeqCst);
        }
        drop(told);
        call(&self.inner)
    }
}

macro_rules! delegate {
    ($($operation:ident: fn $name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => { $(
        fn $name(&self, $($argument: $kind),*) -> $answer {
            self.call(Operation::$operation, |inner| inner.$name($($argument),*))
        }
    )* };
}

impl Vfs for Faulty {
    fn may_block(&self, operation: Operation) -> bool {
        self.handlers == Handlers::OnPool || self.inner.may_block(operation)
    }

    fn readdir(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> ListFlow,
    ) -> Result<()> {
        self.call(Operation::ReadDir, |inner| inner.readdir(caller, node, handle, offset, sink))
    }

    delegate! {
        Lookup: fn lookup(caller: &Caller, parent: NodeId, name: &OsStr) -> Result<Entry>;
        Forget: fn forget(node: NodeId, count: u64) -> ();
        GetAttr: fn getattr(caller: &Caller, node: NodeId, handle: Option<HandleId>) -> Result<Attr>;
        SetAttr: fn setattr(caller: &Caller, node: NodeId, handle: Option<HandleId>, set: &SetAttr) -> Result<Attr>;
        ReadLink: fn readlink(caller: &Caller, node: NodeId) -> Result<Vec<u8>>;
        Symlink: fn symlink(caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry>;
        MkNod: fn mknod(caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, rdev: u64) -> Result<Entry>;
        MkDir: fn mkdir(caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry>;
        Unlink: fn unlink(caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()>;
        RmDir: fn rmdir(caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()>;
        Rename: fn rename(caller: &Caller, parent: NodeId, name: &OsStr, to: NodeId, new: &OsStr, flags: u32)
            -> Result<()>;
        Link: fn link(caller: &Caller, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry>;
        Open: fn open(caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId>;
        Create: fn create(caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, flags: i32) -> Result<Created>;
        Read: fn read(caller: &Caller, node: NodeId, handle: HandleId, offset: u64, buffer: &mut [u8])
            -> Result<usize>;
        Write: fn write(caller: &Caller, node: NodeId, handle: HandleId, offset: u64, data: &[u8]) -> Result<u32>;
        Flush: fn flush(caller: &Caller, node: NodeId, handle: HandleId) -> Result<()>;
        Release: fn release(node: NodeId, handle: HandleId) -> ();
        FSync: fn fsync(caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()>;
        OpenDir: fn opendir(caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId>;
        ReadDirPlus: fn lookup_listed(caller: &Caller, parent: NodeId, entry: &DirEntry<'_>) -> Result<Option<Entry>>;
        ReleaseDir: fn releasedir(node: NodeId, handle: HandleId) -> ();
        FSyncDir: fn fsyncdir(caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()>;
        StatFs: fn statfs(caller: &Caller, node: NodeId) -> Result<StatFs>;
        SetXattr: fn setxattr(caller: &Caller, node: NodeId, name: &OsStr, value: &[u8], flags: i32) -> Result<()>;
        GetXattr: fn getxattr(caller: &Caller, node: NodeId, name: &OsStr, size: XattrSize<'_>) -> Result<usize>;
        ListXattr: fn listxattr(caller: &Caller, node: NodeId, size: XattrSize<'_>) -> Result<usize>;
        RemoveXattr: fn removexattr(caller: &Caller, node: NodeId, name: &OsStr) -> Result<()>;
    }
}

/// Serves, if this process was started as a stage; does not return then.
pub fn serve_if_told() {
    let Ok(told) = std::env::var(MARK) else { return };
    let told: Value = serde_json::from_str(&told).expect("what to serve");
    let text = |key: &str| told[key].as_str().expect("a text").to_owned();
    let mut mount = Mount::new("default", text("source"), text("mountpoint"));
    mount.backend = BackendChoice::Only(text("backend").parse().expect("a backend"));
    mount.deadlines = Deadlines { drain: DRAIN, switch: Duration::from_secs(1), ..Deadlines::default() };
    let handlers = if told["on_pool"] == true { Handlers::OnPool } else { Handlers::Inline };
    let faulty = Arc::new(Faulty {
        inner: PassThrough::new(&mount.source, Access::ReadWrite).expect("a source"),
        handlers,
        told: Mutex::default(),
        released: Condvar::new(),
        hanging: AtomicUsize::new(0),
    });
    let ledger = Ledger::create().expect("a ledger");
    let (tell, ended) = mpsc::channel();
    let on_end = Arc::new(move |session| tell.send(session).unwrap_or_default());
    let connection = Connection::establish(&mount, mount.backend.resolve(), None).expect("a mount");
    let (mut served, unavailable) =
        Served::start(&mount, connection, faulty.clone(), ledger.clone(), on_end).expect("a served mount");
    assert!(unavailable.is_empty(), "{unavailable:?}");
    let say = |answer: Value| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{answer}").expect("standard output");
        out.flush().expect("standard output");
    };
    say(json!({"ready": true}));
    let (hear, heard) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            hear.send(line.expect("standard input")).expect("the stage listens");
        }
    });
    loop {
        let pause = served.turn_due().map_or(COMMAND_LIMIT, |due| due.saturating_duration_since(Instant::now()));
        let line = match heard.recv_timeout(pause) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                served.take_turn();
                continue;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        };
        let answer = match line.split_once(' ').unwrap_or((&line, "")) {
            ("switch", to) => match served.switch(to.parse().expect("a backend"), Cause::Operator, "test") {
                Ok(switched) => json!(switched),
                Err(error) => json!({"error": error.to_string()}),
            },
            ("weigh", what) => {
                let (candidate, percent) = what.split_once(' ').expect("a backend and a number");
                let candidate = candidate.parse().expect("a backend");
                match served.weigh(candidate, percent.parse().expect("percent"), Cause::Rollout, "test") {
                    Ok(switched) => json!({"switched": switched}),
                    Err(error) => json!({"error": error.to_string()}),
                }
            }
            ("served", _) => json!({"served": Backend::ALL.map(|backend| ledger.operations(backend))}),
            ("hang", operation) => {
                operation.clone_into(&mut faulty.told.lock().operation);
                json!({})
            }
            ("release", _) => {
                faulty.told.lock().releases += 1;
                faulty.released.notify_all();
                json!({})
            }
            ("hanging", _) => json!({"hanging": faulty.hanging.load(SeqCst)}),
            ("active", _) => json!({"active": served.active()}),
            ("counts", _) => json!(format!("{:?}", faulty.inner.counts())),
            ("end", _) => {
                served.end_active_session().expect("a session");
                loop {
                    let session = ended.recv_timeout(COMMAND_LIMIT).expect("the end of the session");
                    match served.session_ended(session) {
                        Consequence::None => {}
                        Consequence::FailedOver(switched) => break json!(switched),
                        other => break json!({"error": format!("{other:?}")}),
                    }
                }
            }
            ("quit", _) => {
                let unmounted = served.unmount();
                say(json!(format!("{unmounted:?}")));
                std::process::exit(i32::from(unmounted.is_err()));
            }
            (other, _) => panic!("no order: {other}"),
        };
        say(answer);
    }
    // The test has gone; so does the mount.
    drop(served.unmount());
    std::process::exit(1);
}

/// A running stage.
pub struct Stage {
    process: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    sandbox: Sandbox,
    path: tempfile::TempDir,
}

impl Stage {
    /// Starts one; `test` is the name of the test that calls [`serve_if_told`].
    pub fn start(backend: Backend, handlers: Handlers, test: &str) -> Self {
        Self::start_for(backend, handlers, test, Duration::from_secs(20))
    }

    /// The same for a test that may take so long.
    pub fn start_for(backend: Backend, handlers: Handlers, test: &str, limit: Duration) -> Self {
        let sandbox = Sandbox::new(User::Root, limit);
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::os::unix::fs::symlink(PROGRAM, folder.path().join("fusermount3")).expect("a link to the helper");
        let told = json!({
            "source": sandbox.source(), "mountpoint": sandbox.mountpoint(), "backend": backend,
            "on_pool": handlers == Handlers::OnPool,
        });
        let mut process = sandbox
            .client(std::env::current_exe().expect("this test"))
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(MARK, told.to_string())
            // Nothing else: libfuse's own helper would mount.
            .env("PATH", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a stage");
        let input = process.stdin.take().expect("a pipe");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let stage = Self { process, pipes: Mutex::new((input, output)), sandbox, path: folder };
        assert_eq!(stage.answer(&mut stage.pipes.lock().1)["ready"], true);
        stage
    }

    /// The next line of JSON; the test framework's own lines are passed over.
    fn answer(&self, output: &mut BufReader<ChildStdout>) -> Value {
        let mut line = String::new();
        loop {
            line.clear();
            let length = output.read_line(&mut line).expect("a line");
            assert_ne!(length, 0, "the stage has ended");
            if let Ok(answer) = serde_json::from_str(&line) {
                return answer;
            }
        }
    }

    fn order(&self, order: &str) -> Value {
        let mut pipes = self.pipes.lock();
        writeln!(pipes.0, "{order}").expect("a stage that listens");
        self.answer(&mut pipes.1)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.mountpoint().join(name)
    }

    pub fn source_path(&self, name: &str) -> PathBuf {
        self.sandbox.source().join(name)
    }

    /// Makes calls of this operation hang from now on; "nothing" for none.
    pub fn hang(&self, operation: &str) {
        self.order(&format!("hang {operation}"));
    }

    /// Lets go on what hangs.
    pub fn release(&self) {
        self.order("release");
    }

    /// How many calls hang.
    pub fn hanging(&self) -> usize {
        self.order("hanging")["hanging"].as_u64().expect("a number") as usize
    }

    pub fn active(&self) -> Backend {
        serde_json::from_value(self.order("active")["active"].clone()).expect("a backend")
    }

    /// Known nodes and open handles of the file system.
    pub fn counts(&self) -> String {
        self.order("counts").as_str().expect("a text").to_owned()
    }

    pub fn switch(&self, to: Backend) -> std::result::Result<Switched, String> {
        let answer = self.order(&format!("switch {to}"));
        serde_json::from_value(answer.clone()).map_err(|_| answer.to_string())
    }

    /// Gives a backend so many percent of the operations; whether that was a switch.
    pub fn weigh(&self, candidate: Backend, percent: u8) -> Option<Switched> {
        let answer = self.order(&format!("weigh {candidate} {percent}"));
        assert!(answer["error"].is_null(), "{answer}");
        serde_json::from_value(answer["switched"].clone()).expect("a switch or none")
    }

    /// Operations that each backend has served so far.
    pub fn served(&self) -> [u64; 2] {
        serde_json::from_value(self.order("served")["served"].clone()).expect("two numbers")
    }

    /// Where the program is that its workers run.
    pub fn program_path(&self) -> &std::path::Path {
        self.sandbox.program_path()
    }

    /// Makes the serving session end, and says who has taken over.
    pub fn end_active(&self) -> Switched {
        let answer = self.order("end");
        serde_json::from_value(answer.clone()).unwrap_or_else(|_| panic!("no failover: {answer}"))
    }

    /// Takes away the helper by which a session of fuse3 starts.
    pub fn remove_helper(&self) {
        std::fs::remove_file(self.path.path().join("fusermount3")).expect("a link");
    }

    /// Makes the kernel forget what it knows of the mount's files.
    pub fn forget_everything(&self) {
        std::fs::write("/proc/sys/vm/drop_caches", "2").expect("root may");
    }

    pub fn assert_all_answered(&self) {
        wait_for("every request to be answered", COMMAND_LIMIT, || {
            self.sandbox.mounts().iter().all(|mount| mount.waiting() == 0).then_some(())
        });
    }

    /// Unmounts and ends.
    pub fn stop(mut self) {
        assert_eq!(self.order("quit"), "Ok(Cleanly)");
        let status = self.process.wait().expect("a stage");
        assert!(status.success(), "{status}");
        self.sandbox.assert_nothing_left();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The sandbox ends the mount and kills what carries its mark; this only reaps.
        crate::support::end_everything(self.sandbox.path());
        drop(self.process.wait());
    }
}
