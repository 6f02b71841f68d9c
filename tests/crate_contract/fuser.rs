//! Habits of crate fuser: threads that each block in `read(2)` on the number that the session was given.

mod stage;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use fuser::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{MsgFlags, recv};
use rustix::time::ClockId;

use self::stage::{FAIL, Held, PANIC, Running, habit, open, serve, start, start_meeting, start_prepared};
use crate::child::in_child;
use crate::refusal::refuse;
use crate::{Answer, GLANCE, Habit, Kernel, LIMIT, TOO_LARGE, UNHEARD_OF, pair, point};

const INTERRUPT: u32 = 36;
const WRITE: u32 = 16;

#[test]
fn the_handshake_is_done_on_the_number_that_was_given() {
    const HABIT: Habit = habit(
        "Session::from_fd blocks until it has read FUSE_INIT, and reads and writes the descriptor number it was given, \
         not a copy of it",
        "src/connection/port/blocking.rs re-points that number with dup3(2) for as long as the session lives",
        "find the number that the session reads as port/polled.rs does in fdinfo, or give the crate a constructor that \
         keeps the number",
    );
    let (first, descriptor) = pair();
    let (second, other) = pair();
    let number = descriptor.as_raw_fd();
    let (sender, opened) = mpsc::channel();
    std::thread::spawn(move || drop(sender.send(open(Arc::new(serve), descriptor, 1))));
    // A protocol that it does not speak: it names its own and reads on. So it has chosen what it reads by now.
    first.init_of(8);
    first.answer(&HABIT, "FUSE_INIT of a newer protocol");
    point(number, &other);
    // It blocks in a read of the first socket, or comes to read the second: either way it must answer on the second.
    first.init();
    second.init();
    let answer = second.answer(&HABIT, "FUSE_INIT on the file that the number refers to now");
    HABIT.holds(answer.error == 0, format_args!("{answer:?}"));
    let (session, was_initialised) = HABIT
        .receive(&opened, "Session::from_fd after FUSE_INIT was answered")
        .unwrap_or_else(|error| HABIT.broken(format_args!("Session::from_fd: {error}")));
    HABIT.holds(was_initialised, "Session::from_fd returned before FUSE_INIT had come");
    HABIT.holds(first.answer_now().is_none(), "an answer on the file that the number referred to before");
    drop(session);
}

#[test]
fn a_handshake_ends_with_anything_but_init() {
    const HABIT: Habit = habit(
        "Session::from_fd returns an error when it reads FUSE_DESTROY instead of FUSE_INIT",
        "src/backend/fuse2.rs ends a handshake in that way that would wait for ever, and joins its thread",
        "end it by closing our end of the socket, or leave its thread behind",
    );
    let (kernel, descriptor) = pair();
    kernel.destroy();
    let opened = HABIT.within("Session::from_fd", move || open(Arc::new(serve), descriptor, 1).is_ok());
    HABIT.holds(!opened, "a session");
}

#[test]
fn each_of_n_threads_takes_one_message_at_a_time() {
    const HABIT: Habit = habit(
        "n_threads threads block in read(2) on the session's number, and each takes one message and handles it itself",
        "src/connection/port/blocking.rs musters them: as many nudges (FORGET) as there are threads, so that nobody can \
         be inside a read of the device any more",
        "find out how requests are read now; without a bound on who may be reading, detach needs the order of \
         port/polled.rs (DetachFirst)",
    );
    let (running, meeting, _) = start_meeting(&HABIT, 3);
    for _ in 0..5 {
        running.kernel.forget(u64::MAX);
    }
    meeting.gather(&HABIT, 3);
    // Nobody else reads, so the two others are in the socket still.
    let mut buffer = [0; 256];
    for _ in 0..2 {
        let taken = recv(running.file.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT);
        HABIT.holds(
            taken.is_ok(),
            format_args!("a fourth or fifth message was read while three were handled: {taken:?}"),
        );
    }
    meeting.dismiss(&HABIT);
}

#[test]
fn a_signal_makes_readers_look_their_number_up_again() {
    const HABIT: Habit = habit(
        "a read that a signal interrupts (EINTR) is tried again with the same number",
        "src/connection/port/blocking.rs re-points the number with dup3(2) and signals each reader, which moves it from \
         the device to the socket and back",
        "without a retry the session ends at each switch: patch the crate, or end and start sessions instead of moving \
         them",
    );
    extern "C" fn wake(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(wake), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, and nobody else in this program uses the signal.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.expect("a handler for SIGUSR2");

    let (running, meeting, gone) = start_meeting(&HABIT, 4);
    let readers = running.muster(&HABIT, &running.kernel, &meeting, 4);
    let (other, descriptor) = pair();
    for reader in &readers {
        HABIT.wait_until("a reader sleeps in read(2)", || state_of(*reader) == Some('S'));
    }
    point(running.number, &descriptor);
    for reader in &readers {
        // SAFETY: the handler is installed, and the number is a thread's of this process.
        unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), *reader, libc::SIGUSR2) };
    }
    let moved = running.muster(&HABIT, &other, &meeting, 4);
    HABIT.holds(moved == readers, format_args!("readers {readers:?} became {moved:?}"));
    HABIT.holds(gone.load(SeqCst) == 0, "a reader has ended");
    other.assert_served(&HABIT, "after the number was re-pointed");
}

/// The state of a thread as in `/proc/self/task/*/stat`.
fn state_of(thread: i32) -> Option<char> {
    let this = procfs::process::Process::myself().ok()?;
    Some(this.task_from_tid(thread).ok()?.stat().ok()?.state)
}

#[test]
fn eagain_is_tried_again() {
    const HABIT: Habit = habit(
        "a read that fails with EAGAIN is tried again (so readers spin, but live, on a descriptor that does not block)",
        "src/connection/port/blocking.rs survives a device descriptor that somebody else made non-blocking",
        "clear O_NONBLOCK before the session starts, and check it in Connection",
    );
    let running = start(&HABIT, 1, serve);
    rustix::io::ioctl_fionbio(&running.file, true).expect("O_NONBLOCK");
    running.kernel.assert_served(&HABIT, "on a descriptor that does not block");
    running.kernel.assert_served(&HABIT, "after reads that failed with EAGAIN");
    running.kernel.destroy();
}

#[test]
fn enoent_is_tried_again() {
    const HABIT: Habit = habit(
        "a read that fails with ENOENT is tried again",
        "the kernel gives it for a request whose program was killed while it was being read; src/connection/port/blocking.rs \
         takes the end of a reader for the end of the session",
        "catch the end of readers, and start the session again",
    );
    // In a process of its own: its reader spins for ever.
    in_child(&HABIT, "fuser::enoent_is_tried_again", || {
        let running = start_prepared(&HABIT, 1, serve, |number| refuse(libc::SYS_read, number, None, libc::ENOENT));
        // By other threads than this one.
        let spent = || {
            let time = |clock| Duration::try_from(rustix::time::clock_gettime(clock)).expect("a time");
            time(ClockId::ProcessCPUTime).saturating_sub(time(ClockId::ThreadCPUTime))
        };
        let start = spent();
        let end = Instant::now() + LIMIT;
        while spent() < start + Duration::from_millis(200) {
            HABIT.holds(running.ended.recv_timeout(GLANCE).is_err(), "the session has ended");
            HABIT.holds(Instant::now() < end, "nobody tries");
        }
    });
}

#[test]
fn enodev_ends_a_session_well() {
    const HABIT: Habit = habit(
        "a read that fails with ENODEV (the mount is gone) ends each reader, and Session::run returns Ok",
        "src/backend/fuse2.rs and port/blocking.rs: a session ends with its mount, without a word of alarm",
        "tell this error apart where `run` returns",
    );
    let running = start_prepared(&HABIT, 2, serve, |number| refuse(libc::SYS_read, number, None, libc::ENODEV));
    let ended = HABIT.receive(&running.ended, "the end of the session");
    HABIT.holds(ended.is_ok(), format_args!("{ended:?}"));
}

#[test]
fn an_answer_is_one_message_before_the_reply_call_returns() {
    const HABIT: Habit = habit(
        "a reply is written before the reply call returns, in one writev(2), to what the number refers to at that moment",
        "src/backend/fuse2.rs frees the request's slot after the call, and src/connection/port/blocking.rs takes a free \
         slot for an answer that was sent and needs a re-pointed number to divert it; the forwarder carries messages",
        "if replies are queued, a drain must wait for the queue; if they come in parts, the forwarder must join them",
    );
    let (other, descriptor) = pair();
    let other = Arc::new(other);
    let (sender, seen) = mpsc::channel();
    let number = Arc::new(AtomicUsize::new(0));
    let handler = {
        let (number, other) = (number.clone(), other.clone());
        move |held| {
            point(number.load(SeqCst) as RawFd, &descriptor);
            serve(held);
            drop(sender.send(other.answer_now()));
        }
    };
    let running = start(&HABIT, 1, handler);
    number.store(running.number as usize, SeqCst);
    // The longest of small replies; from here on the number refers to the other socket, which is empty.
    let size = lighthouse_fs::connection::port::SMALL_REPLY;
    for (unique, length) in [(running.kernel.read(1, size as u32), 16 + size), (other.getattr(1), 16 + 104)] {
        let answer = HABIT.receive(&seen, "a reply");
        let as_expected = |answer: &Answer| {
            (answer.unique, answer.error, answer.is_whole, answer.length) == (unique, 0, true, length)
        };
        HABIT.holds(
            answer.as_ref().is_some_and(as_expected),
            format_args!("after the reply call had returned there was {answer:?} and not {length} bytes for {unique}"),
        );
    }
    HABIT.holds(running.kernel.answer_now().is_none(), "an answer on the file that the number referred to before");
}

#[test]
fn a_reply_that_fails_is_no_reason_to_end() {
    const HABIT: Habit = habit(
        "a reply that cannot be written (ENOENT: nobody waits for it any more; or any other error) is logged, and the \
         session goes on",
        "src/backend/fuse2.rs answers requests late that src/connection/port/blocking.rs has answered at the deadline, \
         and spends reply objects on errors that the kernel ignores",
        "such answers must not reach the crate: patch it, or park the reply object",
    );
    let handler = |held| match held {
        Held::GetAttr(FAIL, reply) => reply.error(Errno::EIO),
        held => serve(held),
    };
    // An error is a header alone, the one part of its writev(2).
    let running = start_prepared(&HABIT, 1, handler, |number| refuse(libc::SYS_writev, number, Some(1), libc::ENOENT));
    running.kernel.getattr(FAIL.0);
    running.kernel.assert_served(&HABIT, "after a reply that failed with ENOENT");
    running.kernel.read(1, TOO_LARGE);
    running.kernel.assert_served(&HABIT, "after a reply that failed with EMSGSIZE");
    running.kernel.destroy();
    let ended = HABIT.receive(&running.ended, "the end of the session after FUSE_DESTROY");
    HABIT.holds(ended.is_ok(), format_args!("{ended:?}"));
}

#[test]
fn destroy_ends_one_reader_and_its_thread_locals() {
    const HABIT: Habit = habit(
        "FUSE_DESTROY ends exactly one reader, with the destructors of its thread-locals; when n_threads have ended, \
         Session::run returns Ok",
        "src/connection/port/blocking.rs retires a session with one FUSE_DESTROY a thread, and learns from a thread-local \
         that a reader has ended",
        "find what ends readers, and how their end can be noticed: an unnoticed end leaves a mount without a server",
    );
    let (running, meeting, gone) = start_meeting(&HABIT, 3);
    for ended in 0..3 {
        // All that should be left are there, so no more than `ended` readers have gone.
        running.muster(&HABIT, &running.kernel, &meeting, 3 - ended);
        HABIT.holds(gone.load(SeqCst) == ended, format_args!("{} readers have ended", gone.load(SeqCst)));
        HABIT.holds(running.ended.try_recv().is_err(), "the session ends while readers live");
        running.kernel.destroy();
        HABIT.wait_until("a reader's thread-local is dropped", || gone.load(SeqCst) > ended);
    }
    let ended = HABIT.receive(&running.ended, "Session::run when all readers have ended");
    HABIT.holds(ended.is_ok(), format_args!("{ended:?}"));
}

#[test]
fn a_notifier_keeps_the_number_open() {
    const HABIT: Habit = habit(
        "the session's descriptor stays open, at the same number, while a Notifier lives, also after the session's end, \
         and is closed with the last one",
        "src/backend/fuse2.rs gives a Notifier to the port, so that src/connection/port/blocking.rs never re-points a \
         number that belongs to somebody else by now",
        "keep something else that holds the descriptor; without, the port may re-point a stranger's file",
    );
    let Running { kernel, number, file, notifier, ended } = start(&HABIT, 1, serve);
    kernel.destroy();
    HABIT.receive(&ended, "the end of the session").unwrap_or_else(|error| HABIT.broken(error));
    drop(file);
    HABIT.holds(!kernel.is_hung_up(), "the descriptor was closed with the session");
    // Only the session's descriptor refers to that file now: re-pointing the number must close it.
    let (other, descriptor) = pair();
    point(number, &descriptor);
    drop(descriptor);
    HABIT.wait_until("the number was re-pointed", || kernel.is_hung_up());
    HABIT.holds(!other.is_hung_up(), "the number was not the session's");
    drop(notifier);
    HABIT.wait_until("the last notifier has closed the descriptor", || other.is_hung_up());
}

#[test]
fn what_it_does_not_know_is_answered_enosys() {
    const HABIT: Habit = habit(
        "FUSE_INTERRUPT and operations that the crate does not know are answered ENOSYS",
        "docs: the kernel then sends no more interrupts (fc->no_interrupt), for both backends, which is harmless",
        "if INTERRUPT is served now, check that src/backend/fuse2.rs and fuse3.rs agree on it; if there is no answer, \
         programs hang",
    );
    let running = start(&HABIT, 1, serve);
    for opcode in [INTERRUPT, UNHEARD_OF] {
        let unique = running.kernel.send(opcode, 1, &[0; 8]);
        let answer = running.kernel.answer(&HABIT, &format!("opcode {opcode}"));
        HABIT.holds((answer.unique, answer.error) == (unique, libc::ENOSYS), format_args!("{answer:?} to {opcode}"));
    }
    running.kernel.assert_served(&HABIT, "afterwards");
    running.kernel.destroy();
}

#[test]
fn requests_of_any_user_are_served() {
    const HABIT: Habit = habit(
        "with SessionACL::All the crate refuses nobody",
        "src/backend/fuse2.rs: the mount's own options decide (allow_other, default_permissions)",
        "find the setting that switches the crate's own check off",
    );
    // Requests of these tests come from a user who is not this one.
    let running = start(&HABIT, 1, serve);
    running.kernel.assert_served(&HABIT, "for another user");
    running.kernel.destroy();
}

/// A request that costs the session one of two readers.
#[track_caller]
fn assert_it_costs_a_reader(habit: &Habit, answer: Option<i32>, ask: impl FnOnce(&Kernel) -> u64) {
    let (running, meeting, gone) = start_meeting(habit, 2);
    running.muster(habit, &running.kernel, &meeting, 2);
    let unique = ask(&running.kernel);
    habit.wait_until("the reader has ended", || gone.load(SeqCst) > 0);
    let given = running.kernel.answer_now().map(|answer| (answer.unique, answer.error));
    habit.holds(given == answer.map(|error| (unique, error)), format_args!("the answer was {given:?}"));
    running.kernel.assert_served(habit, "by the other reader");
    running.kernel.destroy();
    let ended = habit.receive(&running.ended, "the end of the session after FUSE_DESTROY to the other reader");
    habit.holds(ended.is_err(), "Session::run says that all went well");
}

#[test]
fn a_panic_costs_a_reader_and_is_answered_eio() {
    const HABIT: Habit = habit(
        "a panic in a handler is answered EIO and ends its reader, with the destructors of its thread-locals; the other \
         readers go on, and Session::run returns an error",
        "src/backend/mod.rs (`guarded`) catches panics for that reason, and src/connection/port/blocking.rs notices the \
         end of a reader that panicked all the same",
        "if a panic aborts or hangs the process, look at what the crate does around handlers; if it ends nothing any \
         more, `guarded` is a second net",
    );
    assert_it_costs_a_reader(&HABIT, Some(libc::EIO), |kernel| kernel.getattr(PANIC.0));
}

#[test]
fn a_write_that_lies_about_its_length_costs_a_reader() {
    const HABIT: Habit = habit(
        "a WRITE with other data than its header says panics in the crate, unanswered, and ends its reader",
        "nothing: the kernel never does it; tests/opcodes.rs expects it (`is_fatal`)",
        "if it is answered now, which is better, expect an answer here and in tests/opcodes.rs",
    );
    assert_it_costs_a_reader(&HABIT, None, |kernel| {
        let mut body = [0; 40];
        body[16] = 3;
        kernel.send(WRITE, 1, &body)
    });
}
