//! The life of a container, as a value: no I/O, no clock, no locks.
//!
//! ```text
//!             Made           Start            Started
//!  Creating ───────► Created ──────► Starting ──────► Running ───────────────────┐
//!     │ Failed         │  │             │ Failed        │ Stop          │ Kill     │
//!     │                │  │             │               ▼               │          │
//!     │                │  └──Kill───┐   │            Stopping ──Kill──┐ │          │ Exited
//!     │                │            ▼   │               │             ▼ ▼          │
//!     │                └─Exited─► (Killing ◄──KillAgain)┼──────────►Killing        │
//!     │                             │   │               │             │            │
//!     │                             ▼   ▼ Exited        ▼ Exited      ▼ Exited     ▼
//!     │                            Collecting ◄──────────────────────────────────────
//!     │                                │ Collected        (CollectAgain after a failure)
//!     │                                ▼
//!     │                             Exited
//!     │                                │ Remove
//!     └────────────────────────────────┴──► Removing ──Removed──► Gone
//!                                            (RemoveAgain after a failure)
//! ```
//!
//! Every other event changes nothing. `Exited` that overtakes the outcome of `Create` or `Start` is
//! held back by the driver until that outcome is there: nothing that happened is thrown away.
//!
//! One effect at a time, except that a signal or a kill may begin while another one is under way.

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It is being made.
    Creating,
    /// Its init waits to execute its program.
    Created,
    /// Its program is being executed.
    Starting,
    /// Its program runs.
    Running,
    /// It was asked to end and has time to do so.
    Stopping,
    /// All its processes are being killed.
    Killing,
    /// It has ended; what only a living container needs is given back.
    Collecting,
    /// It has ended; its files remain.
    Exited,
    /// Everything of it is being removed.
    Removing,
    /// Nothing of it is left.
    Gone,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// It was made.
    Made,
    /// It was asked to start.
    Start,
    /// Its program was executed.
    Started,
    /// Making or starting it failed.
    Failed,
    /// It was asked to end.
    Stop,
    /// It has to end now.
    Kill,
    /// It was killed and is still there.
    KillAgain,
    /// Its init has ended, or nobody can tell any more.
    Exited,
    /// What a living container needs was given back.
    Collected,
    /// Giving back failed, and is due again.
    CollectAgain,
    /// It was asked to go.
    Remove,
    /// Removing failed, and is due again.
    RemoveAgain,
    /// Everything was removed.
    Removed,
}

/// What the driver must now do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// Execute its program.
    Start,
    /// Send its stop signal; the driver's timer then brings `Kill`.
    Signal,
    /// Kill all its processes.
    Kill,
    /// See how it ended, give back what only a living container needs.
    Collect,
    /// Remove everything of it.
    Remove,
}

impl State {
    /// Takes `event`; says what to do. `None` means: nothing to do.
    pub(crate) fn on(&mut self, event: Event) -> Option<Effect> {
        use State::{
            Collecting, Created, Creating, Exited, Gone, Killing, Removing, Running, Starting,
            Stopping,
        };
        let (next, effect) = match (*self, event) {
            (Creating, Event::Made) => (Created, None),
            (Created, Event::Start) => (Starting, Some(Effect::Start)),
            (Starting, Event::Started) => (Running, None),
            (Running, Event::Stop) => (Stopping, Some(Effect::Signal)),
            (Created | Running | Stopping, Event::Kill) | (Killing, Event::KillAgain) => {
                (Killing, Some(Effect::Kill))
            }
            (Created | Running | Stopping | Killing, Event::Exited)
            | (Starting, Event::Failed)
            | (Collecting, Event::CollectAgain) => (Collecting, Some(Effect::Collect)),
            (Collecting, Event::Collected) => (Exited, None),
            (Exited, Event::Remove)
            | (Creating, Event::Failed)
            | (Removing, Event::RemoveAgain) => (Removing, Some(Effect::Remove)),
            (Removing, Event::Removed) => (Gone, None),
            (same, _) => (same, None),
        };
        *self = next;
        effect
    }

    /// Whether processes of it may live.
    pub(crate) fn is_live(self) -> bool {
        matches!(
            self,
            Self::Creating
                | Self::Created
                | Self::Starting
                | Self::Running
                | Self::Stopping
                | Self::Killing
                | Self::Collecting
        )
    }

    /// The state in words, for people and logs.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running => "running",
            Self::Stopping => "being stopped",
            Self::Killing => "being killed",
            Self::Collecting | Self::Exited => "exited",
            Self::Removing | Self::Gone => "being removed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Event; 13] = [
        Event::Made,
        Event::Start,
        Event::Started,
        Event::Failed,
        Event::Stop,
        Event::Kill,
        Event::KillAgain,
        Event::Exited,
        Event::Collected,
        Event::CollectAgain,
        Event::Remove,
        Event::RemoveAgain,
        Event::Removed,
    ];
    const LIFE: [Event; 3] = [Event::Made, Event::Start, Event::Started];
    const END: [Event; 6] = [
        Event::Failed,
        Event::Kill,
        Event::Exited,
        Event::Collected,
        Event::Remove,
        Event::Removed,
    ];

    fn rank(state: State) -> u8 {
        match state {
            State::Creating => 0,
            State::Created => 1,
            State::Starting => 2,
            State::Running => 3,
            State::Stopping => 4,
            State::Killing => 5,
            State::Collecting => 6,
            State::Exited => 7,
            State::Removing => 8,
            State::Gone => 9,
        }
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        (
            (0..=LIFE.len()),
            prop::collection::vec(prop::sample::select(&ALL[..]), 0..60),
        )
            .prop_map(|(n, rest)| [&LIFE[..n], &rest[..]].concat())
    }

    #[test]
    fn a_whole_life_goes_through_every_effect() {
        let mut s = State::Creating;
        let life = [
            Event::Made,
            Event::Start,
            Event::Started,
            Event::Stop,
            Event::Kill,
            Event::Exited,
            Event::Collected,
            Event::Remove,
            Event::Removed,
        ];
        let effects: Vec<_> = life.iter().filter_map(|e| s.on(*e)).collect();
        assert_eq!(
            effects,
            [
                Effect::Start,
                Effect::Signal,
                Effect::Kill,
                Effect::Collect,
                Effect::Remove
            ]
        );
        assert_eq!(s, State::Gone);
    }

    proptest! {
        /// A container never becomes younger.
        #[test]
        fn states_follow_each_other(events in events()) {
            let mut s = State::Creating;
            for e in events {
                let before = s;
                s.on(e);
                prop_assert!(rank(before) <= rank(s), "{before:?} -{e:?}-> {s:?}");
            }
        }

        /// Its program is executed at most once, and signalled at most once.
        #[test]
        fn starting_and_signalling_happen_once(events in events()) {
            let mut s = State::Creating;
            let effects: Vec<_> = events.iter().filter_map(|e| s.on(*e)).collect();
            for once in [Effect::Start, Effect::Signal] {
                prop_assert!(effects.iter().filter(|e| **e == once).count() <= 1);
            }
        }

        /// Wherever it is, this sequence ends it, and what was made is removed.
        #[test]
        fn every_life_can_be_ended(events in events()) {
            let mut s = State::Creating;
            let mut effects: Vec<_> = events.iter().filter_map(|e| s.on(*e)).collect();
            effects.extend(END.iter().filter_map(|e| s.on(*e)));
            prop_assert_eq!(s, State::Gone);
            prop_assert!(effects.contains(&Effect::Remove));
        }

        /// A container that ran is collected before it is removed: its end is never skipped.
        #[test]
        fn an_end_is_looked_at_before_the_removal(events in events()) {
            let mut s = State::Creating;
            let mut effects: Vec<_> = events.iter().filter_map(|e| s.on(*e)).collect();
            effects.extend(END.iter().filter_map(|e| s.on(*e)));
            if effects.contains(&Effect::Start) {
                let collect = effects.iter().position(|e| *e == Effect::Collect);
                let remove = effects.iter().position(|e| *e == Effect::Remove);
                prop_assert!(collect.is_some() && collect < remove);
            }
        }
    }
}
