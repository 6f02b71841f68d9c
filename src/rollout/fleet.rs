//! Which machines of a fleet take part: a stable hash decides, so that nothing has to be agreed upon, and raising the
//! weight only ever adds machines.
//!
//! The hash is SHA-256 of three lines, machine id, mount and candidate; its first four bytes, as a big-endian number,
//! modulo 10,000, are the machine's *place*. It takes part if its place is below a hundred times the weight. In a shell:
//!
//! ```sh
//! echo $((0x$(printf '%s\n%s\n%s\n' "$(cat /etc/machine-id)" projects fuse3 | sha256sum | head -c 8) % 10000))
//! ```
//!
//! The formula is a promise: with another one, a fleet would change its machines with an upgrade of the program.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::config::{Backend, Daemon};

/// Where a machine keeps its id (machine-id(5)).
const FILE: &str = "/etc/machine-id";
/// Places that there are for machines.
const PLACES: u32 = 10_000;

/// What tells a machine from others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MachineId(String);

/// Why it is not known which machine this is. Chance would be no answer: it would decide anew after each restart.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{} {what}: run systemd-machine-id-setup, or, in a container, set LIGHTHOUSE_MACHINE_ID (or daemon.machine_id) to the \
     name of the node",
    file.display()
)]
pub struct MachineIdError {
    file: PathBuf,
    what: String,
}

impl MachineId {
    /// As configured, else as the machine says.
    ///
    /// # Errors
    /// When neither says anything.
    pub fn of(daemon: &Daemon) -> Result<Self, MachineIdError> {
        daemon.machine_id.as_ref().map_or_else(|| Self::read(FILE.as_ref()), |id| Ok(Self(id.clone())))
    }

    pub(super) fn read(file: &Path) -> Result<Self, MachineIdError> {
        let wrong = |what: String| MachineIdError { file: file.into(), what };
        let text =
            std::fs::read_to_string(file).map_err(|error: io::Error| wrong(format!("cannot be read ({error})")))?;
        let id = text.trim();
        // Before the first boot of an image it is empty or `uninitialized`, on every machine alike.
        let is_one =
            id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) && id.bytes().any(|byte| byte != b'0');
        if is_one { Ok(Self(id.to_ascii_lowercase())) } else { Err(wrong("holds no machine id".into())) }
    }

    /// Whether the machine is among `weight` percent of all.
    #[must_use]
    pub fn takes_part(&self, mount: &str, candidate: Backend, weight: u8) -> bool {
        self.place(mount, candidate) < u32::from(weight) * (PLACES / 100)
    }

    fn place(&self, mount: &str, candidate: Backend) -> u32 {
        let hash = Sha256::digest(format!("{}\n{mount}\n{candidate}\n", self.0));
        let [a, b, c, d, ..] = <[u8; 32]>::from(hash);
        u32::from_be_bytes([a, b, c, d]) % PLACES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const MACHINES: usize = 10_000;
    const WEIGHTS: [u8; 11] = [0, 1, 2, 5, 10, 25, 50, 75, 90, 99, 100];

    /// As systemd-machine-id-setup would give them; always the same ones, so that the bounds below hold or do not.
    fn machines() -> Vec<MachineId> {
        let mut random = fastrand::Rng::with_seed(7);
        (0..MACHINES).map(|_| MachineId(format!("{:032x}", random.u128(..)))).collect()
    }

    fn share(machines: &[MachineId], mount: &str, weight: u8) -> usize {
        machines.iter().filter(|machine| machine.takes_part(mount, Backend::Fuse3, weight)).count()
    }

    /// Four standard deviations of a binomial distribution: one run in 16,000 would miss it by chance.
    fn bound(weight: u8) -> f64 {
        let p = f64::from(weight) / 100.0;
        4.0 * (MACHINES as f64 * p * (1.0 - p)).sqrt()
    }

    #[test]
    fn a_weight_is_that_share_of_machines() {
        let machines = machines();
        for weight in WEIGHTS {
            let (share, expected) = (share(&machines, "projects", weight) as f64, 100.0 * f64::from(weight));
            assert!((share - expected).abs() <= bound(weight), "{weight} %: {share} machines");
        }
    }

    /// Ids that people give count up; the hash must not care.
    #[test]
    fn names_that_count_up_are_shared_out_as_well() {
        let machines: Vec<_> = (0..MACHINES).map(|number| MachineId(format!("node-{number}"))).collect();
        for weight in [1, 10, 50, 90] {
            let share = share(&machines, "projects", weight) as f64;
            assert!((share - 100.0 * f64::from(weight)).abs() <= bound(weight), "{weight} %: {share} machines");
        }
    }

    #[test]
    fn raising_the_weight_only_adds_machines() {
        for machine in machines() {
            let takes_part: Vec<_> =
                WEIGHTS.into_iter().map(|weight| machine.takes_part("projects", Backend::Fuse3, weight)).collect();
            assert!(takes_part.is_sorted() && !takes_part[0] && takes_part[WEIGHTS.len() - 1], "{machine:?}");
        }
    }

    /// Of a machine's mounts one may take part and another not, and a bad candidate does not always meet the same machines.
    #[test]
    fn mounts_and_candidates_are_independent() {
        let machines = machines();
        let both = |other: &dyn Fn(&MachineId) -> bool| {
            let takes_part =
                |machine: &&MachineId| machine.takes_part("projects", Backend::Fuse3, 10) && other(machine);
            machines.iter().filter(takes_part).count() as f64
        };
        // A tenth of a tenth.
        let of_mounts = both(&|machine| machine.takes_part("archive", Backend::Fuse3, 10));
        let of_candidates = both(&|machine| machine.takes_part("projects", Backend::Fuse2, 10));
        for count in [of_mounts, of_candidates] {
            assert!((count - 100.0).abs() <= bound(1), "{count}");
        }
    }

    /// Computed with sha256sum, as the module's documentation says. Where this fails, an upgrade moves fleets.
    #[test]
    fn the_formula_stays() {
        let machine = MachineId("0123456789abcdef0123456789abcdef".into());
        assert_eq!(
            (machine.place("projects", Backend::Fuse3), machine.place("projects", Backend::Fuse2)),
            (6992, 3885)
        );
    }

    #[rstest]
    #[case::missing(None, "cannot be read (No such file")]
    #[case::empty(Some(""), "holds no machine id")]
    #[case::first_boot(Some("uninitialized\n"), "holds no machine id")]
    #[case::zeros(Some("00000000000000000000000000000000\n"), "holds no machine id")]
    fn without_an_id_nothing_is_guessed(#[case] text: Option<&str>, #[case] why: &str) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("machine-id");
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let error = MachineId::read(&file).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("LIGHTHOUSE_MACHINE_ID"), "{error}");
    }

    #[test]
    fn what_is_configured_comes_first() {
        let daemon = Daemon { machine_id: Some("node-17".into()), ..Daemon::new("/run/control.sock") };
        assert_eq!(MachineId::of(&daemon), Ok(MachineId("node-17".into())));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("machine-id");
        std::fs::write(&file, "0123456789ABCDEF0123456789abcdef\n").unwrap();
        assert_eq!(MachineId::read(&file), Ok(MachineId("0123456789abcdef0123456789abcdef".into())));
    }
}
