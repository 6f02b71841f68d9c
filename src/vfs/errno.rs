use std::fmt;
use std::io;

/// An error number of `errno(3)`, positive. What a call returns is what the program in the mount sees.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

/// What a call of [`Vfs`](super::Vfs) returns.
pub type Result<T> = std::result::Result<T, Errno>;

macro_rules! numbers {
    ($($name:ident)*) => { $(
        #[doc = concat!("`", stringify!($name), "` of `errno(3)`.")]
        pub const $name: Errno = Errno(libc::$name);
    )* };
}

impl Errno {
    numbers! {
        EACCES EBADF EEXIST EFAULT EFBIG EINTR EINVAL EIO EISDIR ELOOP EMFILE ENAMETOOLONG ENFILE ENODATA ENODEV
        ENOENT ENOMEM ENOSPC ENOSYS ENOTCONN ENOTDIR ENOTEMPTY ENOTTY ENXIO EOPNOTSUPP EPERM ERANGE EROFS ESTALE EXDEV
    }

    /// From a raw number; anything outside 1 to 4095 (`MAX_ERRNO` of the kernel's `err.h`) becomes EIO.
    #[must_use]
    pub fn from_raw(number: i32) -> Self {
        if (1..=4095).contains(&number) { Self(number) } else { Self::EIO }
    }

    /// The positive number.
    #[must_use]
    pub fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", nix::errno::Errno::from_raw(self.0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(nix::errno::Errno::from_raw(self.0).desc())
    }
}

impl std::error::Error for Errno {}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Self {
        Self::from_raw(error.raw_os_error())
    }
}

impl From<nix::errno::Errno> for Errno {
    fn from(error: nix::errno::Errno) -> Self {
        Self::from_raw(error as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_the_kernels_range_become_eio() {
        assert_eq!(Errno::from_raw(libc::ENOENT), Errno::ENOENT);
        for wrong in [0, -2, 4096, i32::MIN, i32::MAX] {
            assert_eq!(Errno::from_raw(wrong), Errno::EIO);
        }
    }
}
