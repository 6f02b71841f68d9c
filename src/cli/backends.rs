//! `backends`: what works on this machine, and for what does not, why and what to do.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::status::plain;
use super::{say, say_json};
use crate::backend::crate_of;
use crate::config::{Backend, Helper};
use crate::connection::helper::{self, Found, NotFound, Privilege};

const DEVICE: &str = "/dev/fuse";

const EXAMPLES: &str = "Examples:
  lighthouse-fs backends
  lighthouse-fs backends --json | jq '.backends[] | select(.works | not) | .remedy'";

/// Show which backends and mount helpers work on this machine
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Answer {
    schema: u32,
    backends: Vec<BackendAnswer>,
    device: DeviceAnswer,
    kernel: String,
}

#[derive(Debug, Serialize)]
struct BackendAnswer {
    name: Backend,
    works: bool,
    built_in: bool,
    #[serde(rename = "crate")]
    crate_name: &'static str,
    crate_version: &'static str,
    helper: Option<HelperAnswer>,
    reason: Option<String>,
    remedy: Option<String>,
}

#[derive(Debug, Serialize)]
struct HelperAnswer {
    path: PathBuf,
    version: String,
    set_uid: bool,
}

#[derive(Debug, Serialize)]
struct DeviceAnswer {
    path: &'static Path,
    works: bool,
    reason: Option<String>,
    remedy: Option<String>,
}

/// Looks around and tells.
pub fn run(args: &Args) -> ExitCode {
    let device = device(OpenOptions::new().read(true).write(true).open(DEVICE).map(drop));
    let privilege = Privilege::own();
    let backends = Backend::ALL.map(|backend| judge(backend, helper::find(helper_of(backend)), privilege, &device));
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let answer = Answer { schema: 1, backends: backends.into(), device, kernel };
    if args.json { say_json(&answer) } else { say(text(&answer)) }
}

fn helper_of(backend: Backend) -> Helper {
    match backend {
        Backend::Fuse2 => Helper::Fusermount,
        Backend::Fuse3 => Helper::Fusermount3,
    }
}

fn device(opened: io::Result<()>) -> DeviceAnswer {
    let remedy = opened.as_ref().err().map(helper::device_remedy);
    DeviceAnswer {
        path: Path::new(DEVICE),
        works: opened.is_ok(),
        reason: opened.err().map(|error| format!("{DEVICE} cannot be opened: {error}")),
        remedy: remedy.map(Into::into),
    }
}

fn judge(
    backend: Backend,
    found: Result<Found, NotFound>,
    privilege: Privilege,
    device: &DeviceAnswer,
) -> BackendAnswer {
    let built_in = backend.is_built_in();
    let obstacle = if built_in {
        let own = device.reason.clone().zip(device.remedy.clone());
        own.or_else(|| obstacle(&found, privilege))
    } else {
        Some(("this build does not have it".into(), format!("build with the cargo feature `{backend}`")))
    };
    let (crate_name, crate_version) = crate_of(backend);
    let helper = found.ok().map(|Found { path, version, set_uid }| HelperAnswer { path, version, set_uid });
    let works = obstacle.is_none();
    let (reason, remedy) = obstacle.unzip();
    BackendAnswer { name: backend, works, built_in, crate_name, crate_version, helper, reason, remedy }
}

/// What keeps a process of this privilege from mounting, and what to do.
fn obstacle(found: &Result<Found, NotFound>, privilege: Privilege) -> Option<(String, String)> {
    match (found, privilege) {
        (_, Privilege::Mount) => None,
        (Err(NotFound::Missing { name, package, passed_over }), _) => Some((
            format!("{name} is not in PATH{passed_over}, so no mount can start with it"),
            format!("install {package}, or run as root; `switch` to it works all the same"),
        )),
        (Err(other), _) => Some((other.to_string(), "run as root".into())),
        (Ok(found), _) => found.check(privilege).err().map(|why| (why.to_string(), why.remedy())),
    }
}

fn text(answer: &Answer) -> String {
    let mut table = plain(["BACKEND", "WORKS", "CRATE", "HELPER"]);
    for backend in &answer.backends {
        table.add_row([
            backend.name.to_string(),
            if backend.works { "yes" } else { "no" }.into(),
            format!("{} {}", backend.crate_name, backend.crate_version),
            backend
                .helper
                .as_ref()
                .map_or_else(|| "none".into(), |helper| format!("{} {}", helper.path.display(), helper.version)),
        ]);
    }
    let mut text = format!("{}\nkernel {}, {DEVICE} ", table.trim_fmt(), answer.kernel);
    text += if answer.device.works { "can be opened" } else { "cannot be opened" };
    for backend in &answer.backends {
        if let (Some(reason), Some(remedy)) = (&backend.reason, &backend.remedy) {
            text += &format!("\n{}: {reason}; {remedy}", backend.name);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn found(set_uid: bool) -> Result<Found, NotFound> {
        Ok(Found { path: "/usr/bin/fusermount3".into(), version: "3.14.0".into(), set_uid })
    }

    fn missing() -> Result<Found, NotFound> {
        helper::find_in(Helper::Fusermount3, &[])
    }

    #[rstest]
    #[case(found(true), Privilege::Ordinary, None)]
    #[case(missing(), Privilege::Mount, None)]
    #[case(found(false), Privilege::Mount, None)]
    #[case(found(false), Privilege::Ordinary, Some("is not set-uid"))]
    #[case(found(true), Privilege::Sealed, Some("no_new_privs"))]
    #[case(missing(), Privilege::Ordinary, Some("fusermount3 is not in PATH"))]
    fn what_mounting_needs(
        #[case] found: Result<Found, NotFound>,
        #[case] privilege: Privilege,
        #[case] expected: Option<&str>,
    ) {
        let obstacle = obstacle(&found, privilege);
        assert_eq!(obstacle.is_some(), expected.is_some());
        assert!(obstacle.is_none_or(|(why, _)| why.contains(expected.unwrap_or_default())));
    }

    #[rstest]
    #[case(io::ErrorKind::NotFound, "modprobe")]
    #[case(io::ErrorKind::PermissionDenied, "0666")]
    fn without_the_device_nothing_works(#[case] kind: io::ErrorKind, #[case] remedy: &str) {
        let device = device(Err(kind.into()));
        let answer = judge(Backend::Fuse3, found(true), Privilege::Mount, &device);
        assert!(!answer.works);
        if Backend::Fuse3.is_built_in() {
            assert!(answer.remedy.unwrap().contains(remedy));
        }
    }

    #[test]
    fn versions_are_those_of_the_lock_file() {
        let lock = include_str!("../../Cargo.lock");
        for (name, version) in Backend::ALL.map(crate_of) {
            assert!(lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"\n")), "{name} {version}");
        }
    }
}
