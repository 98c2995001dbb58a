//! Chance with a seed, and the count of what it brought.

use std::collections::BTreeMap;
use std::time::Duration;

/// Draws: the same seed, the same draws (splitmix64).
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    /// Whether something that happens so often in a thousand times happens now.
    pub(super) fn per_mille(&mut self, often: usize) -> bool {
        self.below(1000) < often
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() {
            return None;
        }
        from.get(self.below(from.len()))
    }

    /// Whole milliseconds, as tokio's timers count.
    pub(super) fn millis(&mut self, below: usize) -> Duration {
        Duration::from_millis(self.below(below) as u64)
    }
}

/// What can go wrong, or at least otherwise than asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// A step took seconds.
    Slow,
    /// A step failed before it did anything.
    FailedBefore,
    /// A step failed in the middle.
    FailedHalfway,
    /// A step did all of its work and failed.
    FailedAfter,
    /// A step panicked.
    StepPanicked,
    /// A driver panicked.
    DriverPanicked,
    /// A kill ended nothing.
    KilledInVain,
    /// A stop signal was ignored.
    SignalIgnored,
    /// A container ended by itself: after its creation, …
    ExitCreated,
    /// … while its program was being started, …
    ExitStarting,
    /// … while it ran, …
    ExitRunning,
    /// … while it was being stopped.
    ExitStopping,
    /// A shim died.
    ShimDied,
    /// A shim fell silent.
    ShimSilent,
    /// A silent shim answered again.
    ShimBack,
    /// A silent shim did, when it came back, what nobody waited for any more.
    LateEffect,
    /// The shim's end of a connection was slower than another's.
    EventDelayed,
    /// A caller went away.
    CallerLeft,
    /// The daemon was killed.
    DaemonKilled,
    /// What was under way as the daemon was killed took effect nevertheless.
    EffectAfterDeath,
    /// The machine was rebooted.
    Reboot,
    /// A container ended while no daemon was there.
    ExitAway,
    /// A shim died while no daemon was there.
    ShimDiedAway,
    /// A shim was silent as a new daemon asked it.
    SilentAtStart,
    /// A record was unreadable after a restart.
    RecordBroken,
}

/// All of them.
pub(super) const FAULTS: [Fault; 25] = [
    Fault::Slow,
    Fault::FailedBefore,
    Fault::FailedHalfway,
    Fault::FailedAfter,
    Fault::StepPanicked,
    Fault::DriverPanicked,
    Fault::KilledInVain,
    Fault::SignalIgnored,
    Fault::ExitCreated,
    Fault::ExitStarting,
    Fault::ExitRunning,
    Fault::ExitStopping,
    Fault::ShimDied,
    Fault::ShimSilent,
    Fault::ShimBack,
    Fault::LateEffect,
    Fault::EventDelayed,
    Fault::CallerLeft,
    Fault::DaemonKilled,
    Fault::EffectAfterDeath,
    Fault::Reboot,
    Fault::ExitAway,
    Fault::ShimDiedAway,
    Fault::SilentAtStart,
    Fault::RecordBroken,
];

/// What happened how often.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Requests, parts of effects, events.
    pub(super) steps: u64,
    pub(super) faults: BTreeMap<Fault, u64>,
    /// Answers by verb and success.
    pub(super) answers: BTreeMap<(&'static str, bool), u64>,
}

impl Tally {
    pub(super) fn count(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        for (fault, n) in &other.faults {
            *self.faults.entry(*fault).or_default() += n;
        }
        for (answer, n) in &other.answers {
            *self.answers.entry(*answer).or_default() += n;
        }
    }
}
