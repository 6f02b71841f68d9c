//! The second half: a rollout in fast motion, under the same load, whose candidate becomes slow, and the way back that the
//! guard goes by itself.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::stage::Stage;
use crate::api::Listener;
use crate::api::events::{Event, Published};
use crate::backend::drill::{Fault, Plan};
use crate::config::Backend;

/// For the whole of it; it takes a third of that.
const LONGEST: Duration = Duration::from_secs(40);
/// The step in which the candidate becomes slow: the last that [`Stage`] configures before it could be over.
const SLOW_AT: u8 = 50;
/// Above the guard's limit of a second, and below the two seconds after which what is in flight gets EIO.
const DELAY: Duration = Duration::from_millis(1500);
/// The share of the candidate's requests that is slow.
const RATE: f64 = 0.2;

/// What happened, and when: since the rollout began.
pub type Timeline = Vec<(Duration, String)>;

/// The way back.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Rollback {
    /// The rule of the guard that was broken.
    pub rule: String,
    /// From the guard's verdict until the stable backend served alone.
    pub breach_to_rollback_ms: f64,
}

/// Plays it.
///
/// # Errors
/// When it does not come to its end, and how far it came.
pub async fn play(stage: &Stage, stable: Backend) -> Result<(Rollback, Timeline), String> {
    let mut seen = Seen::default();
    let played = timeout_at(Instant::now() + LONGEST, follow(stage, stable, &mut seen)).await;
    let why = match played {
        Ok(Ok(rollback)) => return Ok((rollback, seen.timeline)),
        Ok(Err(why)) => why,
        Err(_) => format!("the guard has not rolled back within {LONGEST:?}"),
    };
    let came: String = seen.timeline.iter().map(|(at, what)| format!("\n{}", line(*at, what))).collect();
    Err(format!("{why}{came}"))
}

/// A line of a timeline.
pub fn line(at: Duration, what: &str) -> String {
    format!("{:6.2} s  {what}", at.as_secs_f64())
}

#[derive(Default)]
struct Seen {
    began: Option<SystemTime>,
    timeline: Timeline,
}

impl Seen {
    fn note(&mut self, at: SystemTime, what: String) {
        let began = *self.began.get_or_insert(at);
        self.timeline.push((at.duration_since(began).unwrap_or_default(), what));
    }
}

async fn follow(stage: &Stage, stable: Backend, seen: &mut Seen) -> Result<Rollback, String> {
    let candidate = stable.other();
    let mut events = stage.listen().await?;
    stage.start_rollout(candidate).await?;
    let mut breach = None;
    loop {
        let Published { at, event, .. } = next(&mut events).await?;
        match event {
            Event::Step { weight, .. } => {
                let does = match weight {
                    0 => "answers beside the other, and both answers are compared".into(),
                    _ => format!("gets {weight} % of the operations"),
                };
                seen.note(at, format!("{candidate} {does}"));
                if weight == SLOW_AT {
                    let plan = Plan { rate: RATE, delay: Some(DELAY), ..Plan::new(candidate, Fault::Delay) };
                    stage.drill(&plan).await?;
                    seen.note(SystemTime::now(), format!("{candidate} becomes slow: {plan}"));
                }
            }
            Event::Verdict { rule, verdict, .. } if verdict == "breach" && breach.is_none() => {
                seen.note(at, format!("the guard's rule {rule} is broken"));
                breach = Some((rule, at));
            }
            Event::Rollback { reason, .. } => seen.note(at, format!("rolled back: {reason}")),
            Event::Switch { to, reason, pause_ms, .. } if to == stable => {
                let Some((rule, breach)) = breach else {
                    return Err(format!("{stable} serves alone again, but not because of the guard: {reason}"));
                };
                seen.note(at, format!("{stable} serves alone, after a pause of {pause_ms:.2} ms"));
                let took = at.duration_since(breach).unwrap_or_default();
                return Ok(Rollback { rule, breach_to_rollback_ms: took.as_secs_f64() * 1e3 });
            }
            _ => {}
        }
    }
}

async fn next(events: &mut Listener) -> Result<Published, String> {
    events.next().await.map_err(|error| error.to_string())
}
