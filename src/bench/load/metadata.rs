//! A name's whole life again and again: made, filled, renamed, linked, read through a link, removed.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use fastrand::Rng;

use super::names::Names;
use super::{Counted, Tally, Worker, close, pattern};

/// Names in the directory that is listed.
const NAMES: usize = 100;
/// Bytes of a file.
const LENGTH: usize = 24;

/// Works on one name after the other.
pub struct Metadata {
    place: PathBuf,
    rng: Rng,
    names: Names,
    round: u64,
}

impl Metadata {
    pub fn start(place: &Path, rng: Rng, tally: &mut Tally) -> Result<Self, Counted> {
        let names = Names::make(place.join("names"), NAMES, 8, tally)?;
        Ok(Self { place: place.into(), rng, names, round: 0 })
    }

    /// A name of this round: what an unfinished round left behind is in nobody's way.
    fn path(&self, role: &str) -> PathBuf {
        self.place.join(format!("{role}-{}", self.round))
    }

    fn create(&mut self, path: &Path, tally: &mut Tally) -> Result<Vec<u8>, Counted> {
        let content = pattern::content(LENGTH, self.rng.u64(..), 0);
        let mut file = tally.run("create", path, || File::create_new(path))?;
        let written = tally.run("write", path, || file.write(&content))?;
        tally.check("bytes written", path, &written, &LENGTH);
        close(tally, path, file)?;
        let found = tally.run("stat", path, || fs::symlink_metadata(path))?;
        tally.check("size", path, &found.len(), &(LENGTH as u64));
        Ok(content)
    }

    fn files(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        let [new, file, link, symbolic] = ["new", "file", "link", "symbolic"].map(|role| self.path(role));
        let content = self.create(&new, tally)?;
        tally.run("rename", &new, || fs::rename(&new, &file))?;
        check_gone(&new, tally)?;
        tally.run("link", &link, || fs::hard_link(&file, &link))?;
        tally.run("symlink", &symbolic, || symlink(&link, &symbolic))?;
        let target = tally.run("readlink", &symbolic, || fs::read_link(&symbolic))?;
        tally.check("target", &symbolic, &target, &link);
        let mode = if self.rng.bool() { 0o600 } else { 0o640 };
        tally.run("chmod", &file, || fs::set_permissions(&file, Permissions::from_mode(mode)))?;
        let found = tally.run("stat", &file, || fs::symlink_metadata(&file))?;
        tally.check("mode", &file, &(found.mode() & 0o7777), &mode);
        tally.check("number of links", &file, &found.nlink(), &2);
        let read = tally.run("read", &symbolic, || fs::read(&symbolic))?;
        tally.check_content(&symbolic, 0, &read, &content);
        for path in [symbolic, link, file] {
            tally.run("unlink", &path, || fs::remove_file(&path))?;
            check_gone(&path, tally)?;
        }
        Ok(())
    }

    fn directory(&self, tally: &mut Tally) -> Result<(), Counted> {
        let path = self.path("directory");
        tally.run("mkdir", &path, || fs::create_dir(&path))?;
        let found = tally.run("stat", &path, || fs::symlink_metadata(&path))?;
        tally.check("is a directory", &path, &found.is_dir(), &true);
        tally.run("rmdir", &path, || fs::remove_dir(&path))?;
        check_gone(&path, tally)
    }
}

fn check_gone(path: &Path, tally: &mut Tally) -> Result<(), Counted> {
    let exists = tally.run("stat", path, || path.try_exists())?;
    tally.check("exists", path, &exists, &false);
    Ok(())
}

impl Worker for Metadata {
    fn step(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        self.round += 1;
        self.files(tally)?;
        self.directory(tally)?;
        if self.round.is_multiple_of(8) { self.names.list(tally) } else { Ok(()) }
    }
}
