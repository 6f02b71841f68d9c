//! Whether the mount is still in the tree: `umount -l` by somebody else takes it out, and its connection lives on as long as
//! a program uses it, or another mount namespace has a copy.
//!
//! The server looks, and not its daemon: it is in the mount namespace in which it has mounted.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::connection::Connection;

/// What an ordinary `umount` may take from the tree to the end of the connection.
const GRACE: Duration = Duration::from_millis(400);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Says when it has changed (proc(5), `/proc/pid/mounts`).
    table: Option<File>,
    /// Since when the mount is not there.
    out_since: Option<Instant>,
    is_lost: bool,
}

impl Tree {
    /// Whether the mount has been taken out, and this is the first time that it is asked since. Cheap while nobody mounts
    /// anything.
    pub(super) fn has_lost(&mut self, connection: &Connection) -> bool {
        if self.is_lost || !(self.has_changed() || self.out_since.is_some()) {
            return false;
        }
        if !connection.is_detached() {
            self.out_since = None;
            return false;
        }
        self.is_lost = self.out_since.get_or_insert_with(Instant::now).elapsed() >= GRACE;
        self.is_lost
    }

    /// Whether the mount has been taken out.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    fn has_changed(&mut self) -> bool {
        let Some(table) = &self.table else {
            // Opened before the first look, so that nothing is missed in between.
            self.table = File::open("/proc/self/mountinfo").ok();
            return true;
        };
        let mut table = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        poll(&mut table, PollTimeout::ZERO).is_ok_and(|changed| changed > 0)
    }
}
