//! Every operation of crate fuse3's trait, translated.

use std::ffi::OsStr;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use fuse3::SetAttr as Fuse3SetAttr;
use fuse3::raw::Filesystem;
use fuse3::raw::prelude::{
    DirectoryEntry, DirectoryEntryPlus, ReplyAttr, ReplyBmap, ReplyCopyFileRange, ReplyCreated, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyInit, ReplyLSeek, ReplyOpen, ReplyPoll, ReplyStatFs,
    ReplyWrite, ReplyXAttr, Request,
};
use futures_util::{Stream, stream};

use super::Adapter;
use super::listing::{DIRENT, DIRENTPLUS, Gathered, Names, Sending, direntplus, padded};
use super::translate::{attributes, file_type, time_set};
use crate::backend::{
    ALWAYS_READY, NO_ENTRY, OPEN_FLAGS, Opened, OpenedDir, copy_length, created_lifetime, entry_lifetime, forget,
    list_plus,
};
use crate::connection::port::NUDGE_NODE;
use crate::ledger::Direction;
use crate::vfs::{
    Attr, Caller, Created, DirEntry, Entry, HandleId, ListFlow, NodeId, Operation, SetAttr, Vfs, XattrSize,
};

/// Runs a call inline, or with owned copies of what it borrows on the pool.
macro_rules! handle {
    ($self:ident, $request:ident, $operation:expr, $node:expr, [$($name:ident),*], |$vfs:ident, $caller:ident| $call:expr) => {
        if $self.may_block($operation) {
            $(let $name = $name.to_owned();)*
            $self.on_pool($request, $operation, $node, move |$vfs, $caller| {
                $(let $name = &*$name;)*
                $call
            }).await
        } else {
            $self.inline($request, $operation, $node, |$vfs, $caller| $call).await
        }
    };
}

type Answer<T> = fuse3::Result<T>;

impl Filesystem for Adapter {
    async fn init(&self, _request: Request) -> Answer<ReplyInit> {
        // Nobody but the crate reads the answer; `max_write` sizes its read buffer.
        Ok(ReplyInit::new(self.max_write))
    }

    async fn ready(&self, notify: fuse3::notify::Notify) {
        // It holds the session's descriptor, so its number stays ours until the port is gone.
        self.port.keep(Box::new(notify));
    }

    async fn destroy(&self, _request: Request) {}

    async fn lookup(&self, request: Request, parent: u64, name: &OsStr) -> Answer<ReplyEntry> {
        let found: Answer<Entry> = handle!(self, request, Operation::Lookup, parent, [name], |vfs, caller| {
            vfs.lookup(caller, NodeId(parent), name)
        });
        match found {
            Err(error) if error.is_not_exist() && !self.cache.negative.is_zero() => {
                Ok(ReplyEntry { ttl: self.cache.negative, attr: attributes(&NO_ENTRY), generation: 0 })
            }
            found => Ok(self.entry(&found?)),
        }
    }

    async fn forget(&self, _request: Request, node: u64, count: u64) {
        if node == NUDGE_NODE {
            self.port.nudged();
        } else {
            forget(&*self.vfs, NodeId(node), count);
        }
    }

    async fn batch_forget(&self, _request: Request, nodes: &[(u64, u64)]) {
        for (node, count) in nodes {
            forget(&*self.vfs, NodeId(*node), *count);
        }
    }

    async fn getattr(&self, request: Request, node: u64, handle: Option<u64>, _flags: u32) -> Answer<ReplyAttr> {
        self.port.note_probe(request.pid);
        let attr: Attr = handle!(self, request, Operation::GetAttr, node, [], |vfs, caller| {
            vfs.getattr(caller, NodeId(node), handle.map(HandleId))
        })?;
        Ok(self.attr(&attr))
    }

    async fn setattr(&self, request: Request, node: u64, handle: Option<u64>, set: Fuse3SetAttr) -> Answer<ReplyAttr> {
        let set = SetAttr {
            mode: set.mode,
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: set.atime.map(time_set),
            mtime: set.mtime.map(time_set),
        };
        let attr: Attr = handle!(self, request, Operation::SetAttr, node, [], |vfs, caller| {
            vfs.setattr(caller, NodeId(node), handle.map(HandleId), &set)
        })?;
        Ok(self.attr(&attr))
    }

    async fn readlink(&self, request: Request, node: u64) -> Answer<ReplyData> {
        let target: Vec<u8> =
            handle!(self, request, Operation::ReadLink, node, [], |vfs, caller| vfs.readlink(caller, NodeId(node)))?;
        Ok(ReplyData { data: Bytes::from(target) })
    }

    async fn symlink(&self, request: Request, parent: u64, name: &OsStr, target: &OsStr) -> Answer<ReplyEntry> {
        let made: Entry = handle!(self, request, Operation::Symlink, parent, [name, target], |vfs, caller| {
            vfs.symlink(caller, NodeId(parent), name, target)
        })?;
        Ok(self.entry(&made))
    }

    async fn mknod(&self, request: Request, parent: u64, name: &OsStr, mode: u32, rdev: u32) -> Answer<ReplyEntry> {
        let made: Entry = handle!(self, request, Operation::MkNod, parent, [name], |vfs, caller| {
            vfs.mknod(caller, NodeId(parent), name, mode, rdev.into())
        })?;
        Ok(self.entry(&made))
    }

    async fn mkdir(&self, request: Request, parent: u64, name: &OsStr, mode: u32, umask: u32) -> Answer<ReplyEntry> {
        let made: Entry = handle!(self, request, Operation::MkDir, parent, [name], |vfs, caller| {
            vfs.mkdir(&Caller { umask, ..*caller }, NodeId(parent), name, mode)
        })?;
        Ok(self.entry(&made))
    }

    async fn unlink(&self, request: Request, parent: u64, name: &OsStr) -> Answer<()> {
        handle!(self, request, Operation::Unlink, parent, [name], |vfs, caller| {
            vfs.unlink(caller, NodeId(parent), name)
        })
    }

    async fn rmdir(&self, request: Request, parent: u64, name: &OsStr) -> Answer<()> {
        handle!(self, request, Operation::RmDir, parent, [name], |vfs, caller| {
            vfs.rmdir(caller, NodeId(parent), name)
        })
    }

    async fn rename(
        &self,
        request: Request,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
    ) -> Answer<()> {
        self.rename2(request, parent, name, new_parent, new_name, 0).await
    }

    async fn rename2(
        &self,
        request: Request,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
    ) -> Answer<()> {
        handle!(self, request, Operation::Rename, parent, [name, new_name], |vfs, caller| {
            vfs.rename(caller, NodeId(parent), name, NodeId(new_parent), new_name, flags)
        })
    }

    async fn link(&self, request: Request, node: u64, new_parent: u64, new_name: &OsStr) -> Answer<ReplyEntry> {
        let made: Entry = handle!(self, request, Operation::Link, node, [new_name], |vfs, caller| {
            vfs.link(caller, NodeId(node), NodeId(new_parent), new_name)
        })?;
        Ok(self.entry(&made))
    }

    async fn open(&self, request: Request, node: u64, flags: u32) -> Answer<ReplyOpen> {
        let opened: Opened = handle!(self, request, Operation::Open, node, [], |vfs, caller| {
            vfs.open(caller, NodeId(node), flags as i32).map(|handle| Opened(NodeId(node), handle))
        })?;
        Ok(ReplyOpen { fh: opened.1.0, flags: OPEN_FLAGS })
    }

    async fn create(&self, request: Request, parent: u64, name: &OsStr, mode: u32, flags: u32) -> Answer<ReplyCreated> {
        let created: Created = handle!(self, request, Operation::Create, parent, [name], |vfs, caller| {
            vfs.create(caller, NodeId(parent), name, mode, flags as i32)
        })?;
        Ok(ReplyCreated {
            ttl: created_lifetime(&self.cache),
            attr: attributes(&created.entry.attr),
            generation: created.entry.generation,
            fh: created.handle.0,
            flags: OPEN_FLAGS,
        })
    }

    async fn read(&self, request: Request, node: u64, handle: u64, offset: u64, size: u32) -> Answer<ReplyData> {
        let mut buffer = self.buffer(size as usize);
        let read = move |vfs: &dyn Vfs, caller: &Caller| {
            buffer.length =
                vfs.read(caller, NodeId(node), HandleId(handle), offset, &mut buffer.bytes[..size as usize])?;
            Ok(buffer)
        };
        let buffer = if self.may_block(Operation::Read) {
            self.on_pool(request, Operation::Read, node, read).await?
        } else {
            self.inline(request, Operation::Read, node, read).await?
        };
        self.port.moved(Direction::Read, buffer.length as u64);
        Ok(ReplyData { data: Bytes::from_owner(buffer) })
    }

    async fn write(
        &self,
        request: Request,
        node: u64,
        handle: u64,
        offset: u64,
        data: &[u8],
        _write_flags: u32,
        _flags: u32,
    ) -> Answer<ReplyWrite> {
        let written: u32 = handle!(self, request, Operation::Write, node, [data], |vfs, caller| {
            vfs.write(caller, NodeId(node), HandleId(handle), offset, data)
        })?;
        self.port.moved(Direction::Write, written.into());
        Ok(ReplyWrite { written })
    }

    async fn flush(&self, request: Request, node: u64, handle: u64, _lock_owner: u64) -> Answer<()> {
        handle!(self, request, Operation::Flush, node, [], |vfs, caller| {
            vfs.flush(caller, NodeId(node), HandleId(handle))
        })
    }

    async fn release(
        &self,
        request: Request,
        node: u64,
        handle: u64,
        _flags: u32,
        _lock_owner: u64,
        _flush: bool,
    ) -> Answer<()> {
        handle!(self, request, Operation::Release, node, [], |vfs, _caller| {
            vfs.release(NodeId(node), HandleId(handle));
            Ok(())
        })
    }

    async fn fsync(&self, request: Request, node: u64, handle: u64, data_only: bool) -> Answer<()> {
        handle!(self, request, Operation::FSync, node, [], |vfs, caller| {
            vfs.fsync(caller, NodeId(node), HandleId(handle), data_only)
        })
    }

    async fn opendir(&self, request: Request, node: u64, flags: u32) -> Answer<ReplyOpen> {
        let opened: OpenedDir = handle!(self, request, Operation::OpenDir, node, [], |vfs, caller| {
            vfs.opendir(caller, NodeId(node), flags as i32).map(|handle| OpenedDir(NodeId(node), handle))
        })?;
        Ok(ReplyOpen { fh: opened.1.0, flags: 0 })
    }

    async fn readdir<'a>(
        &'a self,
        request: Request,
        node: u64,
        handle: u64,
        offset: i64,
    ) -> Answer<ReplyDirectory<impl Stream<Item = Answer<DirectoryEntry>> + Send + 'a>> {
        let length = self.listing.load(Relaxed);
        let entries: Names = handle!(self, request, Operation::ReadDir, node, [], |vfs, caller| {
            let mut names = Vec::new();
            let mut left = length;
            vfs.readdir(caller, NodeId(node), HandleId(handle), offset as u64, &mut |entry| {
                match left.checked_sub(padded(DIRENT + entry.name.len())) {
                    Some(rest) => left = rest,
                    None => return ListFlow::Full,
                }
                names.push(DirectoryEntry {
                    inode: entry.node.0,
                    kind: file_type(entry.kind),
                    name: entry.name.to_owned(),
                    offset: entry.offset as i64,
                });
                ListFlow::Taken
            })?;
            Ok(Names(names))
        })?;
        Ok(ReplyDirectory { entries: stream::iter(entries.0.into_iter().map(Ok)) })
    }

    async fn readdirplus<'a>(
        &'a self,
        request: Request,
        node: u64,
        handle: u64,
        offset: u64,
        _lock_owner: u64,
    ) -> Answer<ReplyDirectoryPlus<impl Stream<Item = Answer<DirectoryEntryPlus>> + Send + 'a>> {
        let lifetime = entry_lifetime(&self.cache);
        let length = self.listing.load(Relaxed);
        let gathered: Gathered = handle!(self, request, Operation::ReadDirPlus, node, [], |vfs, caller| {
            let mut entries = Vec::new();
            let mut left = length;
            let counted =
                list_plus(vfs, caller, NodeId(node), HandleId(handle), offset, |entry: &DirEntry<'_>, found| {
                    match left.checked_sub(padded(DIRENTPLUS + entry.name.len())) {
                        Some(rest) => left = rest,
                        None => return ListFlow::Full,
                    }
                    entries.push(direntplus(entry, found, lifetime));
                    ListFlow::Taken
                })?;
            Ok(Gathered { entries, counted })
        })?;
        Ok(ReplyDirectoryPlus { entries: stream::iter(Sending::new(self, gathered)) })
    }

    async fn releasedir(&self, request: Request, node: u64, handle: u64, _flags: u32) -> Answer<()> {
        handle!(self, request, Operation::ReleaseDir, node, [], |vfs, _caller| {
            vfs.releasedir(NodeId(node), HandleId(handle));
            Ok(())
        })
    }

    async fn fsyncdir(&self, request: Request, node: u64, handle: u64, data_only: bool) -> Answer<()> {
        handle!(self, request, Operation::FSyncDir, node, [], |vfs, caller| {
            vfs.fsyncdir(caller, NodeId(node), HandleId(handle), data_only)
        })
    }

    async fn statfs(&self, request: Request, node: u64) -> Answer<ReplyStatFs> {
        self.port.note_probe(request.pid);
        let it: crate::vfs::StatFs =
            handle!(self, request, Operation::StatFs, node, [], |vfs, caller| vfs.statfs(caller, NodeId(node)))?;
        Ok(ReplyStatFs {
            blocks: it.blocks,
            bfree: it.bfree,
            bavail: it.bavail,
            files: it.files,
            ffree: it.ffree,
            bsize: it.bsize,
            namelen: it.namelen,
            frsize: it.frsize,
        })
    }

    async fn setxattr(
        &self,
        request: Request,
        node: u64,
        name: &OsStr,
        value: &[u8],
        flags: u32,
        _position: u32,
    ) -> Answer<()> {
        handle!(self, request, Operation::SetXattr, node, [name, value], |vfs, caller| {
            vfs.setxattr(caller, NodeId(node), name, value, flags as i32)
        })
    }

    async fn getxattr(&self, request: Request, node: u64, name: &OsStr, size: u32) -> Answer<ReplyXAttr> {
        if size == 0 {
            let length: usize = handle!(self, request, Operation::GetXattr, node, [name], |vfs, caller| {
                vfs.getxattr(caller, NodeId(node), name, XattrSize::Query)
            })?;
            return Ok(ReplyXAttr::Size(length as u32));
        }
        let value: Vec<u8> = handle!(self, request, Operation::GetXattr, node, [name], |vfs, caller| {
            let mut value = vec![0; size as usize];
            let length = vfs.getxattr(caller, NodeId(node), name, XattrSize::Into(&mut value))?;
            value.truncate(length);
            Ok(value)
        })?;
        Ok(ReplyXAttr::Data(Bytes::from(value)))
    }

    async fn listxattr(&self, request: Request, node: u64, size: u32) -> Answer<ReplyXAttr> {
        if size == 0 {
            let length: usize = handle!(self, request, Operation::ListXattr, node, [], |vfs, caller| {
                vfs.listxattr(caller, NodeId(node), XattrSize::Query)
            })?;
            return Ok(ReplyXAttr::Size(length as u32));
        }
        let names: Vec<u8> = handle!(self, request, Operation::ListXattr, node, [], |vfs, caller| {
            let mut names = vec![0; size as usize];
            let length = vfs.listxattr(caller, NodeId(node), XattrSize::Into(&mut names))?;
            names.truncate(length);
            Ok(names)
        })?;
        Ok(ReplyXAttr::Data(Bytes::from(names)))
    }

    async fn removexattr(&self, request: Request, node: u64, name: &OsStr) -> Answer<()> {
        handle!(self, request, Operation::RemoveXattr, node, [name], |vfs, caller| {
            vfs.removexattr(caller, NodeId(node), name)
        })
    }

    async fn access(&self, request: Request, node: u64, mask: u32) -> Answer<()> {
        handle!(self, request, Operation::Access, node, [], |vfs, caller| vfs.access(caller, NodeId(node), mask))
    }

    async fn lseek(&self, request: Request, node: u64, handle: u64, offset: u64, whence: u32) -> Answer<ReplyLSeek> {
        let found: i64 = handle!(self, request, Operation::LSeek, node, [], |vfs, caller| {
            vfs.lseek(caller, NodeId(node), HandleId(handle), offset as i64, whence as i32)
        })?;
        Ok(ReplyLSeek { offset: found as u64 })
    }

    async fn fallocate(
        &self,
        request: Request,
        node: u64,
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Answer<()> {
        handle!(self, request, Operation::FAllocate, node, [], |vfs, caller| {
            vfs.fallocate(caller, NodeId(node), HandleId(handle), offset, length, mode as i32)
        })
    }

    async fn copy_file_range(
        &self,
        request: Request,
        from: u64,
        from_handle: u64,
        from_offset: u64,
        to: u64,
        to_handle: u64,
        to_offset: u64,
        length: u64,
        _flags: u64,
    ) -> Answer<ReplyCopyFileRange> {
        let copied: usize = handle!(self, request, Operation::CopyFileRange, from, [], |vfs, caller| {
            vfs.copy_file_range(
                caller,
                (NodeId(from), HandleId(from_handle), from_offset),
                (NodeId(to), HandleId(to_handle), to_offset),
                copy_length(length),
            )
        })?;
        Ok(ReplyCopyFileRange { copied: copied as u64 })
    }

    // The rest is not negotiated. Whoever sends it all the same gets an answer that the kernel does not remember.

    async fn interrupt(&self, _request: Request, _unique: u64) -> Answer<()> {
        Ok(())
    }

    async fn bmap(&self, _request: Request, _node: u64, _blocksize: u32, _index: u64) -> Answer<ReplyBmap> {
        Err(libc::EOPNOTSUPP.into())
    }

    async fn poll(
        &self,
        _request: Request,
        _node: u64,
        _handle: u64,
        _kernel_handle: Option<u64>,
        _flags: u32,
        _events: u32,
        _notify: &fuse3::notify::Notify,
    ) -> Answer<ReplyPoll> {
        Ok(ReplyPoll { revents: ALWAYS_READY })
    }

    async fn notify_reply(&self, _request: Request, _node: u64, _offset: u64, _data: Bytes) -> Answer<()> {
        Err(libc::EOPNOTSUPP.into())
    }
}
