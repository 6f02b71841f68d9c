//! Every operation of crate fuser's trait, translated.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::translate::{attributes, file_type, handle_id, time_set};
use super::{Adapter, BUFFER, reply_empty};
use crate::backend::{
    ALWAYS_READY, NO_ENTRY, OPEN_FLAGS, Opened, OpenedDir, copy_length, created_lifetime, dot_attr, entry_lifetime,
    forget, list_plus,
};
use crate::connection::port::{NUDGE_NODE, SMALL_REPLY};
use crate::ledger::Direction;
use crate::vfs::{DirEntry, Errno, ListFlow, NodeId, Operation, Result, SetAttr};

/// Listings are built by the crate, so they stay below what may race with a re-pointing; the kernel asks again for more.
const LONGEST_LISTING: usize = SMALL_REPLY / 2;
/// `struct fuse_dirent` and `struct fuse_direntplus` before the name, with the padding that may follow it.
const DIRENT: usize = 24 + 8;
const DIRENTPLUS: usize = 152 + 8;

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Nobody but the crate reads the answer, so only what changes the crate's own behaviour matters.
        let wanted = InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO;
        if let Err(missing) = config.add_capabilities(wanted) {
            tracing::debug!(?missing, "not offered by this kernel");
        }
        config.set_max_write(self.max_write).map_err(|nearest| {
            std::io::Error::other(format!("max_write {} is not possible, the nearest is {nearest}", self.max_write))
        })?;
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let answer =
            self.handle(request, Operation::Lookup, parent, |vfs, caller| vfs.lookup(caller, NodeId(parent.0), name));
        if answer.result.as_ref().is_err_and(|error| error.code() == libc::ENOENT) && !self.cache.negative.is_zero() {
            return reply.entry(&self.cache.negative, &attributes(&NO_ENTRY), Generation(0));
        }
        self.reply_entry(&answer, reply);
    }

    fn forget(&self, _request: &Request, node: INodeNo, count: u64) {
        if node.0 == NUDGE_NODE {
            self.port.nudged(count);
        } else {
            forget(&*self.vfs, NodeId(node.0), count);
        }
    }

    fn getattr(&self, request: &Request, node: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        self.port.note_probe(request.pid());
        let answer = self.handle(request, Operation::GetAttr, node, |vfs, caller| {
            vfs.getattr(caller, NodeId(node.0), handle.map(handle_id))
        });
        self.reply_attr(&answer, reply);
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr { mode, uid, gid, size, atime: atime.map(time_set), mtime: mtime.map(time_set) };
        let answer = self.handle(request, Operation::SetAttr, node, |vfs, caller| {
            vfs.setattr(caller, NodeId(node.0), handle.map(handle_id), &set)
        });
        self.reply_attr(&answer, reply);
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        let answer =
            self.handle(request, Operation::ReadLink, node, |vfs, caller| vfs.readlink(caller, NodeId(node.0)));
        match &answer.result {
            Ok(target) => reply.data(target),
            Err(error) => reply.error(*error),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let answer = self.handle_with_umask(request, Operation::MkNod, parent, umask, |vfs, caller| {
            vfs.mknod(caller, NodeId(parent.0), name, mode, rdev.into())
        });
        self.reply_entry(&answer, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let answer = self.handle_with_umask(request, Operation::MkDir, parent, umask, |vfs, caller| {
            vfs.mkdir(caller, NodeId(parent.0), name, mode)
        });
        self.reply_entry(&answer, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let answer =
            self.handle(request, Operation::Unlink, parent, |vfs, caller| vfs.unlink(caller, NodeId(parent.0), name));
        reply_empty(&answer, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let answer =
            self.handle(request, Operation::RmDir, parent, |vfs, caller| vfs.rmdir(caller, NodeId(parent.0), name));
        reply_empty(&answer, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let answer = self.handle(request, Operation::Symlink, parent, |vfs, caller| {
            vfs.symlink(caller, NodeId(parent.0), name, target.as_os_str())
        });
        self.reply_entry(&answer, reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let answer = self.handle(request, Operation::Rename, parent, |vfs, caller| {
            vfs.rename(caller, NodeId(parent.0), name, NodeId(new_parent.0), new_name, flags.bits())
        });
        reply_empty(&answer, reply);
    }

    fn link(&self, request: &Request, node: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let answer = self.handle(request, Operation::Link, node, |vfs, caller| {
            vfs.link(caller, NodeId(node.0), NodeId(new_parent.0), new_name)
        });
        self.reply_entry(&answer, reply);
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let answer = self.handle(request, Operation::Open, node, |vfs, caller| {
            vfs.open(caller, NodeId(node.0), flags.0).map(|handle| Opened(NodeId(node.0), handle))
        });
        match &answer.result {
            Ok(opened) => reply.opened(FileHandle(opened.1.0), FopenFlags::from_bits_retain(OPEN_FLAGS)),
            Err(error) => reply.error(*error),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let answer = self.handle_with_umask(request, Operation::Create, parent, umask, |vfs, caller| {
            vfs.create(caller, NodeId(parent.0), name, mode, flags)
        });
        match &answer.result {
            Ok(created) => reply.created(
                &created_lifetime(&self.cache),
                &attributes(&created.entry.attr),
                Generation(created.entry.generation),
                FileHandle(created.handle.0),
                FopenFlags::from_bits_retain(OPEN_FLAGS),
            ),
            Err(error) => reply.error(*error),
        }
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let answer = self.handle(request, Operation::Read, node, |vfs, caller| {
                vfs.read(caller, NodeId(node.0), handle_id(handle), offset, &mut buffer[..size])
            });
            match answer.result {
                Ok(length) => {
                    answer.in_handler.moved(Direction::Read, length as u64);
                    self.reply_data(request.unique().0, reply, &buffer[..length]);
                }
                Err(error) => reply.error(error),
            }
        });
    }

    fn write(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let answer = self.handle(request, Operation::Write, node, |vfs, caller| {
            vfs.write(caller, NodeId(node.0), handle_id(handle), offset, data)
        });
        match &answer.result {
            Ok(written) => {
                answer.in_handler.moved(Direction::Write, (*written).into());
                reply.written(*written);
            }
            Err(error) => reply.error(*error),
        }
    }

    fn flush(&self, request: &Request, node: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        let answer = self.handle(request, Operation::Flush, node, |vfs, caller| {
            vfs.flush(caller, NodeId(node.0), handle_id(handle))
        });
        reply_empty(&answer, reply);
    }

    fn release(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let answer = self.handle(request, Operation::Release, node, |vfs, _caller| {
            vfs.release(NodeId(node.0), handle_id(handle));
            Ok(())
        });
        reply_empty(&answer, reply);
    }

    fn fsync(&self, request: &Request, node: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let answer = self.handle(request, Operation::FSync, node, |vfs, caller| {
            vfs.fsync(caller, NodeId(node.0), handle_id(handle), data_only)
        });
        reply_empty(&answer, reply);
    }

    fn opendir(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let answer = self.handle(request, Operation::OpenDir, node, |vfs, caller| {
            vfs.opendir(caller, NodeId(node.0), flags.0).map(|handle| OpenedDir(NodeId(node.0), handle))
        });
        match &answer.result {
            Ok(opened) => reply.opened(FileHandle(opened.1.0), FopenFlags::empty()),
            Err(error) => reply.error(*error),
        }
    }

    fn readdir(&self, request: &Request, node: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut length = 0;
        let answer = self.handle(request, Operation::ReadDir, node, |vfs, caller| {
            vfs.readdir(caller, NodeId(node.0), handle_id(handle), offset, &mut |entry| {
                length += DIRENT + entry.name.len();
                let kind = file_type(entry.kind);
                if length > LONGEST_LISTING || reply.add(INodeNo(entry.node.0), entry.offset, kind, entry.name) {
                    ListFlow::Full
                } else {
                    ListFlow::Taken
                }
            })
        });
        match &answer.result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(*error),
        }
    }

    fn readdirplus(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut length = 0;
        let lifetime = entry_lifetime(&self.cache);
        let answer = self.handle(request, Operation::ReadDirPlus, node, |vfs, caller| {
            list_plus(vfs, caller, NodeId(node.0), handle_id(handle), offset, |entry: &DirEntry<'_>, found| {
                length += DIRENTPLUS + entry.name.len();
                if length > LONGEST_LISTING {
                    return ListFlow::Full;
                }
                let (lifetime, attr, generation) = match found {
                    Some(found) => (lifetime, attributes(&found.attr), Generation(found.generation)),
                    None => (Duration::ZERO, attributes(&dot_attr(entry)), Generation(0)),
                };
                if reply.add(INodeNo(entry.node.0), entry.offset, entry.name, &lifetime, &attr, generation) {
                    ListFlow::Full
                } else {
                    ListFlow::Taken
                }
            })
        });
        match &answer.result {
            Ok(_sent) => reply.ok(),
            Err(error) => reply.error(*error),
        }
    }

    fn releasedir(&self, request: &Request, node: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let answer = self.handle(request, Operation::ReleaseDir, node, |vfs, _caller| {
            vfs.releasedir(NodeId(node.0), handle_id(handle));
            Ok(())
        });
        reply_empty(&answer, reply);
    }

    fn fsyncdir(&self, request: &Request, node: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let answer = self.handle(request, Operation::FSyncDir, node, |vfs, caller| {
            vfs.fsyncdir(caller, NodeId(node.0), handle_id(handle), data_only)
        });
        reply_empty(&answer, reply);
    }

    fn statfs(&self, request: &Request, node: INodeNo, reply: ReplyStatfs) {
        self.port.note_probe(request.pid());
        let answer = self.handle(request, Operation::StatFs, node, |vfs, caller| vfs.statfs(caller, NodeId(node.0)));
        match &answer.result {
            Ok(it) => {
                reply.statfs(it.blocks, it.bfree, it.bavail, it.files, it.ffree, it.bsize, it.namelen, it.frsize);
            }
            Err(error) => reply.error(*error),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let answer = self.handle(request, Operation::SetXattr, node, |vfs, caller| {
            vfs.setxattr(caller, NodeId(node.0), name, value, flags)
        });
        reply_empty(&answer, reply);
    }

    fn getxattr(&self, request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.reply_xattr(request, Operation::GetXattr, node, size, reply, |vfs, caller, into| {
            vfs.getxattr(caller, NodeId(node.0), name, into)
        });
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.reply_xattr(request, Operation::ListXattr, node, size, reply, |vfs, caller, into| {
            vfs.listxattr(caller, NodeId(node.0), into)
        });
    }

    fn removexattr(&self, request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let answer = self
            .handle(request, Operation::RemoveXattr, node, |vfs, caller| vfs.removexattr(caller, NodeId(node.0), name));
        reply_empty(&answer, reply);
    }

    fn access(&self, request: &Request, node: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let answer = self.handle(request, Operation::Access, node, |vfs, caller| {
            vfs.access(caller, NodeId(node.0), mask.bits() as u32)
        });
        reply_empty(&answer, reply);
    }

    fn lseek(&self, request: &Request, node: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let answer = self.handle(request, Operation::LSeek, node, |vfs, caller| {
            vfs.lseek(caller, NodeId(node.0), handle_id(handle), offset, whence)
        });
        match &answer.result {
            Ok(found) => reply.offset(*found),
            Err(error) => reply.error(*error),
        }
    }

    fn fallocate(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let answer = self.handle(request, Operation::FAllocate, node, |vfs, caller| {
            vfs.fallocate(caller, NodeId(node.0), handle_id(handle), offset, length, mode)
        });
        reply_empty(&answer, reply);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        from_handle: FileHandle,
        from_offset: u64,
        to: INodeNo,
        to_handle: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let answer = self.handle(request, Operation::CopyFileRange, from, |vfs, caller| {
            vfs.copy_file_range(
                caller,
                (NodeId(from.0), handle_id(from_handle), from_offset),
                (NodeId(to.0), handle_id(to_handle), to_offset),
                copy_length(length),
            )
        });
        match &answer.result {
            Ok(copied) => reply.written(*copied as u32),
            Err(error) => reply.error(*error),
        }
    }

    fn ioctl(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        input: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // As crate fuse3, which cannot decode it at all: the same answer by both backends.
        let answer = self.handle(request, Operation::IoCtl, node, |_vfs, _caller| -> Result<()> {
            tracing::debug!(handle = handle.0, command, length = input.len(), "ioctl refused");
            Err(Errno::ENOTTY)
        });
        reply.error(answer.result.err().unwrap_or(fuser::Errno::ENOTTY));
    }

    // Locks and the rest are not negotiated, so the kernel does not send them. Whoever sends them all the same gets an
    // answer that it does not remember.

    fn getlk(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.error(fuser::Errno::EOPNOTSUPP);
    }

    fn setlk(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::EOPNOTSUPP);
    }

    fn bmap(&self, _request: &Request, _node: INodeNo, _blocksize: u32, _index: u64, reply: ReplyBmap) {
        reply.error(fuser::Errno::EOPNOTSUPP);
    }

    fn poll(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.poll(PollEvents::from_bits_retain(ALWAYS_READY));
    }
}
