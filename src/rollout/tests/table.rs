//! The table, cell by cell, and the page that is made from it.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::*;

/// What each request leads to: the situation and the candidate's weight; `=` where it is so already, `no` where it is
/// refused. Written by hand, so that it says once more what [`cell`] says.
#[rustfmt::skip]
const EXPECTED: [(Situation, [&str; 9]); 11] = [
    //                          switch STABLE           switch CANDIDATE   rollback      unpin       start         pause         resume         promote          abort
    (Situation::NoCandidate,  ["no candidate 0",        "no candidate 100", "pinned 0", "=",         "no",         "no",         "no",          "no",            "no"]),
    (Situation::Idle,         ["idle 0",                "idle 100",         "pinned 0", "=",         "running 0",  "no",         "no",          "no",            "no"]),
    (Situation::Fallback,     ["idle 0",                "idle 100",         "pinned 0", "=",         "no",         "no",         "no",          "no",            "no"]),
    (Situation::FleetOutside, ["fleet, outside 0",      "fleet, outside 100", "pinned 0", "=",       "no",         "no",         "no",          "no",            "no"]),
    (Situation::FleetInside,  ["no",                    "=",                "pinned 0", "=",         "=",          "no",         "no",          "no",            "no"]),
    (Situation::Running,      ["no",                    "no",               "pinned 0", "=",         "no",         "paused 10",  "=",           "running 100",   "aborted 0"]),
    (Situation::Paused,       ["no",                    "no",               "pinned 0", "=",         "no",         "=",          "running 10",  "paused 100",    "aborted 0"]),
    (Situation::Committed,    ["idle 0",                "committed 100",    "pinned 0", "=",         "no",         "no",         "no",          "no",            "no"]),
    (Situation::Aborted,      ["aborted 0",             "idle 100",         "pinned 0", "=",         "running 0",  "no",         "no",          "no",            "="]),
    (Situation::Pinned,       ["pinned 0",              "no",               "=",        "idle 0",    "no",         "no",         "no",          "no",            "="]),
    (Situation::Unreadable,   ["unreadable state 0",    "no",               "no",       "no",        "no",         "no",         "no",          "no",            "="]),
];

fn said(stage: &Stage) -> String {
    format!("{} {}", stage.situation().name(), stage.weight())
}

#[test]
fn each_cell_is_what_it_is_to_be() {
    assert_eq!(EXPECTED.map(|(situation, _)| situation), Situation::ALL);
    for (situation, expected) in EXPECTED {
        for (action, expected) in Action::ALL.into_iter().zip(expected) {
            let mut stage = stage(situation);
            let before = stage.state.clone();
            let asked = stage.ask(request(action));
            let told = |text: &str| {
                assert!(!text.is_empty(), "{situation:?}, {action:?}");
                for word in ["MOUNT", "STABLE", "CANDIDATE", "WHY", "SINCE", "STEP"] {
                    assert!(!text.contains(word), "{situation:?}, {action:?}: {text}");
                }
            };
            let is = match &asked {
                Err(Refused { reason, remedy }) => {
                    told(reason);
                    told(remedy);
                    assert!(stage.state == before, "{situation:?}, {action:?}: a refusal has changed something");
                    "no".into()
                }
                Ok(Transition { notes, keep, serve, .. }) if matches!(notes[..], [Note::Already { .. }]) => {
                    told(&notes[0].to_string());
                    assert!((stage.state == before, keep, serve) == (true, &None, &None), "{situation:?}, {action:?}");
                    "=".into()
                }
                Ok(_) => said(&stage),
            };
            assert_eq!(is, expected, "{situation:?}, {action:?}: {asked:?}");
        }
    }
}

/// Two operators ask for the same at the same moment: the second one is told, or nothing is done twice.
#[test]
fn the_same_twice_is_done_once() {
    for situation in Situation::ALL {
        for action in Action::ALL {
            let mut stage = stage(situation);
            let from = match stage.state.phase() {
                Phase::Running(progress) => Some(progress.step + 1),
                _ => None,
            };
            // As a client asks that has seen the step.
            let request = if action == Action::Promote { Request::Promote { from } } else { request(action) };
            if stage.ask(request.clone()).is_err() {
                continue;
            }
            let once = stage.state.clone();
            let again = stage.ask(request);
            assert!(stage.state == once, "{situation:?}, {action:?}: {again:?}");
        }
    }
}

/// A reload of the configuration is never refused; what it leads to.
#[test]
fn a_reload_leads_on() {
    let changes = reloads();
    let expected = [
        //  situation              removed          other steps          fleet, outside       fleet, inside
        (Situation::NoCandidate, ["no candidate 0", "idle 0", "fleet, outside 0", "fleet, inside 100"]),
        (Situation::Idle, ["no candidate 0", "idle 0", "fleet, outside 0", "fleet, inside 100"]),
        (Situation::Fallback, ["no candidate 0", "fallback 0", "fleet, outside 0", "fleet, inside 100"]),
        (Situation::FleetOutside, ["no candidate 0", "idle 0", "fleet, outside 0", "fleet, inside 100"]),
        (Situation::FleetInside, ["no candidate 0", "idle 0", "fleet, outside 0", "fleet, inside 100"]),
        (Situation::Running, ["no candidate 0", "running 5", "fleet, outside 0", "fleet, inside 100"]),
        (Situation::Paused, ["no candidate 0", "paused 5", "fleet, outside 0", "fleet, inside 100"]),
        (Situation::Committed, ["no candidate 0", "committed 100", "fleet, outside 0", "fleet, inside 100"]),
        (Situation::Aborted, ["no candidate 0", "aborted 0", "fleet, outside 0", "fleet, inside 100"]),
        (Situation::Pinned, ["pinned 0", "pinned 0", "pinned 0", "pinned 0"]),
        (
            Situation::Unreadable,
            ["unreadable state 0", "unreadable state 0", "unreadable state 0", "unreadable state 0"],
        ),
    ];
    for (situation, expected) in expected {
        for ((name, terms), expected) in changes.iter().zip(expected) {
            let mut stage = stage(situation);
            let before = stage.state.wanted(&stage.terms);
            let transition = stage.reload(terms.clone());
            assert_eq!(said(&stage), expected, "{situation:?}, {name}");
            assert_eq!(transition.serve.is_some(), stage.state.wanted(&stage.terms) != before, "{situation:?}, {name}");
        }
    }
}

fn reloads() -> [(&'static str, Terms); 4] {
    [
        ("the candidate is removed", no_candidate()),
        ("the steps are 5 % and 100 %", terms(vec![step(Trial::Weight(5), 1), step(Trial::Weight(100), 1)])),
        ("fleet, and this machine is not in the share", fleet(false)),
        ("fleet, and this machine is in the share", fleet(true)),
    ]
}

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/actions.md");

/// docs/reference/actions.md.
fn page() -> String {
    let mut text = String::from(include_str!("actions.md"));
    text += "\n## Situations\n\n| situation | what it is |\n|---|---|\n";
    for situation in Situation::ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| **{}** | {} |", situation.name(), situation.about());
    }
    text += "\n## The table\n\n`yes`: it is done. `=`: it is so already, which is no error. A number: it is refused, see below.\n\n| |";
    for action in Action::ALL {
        let _ = write!(text, " {} |", action.name());
    }
    let _ = writeln!(text, "\n|---|{}", "---|".repeat(Action::ALL.len()));
    let mut refusals = Vec::new();
    for situation in Situation::ALL {
        let _ = write!(text, "| **{}** |", situation.name());
        for action in Action::ALL {
            let entry = match cell(situation, action) {
                Cell::Do(_) => "yes".into(),
                Cell::Already(_) => "=".into(),
                Cell::Refuse { reason, remedy } => {
                    let known = refusals.iter().position(|known| *known == (reason, remedy));
                    let number = known.unwrap_or_else(|| {
                        refusals.push((reason, remedy));
                        refusals.len() - 1
                    });
                    (number + 1).to_string()
                }
            };
            let _ = write!(text, " {entry} |");
        }
        text += "\n";
    }
    text += "\nWhy not, and what to do:\n\n";
    for (number, (reason, remedy)) in refusals.iter().enumerate() {
        let _ = writeln!(text, "{}. {reason}; {remedy}.", number + 1);
    }
    text += "\n## What is done\n\n| action | situation | what happens |\n|---|---|---|\n";
    for action in Action::ALL {
        let mut told = BTreeSet::new();
        for situation in Situation::ALL {
            let Cell::Do(what) = cell(situation, action) else { continue };
            if !told.insert(what) {
                continue;
            }
            let same = |other: &Situation| cell(*other, action) == Cell::Do(what);
            let situations: Vec<_> = Situation::ALL.into_iter().filter(same).map(Situation::name).collect();
            let _ = writeln!(text, "| {} | {} | {what} |", action.name(), situations.join("; "));
        }
    }
    text += "\n## A reload of the configuration\n\nIt is never refused. The rollout had steps, and 10 %, where it was running or paused:\n\n| |";
    for (name, _) in reloads() {
        let _ = write!(text, " {name} |");
    }
    let _ = writeln!(text, "\n|---|{}", "---|".repeat(reloads().len()));
    for situation in Situation::ALL {
        let _ = write!(text, "| **{}** |", situation.name());
        for (_, terms) in reloads() {
            let mut stage = stage(situation);
            stage.reload(terms);
            let _ = write!(text, " {}, {} % |", stage.situation().name(), stage.weight());
        }
        text += "\n";
    }
    text
}

#[test]
fn the_page_in_docs_says_what_the_table_says() {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, page()).unwrap();
    }
    let there = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(there == page(), "{PAGE} is old: run `UPDATE_DOCS=1 cargo test --lib rollout`");
}
