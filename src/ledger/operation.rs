//! The kinds of requests, which slots and counters are about.

macro_rules! operations {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// A kind of request, named as in metrics and messages.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Operation { $($name),* }

        impl Operation {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Operation] = &[$(Operation::$name),*];

            /// The name used in metrics, messages and documents.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

operations! {
    Lookup = "lookup", Forget = "forget", GetAttr = "getattr", SetAttr = "setattr", ReadLink = "readlink",
    Symlink = "symlink", MkNod = "mknod", MkDir = "mkdir", Unlink = "unlink", RmDir = "rmdir", Rename = "rename",
    Link = "link", Open = "open", Create = "create", Read = "read", Write = "write", Flush = "flush",
    Release = "release", FSync = "fsync", OpenDir = "opendir", ReadDir = "readdir", ReadDirPlus = "readdirplus",
    ReleaseDir = "releasedir", FSyncDir = "fsyncdir", StatFs = "statfs", SetXattr = "setxattr", GetXattr = "getxattr",
    ListXattr = "listxattr", RemoveXattr = "removexattr", Access = "access", LSeek = "lseek", FAllocate = "fallocate",
    CopyFileRange = "copy_file_range", IoCtl = "ioctl", Other = "other",
}

impl Operation {
    /// From its number (`operation as u8`); anything unknown is [`Operation::Other`].
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operation_numbers_go_both_ways() {
        for (number, operation) in Operation::ALL.iter().enumerate() {
            assert_eq!(Operation::from_number(number as u8), *operation);
        }
        assert_eq!(Operation::from_number(255), Operation::Other);
    }
}
