//! Where a mount's state is kept: a file of JSON in the state directory, replaced as a whole.
//!
//! After a crash or a loss of power at any moment the file holds the state before or the one after: the new one is written
//! to another file, synced, renamed, and the folder synced. A file that cannot be understood is left as it is, and is not
//! written over: it may hold a pin, and whoever came after would serve by the backend that it forbids. So it is never set
//! aside by the program; an administrator looks, and moves it away.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::claim::{Claim, NoClaim};
use super::state::Phase;

/// Version of the file. A later one is refused; fields that are unknown are not, so adding some needs no new version.
const VERSION: u32 = 1;
/// More than any state has.
const LARGEST: u64 = 1 << 20;
/// Of 255 bytes that a name may have (NAME_MAX), with room for endings.
const LONGEST_NAME: usize = 200;

/// Why what was kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A later version has written it.
    #[error(
        "{} was written by a later version of the program (its format is {version}, this program knows {VERSION}): install that version again, or, if no pin in it matters any more, move the file away",
        file.display()
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Version of its format.
        version: u64,
    },
    /// It is not what this program writes.
    #[error(
        "{} is damaged ({why}): look whether it holds a pin (`\"state\": \"rolled_back\"`), then move the file away; if it does, `lighthouse-fs rollback` pins the mount again", file.display()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another daemon uses it, and has a mount of the same name.
    #[error(
        "{} is used by another daemon ({}): give this one another daemon.state_dir, or the mount another name",
        file.display(),
        pid.map_or_else(|| "its process is not known".into(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The file.
        file: PathBuf,
        /// That daemon's process, if it is known.
        pid: Option<u32>,
    },
    /// The system does not let it be read.
    #[error("{} cannot be read ({source}): let the daemon's user read it, or set daemon.state_dir", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a state was not kept. What was kept before is whole.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be written ({what}: {source}): {}", file.display(), remedy(source))]
pub struct SaveError {
    file: PathBuf,
    what: &'static str,
    source: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room there, or set daemon.state_dir",
        ErrorKind::ReadOnlyFilesystem => "make it writable, or set daemon.state_dir",
        ErrorKind::PermissionDenied => "let the daemon's user write there, or set daemon.state_dir",
        _ => "set daemon.state_dir to a folder that can be written",
    }
}

#[derive(Serialize, Deserialize)]
struct Kept<P> {
    version: u32,
    rollout: P,
}

#[derive(Deserialize)]
struct VersionAlone {
    version: u64,
}

/// The steps of replacing a file, so that tests can let each of them fail.
trait Disk {
    /// A file that is being written.
    type File;
    /// Makes a folder, for this user alone, and those above it.
    fn make_folder(&self, folder: &Path) -> io::Result<()>;
    /// Makes a file, for this user alone, or empties it.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// Fills it.
    fn write(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;
    /// Lets its bytes outlive a loss of power.
    fn sync(&self, file: &Self::File) -> io::Result<()>;
    /// Gives it the name of the file that it replaces.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Lets the names in a folder outlive a loss of power.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Takes away what was not finished.
    fn remove(&self, path: &Path);
}

/// The one there is.
struct RealDisk;

impl Disk for RealDisk {
    type File = File;

    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        let Some(above) = folder.parent() else { return Err(ErrorKind::NotFound.into()) };
        self.make_folder(above)?;
        match DirBuilder::new().mode(0o700).create(folder) {
            // Whatever the umask is at this moment.
            Ok(()) => std::fs::set_permissions(folder, Permissions::from_mode(0o700))?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        // A folder that is lost takes along what was synced in it.
        self.sync_folder(above)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).custom_flags(flags).open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn remove(&self, path: &Path) {
        // The next attempt empties what is left; nobody reads it.
        let _ = std::fs::remove_file(path);
    }
}

/// Keeps the state of one mount. Its methods wait for the disk: never on a thread that serves others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Store {
    folder: PathBuf,
    name: String,
}

impl Store {
    /// In the folder, which is made when it is needed. `name` tells the mount from all others whose state is kept there,
    /// those of other daemons of the same user included.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>, name: &str) -> Self {
        Self { folder: folder.into(), name: file_name(name) }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// Keeps other daemons from it. Waits so long for one that is about to end. `None` where nothing can be made in the folder:
    /// nobody can keep anything there then.
    ///
    /// # Errors
    /// When another daemon uses it.
    pub(super) fn claim(&self, patience: Duration) -> Result<Option<Claim>, LoadError> {
        let path = self.folder.join(format!(".{}.lock", self.name));
        let claimed = RealDisk.make_folder(&self.folder).map_err(NoClaim::Failed);
        match claimed.and_then(|()| Claim::take(&path, patience)) {
            Ok(claim) => Ok(Some(claim)),
            Err(NoClaim::Taken(pid)) => Err(LoadError::InUse { file: self.file(), pid }),
            Err(NoClaim::Failed(error)) => {
                tracing::debug!(path = %path.display(), %error, "other daemons cannot be kept from a mount's state");
                Ok(None)
            }
        }
    }

    /// What was kept; `None` if nothing was.
    ///
    /// # Errors
    /// When it is not known what was kept. The file is as it was.
    pub fn load(&self) -> Result<Option<Phase>, LoadError> {
        let file = self.file();
        let bytes = match read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LoadError::Unreadable { file, source }),
        };
        understand(&bytes).map(Some).map_err(|wrong| match wrong {
            Wrong::Newer(version) => LoadError::Newer { file, version },
            Wrong::Damaged(why) => LoadError::Damaged { file, why },
        })
    }

    /// Keeps a state.
    ///
    /// # Errors
    /// When it is not kept; then what was kept before is, or, if it was the very last step that failed, this state may be.
    pub fn save(&self, phase: &Phase) -> Result<(), SaveError> {
        replace(&RealDisk, &self.folder, &self.name, phase)
    }
}

fn replace<D: Disk>(disk: &D, folder: &Path, name: &str, phase: &Phase) -> Result<(), SaveError> {
    let file = folder.join(name);
    let failed = |what| {
        let file = file.clone();
        move |source| SaveError { file, what, source }
    };
    let mut bytes = serde_json::to_vec_pretty(&Kept { version: VERSION, rollout: phase })
        .map_err(|error| failed("encoding it")(error.into()))?;
    bytes.push(b'\n');
    disk.make_folder(folder).map_err(failed("making the folder"))?;
    let new = folder.join(format!(".{name}.new"));
    let written = (|| {
        let mut open = disk.create(&new).map_err(failed("making a new file"))?;
        disk.write(&mut open, &bytes).map_err(failed("writing a new file"))?;
        disk.sync(&open).map_err(failed("syncing a new file"))?;
        drop(open);
        disk.rename(&new, &file).map_err(failed("putting the new file in its place"))
    })();
    written.inspect_err(|_| disk.remove(&new))?;
    disk.sync_folder(folder).map_err(failed("syncing the folder"))
}

/// Never more than a state can have, and no waiting for a FIFO's other end.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    let mut bytes = Vec::new();
    open.take(LARGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[derive(PartialEq, Debug)]
enum Wrong {
    Newer(u64),
    Damaged(String),
}

fn understand(bytes: &[u8]) -> Result<Phase, Wrong> {
    let damaged = |error: serde_json::Error| Wrong::Damaged(error.to_string());
    let VersionAlone { version } = serde_json::from_slice(bytes).map_err(damaged)?;
    match version {
        0 => Err(Wrong::Damaged("it has no version that ever was".into())),
        version if version > u64::from(VERSION) => Err(Wrong::Newer(version)),
        _ => serde_json::from_slice::<Kept<Phase>>(bytes).map(|kept| kept.rollout).map_err(damaged),
    }
}

/// A mount's name, with whatever could lead elsewhere as `%XX`; a long one is cut, and told apart by a hash.
fn file_name(name: &str) -> String {
    let mut escaped = String::new();
    for (index, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => escaped.push(byte.into()),
            b'.' if index > 0 => escaped.push('.'),
            other => escaped += &format!("%{other:02X}"),
        }
    }
    if escaped.len() > LONGEST_NAME {
        let hash: String = Sha256::digest(name).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        escaped.truncate(LONGEST_NAME - 17);
        // `%` alone is in no other name.
        escaped += &format!("%{hash}");
    }
    escaped + ".json"
}

#[cfg(test)]
mod tests;
