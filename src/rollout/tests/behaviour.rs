//! What follows from what, by example.

use super::*;
use rstest::rstest;

fn running() -> Stage {
    stage(Situation::Running)
}

#[test]
fn a_rollout_goes_through_its_steps_by_time_alone() {
    let mut stage = Stage::new(terms(steps()));
    let start = stage.ask(Request::Start).unwrap();
    assert_eq!((start.keep, start.serve), (Some(Keep::Must), Some(Serving::Only(STABLE))));
    let transitions = stage.pass(MINUTE * 6 + Duration::from_secs(2));
    let steps: Vec<_> = transitions
        .iter()
        .enumerate()
        .filter(|(_, transition)| !transition.notes.is_empty())
        .map(|(second, transition)| (second + 1, transition.serve, transition.keep))
        .collect();
    let both = Serving::Both { candidate: CANDIDATE, weight: 10 };
    assert_eq!(
        steps,
        [
            (60, Some(both), Some(Keep::Must)),
            // The time of a step begins when it was seen to be in force, a second later.
            (181, Some(Serving::Only(CANDIDATE)), Some(Keep::Must)),
            // What serves stays.
            (362, None, Some(Keep::Try)),
        ]
    );
    assert_eq!(*stage.state.phase(), Phase::Committed { candidate: CANDIDATE });
}

#[test]
fn a_step_that_is_paused_takes_no_time() {
    let mut stage = running();
    stage.pass(MINUTE);
    stage.ask(Request::Pause).unwrap();
    stage.pass(MINUTE * 60);
    assert_eq!((stage.weight(), stage.progress().elapsed), (10, MINUTE));
    stage.ask(Request::Resume).unwrap();
    stage.pass(MINUTE - Duration::from_secs(1));
    assert_eq!(stage.progress().step, 1);
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.progress().step, 2);
}

#[test]
fn without_evidence_a_step_goes_on_and_says_so_once() {
    let mut stage = running();
    stage.pass(MINUTE);
    stage.wait(MINUTE);
    let missing = |samples: u32| tick(Evidence::Missing(format!("{samples} of 500 samples")));
    let notes: Vec<_> = (0..100).flat_map(|samples| stage.event(missing(samples)).notes).collect();
    assert_eq!(notes, [Note::Waits { reason: "0 of 500 samples".into() }]);
    assert_eq!((stage.weight(), stage.state.waits()), (10, Some("99 of 500 samples")));
    // An operator need not wait.
    let mut promoted = Stage { state: stage.state.clone(), terms: stage.terms.clone(), now: stage.now };
    promoted.ask(Request::Promote { from: None }).unwrap();
    assert_eq!((promoted.weight(), promoted.state.waits()), (100, None));
    stage.event(tick(Evidence::Enough));
    assert_eq!((stage.weight(), stage.state.waits()), (100, None));
}

/// A step that was ordered and is not in force yet, or is no more, takes no time, and says why.
#[test]
fn only_time_in_which_it_is_in_force_counts() {
    let off = || Event::Tick { force: Force::Off("the server is silent".into()), evidence: Evidence::Enough };
    let mut stage = running();
    for _ in 0..600 {
        stage.wait(Duration::from_secs(1));
        stage.event(off());
    }
    assert_eq!((stage.progress().step, stage.progress().elapsed), (1, Duration::ZERO));
    assert_eq!(stage.state.waits(), Some("its time does not run: the server is silent"));
    stage.pass(MINUTE);
    assert_eq!((stage.progress().elapsed, stage.state.waits()), (MINUTE, None));
    // When it has ended, and when it has begun again, nobody has seen.
    stage.wait(Duration::from_secs(1));
    stage.event(off());
    stage.wait(Duration::from_secs(1));
    stage.event(tick(Evidence::Enough));
    assert_eq!(stage.progress().elapsed, MINUTE);
    stage.pass(MINUTE - Duration::from_secs(1));
    // Its time is over, and just then it is not.
    stage.wait(Duration::from_secs(1));
    stage.event(off());
    assert_eq!(stage.progress().step, 1);
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.progress().step, 2);
}

/// Neither a clock that is set, nor a daemon that was stopped, nor a server that is gone makes a rollout faster.
#[test]
fn only_time_that_was_watched_counts() {
    let mut stage = running();
    stage.now.wall += Duration::from_secs(365 * 24 * 3600);
    stage.pass(Duration::from_secs(1));
    stage.now.wall -= Duration::from_secs(2 * 365 * 24 * 3600);
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.progress().elapsed, Duration::from_secs(2));
    // A daemon that hung for an hour.
    stage.wait(MINUTE * 60);
    stage.event(tick(Evidence::Enough));
    assert_eq!((stage.progress().step, stage.progress().elapsed), (1, MINUTE + Duration::from_secs(2)));
    stage.event(Event::ServerEnded { died: false });
    stage.pass(MINUTE * 60);
    assert_eq!(stage.state.watch, state::Watch::Unserved);
    assert_eq!(stage.progress().elapsed, MINUTE + Duration::from_secs(2));
    let again = stage.event(Event::ServerStarted { serving: STABLE });
    assert_eq!(again.serve, Some(Serving::Both { candidate: CANDIDATE, weight: 10 }));
    assert_eq!(stage.progress().elapsed, MINUTE + Duration::from_secs(2));
}

#[test]
fn what_was_counted_outlives_the_daemon() {
    let mut stage = running();
    let kept: Vec<_> = stage.pass(Duration::from_secs(100)).iter().filter_map(|transition| transition.keep).collect();
    assert_eq!(kept, [Keep::Try], "once a minute");
    let again = stage.restart(Because::Ordered);
    assert_eq!(again.serve, Some(Serving::Both { candidate: CANDIDATE, weight: 10 }));
    assert_eq!(stage.progress().elapsed, Duration::from_secs(100));
    stage.pass(Duration::from_secs(19));
    assert_eq!(stage.progress().step, 1);
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.progress().step, 2);
}

#[test]
fn two_who_promote_at_once_go_one_step() {
    let mut stage = running();
    stage.ask(Request::Promote { from: Some(2) }).unwrap();
    let refused = stage.ask(Request::Promote { from: Some(2) }).unwrap_err();
    assert_eq!(refused.reason, "the rollout of projects is at another step by now (step 3 of 3: 100 %)");
    assert_eq!(stage.progress().step, 2);
}

#[test]
fn a_pin_keeps_its_reason_until_it_is_lifted() {
    let mut stage = running();
    stage.now.wall = at(1_700_000_000);
    let transition = stage.event(Event::RollBack { reason: "error_rate".into(), figures: figures() });
    assert_eq!((transition.keep, transition.serve), (Some(Keep::Try), Some(Serving::Only(STABLE))));
    stage.ask(Request::Rollback { reason: Some("too".into()) }).unwrap();
    stage.restart(Because::Ordered);
    let pin = Pin { reason: "error_rate".into(), since: at(1_700_000_000), figures: figures(), backend: Some(STABLE) };
    assert_eq!(*stage.pin(), pin);
    let refused = stage.ask(Request::Start).unwrap_err().to_string();
    let expected = "projects is pinned to fuse2 since 2023-11-14T22:13:20Z (error_rate); if that is settled, `lighthouse-fs unpin projects` lifts the pin";
    assert_eq!(refused, expected);
    let lifted = stage.ask(Request::Unpin).unwrap();
    assert_eq!((lifted.keep, stage.situation()), (Some(Keep::Must), Situation::Idle));
}

/// What was rolled back does not come back by another line of the configuration.
#[test]
fn a_pin_names_its_backend() {
    let mut stage = stage(Situation::Pinned);
    let reloaded = stage.reload(turned());
    assert_eq!((reloaded.serve, stage.state.wanted(&stage.terms)), (None, Serving::Only(STABLE)));
    assert_eq!((stage.situation(), stage.weight()), (Situation::Pinned, 0));
    let refused = stage.ask(Request::Switch(CANDIDATE)).unwrap_err().to_string();
    assert!(refused.starts_with("projects is pinned to fuse2 since"), "{refused}");
    let switched = stage.ask(Request::Switch(STABLE)).unwrap();
    assert_eq!((switched.serve, stage.situation()), (Some(Serving::Only(STABLE)), Situation::Pinned));
    stage.event(Event::ServerEnded { died: true });
    // A server that could not begin with it is ordered it.
    assert_eq!(stage.event(Event::ServerStarted { serving: CANDIDATE }).serve, Some(Serving::Only(STABLE)));
    assert_eq!(stage.restart(Because::Ordered).serve, Some(Serving::Only(STABLE)));
    assert_eq!(stage.ask(Request::Unpin).unwrap().serve, Some(Serving::Only(CANDIDATE)));
}

#[test]
fn a_pin_of_before_is_to_whatever_is_stable() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), "projects");
    let text = r#"{"version": 1, "rollout": {"state": "rolled_back", "reason": "p99", "since": "2026-11-24T23:41:30Z", "figures": null}}"#;
    std::fs::write(store.file(), text).unwrap();
    let rollout = Rollout::open(store, turned());
    assert_eq!((rollout.wanted(), rollout.pin().unwrap().backend), (Serving::Only(CANDIDATE), Some(CANDIDATE)));
    assert_eq!(rollout.reasons(), ["it is pinned to fuse3 (p99)"]);
}

#[test]
fn a_pin_says_that_another_backend_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let mut rollout = open(folder.path());
    assert_eq!(rollout.instead(), None, "nothing but the stable one is wanted");
    rollout.handle(&Event::Asked(Request::Switch(CANDIDATE)), Moment::now()).unwrap();
    assert_eq!(rollout.instead(), Some(STABLE));
    assert_eq!(rollout.status().unwrap().weight, 0, "by hand, and not by a rollout");
    rollout.handle(&Event::Asked(Request::Rollback { reason: None }), Moment::now()).unwrap();
    rollout.reload(turned(), Moment::now()).unwrap();
    let reasons = rollout.reasons();
    assert_eq!((reasons[0].as_str(), reasons.len()), ("it is pinned to fuse2 (operator)", 2), "{reasons:?}");
    assert!(reasons[1].contains("the configured stable backend is fuse3"), "{reasons:?}");
    assert_eq!((rollout.pin().unwrap().backend, rollout.status().unwrap().weight), (Some(STABLE), 0));
    assert_eq!(rollout.instead(), None, "whatever servers die of");
}

#[test]
fn the_guard_does_not_pin_what_is_not_tried() {
    for situation in [Situation::Idle, Situation::Aborted, Situation::NoCandidate, Situation::Unreadable] {
        let mut stage = stage(situation);
        stage.event(Event::RollBack { reason: "p99".into(), figures: figures() });
        assert_eq!(stage.situation(), situation);
    }
}

#[rstest]
#[case::candidate(Situation::Running, STABLE, "pinned 0")]
#[case::stable(Situation::Running, CANDIDATE, "paused 10")]
#[case::of_a_fleet(Situation::FleetInside, STABLE, "pinned 0")]
#[case::before(Situation::Idle, CANDIDATE, "fallback 0")]
// It was accepted: a session that ends is an ordinary failover, and no verdict.
#[case::after(Situation::Committed, STABLE, "committed 100")]
#[case::pinned(Situation::Pinned, CANDIDATE, "pinned 0")]
#[case::paused(Situation::Paused, STABLE, "pinned 0")]
fn a_session_that_ends(#[case] situation: Situation, #[case] to: Backend, #[case] expected: &str) {
    for late in [false, true] {
        let mut stage = stage(situation);
        if late {
            // It ended while no daemon was there.
            stage.state = State::restored(stage.state.phase().clone());
            stage.event(Event::ServerAdopted { serving: to, because: Because::FailedOver("ENODEV".into()) });
        } else {
            stage.event(Event::FailedOver { to, why: "ENODEV".into(), figures: Value::Null });
        }
        assert_eq!(format!("{} {}", stage.situation().name(), stage.weight()), expected);
        let falls_back = stage.state.wanted(&stage.terms) != Serving::Only(to);
        assert_eq!(stage.state.fallback(), falls_back.then_some("ENODEV"));
    }
}

#[test]
fn what_ended_comes_back_when_it_is_asked_for() {
    let mut stage = running();
    stage.event(Event::FailedOver { to: CANDIDATE, why: "ENODEV".into(), figures: Value::Null });
    let resumed = stage.ask(Request::Resume).unwrap();
    assert_eq!(resumed.serve, Some(Serving::Both { candidate: CANDIDATE, weight: 10 }));
    // It does not.
    stage.event(Event::OrderFailed { serving: CANDIDATE, why: "no memory".into() });
    assert_eq!((stage.situation(), stage.state.fallback()), (Situation::Paused, Some("no memory")));
    let aborted = stage.ask(Request::Abort).unwrap();
    assert_eq!(aborted.serve, Some(Serving::Only(STABLE)));

    let mut stage = self::stage(Situation::Committed);
    stage.event(Event::FailedOver { to: STABLE, why: "ENODEV".into(), figures: Value::Null });
    let switched = stage.ask(Request::Switch(CANDIDATE)).unwrap();
    assert_eq!((switched.serve, stage.state.fallback()), (Some(Serving::Only(CANDIDATE)), None));
}

#[test]
fn a_candidate_that_cannot_serve_ends_its_rollout_without_a_pin() {
    let mut stage = running();
    let failed = stage.event(Event::OrderFailed { serving: STABLE, why: "no slots".into() });
    assert_eq!((stage.situation(), failed.serve), (Situation::Aborted, Some(Serving::Only(STABLE))));
    assert_eq!(failed.notes, [Note::Aborted { reason: "fuse3 cannot serve: no slots".into() }]);
}

#[test]
fn a_switch_that_fails_leaves_what_served() {
    let mut stage = stage(Situation::Idle);
    stage.ask(Request::Switch(CANDIDATE)).unwrap();
    let failed = stage.event(Event::OrderFailed { serving: STABLE, why: "no slots".into() });
    assert_eq!((stage.weight(), stage.state.fallback()), (0, None), "{failed:?}");
}

/// One death may be anybody's. The second one in a step, while the candidate had a weight, is not waited for a third time.
#[test]
fn servers_that_die() {
    let mut stage = running();
    stage.pass(MINUTE);
    for _ in 0..2 {
        stage.event(Event::ServerEnded { died: false });
        stage.event(Event::ServerStarted { serving: STABLE });
    }
    stage.event(Event::ServerEnded { died: true });
    assert_eq!((stage.situation(), stage.progress().elapsed), (Situation::Running, Duration::ZERO));
    stage.event(Event::ServerStarted { serving: STABLE });
    stage.restart(Because::Ordered);
    stage.event(Event::ServerEnded { died: true });
    assert_eq!(stage.pin().reason, "2 servers died in one step while fuse3 had 10 %");

    let mut shadow = self::stage(Situation::Idle);
    shadow.ask(Request::Start).unwrap();
    for _ in 0..9 {
        shadow.event(Event::ServerEnded { died: true });
        shadow.event(Event::ServerStarted { serving: STABLE });
    }
    assert_eq!(shadow.situation(), Situation::Running, "it had no request");
}

/// What servers die of is not ordered again, whatever happens to the next server, until somebody asks for it.
#[rstest]
#[case::committed(Situation::Committed)]
#[case::by_hand(Situation::Idle)]
fn what_kills_its_servers_is_given_up(#[case] situation: Situation) {
    let mut stage = stage(situation);
    if situation == Situation::Idle {
        stage.ask(Request::Switch(CANDIDATE)).unwrap();
    }
    let why = || "servers died while fuse3 served".to_owned();
    stage.event(Event::ServerEnded { died: true });
    let gave_up = stage.event(Event::GaveUp { serving: STABLE, why: why() });
    assert_eq!(gave_up.notes, [Note::Fallback { serving: STABLE, reason: why() }]);
    let is_given_up = |stage: &Stage| {
        assert_eq!(stage.situation(), situation);
        assert_eq!(stage.state.given_up(), Some((CANDIDATE, "servers died while fuse3 served")));
        assert_eq!(stage.state.wanted(&stage.terms), Serving::Only(STABLE));
    };
    is_given_up(&stage);
    for event in [
        tick(Evidence::Enough),
        Event::Reloaded,
        Event::ServerEnded { died: true },
        Event::ServerStarted { serving: STABLE },
    ] {
        let next = stage.event(event);
        assert_eq!(next.serve.filter(|serve| *serve != Serving::Only(STABLE)), None, "{next:?}");
        is_given_up(&stage);
    }
    let again = stage.ask(Request::Switch(CANDIDATE)).unwrap();
    assert_eq!((again.serve, stage.state.given_up()), (Some(Serving::Only(CANDIDATE)), None));
    stage.event(Event::GaveUp { serving: STABLE, why: why() });
    stage.ask(Request::Switch(STABLE)).unwrap();
    assert_eq!((stage.state.given_up(), stage.weight()), (None, 0));
}

/// The second death in a step rolls back already; that a server begins with another backend says the same.
#[test]
fn what_kills_its_servers_while_it_is_tried_is_rolled_back() {
    for situation in [Situation::FleetInside, Situation::Running] {
        let mut stage = stage(situation);
        if situation == Situation::Running {
            stage.ask(Request::Promote { from: None }).unwrap();
        }
        assert_eq!(stage.weight(), 100);
        stage.event(Event::ServerEnded { died: true });
        let gave_up = stage.event(Event::GaveUp { serving: STABLE, why: "servers died".into() });
        assert_eq!((stage.pin().reason.as_str(), gave_up.serve), ("servers died", Some(Serving::Only(STABLE))));
    }
}

/// Nobody knows better than to go by the configuration.
#[test]
fn where_nothing_else_is_wanted_nothing_is_given_up() {
    for situation in [Situation::Idle, Situation::Aborted, Situation::Pinned, Situation::NoCandidate] {
        let mut stage = stage(situation);
        stage.event(Event::ServerEnded { died: true });
        let started = stage.event(Event::GaveUp { serving: STABLE, why: "servers died".into() });
        assert_eq!((stage.situation(), stage.state.given_up(), started.serve), (situation, None, None));
    }
}

#[test]
fn a_rollout_does_not_go_on_without_the_stable_backend() {
    let mut stage = running();
    stage.event(Event::ServerEnded { died: false });
    let started = stage.event(Event::ServerStarted { serving: CANDIDATE });
    assert_eq!((stage.situation(), started.serve), (Situation::Paused, None));
    let mut stage = self::stage(Situation::Pinned);
    let started = stage.event(Event::ServerStarted { serving: CANDIDATE });
    assert_eq!((started.serve, stage.state.fallback()), (None, Some("fuse2 did not start")));
}

#[test]
fn a_new_server_gets_what_was_wanted() {
    for (situation, wanted) in [
        (Situation::Idle, None),
        (Situation::Committed, Some(Serving::Only(CANDIDATE))),
        (Situation::FleetInside, Some(Serving::Only(CANDIDATE))),
        (Situation::Pinned, None),
    ] {
        let mut stage = stage(situation);
        stage.event(Event::ServerEnded { died: true });
        assert_eq!(stage.event(Event::ServerStarted { serving: STABLE }).serve, wanted, "{situation:?}");
    }
    // What was switched to by hand as well, unless the daemon is another one.
    let mut stage = stage(Situation::Idle);
    stage.ask(Request::Switch(CANDIDATE)).unwrap();
    stage.event(Event::ServerEnded { died: true });
    let again = stage.event(Event::ServerStarted { serving: STABLE });
    assert_eq!(again.serve, Some(Serving::Only(CANDIDATE)));
}

/// A daemon that crashed leaves what an operator has switched to; one that was killed between keeping and ordering leaves
/// what is not wanted any more.
#[test]
fn what_is_adopted() {
    let mut stage = stage(Situation::Idle);
    stage.event(Event::ServerAdopted { serving: CANDIDATE, because: Because::Operator });
    assert_eq!(stage.weight(), 100);
    let mut stage = self::stage(Situation::Pinned);
    for because in [Because::Operator, Because::Ordered] {
        let adopted = stage.event(Event::ServerAdopted { serving: CANDIDATE, because });
        assert_eq!(adopted.serve, Some(Serving::Only(STABLE)));
    }
    let mut stage = self::stage(Situation::Idle);
    let adopted = stage.event(Event::ServerAdopted { serving: CANDIDATE, because: Because::Ordered });
    assert_eq!(adopted.serve, Some(Serving::Only(STABLE)));
}

#[rstest]
#[case::same_place(vec![step(Trial::Shadow, 9), step(Trial::Weight(10), 9), step(Trial::Weight(100), 9)], 1, 10, true)]
#[case::moved(vec![step(Trial::Weight(10), 9), step(Trial::Weight(100), 9)], 0, 10, true)]
#[case::below(vec![step(Trial::Weight(1), 1), step(Trial::Weight(5), 9), step(Trial::Weight(20), 9), step(Trial::Weight(100), 9)], 1, 5, false)]
// The first of those with the same weight: none of them is skipped.
#[case::first_of_two(vec![step(Trial::Weight(5), 1), step(Trial::Weight(5), 9), step(Trial::Weight(100), 9)], 0, 5, false)]
#[case::shadow(vec![step(Trial::Shadow, 1), step(Trial::Weight(100), 9)], 0, 0, false)]
fn other_steps_never_mean_more_at_once(
    #[case] steps: Vec<Step>,
    #[case] index: usize,
    #[case] weight: u8,
    #[case] keeps_time: bool,
) {
    let mut stage = running();
    stage.pass(MINUTE);
    stage.reload(terms(steps));
    let elapsed = if keeps_time { MINUTE } else { Duration::ZERO };
    assert_eq!((stage.progress().step, stage.weight(), stage.progress().elapsed), (index, weight, elapsed));
}

#[test]
fn without_a_step_at_or_below_it_ends() {
    let mut stage = running();
    let reloaded = stage.reload(terms(vec![step(Trial::Weight(50), 1), step(Trial::Weight(100), 1)]));
    assert_eq!((stage.situation(), reloaded.serve), (Situation::Aborted, Some(Serving::Only(STABLE))));
}

#[test]
fn a_bake_time_that_is_shorter_now_is_over_at_the_next_tick() {
    let mut stage = running();
    stage.pass(MINUTE);
    let mut shorter = steps();
    shorter[1].bake = Duration::from_secs(1);
    stage.reload(terms(shorter));
    assert_eq!(stage.progress().step, 1);
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.progress().step, 2);
}

/// The last move of a migration: what was committed becomes the stable backend of the configuration.
#[test]
fn what_is_committed_becomes_stable() {
    let mut stage = stage(Situation::Committed);
    let reloaded = stage.reload(turned());
    assert_eq!((reloaded.serve, stage.weight()), (None, 0), "it serves already, and is no candidate any more");
    assert_eq!(stage.situation(), Situation::NoCandidate);
    assert_eq!(*stage.state.phase(), Phase::Idle { by_hand: None });
}

#[test]
fn a_machine_comes_into_the_share_and_leaves_it() {
    let mut stage = stage(Situation::FleetOutside);
    let inside = stage.reload(fleet(true));
    assert_eq!((inside.keep, inside.serve), (Some(Keep::Must), Some(Serving::Only(CANDIDATE))));
    // However long: a share of machines is no step.
    stage.pass(MINUTE * 10);
    assert_eq!(stage.situation(), Situation::FleetInside);
    let outside = stage.reload(fleet(false));
    assert_eq!((outside.keep, outside.serve), (Some(Keep::Try), Some(Serving::Only(STABLE))));

    stage.reload(fleet(true));
    stage.ask(Request::Rollback { reason: None }).unwrap();
    stage.reload(fleet(true));
    assert_eq!(stage.situation(), Situation::Pinned);
    stage.ask(Request::Unpin).unwrap();
    assert_eq!(stage.situation(), Situation::FleetInside);
}

#[test]
fn a_machine_that_does_not_know_its_name_takes_no_part() {
    let mut mount = Mount::new("projects", "/srv/projects", "/mnt/projects");
    mount.rollout = Configured { candidate: Some(CANDIDATE), fleet: Some(100), ..Configured::default() };
    let folder = tempfile::tempdir().unwrap();
    let nameless = MachineId::read(&folder.path().join("machine-id"));
    let rollout = Rollout::open(Store::new(folder.path(), "projects"), Terms::of(&mount, None, &nameless));
    assert_eq!(rollout.wanted(), Serving::Only(STABLE));
    let reasons = rollout.reasons();
    assert!(reasons.len() == 1 && reasons[0].contains("set LIGHTHOUSE_MACHINE_ID"), "{reasons:?}");
}

// The whole, with its file.

fn open(folder: &std::path::Path) -> Rollout {
    let mut rollout = Rollout::open(Store::new(folder, "projects"), terms(steps()));
    rollout.handle(&Event::ServerStarted { serving: STABLE }, Moment::now()).unwrap();
    rollout
}

#[test]
fn each_transition_is_on_disk_when_it_is_acted_upon() {
    let folder = tempfile::tempdir().unwrap();
    let folder = &folder.path().join("made/when/needed");
    let mut rollout = open(folder);
    let kept = || Store::new(folder, "projects").load().unwrap();
    assert_eq!(kept(), None, "nothing has happened yet");
    for request in [
        Request::Start,
        Request::Promote { from: None },
        Request::Pause,
        Request::Resume,
        Request::Abort,
        Request::Start,
        Request::Rollback { reason: None },
        Request::Unpin,
    ] {
        rollout.handle(&Event::Asked(request.clone()), Moment::now()).unwrap();
        assert_eq!(kept().as_ref(), Some(rollout.state().phase()), "{request:?}");
    }
}

#[test]
fn what_goes_up_waits_for_the_disk_and_what_goes_down_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = &folder.path().join("state");
    let mut rollout = open(folder);
    rollout.handle(&Event::Asked(Request::Start), Moment::now()).unwrap();
    // A file where the folder was: nobody can write there, not even root.
    let aside = folder.with_extension("aside");
    std::fs::rename(folder, &aside).unwrap();
    std::fs::write(folder, "").unwrap();
    let error = rollout.handle(&Event::Asked(Request::Promote { from: None }), Moment::now()).unwrap_err().to_string();
    assert!(error.contains("cannot be written") && error.contains("daemon.state_dir"), "{error}");
    assert_eq!(rollout.status().unwrap().step, Some(1));
    assert!(rollout.reasons()[0].contains("a restart would forget"), "{:?}", rollout.reasons());

    let handled = rollout.handle(&Event::Asked(Request::Rollback { reason: None }), Moment::now()).unwrap();
    assert_eq!(handled.serve, Some(Serving::Only(STABLE)));
    assert_eq!(rollout.reasons().len(), 2, "pinned, and not kept");
    assert!(rollout.handle(&Event::Asked(Request::Unpin), Moment::now()).is_err());
    rollout.handle(&tick(Evidence::Enough), Moment::now()).unwrap();
    assert_eq!(rollout.reasons().len(), 2);

    std::fs::remove_file(folder).unwrap();
    std::fs::rename(&aside, folder).unwrap();
    rollout.handle(&tick(Evidence::Enough), Moment::now()).unwrap();
    let kept = Store::new(folder, "projects").load().unwrap();
    assert_eq!((kept.as_ref(), rollout.reasons().len()), (Some(rollout.state().phase()), 1));
    rollout.handle(&Event::Asked(Request::Unpin), Moment::now()).unwrap();
    assert_eq!(rollout.reasons(), [""; 0]);
    assert_eq!(rollout.status().unwrap().state, "idle");
}

#[test]
fn what_cannot_be_read_is_left_alone_until_somebody_has_looked() {
    let folder = tempfile::tempdir().unwrap();
    let file = Store::new(folder.path(), "projects").file();
    for (text, why) in [("{\"version\": 2}", "later version"), ("{\"version\": 1", "is damaged")] {
        std::fs::write(&file, text).unwrap();
        let mut rollout = open(folder.path());
        let refused = rollout.handle(&Event::Asked(Request::Start), Moment::now()).unwrap_err().to_string();
        assert!(refused.contains(why) && refused.contains("move the file away"), "{refused}");
        // It could not be kept, and so is not promised: stable serves alone as it is.
        rollout.handle(&Event::Asked(Request::Rollback { reason: None }), Moment::now()).unwrap_err();
        rollout.reload(terms(steps()), Moment::now()).unwrap();
        assert_eq!((rollout.wanted(), rollout.reasons().len()), (Serving::Only(STABLE), 1));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        std::fs::remove_file(&file).unwrap();
        rollout.reload(terms(steps()), Moment::now()).unwrap();
        rollout.handle(&Event::Asked(Request::Start), Moment::now()).unwrap();
    }
}

/// Two daemons with the same state directory, and a mount of the same name.
#[test]
fn another_daemons_pin_is_neither_shown_nor_lifted() {
    let folder = tempfile::tempdir().unwrap();
    let mut one = open(folder.path());
    one.handle(&Event::Asked(Request::Rollback { reason: None }), Moment::now()).unwrap();
    let mut other = open(folder.path());
    assert_eq!((other.wanted(), other.state().pin()), (Serving::Only(STABLE), None));
    let reasons = other.reasons();
    let names_it = reasons[0].contains(&format!("is used by another daemon (process {})", std::process::id()));
    assert!(reasons.len() == 1 && names_it && reasons[0].contains("daemon.state_dir"), "{reasons:?}");
    for request in [Request::Unpin, Request::Start, Request::Switch(CANDIDATE)] {
        let refused = other.handle(&Event::Asked(request), Moment::now()).unwrap_err().to_string();
        assert!(refused.contains("is used by another daemon"), "{refused}");
    }
    // Neither by time nor by a reload, as long as the other is there.
    other.handle(&tick(Evidence::Enough), Moment::now()).unwrap();
    other.reload(terms(steps()), Moment::now()).unwrap();
    assert_eq!(other.state().pin(), None);
    let pin = one.state().pin().cloned();
    assert_eq!(Store::new(folder.path(), "projects").load().unwrap().as_ref(), Some(one.state().phase()));

    drop(one);
    let handled = other.handle(&tick(Evidence::Enough), Moment::now()).unwrap();
    assert_eq!((handled.serve, other.state().pin().cloned()), (Some(Serving::Only(STABLE)), pin));
    other.handle(&Event::Asked(Request::Unpin), Moment::now()).unwrap();
    drop(other);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the state alone is left");
}

#[test]
fn status_says_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut rollout = open(folder.path());
    let now = Moment { wall: at(1_700_000_000), ..Moment::now() };
    rollout.handle(&Event::Asked(Request::Start), now).unwrap();
    rollout.handle(&Event::Asked(Request::Promote { from: Some(1) }), now).unwrap();
    let status = serde_json::to_value(rollout.status()).unwrap();
    assert_eq!(
        status,
        serde_json::json!({"state": "running", "step": 2, "steps": 3, "weight": 10, "entered": "2023-11-14T22:13:20Z",
            "elapsed": "0s", "for": "2m", "reason": null})
    );
}
