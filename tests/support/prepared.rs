//! For tests that start sessions in their own process.

/// Crate fuse3 needs its helper in PATH, which a process can only prepare while it has one thread: so these tests run in
/// a child of their own.
pub fn in_prepared_child(test: &str, body: fn()) {
    const MARK: &str = "LIGHTHOUSE_FS_TEST_CHILD";
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_lighthouse-fs"), folder.path().join("fusermount3"))
        .expect("a link to the helper");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap_or_default());
    let status = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("PATH", path)
        .env(MARK, "1")
        .status()
        .expect("a child");
    assert!(status.success(), "{test} failed in its child");
}
