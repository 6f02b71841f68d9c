//! Out of descriptors is an answer, not an end. In a program of its own, since the limit is the whole process's.

use std::ffi::OsStr;

use lighthouse_fs::vfs::{Access, Caller, Counts, Errno, PassThrough, ROOT, Vfs};
use rustix::process::{Resource, getrlimit, setrlimit};

#[test]
fn lookups_say_emfile_and_work_again_after_forget() {
    const FILES: usize = 200;
    let source = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..FILES).map(|number| format!("file-{number}")).collect();
    for name in &names {
        std::fs::write(source.path().join(name), "").unwrap();
    }
    let vfs = PassThrough::new(source.path(), Access::ReadWrite).unwrap();
    let caller = Caller::default();
    let lookup = |name: &String| vfs.lookup(&caller, ROOT, OsStr::new(name)).map(|found| found.attr.node);
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: Some(100), ..limit }).unwrap();

    let (found, refused): (Vec<_>, Vec<_>) = names.iter().map(lookup).partition(Result::is_ok);
    assert!(found.len() > 50 && refused.len() > 50, "{} were found", found.len());
    assert!(refused.iter().all(|answer| *answer == Err(Errno::EMFILE)));
    assert_eq!(vfs.counts(), Counts { nodes: found.len(), handles: 0 });
    let first = found[0].unwrap();
    assert_eq!(lookup(&names[0]), Ok(first), "what is known needs no further descriptor");
    assert_eq!(vfs.open(&caller, first, libc::O_RDONLY), Err(Errno::EMFILE));
    assert_eq!(vfs.opendir(&caller, ROOT, 0), Err(Errno::EMFILE));

    vfs.forget(first, 1);
    found.into_iter().for_each(|node| vfs.forget(node.unwrap(), 1));
    assert_eq!(vfs.counts(), Counts { nodes: 0, handles: 0 });
    assert!(names[FILES - 50..].iter().all(|name| lookup(name).is_ok()));
    setrlimit(Resource::Nofile, limit).unwrap();
}
