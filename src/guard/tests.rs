//! What each rule says of what was seen.

use std::time::Duration;

use rstest::rstest;

use super::*;
use crate::config::{Backend, Guard, Number};
use crate::ledger::{Compared, Operation};

const CANDIDATE: usize = Backend::Fuse3 as usize;
const STABLE: usize = Backend::Fuse2 as usize;
const SECOND: u64 = 1_000_000_000;

/// A candidate with half of the operations, of which nothing has been seen.
fn look() -> Look {
    Look {
        candidate: Backend::Fuse3,
        weight: 50,
        recent: Span { lasted: Duration::from_secs(60), ..Span::default() },
        whole: Span { lasted: Duration::from_secs(600), ..Span::default() },
        in_flight: [vec![], vec![]],
        rows: [0, 0],
        probe: Probe::Answered,
        has_ended: false,
        lost: Lost::LookedFor,
        comparison: Comparison::Off,
        by_operation: vec![],
        prometheus: None,
    }
}

/// So many answers, with so many errors; both in the window and in the step.
fn seen(look: &mut Look, backend: usize, operations: u64, errors: u64) {
    for span in [&mut look.recent, &mut look.whole] {
        let of = &mut span.counts.backends[backend];
        (of.operations, of.errors) = (operations, errors);
    }
}

fn slow(span: &mut Span, backend: usize, operations: u64, slow: u64) {
    let handlers = &mut span.counts.backends[backend].handlers;
    handlers.buckets[3] = operations - slow;
    // Up to 2.5 s.
    handlers.buckets[16] = slow;
}

fn find(look: &Look, rule: Rule) -> Finding {
    find_by(look, &Guard::default(), rule)
}

fn find_by(look: &Look, guard: &Guard, rule: Rule) -> Finding {
    judge(look, guard).into_iter().find(|finding| finding.rule == rule).expect("a finding")
}

#[rstest]
#[case::nothing(0, 0, Verdict::NoData, "0 of 500 samples in 1m")]
#[case::too_few(499, 499, Verdict::NoData, "499 of 500 samples in 1m")]
#[case::just_enough(500, 0, Verdict::Healthy, "0 % of 500 operations failed in 1m (threshold 1 %)")]
#[case::perhaps(
    500,
    5,
    Verdict::NoData,
    "1 % of 500 operations failed in 1m (threshold 1 %), which may be 0.43 % to 2.3 % in truth: not more or less for sure"
)]
#[case::certainly(1204, 39, Verdict::Breach, "3.2 % of 1,204 operations failed in 1m (threshold 1 %)")]
fn error_rate(#[case] operations: u64, #[case] errors: u64, #[case] verdict: Verdict, #[case] reason: &str) {
    let mut look = look();
    // In the window alone: in the step they might do.
    let of = &mut look.recent.counts.backends[CANDIDATE];
    (of.operations, of.errors) = (operations, errors);
    let finding = find(&look, Rule::ErrorRate);
    assert_eq!((finding.verdict, finding.reason.as_str(), finding.samples), (verdict, reason, operations));
    assert_eq!(finding.threshold, Some(0.01));
}

/// With few operations, or a candidate that holds everybody up, a window never has enough.
#[test]
fn a_step_may_condemn_but_not_acquit() {
    let mut look = look();
    slow(&mut look.recent, CANDIDATE, 320, 320);
    slow(&mut look.whole, CANDIDATE, 499, 499);
    assert_eq!(find(&look, Rule::P99).verdict, Verdict::NoData);
    slow(&mut look.whole, CANDIDATE, 500, 500);
    let finding = find(&look, Rule::P99);
    assert_eq!(finding.verdict, Verdict::Breach);
    assert!(finding.reason.contains("100 % of 500 operations took longer than 1s in 10m"), "{}", finding.reason);
    slow(&mut look.recent, CANDIDATE, 320, 0);
    slow(&mut look.whole, CANDIDATE, 5_000, 0);
    assert_eq!(find(&look, Rule::P99).verdict, Verdict::NoData);
}

#[rstest]
#[case::both(1000, 100, Verdict::Source)]
#[case::stable_has_little_of_it(20, 10, Verdict::Source)]
#[case::stable_is_well(1000, 1, Verdict::Breach)]
#[case::stable_serves_nothing(0, 0, Verdict::Breach)]
fn what_ails_both_is_the_source(#[case] samples: u64, #[case] bad: u64, #[case] verdict: Verdict) {
    let mut look = look();
    seen(&mut look, CANDIDATE, 1000, 100);
    seen(&mut look, STABLE, samples, bad);
    for span in [&mut look.recent, &mut look.whole] {
        slow(span, CANDIDATE, 1000, 100);
        slow(span, STABLE, samples, bad);
    }
    for rule in [Rule::ErrorRate, Rule::P99] {
        let finding = find(&look, rule);
        assert_eq!(finding.verdict, verdict, "{}", finding.reason);
        assert_eq!(finding.reason.contains("; of fuse2 "), verdict == Verdict::Source, "{}", finding.reason);
    }
    let findings = judge(&look, &Guard::default());
    assert_eq!(
        (breach(&findings).is_some(), source(&findings).is_some()),
        (verdict == Verdict::Breach, verdict == Verdict::Source)
    );
    assert!(missing(&findings).is_some(), "no step in either case");
}

#[test]
fn alone_a_candidate_is_judged_by_itself_and_that_is_said() {
    let mut look = Look { weight: 100, ..look() };
    seen(&mut look, CANDIDATE, 1000, 100);
    look.in_flight[CANDIDATE].push(Duration::from_secs(11));
    for rule in [Rule::ErrorRate, Rule::Hang] {
        let finding = find(&look, rule);
        assert_eq!(finding.verdict, Verdict::Breach);
        assert!(
            finding.reason.ends_with("fuse2 serves nothing, so that fuse3 is judged by itself"),
            "{}",
            finding.reason
        );
    }
}

#[test]
fn requests_in_a_handler_count_with_their_age() {
    let mut look = look();
    slow(&mut look.recent, CANDIDATE, 500, 0);
    let finding = find(&look, Rule::P99);
    assert_eq!((finding.verdict, finding.value, finding.threshold), (Verdict::Healthy, Some(0.0001), Some(1.)));
    look.in_flight[CANDIDATE] = vec![Duration::from_millis(999); 50];
    assert_eq!(find(&look, Rule::P99).verdict, Verdict::Healthy);
    look.in_flight[CANDIDATE] = vec![Duration::from_millis(1001); 50];
    assert_eq!(find(&look, Rule::P99).verdict, Verdict::Breach);
}

/// Between bounds nothing is known: the next one is what can be told.
#[rstest]
#[case(1000, Verdict::Breach)]
#[case(1001, Verdict::Healthy)]
#[case(5000, Verdict::Healthy)]
#[case(600, Verdict::Breach)]
fn the_threshold_is_rounded_up_to_a_bound(#[case] milliseconds: u64, #[case] verdict: Verdict) {
    let mut look = look();
    slow(&mut look.recent, CANDIDATE, 1000, 100);
    let guard = Guard { p99: Duration::from_millis(milliseconds), ..Guard::default() };
    assert_eq!(find_by(&look, &guard, Rule::P99).verdict, verdict);
}

#[test]
fn one_slow_probe_is_no_breach_and_two_of_twenty_are() {
    let mut look = look();
    let mut probes = |slow: u64, all: u64| {
        let of = &mut look.recent.counts.backends[CANDIDATE].probes;
        (of.buckets[4], of.buckets[16]) = (all - slow, slow);
        find(&look, Rule::ProbeP99).verdict
    };
    assert_eq!(probes(1, 1), Verdict::NoData);
    assert_eq!(probes(1, 20), Verdict::NoData);
    assert_eq!(probes(2, 20), Verdict::Breach);
    let mut slow_source = look.clone();
    slow(&mut slow_source.recent, STABLE, 100, 50);
    assert_eq!(find(&slow_source, Rule::ProbeP99).verdict, Verdict::Source);
    let findings = judge(&Look { recent: Span::default(), ..look }, &Guard::default());
    assert!(findings.iter().any(|finding| finding.rule == Rule::ProbeP99 && finding.need == Need::NotBad));
}

#[rstest]
#[case(9, 0, Verdict::Healthy)]
#[case(11, 4, Verdict::Breach)]
#[case(11, 9, Verdict::Source)]
#[case(11, 11, Verdict::Source)]
#[case(0, 11, Verdict::Healthy)]
fn hang(#[case] candidate: u64, #[case] stable: u64, #[case] verdict: Verdict) {
    let mut look = look();
    look.in_flight[CANDIDATE] = vec![Duration::from_millis(3), Duration::from_secs(candidate)];
    look.in_flight[STABLE] = vec![Duration::from_secs(stable)];
    let finding = find(&look, Rule::Hang);
    assert_eq!((finding.verdict, finding.value, finding.samples), (verdict, Some((candidate as f64).max(0.003)), 2));
}

#[rstest]
#[case(19, 0, Verdict::Healthy)]
#[case(20, 0, Verdict::Breach)]
#[case(40, 20, Verdict::Source)]
fn consecutive_errors(#[case] candidate: u32, #[case] stable: u32, #[case] verdict: Verdict) {
    let mut look = look();
    (look.rows[CANDIDATE], look.rows[STABLE]) = (candidate, stable);
    assert_eq!(find(&look, Rule::ConsecutiveErrors).verdict, verdict);
}

#[rstest]
#[case::well(Probe::Answered, 0, 0, Verdict::Healthy)]
#[case::nobody_asks(Probe::Unknown { why: "off".into() }, 9, 0, Verdict::NoData)]
#[case::an_error_of_its_own(Probe::Failed { why: "EIO".into(), by: Some(Backend::Fuse3) }, 1, 0, Verdict::Breach)]
#[case::what_the_source_says(Probe::Failed { why: "EIO".into(), by: Some(Backend::Fuse3) }, 0, 0, Verdict::Source)]
#[case::by_the_stable_one(Probe::Failed { why: "EIO".into(), by: Some(Backend::Fuse2) }, 1, 0, Verdict::Source)]
#[case::unmounted(Probe::Failed { why: "nothing is mounted".into(), by: None }, 1, 0, Verdict::NoData)]
#[case::nobody_has_read_it(Probe::Silent { lasted: Duration::from_secs(5) }, 0, 0, Verdict::Breach)]
#[case::the_stable_one_holds_it(Probe::Silent { lasted: Duration::from_secs(5) }, 0, 6, Verdict::Source)]
fn failed_probe(#[case] probe: Probe, #[case] errors: u64, #[case] stable_holds: u64, #[case] verdict: Verdict) {
    let mut look = Look { probe, ..look() };
    seen(&mut look, CANDIDATE, 10, errors);
    look.in_flight[STABLE] = vec![Duration::from_secs(stable_holds)];
    assert_eq!(find(&look, Rule::FailedProbe).verdict, verdict);
}

#[test]
fn one_lost_request_is_one_too_many() {
    let mut look = look();
    assert_eq!(find(&look, Rule::LostRequests).verdict, Verdict::Healthy);
    look.recent.counts.backends[CANDIDATE].lost = 1;
    assert_eq!(find(&look, Rule::LostRequests).verdict, Verdict::Breach);
    let unseen = Look { lost: Lost::Unseen, ..self::look() };
    assert_eq!(find(&unseen, Rule::LostRequests).verdict, Verdict::NoData);
}

#[test]
fn a_session_that_has_ended_is_shown_and_left_to_who_sees_it_first() {
    let look = Look { has_ended: true, ..look() };
    assert_eq!(find(&look, Rule::EndedSession).verdict, Verdict::Breach);
    assert_eq!(breach(&judge(&look, &Guard::default())), None);
}

#[rstest]
#[case(0, 500, Verdict::NoData)]
#[case(0, 4_000, Verdict::Healthy)]
#[case(6, 4_000, Verdict::NoData)]
#[case(12, 4_000, Verdict::Breach)]
fn divergence(#[case] diverged: u64, #[case] compared: u64, #[case] verdict: Verdict) {
    let mut look = Look { weight: 0, comparison: Comparison::On, ..look() };
    (look.whole.counts.diverged, look.whole.counts.compared) = (diverged, compared);
    let finding = find(&look, Rule::Divergence);
    assert_eq!((finding.verdict, finding.samples), (verdict, compared), "{}", finding.reason);
    let findings = judge(&look, &Guard::default());
    assert_eq!(findings.len(), 1, "in a shadow step there is nothing else to judge by");
    assert_eq!(missing(&findings).is_none(), verdict == Verdict::Healthy);
}

#[test]
fn what_has_gone_well_for_long_does_not_hide_what_differs_lately() {
    let mut look = Look { comparison: Comparison::On, ..look() };
    look.whole.counts.compared = 1_000_000;
    look.whole.counts.diverged = 100;
    look.recent.counts.compared = 1_000;
    look.recent.counts.diverged = 100;
    assert_eq!(find(&look, Rule::Divergence).verdict, Verdict::Breach);
}

#[test]
fn without_comparisons_a_shadow_step_goes_by_time() {
    let look = Look { weight: 0, ..look() };
    let findings = judge(&look, &Guard::default());
    assert_eq!((findings[0].verdict, findings[0].reason.as_str()), (Verdict::NoData, "nothing is compared"));
    assert_eq!(missing(&findings), None);
}

#[rstest]
#[case::not_asked(None, Verdict::NoData)]
#[case::unreachable(Some(Err("connection refused".into())), Verdict::NoData)]
#[case::good(Some(Ok(0.01)), Verdict::Healthy)]
#[case::bad(Some(Ok(0.011)), Verdict::Breach)]
fn prometheus(#[case] answer: Option<Result<f64, String>>, #[case] verdict: Verdict) {
    let mut guard = Guard::default();
    let mut look = Look { prometheus: answer, ..look() };
    seen(&mut look, CANDIDATE, 10_000, 0);
    slow(&mut look.recent, CANDIDATE, 10_000, 0);
    assert_eq!(missing(&judge(&look, &guard)), None, "nobody is to be asked");
    guard.prometheus.url = Some("http://prometheus:9090".into());
    guard.prometheus.query = Some("1".into());
    guard.prometheus.above = Number::new(0.01);
    assert_eq!(find_by(&look, &guard, Rule::Prometheus).verdict, verdict);
    let findings = judge(&look, &guard);
    assert_eq!(missing(&findings).is_none(), verdict == Verdict::Healthy, "no data never promotes");
    assert_eq!(breach(&findings).is_some(), verdict == Verdict::Breach);
}

/// What may have no data, and what a step waits for.
#[test]
fn a_step_waits_for_errors_and_times() {
    let mut look = Look { probe: Probe::Unknown { why: "off".into() }, lost: Lost::Unseen, ..look() };
    let rule = |look: &Look| missing(&judge(look, &Guard::default())).map(|finding| finding.rule);
    assert_eq!(rule(&look), Some(Rule::ErrorRate));
    seen(&mut look, CANDIDATE, 10_000, 0);
    assert_eq!(rule(&look), Some(Rule::P99));
    slow(&mut look.recent, CANDIDATE, 10_000, 0);
    assert_eq!(rule(&look), None);
    assert_eq!(look.recent.counts.backends[CANDIDATE].handlers.above(SECOND), 0);
}

/// A source that takes six seconds: its requests are of any age when the guard looks.
#[rstest]
#[case::it_holds_one(vec![Duration::from_millis(3100)], 0, Verdict::Source)]
#[case::it_has_answered_one(vec![], 1, Verdict::Source)]
#[case::it_is_quick(vec![Duration::from_millis(50)], 0, Verdict::Breach)]
fn what_is_slow_for_both_is_the_sources(#[case] held: Vec<Duration>, #[case] answered: u64, #[case] verdict: Verdict) {
    let lasted = Duration::from_millis(6100);
    let mut look = Look { probe: Probe::Silent { lasted }, ..look() };
    // Up to 5 s.
    look.recent.counts.backends[0].handlers.buckets[17] = answered;
    look.in_flight = [held, vec![lasted]];
    assert_eq!(find(&look, Rule::FailedProbe).verdict, verdict);
    let guard = Guard { hang: lasted - Duration::from_millis(100), ..Guard::default() };
    assert_eq!(find_by(&look, &guard, Rule::Hang).verdict, verdict);
}

/// Ten links of forty, among a hundred thousand other answers.
#[rstest]
#[case::many(40, 10, Verdict::Breach)]
#[case::an_accident(40, 2, Verdict::Healthy)]
#[case::rarer_than_may_be(100_000, 5, Verdict::Healthy)]
fn a_rare_operation_is_judged_by_itself(#[case] compared: u64, #[case] diverged: u64, #[case] verdict: Verdict) {
    let mut look = Look { comparison: Comparison::On, ..look() };
    for span in [&mut look.recent, &mut look.whole] {
        (span.counts.compared, span.counts.diverged) = (200_000, diverged);
    }
    look.by_operation = vec![
        (Operation::GetAttr, Compared { compared: 100_000, ..Compared::default() }),
        (Operation::ReadLink, Compared { compared, diverged, dropped: 0 }),
    ];
    let finding = find(&look, Rule::Divergence);
    assert_eq!(finding.verdict, verdict, "{finding:?}");
    assert_eq!(finding.reason.contains("readlink"), verdict == Verdict::Breach, "{finding:?}");
    look.whole.counts.compared = 499;
    look.recent.counts.compared = 499;
    look.whole.counts.diverged = 0;
    look.recent.counts.diverged = 0;
    assert_eq!(find(&look, Rule::Divergence).verdict, Verdict::NoData, "too few of all");
}
