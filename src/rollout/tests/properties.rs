//! What holds whatever happens, in whatever order.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Happening {
    Event(Event),
    /// Seconds, of which the daemon sees nothing; and a wall clock that is set.
    Wait(u32, i64),
    Reload(Terms),
    Restart,
}

fn plans() -> impl Strategy<Value = Terms> {
    let weights = proptest::collection::btree_set(1_u8..100, 0..4);
    let with_steps = (any::<bool>(), weights, 1_u32..4).prop_map(|(shadow, weights, minutes)| {
        let shadow = shadow.then_some(Trial::Shadow);
        let trials = shadow.into_iter().chain(weights.into_iter().chain([100]).map(Trial::Weight));
        terms(trials.map(|trial| step(trial, minutes)).collect())
    });
    prop_oneof![
        6 => with_steps,
        1 => Just(no_candidate()),
        1 => Just(turned()),
        1 => any::<bool>().prop_map(fleet),
    ]
}

fn backends() -> impl Strategy<Value = Backend> {
    proptest::sample::select(Backend::ALL.to_vec())
}

fn requests() -> impl Strategy<Value = Request> {
    prop_oneof![
        1 => backends().prop_map(Request::Switch),
        1 => Just(Request::Rollback { reason: None }),
        1 => Just(Request::Unpin),
        3 => Just(Request::Start),
        1 => Just(Request::Pause),
        2 => Just(Request::Resume),
        3 => proptest::option::of(1_usize..5).prop_map(|from| Request::Promote { from }),
        1 => Just(Request::Abort),
    ]
}

fn evidence(is_enough: bool) -> Evidence {
    if is_enough { Evidence::Enough } else { Evidence::Missing("132 of 500 samples".into()) }
}

fn happenings() -> impl Strategy<Value = Happening> {
    let why = || "why".to_owned();
    prop_oneof![
        8 => requests().prop_map(|request| Happening::Event(Event::Asked(request))),
        12 => (any::<bool>(), 0_u8..4).prop_map(|(is_enough, off)| {
            let force = if off == 0 { Force::Off("the server is silent".into()) } else { Force::On };
            Happening::Event(Event::Tick { force, evidence: evidence(is_enough) })
        }),
        8 => (0_u32..200, -100_000_000_i64..100_000_000).prop_map(|(seconds, set)| Happening::Wait(seconds, set)),
        1 => Just(Happening::Event(Event::RollBack { reason: "p99".into(), figures: figures() })),
        2 => plans().prop_map(Happening::Reload),
        2 => Just(Happening::Restart),
        2 => backends().prop_map(|serving| Happening::Event(Event::ServerStarted { serving })),
        1 => backends().prop_map(move |serving| Happening::Event(Event::GaveUp { serving, why: why() })),
        1 => any::<bool>().prop_map(|died| Happening::Event(Event::ServerEnded { died })),
        1 => backends().prop_map(move |to| Happening::Event(Event::FailedOver { to, why: why(), figures: Value::Null })),
        1 => backends().prop_map(move |serving| Happening::Event(Event::OrderFailed { serving, why: why() })),
    ]
}

/// What must hold after each step.
fn check(
    before: &State,
    event: &Event,
    transition: &Transition,
    terms: &Terms,
    waited: Duration,
) -> Result<(), TestCaseError> {
    let after = &transition.state;
    let weight = after.weight(terms);
    match after.phase() {
        Phase::RolledBack(_) | Phase::Aborted { .. } | Phase::Unreadable { .. } => prop_assert_eq!(weight, 0),
        Phase::Running(progress) if !progress.fleet => {
            let step = terms.steps().get(progress.step);
            prop_assert_eq!(step.map(|step| step.trial), Some(progress.trial), "its step is one of the plan");
        }
        _ => {}
    }
    // What serves is told whenever it changes.
    if after.wanted(terms) != before.wanted(terms) {
        prop_assert_eq!(transition.serve, Some(after.wanted(terms)));
    }
    // What goes up was kept before, but for what an operator has switched to, and what is served already.
    let by_hand = matches!(after.phase(), Phase::Idle { by_hand: Some(_) });
    let is_tried_again = before.given_up().is_some() && after.phase() == before.phase();
    prop_assert!(!is_tried_again || matches!(event, Event::Asked(_)) || weight == 0, "{:?}", event);
    if weight > before.weight(terms) && !by_hand && !is_tried_again {
        prop_assert_eq!(transition.keep, Some(Keep::Must));
    }
    let step = |state: &State| match state.phase() {
        Phase::Running(progress) if !progress.fleet => Some((progress.step, progress.elapsed)),
        _ => None,
    };
    let promoted = matches!(event, Event::Asked(Request::Promote { .. }));
    let reloaded = matches!(event, Event::Reloaded);
    if let (Some((old, elapsed)), Phase::Running(_) | Phase::Committed { .. }, false) =
        (step(before), after.phase(), reloaded)
    {
        let new = step(after).map_or(terms.steps().len(), |(new, _)| new);
        prop_assert!(new == old || new == old + 1, "from step {} to {}", old, new);
        if new > old && !promoted {
            let bake = terms.steps()[old].bake;
            let is_due = matches!(event, Event::Tick { force: Force::On, evidence: Evidence::Enough });
            prop_assert!(is_due, "by {:?}", event);
            prop_assert!(elapsed + waited >= bake, "{:?} of {:?}, after {:?}", elapsed, bake, waited);
        }
        if let Some((same, counted)) = step(after).filter(|(new, _)| *new == old) {
            let counts = matches!(event, Event::Tick { force: Force::On, .. });
            prop_assert!(counts || counted <= elapsed, "by {:?}", event);
            prop_assert!(
                counted <= elapsed + waited,
                "step {}: {:?} after {:?} and {:?}",
                same,
                counted,
                elapsed,
                waited
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn whatever_happens(plan in plans(), happenings in proptest::collection::vec(happenings(), 0..60)) {
        let mut stage = Stage::new(plan);
        let mut waited = Duration::ZERO;
        for happening in happenings {
            let event = match happening {
                Happening::Wait(seconds, set) => {
                    let time = Duration::from_secs(seconds.into());
                    stage.now.monotonic += time;
                    // Seconds since 2023, to and fro.
                    stage.now.wall = at(1_700_000_000_u64.saturating_add_signed(set));
                    waited += time;
                    continue;
                }
                Happening::Restart => {
                    let kept = serde_json::to_vec(stage.state.phase()).unwrap();
                    let restored = State::restored(serde_json::from_slice(&kept).unwrap());
                    let mut expected = stage.state.phase().clone();
                    if let Phase::Idle { by_hand } = &mut expected {
                        *by_hand = None;
                    }
                    prop_assert_eq!(restored.phase(), &expected);
                    stage.state = restored;
                    // Nothing that passed before counts, and nothing does until a server is there.
                    waited = Duration::ZERO;
                    continue;
                }
                Happening::Reload(terms) => {
                    stage.terms = terms;
                    Event::Reloaded
                }
                Happening::Event(event) => event,
            };
            match stage.state.apply(&event, &stage.terms, stage.now) {
                Ok(transition) => {
                    check(&stage.state, &event, &transition, &stage.terms, waited)?;
                    stage.state = transition.state;
                    waited = Duration::ZERO;
                }
                Err(refused) => {
                    prop_assert!(matches!(event, Event::Asked(_)), "{:?}", event);
                    prop_assert!(!refused.reason.is_empty() && !refused.remedy.is_empty());
                }
            }
        }
    }

}

proptest! {
    // Each of them waits for the disk.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    /// Whatever can be kept is read as it was.
    #[test]
    fn what_is_kept_is_what_is_read(
        (step, trial, seconds, nanos) in (0_usize..50, 0_u8..=100, any::<u32>(), 0_u32..1_000_000_000),
        (reason, deaths, fleet, paused) in (any::<String>(), any::<u32>(), any::<bool>(), proptest::option::of(any::<String>())),
        which in 0..5,
    ) {
        let elapsed = Duration::new(seconds.into(), nanos);
        let trial = if trial == 0 { Trial::Shadow } else { Trial::Weight(trial) };
        let since = at(u64::from(seconds)) + Duration::from_nanos(nanos.into());
        let phase = match which {
            0 => Phase::Idle { by_hand: None },
            1 => Phase::Running(Progress { candidate: CANDIDATE, fleet, step, trial, elapsed, entered: since, paused, deaths }),
            2 => Phase::Committed { candidate: STABLE },
            3 => Phase::Aborted { candidate: CANDIDATE, reason },
            _ => Phase::RolledBack(Pin { reason, since, figures: figures(), backend: fleet.then_some(CANDIDATE) }),
        };
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path(), "projects");
        store.save(&phase).unwrap();
        prop_assert_eq!(store.load().unwrap(), Some(phase));
    }
}
