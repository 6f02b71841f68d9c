//! Servers that a daemon has left, because it was killed or crashed.

use std::io;
use std::path::Path;

use super::process;
pub use super::process::Ended;
use crate::server::meeting;

/// Ends those whose sockets are in `folder` and of whose mounts `is_to_end` says so; they unmount. What came of each. A
/// server that has a daemon is spared. Blocks until all have ended.
pub fn end(folder: &Path, is_to_end: impl Fn(&str) -> bool) -> Vec<(String, io::Result<Ended>)> {
    let names = match meeting::names(folder) {
        Ok(names) => names,
        Err(error) => return vec![(folder.display().to_string(), Err(error))],
    };
    // Side by side, since each may take its time for a busy mount.
    std::thread::scope(|scope| {
        let ends: Vec<_> = names
            .into_iter()
            .filter(|name| is_to_end(name))
            .map(|name| {
                let path = folder.join(format!("{name}.sock"));
                (name, scope.spawn(move || process::end(&path)))
            })
            .collect();
        let join = |(name, end): (String, std::thread::ScopedJoinHandle<'_, io::Result<Ended>>)| {
            let result = end.join().unwrap_or_else(|_| Err(io::Error::other("the attempt panicked")));
            (!matches!(result, Ok(Ended::Nobody))).then_some((name, result))
        };
        ends.into_iter().filter_map(join).collect()
    })
}
