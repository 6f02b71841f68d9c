//! How the steps of a rollout are read from the file, each with its own line, and how they are written.

use std::time::Duration;

use serde_json::{Value, json};
use toml::Spanned;
use toml::de::DeValue;

use super::problem::{Wrong, quoted};
use super::rollout::{Step, Trial};

/// More than anybody watches; and what daemon and server say to each other has room for them.
const MOST: usize = 50;
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// What a step looks like.
pub(super) const EXPECTED: &str =
    "steps, such as [{ shadow = true, for = \"10m\" }, { weight = 10, for = \"30m\" }, { weight = 100, for = \"1h\" }]";

/// Reads all steps. What is wrong goes to `complain`, with its offset in the text.
pub(super) fn read(value: &Spanned<DeValue<'_>>, mut complain: impl FnMut(usize, Wrong)) -> Option<Vec<Step>> {
    let whole = value.span().start;
    let DeValue::Array(array) = value.get_ref() else {
        complain(whole, Wrong::new(wrong_type(value), format!("write {EXPECTED}")));
        return None;
    };
    if array.is_empty() || array.len() > MOST {
        complain(whole, Wrong::new(format!("there are {} steps", array.len()), format!("write 1 to {MOST} of them")));
        return None;
    }
    let mut steps = Vec::<Step>::new();
    for element in array {
        let offset = element.span().start;
        match step(element, &mut complain) {
            Some(step) => {
                if let Some(wrong) = follows(&steps, step) {
                    complain(offset, wrong);
                }
                steps.push(step);
            }
            // Of those behind it, it is not known what they follow.
            None => return None,
        }
    }
    if let Some(last) = steps.last().filter(|last| last.trial != Trial::Weight(100)) {
        let remedy = "end with { weight = 100, for = \"1h\" }: what is committed has all operations, and is tried with them before";
        complain(whole, Wrong::new(format!("the last step is {}", last.trial), remedy));
    }
    Some(steps)
}

/// What is wrong with a step behind others.
fn follows(before: &[Step], step: Step) -> Option<Wrong> {
    let previous = before.last()?;
    if step.trial == Trial::Shadow {
        return Some(Wrong::new("shadow comes after another step", "let it be the first one, once"));
    }
    (step.trial < previous.trial).then(|| {
        let message = format!("weight {} comes after {}", step.trial.weight(), previous.trial.weight());
        Wrong::new(message, "let weights rise; the way back is `rollout abort` or `rollback`")
    })
}

fn step(element: &Spanned<DeValue<'_>>, complain: &mut impl FnMut(usize, Wrong)) -> Option<Step> {
    const KEYS: &str = "a step has either `weight` or `shadow`, and `for`";
    let offset = element.span().start;
    let DeValue::Table(table) = element.get_ref() else {
        complain(offset, Wrong::new("a step is no table", "write { weight = 10, for = \"30m\" }"));
        return None;
    };
    let mut complaints = Vec::new();
    let mut wrong = |offset: usize, message: String, remedy: String| {
        complaints.push((offset, Wrong::new(message, remedy)));
    };
    let (mut trial, mut bake, mut trials) = (None, None, 0);
    for (name, value) in table {
        let (offset, name) = (name.span().start, name.get_ref().as_ref());
        match (name, value.get_ref()) {
            ("shadow", DeValue::Boolean(true)) => (trial, trials) = (Some(Trial::Shadow), trials + 1),
            ("shadow", _) => {
                wrong(offset, "shadow can only be true".into(), "write shadow = true, or leave it out".into());
            }
            ("weight", DeValue::Integer(number)) => {
                trials += 1;
                let weight = u8::from_str_radix(number.as_str(), number.radix()).ok();
                match weight.filter(|weight| (1..=100).contains(weight)) {
                    Some(weight) => trial = Some(Trial::Weight(weight)),
                    None => wrong(offset, format!("weight {} is out of range", number.as_str()), "use 1 to 100".into()),
                }
            }
            ("weight", _) => {
                wrong(
                    offset,
                    format!("weight {}", wrong_type(value)),
                    "write a whole number, without quotes: 1 to 100".into(),
                );
            }
            ("for", DeValue::String(text)) => match humantime::parse_duration(text) {
                Ok(time) if (SHORTEST..=LONGEST).contains(&time) => bake = Some(time),
                Ok(_) => wrong(offset, format!("for = {} is out of range", quoted(text)), "use 100ms to 30days".into()),
                Err(_) => wrong(
                    offset,
                    format!("{} is no time", quoted(text)),
                    "use a number with a unit, such as \"30m\" or \"1h\"".into(),
                ),
            },
            ("for", _) => {
                wrong(offset, format!("for {}", wrong_type(value)), "write it in quotes, such as \"30m\"".into());
            }
            (other, _) => wrong(offset, format!("unknown key {} in a step", quoted(other)), KEYS.into()),
        }
    }
    if complaints.is_empty() {
        match (trial, bake, trials) {
            (Some(trial), Some(bake), 1) => return Some(Step { trial, bake }),
            (_, _, 0) => complaints.push((offset, Wrong::new("a step has neither weight nor shadow", KEYS))),
            (_, _, 2) => complaints.push((offset, Wrong::new("a step has both weight and shadow", KEYS))),
            _ => complaints.push((offset, Wrong::new("a step does not say how long it lasts", "add for = \"30m\""))),
        }
    }
    for (offset, wrong) in complaints {
        complain(offset, wrong);
    }
    None
}

fn wrong_type(value: &Spanned<DeValue<'_>>) -> String {
    format!("has the wrong type: {}", value.get_ref().type_str())
}

/// As JSON, with the names that the file uses.
pub(super) fn show(steps: &[Step]) -> Value {
    let show = |step: &Step| {
        let bake = humantime::format_duration(step.bake).to_string();
        match step.trial {
            Trial::Shadow => json!({"shadow": true, "for": bake}),
            Trial::Weight(weight) => json!({"weight": weight, "for": bake}),
        }
    };
    steps.iter().map(show).collect::<Vec<_>>().into()
}

/// What JSON shows, as TOML has it, for the values that a configuration can have.
pub(super) fn toml(value: &Value) -> String {
    match value {
        Value::Array(values) => {
            let lines: Vec<_> = values.iter().map(toml).collect();
            format!("[{}]", lines.join(", "))
        }
        Value::Object(table) => {
            // What is tried comes before how long.
            let mut entries: Vec<_> = table.iter().collect();
            entries.sort_by_key(|(name, _)| *name == "for");
            let entries: Vec<_> = entries.iter().map(|(name, value)| format!("{name} = {}", toml(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        plain => plain.to_string(),
    }
}
