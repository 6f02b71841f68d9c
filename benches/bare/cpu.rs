//! Where threads run, and how long they have run.

use std::fs;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// Where client and server run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// All on one processor. A single client is measured so: else it depends on the scheduler's mood whether each
    /// request wakes another processor.
    OneCpu,
    /// Wherever the scheduler likes.
    Anywhere,
}

impl Placement {
    fn set(self, all: &CpuSet) -> CpuSet {
        match self {
            Self::Anywhere => *all,
            Self::OneCpu => {
                let mut one = CpuSet::new();
                let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| all.is_set(*cpu)).expect("a processor");
                one.set(last);
                one
            }
        }
    }

    /// Places the calling thread. `all` is what the program may use.
    pub fn place_me(self, all: &CpuSet) {
        sched_setaffinity(None, &self.set(all)).expect("a place");
    }

    /// Places all threads of a process.
    pub fn place(self, process: i32, all: &CpuSet) {
        for thread in threads(process) {
            sched_setaffinity(Pid::from_raw(thread), &self.set(all)).expect("a place");
        }
    }
}

/// The processors that this program may use.
pub fn all_cpus() -> CpuSet {
    sched_getaffinity(None).expect("a set of processors")
}

fn threads(process: i32) -> impl Iterator<Item = i32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("a process");
    tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok())
}

/// Seconds that all threads of a process have run until now (the first number of `schedstat`, in nanoseconds).
pub fn seconds_run(process: i32) -> f64 {
    let run = |thread| {
        let text = fs::read_to_string(format!("/proc/{process}/task/{thread}/schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|run| run.parse::<f64>().ok()).unwrap_or_default()
    };
    threads(process).map(run).sum::<f64>() / 1e9
}
