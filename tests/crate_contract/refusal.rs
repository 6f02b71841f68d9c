//! Errors that a device gives and a socket never does, put in place of single system calls by seccomp(2).

use std::os::fd::RawFd;

/// Offsets in `struct seccomp_data`: the call's number, and the low halves of its first and third argument.
const CALL: u32 = 0;
const LOW: u32 = if cfg!(target_endian = "little") { 0 } else { 4 };
const FIRST: u32 = 16 + LOW;
const THIRD: u32 = 32 + LOW;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUALS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// From now on `call` on the descriptor `number` fails with `error`, in this thread and in those that it starts. With
/// `parts` only a call whose third argument that is: an answer of the header alone is a `writev(2)` of one part.
pub fn refuse(call: libc::c_long, number: RawFd, parts: Option<u32>, error: i32) {
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let equals_or_allow = |value: u32, to_allow: u8| step(EQUALS, value, 0, to_allow);
    let mut program = vec![
        step(LOAD, CALL, 0, 0),
        equals_or_allow(call as u32, if parts.is_some() { 5 } else { 3 }),
        step(LOAD, FIRST, 0, 0),
        equals_or_allow(number as u32, if parts.is_some() { 3 } else { 1 }),
    ];
    if let Some(parts) = parts {
        program.push(step(LOAD, THIRD, 0, 0));
        program.push(equals_or_allow(parts, 1));
    }
    program.push(step(RETURN, libc::SECCOMP_RET_ERRNO | error as u32, 0, 0));
    program.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    rustix::thread::set_no_new_privs(true).expect("a thread that gains no privileges");
    // SAFETY: the filter has as many steps as it says, all of them valid, and the kernel copies it.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0, "seccomp(2): {}", std::io::Error::last_os_error());
}
