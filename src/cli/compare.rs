//! `compare`: walks a mount and its shadow for `serve`, which must never do that itself. Whoever looks into the shadow mount
//! is another process still: should that hang, nothing of it is open in the mount.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Signal, nice, set_parent_process_death_signal};

use super::probe::device;
use super::{absolute, exit, fail};
use crate::mirror::{Pass, Question, Said, Seen, Side, Stopped, Terms};

/// Compare two mounts in one pass, with a line for what is found; `serve` starts it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the mount is; without it, answer what the comparer asks of the shadow mount
    #[arg(long, value_name = "DIR", value_parser = absolute, requires = "device")]
    mountpoint: Option<PathBuf>,
    /// Device number of the mount, as in mountinfo
    #[arg(long, value_name = "MAJOR:MINOR", value_parser = device)]
    device: Option<(u32, u32)>,
    /// Where the shadow mount is
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    shadow_mountpoint: PathBuf,
    /// Device number of the shadow mount
    #[arg(long, value_name = "MAJOR:MINOR", value_parser = device)]
    shadow_device: (u32, u32),
    /// Before a difference is looked at again
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "2s")]
    patience: Duration,
    /// Between two questions, at least
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5ms")]
    pace: Duration,
    /// Questions of the pass
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    questions: usize,
}

/// Descriptor by which the daemon sees that somebody lives.
const DAEMON: RawFd = 3;
/// How much the others come first: as much as there is (nice(2)); the kernel takes its I/O priority from it.
const LAST: i32 = 19;

/// Compares, or answers the one who does.
pub fn run(args: &Args) -> ExitCode {
    // Should the parent be gone already, its pipe has ended.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return fail(exit::FAILED, format_args!("the end of the parent cannot be watched: {error}"));
    }
    // Where that is not allowed, it compares all the same.
    let _ = nice(LAST);
    let shadow = Side { place: args.shadow_mountpoint.clone(), device: args.shadow_device };
    let ended = match args.mountpoint.clone().zip(args.device) {
        Some((place, device)) => compare(args, Side { place, device }),
        None => answer_all(&shadow),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever wanted to know is gone.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(exit::FAILED, format_args!("the comparer cannot be asked, or not answer: {error}")),
    }
}

fn answer_all(side: &Side) -> io::Result<()> {
    let mut answers = io::stdout().lock();
    for question in io::stdin().lock().lines() {
        let question: Question = serde_json::from_str(&question?)?;
        serde_json::to_writer(&mut answers, &side.see(&question))?;
        writeln!(answers)?;
    }
    Ok(())
}

fn compare(args: &Args, mount: Side) -> io::Result<()> {
    let mut shadow = Asked::start(args)?;
    let mut lines = io::stdout().lock();
    let mut tell = |said: &Said| {
        serde_json::to_writer(&mut lines, said)?;
        writeln!(lines)?;
        lines.flush()
    };
    let Args { patience, pace, questions, .. } = *args;
    let terms = Terms { patience, pace, questions, seed: fastrand::u64(..) };
    match Pass::new(mount, |question: &Question| shadow.ask(question), &mut tell, terms).run() {
        Ok(()) => {}
        Err(Stopped::Gone(why)) => tell(&Said::Stopped { why })?,
        Err(Stopped::Line(error)) => return Err(error),
    }
    // It has answered everything: no orphan for whoever reaps those.
    shadow.end()
}

/// The process that looks into the shadow mount. It goes with this one.
struct Asked {
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    process: Child,
}

impl Asked {
    fn start(args: &Args) -> io::Result<Self> {
        let (major, minor) = args.shadow_device;
        // As long as it lives, the daemon's pipe is open.
        let told = FdMapping { parent_fd: rustix::io::dup(io::stdout())?, child_fd: DAEMON };
        let mut process = Command::new("/proc/self/exe")
            .args(["compare", "--shadow-device", &format!("{major}:{minor}"), "--shadow-mountpoint"])
            .arg(&args.shadow_mountpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .fd_mappings(vec![told])
            .map_err(io::Error::other)?
            .spawn()?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (questions, answers) = pipes.ok_or_else(|| io::Error::other("it was started without pipes"))?;
        Ok(Self { questions, answers: BufReader::new(answers), process })
    }

    fn end(self) -> io::Result<()> {
        let Self { questions, mut process, .. } = self;
        drop(questions);
        process.wait().map(drop)
    }

    fn ask(&mut self, question: &Question) -> Result<Seen, Stopped> {
        let mut line = serde_json::to_string(question).map_err(io::Error::from)?;
        line.push('\n');
        let gone = || io::Error::other("who looks into the shadow mount is gone");
        self.questions.write_all(line.as_bytes()).map_err(|_| gone())?;
        let mut answer = String::new();
        if self.answers.read_line(&mut answer)? == 0 {
            return Err(gone().into());
        }
        let seen: Result<Seen, String> = serde_json::from_str(&answer).map_err(io::Error::from)?;
        seen.map_err(Stopped::Gone)
    }
}
