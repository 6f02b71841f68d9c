//! Comparisons of this server: what is compared is the daemon's to say, and goes on while nobody gives orders.

use std::time::Duration;

use super::Control;
use crate::shadow::{Comparing, Conditions};

/// For an answer in a comparison: as long as a slow source may take, and no client waits for it.
const ANSWER: Duration = Duration::from_secs(5);

impl Control {
    pub(super) fn compare(&mut self, comparing: Option<Comparing>) {
        match &comparing {
            Some(Comparing { reference, candidate, rate }) => {
                tracing::info!(%reference, %candidate, rate, "calls are compared");
            }
            None => tracing::info!("no calls are compared any more"),
        }
        let (mount, served) = (&self.mount, &self.served);
        let conditions = || Conditions {
            cache: mount.cache,
            negotiated: *served.connection().negotiated(),
            drill: served.drill().cloned(),
            limit: ANSWER,
        };
        if let Err(error) = self.shadow.compare(comparing, conditions) {
            tracing::error!(%error, "no calls are compared: no thread can be started");
        }
    }
}
