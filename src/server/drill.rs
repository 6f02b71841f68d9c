//! Drills of this server: their beginning and their end are the control loop's. The end comes also when nobody gives orders
//! any more.

use super::orders::Report;
use super::{Control, Daemon};
use crate::backend::drill::Plan;

impl Control {
    pub(super) fn start_drill(&self, plan: Plan) -> Report {
        let Some(drill) = self.served.drill() else {
            return Report::Failed { message: "this mount was made without `drill = true`".into() };
        };
        let message = match plan.check().map(|()| drill.start(plan)) {
            Ok(Ok(ongoing)) => {
                tracing::warn!(until = %humantime::format_rfc3339_seconds(ongoing.until), "a drill begins: {}", ongoing.plan);
                return Report::Drilling(ongoing);
            }
            Ok(Err(other)) => format!(
                "a drill runs already, until {} ({}): stop it first with --stop",
                humantime::format_rfc3339_seconds(other.until),
                other.plan
            ),
            Err(wrong) => wrong,
        };
        Report::Failed { message }
    }

    pub(super) fn stop_drill(&self) -> Report {
        let ended = self.served.drill().and_then(|drill| drill.stop());
        if let Some(ended) = &ended {
            tracing::info!(struck = ended.struck, "the drill is stopped: {}", ended.plan);
        }
        Report::DrillStopped { ended }
    }

    /// To be called often: ends the session that a drill wants to end, and a drill whose time is over.
    pub(super) fn look_after_drill(&self, daemon: &Daemon) {
        let Some(drill) = self.served.drill() else { return };
        let is_end_due = drill.take_end_due();
        if !is_end_due && !drill.is_overdue() {
            return;
        }
        let Some(ended) = drill.stop() else { return };
        tracing::info!(struck = ended.struck, "the drill is over: {}", ended.plan);
        if is_end_due {
            let backend = ended.plan.backend;
            match self.served.end_session(backend) {
                Ok(()) => tracing::warn!(%backend, "the drill ends a session"),
                Err(error) => tracing::warn!(%backend, %error, "the drill could not end the session"),
            }
        }
        daemon.hear(&Report::DrillOver(ended));
    }
}
