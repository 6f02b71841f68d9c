//! Habits of crate fuse3: one read loop and a task for each request, on the tokio runtime that it is called on.

mod stage;

use std::os::fd::RawFd;

use rustix::event::epoll;

use self::stage::{
    Event, FAIL, GATED, Mounted, PANIC, answer, habit, join, let_run, mount, on_runtime, start, tasks, until,
};
use crate::child::helper_calls;
use crate::refusal::refuse;
use crate::{Habit, TOO_LARGE, UNHEARD_OF, pair, point};

#[test]
fn the_helper_is_fusermount3_of_path() {
    const HABIT: Habit = habit(
        "mount_with_unprivileged runs fusermount3 of PATH once, with a socket's number in _FUSE_COMMFD, the place to mount \
         on as the last argument, and inheritable descriptors; and takes the descriptor that comes through the socket",
        "src/backend/fuse3.rs (HelperLink, send_set): our program is that helper, and sends the port's set",
        "follow it in `send_set`, or patch the crate with a constructor from a descriptor",
    );
    on_runtime(&HABIT, "fuse3::the_helper_is_fusermount3_of_path", || async {
        let session = start(&HABIT).await;
        let calls = helper_calls();
        HABIT.holds(calls.len() == 1, format_args!("it was called {} times", calls.len()));
        let (socket, arguments) = calls[0].split_first().expect("a line for the socket");
        HABIT.holds(socket.parse::<RawFd>().is_ok(), format_args!("_FUSE_COMMFD was {socket:?}"));
        HABIT.holds(arguments.last() == Some(&session.place), format_args!("its arguments were {arguments:?}"));
        session.assert_served(&HABIT, "through the descriptor that was sent").await;
    });
}

#[test]
fn nothing_is_read_before_the_first_await() {
    const HABIT: Habit = habit(
        "mount_with_unprivileged keeps the descriptor that it was sent, as the only one of its open file, and reads nothing \
         from it on a runtime of one thread until something is awaited",
        "src/connection/port/polled.rs finds the number by its mark in fdinfo and re-points it before the first read, \
         which would fail on the set that was sent",
        "if it is not found: follow what the crate does with the descriptor. If it is read: send a socket, and add it to a \
         set later",
    );
    on_runtime(&HABIT, "fuse3::nothing_is_read_before_the_first_await", || async {
        // FUSE_INIT waits and makes the set readable, so a task that had run would have read, and met EINVAL.
        let mut session = mount(&HABIT).await;
        HABIT.holds(session.seen.events.lock().is_empty(), "the file system was called");
        point(session.number, &session.socket);
        let ended = tokio::select! {
            biased;
            end = &mut session.handle => Some(end),
            answer = answer(&HABIT, &session.kernel, "FUSE_INIT") => {
                HABIT.holds(answer.error == 0 && answer.is_whole, format_args!("{answer:?} to FUSE_INIT"));
                None
            }
        };
        HABIT.holds(ended.is_none(), format_args!("the session has ended: {ended:?}"));
        session.assert_served(&HABIT, "on the number that was re-pointed").await;
    });
}

#[test]
fn ready_is_called_once_with_the_answer_to_init() {
    const HABIT: Habit = habit(
        "Filesystem::ready is called once, in the poll that answers FUSE_INIT and before any request is read",
        "src/backend/fuse3.rs (`ready`) gives its Notify to the port, and `serve` relies on it when FUSE_INIT is answered",
        "wait in `serve` for the call instead of for the answer",
    );
    on_runtime(&HABIT, "fuse3::ready_is_called_once_with_the_answer_to_init", || async {
        let session = mount(&HABIT).await;
        let unique = session.kernel.getattr(1);
        point(session.number, &session.socket);
        session.answer(&HABIT, "FUSE_INIT").await;
        let count = session.seen.count(Event::Ready);
        HABIT.holds(count == 1, format_args!("when FUSE_INIT is answered it was called {count} times"));
        let answer = session.answer(&HABIT, "a GETATTR behind FUSE_INIT").await;
        HABIT.holds((answer.unique, answer.error) == (unique, 0), format_args!("{answer:?}"));
        let events = session.seen.events.lock().clone();
        HABIT.holds(events == [Event::Init, Event::Ready, Event::GetAttr(1)], format_args!("{events:?}"));
    });
}

#[test]
fn a_notify_keeps_the_number_open() {
    const HABIT: Habit = habit(
        "the session's descriptor stays open, at the same number, while a Notify lives, also after the session's end, and \
         is closed with the last one",
        "src/backend/fuse3.rs (`ready`) gives it to the port, so that src/connection/port/polled.rs never re-points a \
         number that belongs to somebody else by now",
        "keep something else that holds the descriptor; without, the port may re-point a stranger's file",
    );
    on_runtime(&HABIT, "fuse3::a_notify_keeps_the_number_open", || async {
        let mut session = start(&HABIT).await;
        session.kernel.destroy();
        session.end(&HABIT).await.unwrap_or_else(|error| HABIT.broken(error));
        let Mounted { kernel, socket, number, seen, handle, .. } = session;
        drop(handle);
        drop(socket);
        let_run().await;
        HABIT.holds(!kernel.is_hung_up(), "the descriptor was closed with the session");
        // Only the session's descriptor refers to that file now: re-pointing the number must close it.
        let (other, descriptor) = pair();
        point(number, &descriptor);
        drop(descriptor);
        HABIT.holds(kernel.is_hung_up() && !other.is_hung_up(), "the number was not the session's");
        drop(seen.notify.lock().take());
        until(&HABIT, "the last Notify has closed the descriptor", || other.is_hung_up()).await;
    });
}

#[test]
fn every_request_is_a_task_until_it_is_answered() {
    const HABIT: Habit = habit(
        "a session at rest is one task; each request in a handler is one more, FORGET too, which is gone in the poll that \
         has written its answer",
        "src/connection/port/polled.rs counts what is in hand with num_alive_tasks: a drain ends, and the number is \
         re-pointed, in the poll that finds none",
        "count requests in the adapter, and keep re-pointing away from answers that are being written",
    );
    on_runtime(&HABIT, "fuse3::every_request_is_a_task_until_it_is_answered", || async {
        let session = start(&HABIT).await;
        let_run().await;
        HABIT.holds(tasks() == 1, format_args!("{} tasks at rest", tasks()));
        for _ in 0..3 {
            session.kernel.getattr(GATED);
        }
        session.kernel.forget(GATED);
        until(&HABIT, "four handlers have begun", || session.seen.events.lock().len() == 2 + 4).await;
        let_run().await;
        HABIT.holds(tasks() == 5, format_args!("{} tasks with four requests in hand", tasks()));
        for answered in 1..=3 {
            session.seen.gate.add_permits(1);
            session.answer(&HABIT, "a GETATTR at the gate").await;
            HABIT.holds(
                tasks() == 5 - answered,
                format_args!("{} tasks when {answered} of four requests are answered", tasks()),
            );
        }
        session.seen.gate.add_permits(1);
        until(&HABIT, "the FORGET is no task any more", || tasks() == 1).await;
    });
}

#[test]
fn after_two_nudges_the_read_loop_sleeps() {
    const HABIT: Habit = habit(
        "the read loop reads until it meets EAGAIN and then sleeps until the set wakes it: when a second nudge was handled \
         that was sent after the first, a number that is re-pointed is not read",
        "src/connection/port/polled.rs (detach): the number goes back to the device for the answers that are due, and the \
         next backend reads there meanwhile",
        "find what proves now that the loop sleeps; until then detach must hold back answers and leave the number at the \
         socket",
    );
    on_runtime(&HABIT, "fuse3::after_two_nudges_the_read_loop_sleeps", || async {
        const REQUESTS: usize = 10;
        let session = start(&HABIT).await;
        let (device, theirs) = pair();
        rustix::io::ioctl_fionbio(&theirs, true).expect("O_NONBLOCK");
        let mut rounds_with_requests_left = 0;
        // Detached at every moment between a request's arrival and its answer. The critical one: the loop is awake, and
        // has not read yet.
        for turns in 0..8 {
            point(session.number, &theirs);
            join(&session.set, &theirs);
            let_run().await;
            for _ in 0..REQUESTS {
                device.getattr(1);
            }
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            epoll::delete(&session.set, &theirs).expect("the device was in the set");
            point(session.number, &session.socket);
            session.nudge(&HABIT, 1000 + 2 * turns).await;
            session.nudge(&HABIT, 1001 + 2 * turns).await;
            point(session.number, &theirs);
            let before = device.unread();
            let_run().await;
            let after = device.unread();
            HABIT.holds(
                after == before,
                format_args!("detached after {turns} turns it read from the device all the same"),
            );
            rounds_with_requests_left += usize::from(before > 0);
            // It was not deaf: the set wakes it.
            join(&session.set, &theirs);
            let mut answers = 0;
            until(&HABIT, "what waits in the device is answered", || {
                // What it had read before was answered to the socket, which is what the port's gate is for.
                answers += [&device, &session.kernel].iter().filter(|kernel| kernel.answer_now().is_some()).count();
                answers == REQUESTS
            })
            .await;
            epoll::delete(&session.set, &theirs).expect("the device was in the set");
        }
        assert!(rounds_with_requests_left > 0, "the loop has read everything before it could be detached");
    });
}

#[test]
fn a_file_that_joins_the_set_wakes_the_read_loop() {
    const HABIT: Habit = habit(
        "the session waits for the open file that it was sent, whatever its number refers to: a set of ours wakes it for \
         files that join later",
        "src/connection/port/polled.rs (attach): the number is re-pointed to the device, then the device joins the set",
        "if it registers the number anew, re-pointing needs no set any more; if it registers something else, follow it",
    );
    on_runtime(&HABIT, "fuse3::a_file_that_joins_the_set_wakes_the_read_loop", || async {
        let session = start(&HABIT).await;
        session.assert_served(&HABIT, "from the socket").await;
        let (device, theirs) = pair();
        rustix::io::ioctl_fionbio(&theirs, true).expect("O_NONBLOCK");
        let_run().await;
        // Requests that wait already, and one that comes later.
        device.getattr(1);
        point(session.number, &theirs);
        join(&session.set, &theirs);
        let first = answer(&HABIT, &device, "a request that waited in a file that joined the set").await;
        HABIT.holds(first.error == 0, format_args!("{first:?}"));
        let_run().await;
        device.getattr(1);
        let second = answer(&HABIT, &device, "a request that came after the file had joined the set").await;
        HABIT.holds(second.error == 0, format_args!("{second:?}"));
        HABIT.holds(session.kernel.answer_now().is_none(), "an answer to nobody");
    });
}

#[test]
fn a_reply_that_nobody_waits_for_is_no_reason_to_end() {
    const HABIT: Habit = habit(
        "a reply that fails with ENOENT is logged, and the session goes on",
        "src/connection/port/polled.rs answers requests at the deadline, whose handlers answer again; and the kernel gives \
         ENOENT for each request whose program was killed",
        "every killed program would end the session: patch the crate",
    );
    on_runtime(&HABIT, "fuse3::a_reply_that_nobody_waits_for_is_no_reason_to_end", || async {
        let session = start(&HABIT).await;
        // An error is a header alone, the one part of its writev(2).
        refuse(libc::SYS_writev, session.number, Some(1), libc::ENOENT);
        session.kernel.getattr(FAIL);
        until(&HABIT, "the handler has begun", || session.seen.count(Event::GetAttr(FAIL)) == 1).await;
        // A session that ends does so in these turns; what it has read by now it would answer all the same.
        let_run().await;
        HABIT.holds(session.kernel.answer_now().is_none(), "the reply that was to fail has arrived");
        session.assert_served(&HABIT, "after a reply that failed with ENOENT").await;
    });
}

const FAILED_REPLY: Habit = habit(
    "a reply that fails with anything but ENOENT ends the session with an error",
    "src/connection/port/polled.rs: answers of any size must not meet the socket (the gate), and a crowd of late answers \
     goes out as there is room (`wait_for_room`)",
    "if the session goes on now, which is better, the answer is lost silently: keep the gate and the room all the same, \
     and expect that here",
);

#[test]
fn a_reply_that_is_too_large_for_the_socket_ends_the_session() {
    on_runtime(&FAILED_REPLY, "fuse3::a_reply_that_is_too_large_for_the_socket_ends_the_session", || async {
        let mut session = start(&FAILED_REPLY).await;
        session.kernel.read(1, TOO_LARGE);
        let end = session.end(&FAILED_REPLY).await;
        FAILED_REPLY.holds(end.is_err(), "it ended well");
    });
}

#[test]
fn a_reply_without_room_in_the_socket_ends_the_session() {
    on_runtime(&FAILED_REPLY, "fuse3::a_reply_without_room_in_the_socket_ends_the_session", || async {
        let mut session = start(&FAILED_REPLY).await;
        // Nobody reads the answers.
        let mut asked = 0;
        let end = loop {
            FAILED_REPLY.holds(asked < 10_000, "ten thousand answers found room in the socket");
            session.kernel.getattr(1);
            asked += 1;
            until(&FAILED_REPLY, "the request is in hand or the session has ended", || {
                session.seen.count(Event::GetAttr(1)) == asked
            })
            .await;
            tokio::select! {
                biased;
                end = &mut session.handle => break end,
                () = tokio::task::yield_now() => {}
            }
        };
        FAILED_REPLY.holds(end.is_err(), "it ended well");
    });
}

#[test]
fn destroy_ends_the_session() {
    const HABIT: Habit = habit(
        "FUSE_DESTROY ends the session's task: Filesystem::destroy is called, the MountHandle resolves to Ok, and dropping \
         it then neither starts a task nor unmounts by path",
        "src/connection/port/polled.rs retires a session in that way while its mount lives on; an unmount by path would \
         hit whatever is mounted there",
        "find what ends a session without unmounting; forget the handle (mem::forget) rather than let it unmount",
    );
    on_runtime(&HABIT, "fuse3::destroy_ends_the_session", || async {
        let mut session = start(&HABIT).await;
        session.kernel.destroy();
        let end = session.end(&HABIT).await;
        HABIT.holds(end.is_ok(), format_args!("{end:?}"));
        HABIT.holds(session.seen.count(Event::Destroy) == 1, "Filesystem::destroy was not called");
        HABIT.holds(tasks() == 0, format_args!("{} tasks remain", tasks()));
        drop(session.handle);
        HABIT.holds(tasks() == 0, "dropping the handle has started a task");
        let calls = helper_calls();
        HABIT.holds(calls.len() == 1, format_args!("fusermount3 was called again: {calls:?}"));
    });
}

#[test]
fn a_living_handle_unmounts_by_path_when_dropped() {
    const HABIT: Habit = habit(
        "dropping the MountHandle of a living session ends the session and runs fusermount3 -u on the place",
        "src/backend/fuse3.rs (`serve`) therefore keeps it to the session's end, and the place is never the mount",
        "if it does nothing any more, which is better, expect that here",
    );
    on_runtime(&HABIT, "fuse3::a_living_handle_unmounts_by_path_when_dropped", || async {
        let session = start(&HABIT).await;
        drop(session.handle);
        until(&HABIT, "fusermount3 is called a second time", || helper_calls().len() == 2).await;
        let arguments = &helper_calls()[1][1..];
        HABIT.holds(arguments == ["-u", session.place.as_str()], format_args!("its arguments were {arguments:?}"));
    });
}

#[test]
fn enodev_ends_the_session_well() {
    const HABIT: Habit = habit(
        "a read that fails with ENODEV (the mount is gone) ends the session, and the MountHandle resolves to Ok",
        "src/backend/fuse3.rs (`serve`): a session ends with its mount, without a word of alarm",
        "tell this error apart where the handle is awaited; if it ends nothing, the loop spins: watch the device for its \
         end in the port",
    );
    on_runtime(&HABIT, "fuse3::enodev_ends_the_session_well", || async {
        let mut session = start(&HABIT).await;
        refuse(libc::SYS_readv, session.number, None, libc::ENODEV);
        session.kernel.forget(1);
        let end = session.end(&HABIT).await;
        HABIT.holds(end.is_ok(), format_args!("{end:?}"));
    });
}

#[test]
fn what_it_does_not_know_is_answered_enosys() {
    const HABIT: Habit = habit(
        "an operation that the crate does not know is answered ENOSYS",
        "src/backend/fuse3.rs implements whatever the connection negotiates; of the rest the kernel is told once",
        "without an answer programs hang: patch the crate",
    );
    on_runtime(&HABIT, "fuse3::what_it_does_not_know_is_answered_enosys", || async {
        let session = start(&HABIT).await;
        let unique = session.kernel.send(UNHEARD_OF, 1, &[0; 8]);
        let answer = session.answer(&HABIT, "an operation that nobody knows").await;
        HABIT.holds((answer.unique, answer.error) == (unique, libc::ENOSYS), format_args!("{answer:?}"));
        session.assert_served(&HABIT, "afterwards").await;
    });
}

#[test]
fn a_handler_that_panics_sends_no_reply() {
    const HABIT: Habit = habit(
        "a panic in a handler ends its task without an answer, and nothing else",
        "src/backend/mod.rs (`guarded`) catches panics for that reason: the program would wait for ever",
        "if the crate answers now, `guarded` is a second net; if the session ends, `guarded` is all the more needed",
    );
    on_runtime(&HABIT, "fuse3::a_handler_that_panics_sends_no_reply", || async {
        let session = start(&HABIT).await;
        session.kernel.getattr(PANIC);
        until(&HABIT, "the handler has begun", || session.seen.count(Event::GetAttr(PANIC)) == 1).await;
        until(&HABIT, "the handler's task has ended", || tasks() == 1).await;
        let answer = session.kernel.answer_now();
        HABIT.holds(answer.is_none(), format_args!("an answer: {answer:?}"));
        session.assert_served(&HABIT, "after a panic").await;
    });
}
