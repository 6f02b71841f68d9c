//! A directory of known names, whose listing is checked: none missing, none doubled, none that was never there.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{Counted, Tally, close};

/// A directory and what is in it.
pub struct Names {
    /// Where.
    pub dir: PathBuf,
    names: BTreeSet<OsString>,
}

impl Names {
    /// Makes the directory and `count` empty files in it. The names are `length` bytes long (at least 3).
    pub fn make(dir: PathBuf, count: usize, length: usize, tally: &mut Tally) -> Result<Self, Counted> {
        tally.run("mkdir", &dir, || fs::create_dir(&dir))?;
        let names: BTreeSet<_> = (0..count).map(|number| format!("{number:0length$}").into()).collect();
        for name in &names {
            let path = dir.join(name);
            let file = tally.run("create", &path, || File::create_new(&path))?;
            close(tally, &path, file)?;
        }
        Ok(Self { dir, names })
    }

    /// Lists and checks.
    pub fn list(&self, tally: &mut Tally) -> Result<(), Counted> {
        let seen = tally.run("readdir", &self.dir, || list(&self.dir))?;
        self.check(seen, tally);
        Ok(())
    }

    /// Checks what a whole listing gave.
    pub fn check(&self, seen: Vec<OsString>, tally: &mut Tally) {
        let mut missing = self.names.clone();
        let unexpected: Vec<_> = seen.into_iter().filter(|name| !missing.remove(name)).collect();
        tally.check("missing names", &self.dir, &missing, &BTreeSet::new());
        tally.check("doubled or unknown names", &self.dir, &unexpected, &Vec::<OsString>::new());
    }
}

fn list(dir: &Path) -> std::io::Result<Vec<OsString>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}
