//! The program `lighthouse-fs`; see the library for the map of the house.

use std::process::ExitCode;

fn main() -> ExitCode {
    lighthouse_fs::backend::act_as_mount_helper();
    lighthouse_fs::cli::main()
}
