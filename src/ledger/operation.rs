//! The kinds of requests, which slots and counters are about.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::Type;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::config::UnknownName;

macro_rules! operations {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// A kind of request, named as in metrics and messages.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Operation { $(#[serde(rename = $text)] $name),* }

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

impl PartialSchema for Operation {
    fn schema() -> RefOr<Schema> {
        let names = Self::ALL.iter().map(|operation| operation.name());
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names)).into()
    }
}

impl ToSchema for Operation {}

impl FromStr for Operation {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let expected = "a name that the metrics show, such as lookup, getattr, read or write";
        let found = Self::ALL.iter().find(|operation| operation.name() == name);
        found.copied().ok_or_else(|| UnknownName { what: "operation", given: name.into(), expected })
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

    #[test]
    fn operations_have_one_name_everywhere() {
        for operation in Operation::ALL {
            assert_eq!(operation.name().parse(), Ok(*operation));
            assert_eq!(serde_json::to_value(operation).unwrap(), operation.name());
        }
        assert!("reed".parse::<Operation>().is_err());
    }
}
