//! The token that changing requests over TCP carry, and the file that it comes from.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;

/// Fewer characters could be guessed.
const SHORTEST: usize = 16;
/// More than any token has; a log that was named by mistake is not read to its end.
const LARGEST: u64 = 4 << 10;

/// A token. It is never shown, and compared in constant time.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

/// Why a file gives no token. The message names the file.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("the token file {} cannot be read: {source}; let the daemon's user read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is in it is no token, or not its owner's alone.
    #[error("the token file {} {what}; {remedy}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// What would be right.
        remedy: &'static str,
    },
}

impl Token {
    /// Reads one from a file, and says what an operator should know of that file. Blocks.
    ///
    /// # Errors
    /// Why there is none.
    pub fn read(path: &Path) -> Result<(Self, Option<String>), TokenError> {
        let unreadable = |source| TokenError::Unreadable { path: path.into(), source };
        let unusable = |what, remedy| TokenError::Unusable { path: path.into(), what, remedy };
        // Without waiting for the other end of a FIFO.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(unusable("is no regular file", "name a file with one line"));
        }
        if metadata.mode() & 0o002 != 0 {
            return Err(unusable("may be written by everybody", "`chmod 600` it, and put in a new token"));
        }
        let mut bytes = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        let token = bytes.trim_ascii();
        if token.len() < SHORTEST || bytes.len() as u64 > LARGEST || !token.iter().all(u8::is_ascii_graphic) {
            let what = "has no token: one line of at least 16 visible characters of ASCII without spaces";
            return Err(unusable(what, "`openssl rand -base64 32` makes one"));
        }
        // Container runtimes hand secrets in so, where nobody else can go.
        let warning = (metadata.mode() & 0o004 != 0).then(|| {
            format!("the token file {} can be read by every user of this machine: `chmod 640` it", path.display())
        });
        Ok((Self(token.into()), warning))
    }

    /// Whether this is it. Takes as long for a wrong one of the same length as for the right one.
    #[must_use]
    pub fn is(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    const GOOD: &str = "0123456789abcdef";

    fn read(text: &str, mode: u32) -> Result<(Token, Option<String>), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        Token::read(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_is_told_from_others_and_never_shown() {
        let (token, warning) = read(&format!("{GOOD}\n"), 0o600).unwrap();
        assert!(token.is(GOOD.as_bytes()) && warning.is_none());
        for other in ["", "0", "0123456789abcdeg", "0123456789abcdef0", "0123456789ABCDEF"] {
            assert!(!token.is(other.as_bytes()), "{other}");
        }
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn what_others_may_read_is_warned_of() {
        assert!(read(GOOD, 0o640).unwrap().1.is_none());
        assert!(read(GOOD, 0o444).unwrap().1.unwrap().contains("can be read by every user"));
    }

    #[rstest]
    #[case::empty("", 0o600, "has no token")]
    #[case::short("0123456789abcde\n", 0o600, "`openssl rand -base64 32` makes one")]
    #[case::two_lines("0123456789abcdef\n0123456789abcdef\n", 0o600, "has no token")]
    #[case::large(&"a".repeat(5000), 0o600, "has no token")]
    #[case::open(GOOD, 0o602, "may be written by everybody; `chmod 600` it")]
    fn what_is_no_token_is_refused(#[case] text: &str, #[case] mode: u32, #[case] why: &str) {
        let error = read(text, mode).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert!(text.is_empty() || !error.contains(text), "{error}");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let why = |path: &Path| Token::read(path).unwrap_err().to_string();
        assert!(why(&folder.path().join("gone")).contains("cannot be read: No such file"));
        assert!(why(folder.path()).contains("is no regular file"));
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(why(&fifo).contains("is no regular file"));
    }
}
