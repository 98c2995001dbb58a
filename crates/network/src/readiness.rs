//! Whether pods can get a network, as a value: no I/O, no clock.
//!
//! A network that was ready stays so for a while when its configuration goes or its plugins say no:
//! configurations are replaced by removing and writing, plugins restart, and kubelet evicts the pods of
//! a node whose network is not ready.

use std::time::{Duration, Instant};

/// What was found at a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A network is there and its plugins can attach.
    Ready,
    /// Why pods cannot get a network, and what to do.
    NotReady(String),
}

/// What is told.
#[derive(Debug, Clone)]
pub struct Readiness {
    grace: Duration,
    last: Finding,
    was_ready: Option<Instant>,
}

impl Readiness {
    /// Before the first look. `grace` is how long what was ready stays so.
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            last: Finding::NotReady("the network's plugins have not answered yet".to_owned()),
            was_ready: None,
        }
    }

    /// Takes what was found at `now`.
    pub fn on(&mut self, finding: Finding, now: Instant) {
        if finding == Finding::Ready {
            self.was_ready = Some(now);
        }
        self.last = finding;
    }

    /// What to tell at `now`.
    ///
    /// # Errors
    ///
    /// Why pods cannot get a network.
    pub fn at(&self, now: Instant) -> Result<(), String> {
        match &self.last {
            Finding::Ready => Ok(()),
            Finding::NotReady(_) if self.in_grace(now) => Ok(()),
            Finding::NotReady(why) => Err(why.clone()),
        }
    }

    /// Whether the last look found it ready.
    pub fn is_ready(&self) -> bool {
        self.last == Finding::Ready
    }

    /// Whether it was ready a short while ago.
    pub fn in_grace(&self, now: Instant) -> bool {
        self.was_ready
            .is_some_and(|then| now.saturating_duration_since(then) < self.grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    fn not(why: &str) -> Finding {
        Finding::NotReady(why.to_owned())
    }

    #[test]
    fn what_was_never_ready_has_no_grace() {
        let begin = Instant::now();
        let mut readiness = Readiness::new(GRACE);
        assert!(readiness.at(begin).is_err());
        readiness.on(not("empty"), begin);
        assert_eq!(readiness.at(begin), Err("empty".to_owned()));
    }

    #[test]
    fn what_was_ready_stays_so_for_its_grace_and_no_longer() {
        let begin = Instant::now();
        let mut readiness = Readiness::new(GRACE);
        readiness.on(Finding::Ready, begin);
        let later = begin + Duration::from_secs(100);
        assert_eq!(
            readiness.at(later),
            Ok(()),
            "ready until it is said otherwise"
        );
        readiness.on(Finding::Ready, later);
        readiness.on(not("gone"), later + Duration::from_secs(1));
        assert_eq!(
            readiness.at(later + GRACE - Duration::from_millis(1)),
            Ok(())
        );
        assert_eq!(readiness.at(later + GRACE), Err("gone".to_owned()));
        readiness.on(not("still gone"), later + GRACE);
        assert_eq!(readiness.at(later + GRACE), Err("still gone".to_owned()));
        readiness.on(Finding::Ready, later + GRACE * 2);
        assert_eq!(readiness.at(later + GRACE * 2), Ok(()));
    }
}
