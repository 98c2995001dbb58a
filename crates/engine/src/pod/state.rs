//! The life of a pod, as a value: no I/O, no clock, no locks.
//!
//! ```text
//!            Prepared          ShimUp            NetworkUp
//!  Preparing ───────► Starting ──────► Attaching ─────────► Ready
//!      │                 │                │                   │ Stop, Lost
//!      │                 │                │                   ▼
//!      │                 │                │                Killing
//!      │                 │                │ a                 │ ContainersGone
//!      │                 │                ▼                   │
//!      │                 │            Detaching ◄─────────────┘
//!      │ b               │ a              │ Detached
//!      │                 ▼                ▼
//!      └──────────────► Ending ◄──────────┘
//!                        │ Ended
//!                        ▼
//!                     Stopped ──Remove──► Removing ──Removed──► Gone
//!
//!  a: Failed, Stop, Lost     b: Failed, Stop
//! ```
//!
//! Every other event changes nothing, so stopping is idempotent (CRI `StopPodSandbox`). A step that
//! takes down and fails is tried again by `Again`, for as long as it takes.
//!
//! Requests and states: what a driver does with a request.
//!
//! ```text
//!             until Ready   Ready        Killing…Ending   Stopped      Removing, Gone
//!  Run        joined        already so   refused          refused      refused
//!  Stop       accepted      accepted     joined           already so   already so
//!  Remove     accepted      accepted     accepted         accepted     joined
//!  Create…    refused       accepted     refused          refused      refused
//! ```
//!
//! The driver runs one effect of the pod at a time: one that is given while another runs begins when
//! that one has ended, and the late outcome changes nothing.

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its record, directory, files and cgroup are being made: intent comes before the act.
    Preparing,
    /// Its shim is being started; it makes the namespaces and returns their descriptors.
    Starting,
    /// Its network is being attached.
    Attaching,
    /// Containers may be created in it.
    Ready,
    /// Its containers are being killed.
    Killing,
    /// Its network is being detached, while the namespaces still live.
    Detaching,
    /// Its shim is being ended, and the namespaces and the cgroup with it.
    Ending,
    /// It holds nothing but its record and its files.
    Stopped,
    /// Its files and its record are being removed.
    Removing,
    /// Nothing of it is left.
    Gone,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The record is written, the directory made.
    Prepared,
    /// The shim has returned the namespaces' descriptors.
    ShimUp,
    /// The network is attached.
    NetworkUp,
    /// A step of the start failed.
    Failed,
    /// The shim, or the shared PID namespace, has ended by itself.
    Lost,
    /// It was asked to stop.
    Stop,
    /// No process of a container is left.
    ContainersGone,
    /// The network is detached.
    Detached,
    /// The shim has been ended.
    Ended,
    /// It was asked to go, and no container is left in it.
    Remove,
    /// Files and record are removed.
    Removed,
    /// A step that takes down failed, and is due again.
    Again,
}

/// What the driver must now do; a pod's effects come in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// Start the shim.
    StartShim,
    /// Attach the network.
    AttachNetwork,
    /// Kill the containers.
    KillContainers,
    /// Detach the network.
    DetachNetwork,
    /// End the shim, release the namespaces, remove the cgroup.
    EndShim,
    /// Remove files and record.
    Forget,
}

impl State {
    /// Takes `event`; says what to do. `None` means: nothing to do.
    pub(crate) fn on(&mut self, event: Event) -> Option<Effect> {
        use State::{
            Attaching, Detaching, Ending, Gone, Killing, Preparing, Ready, Removing, Starting,
            Stopped,
        };
        let (next, effect) = match (*self, event) {
            (Preparing, Event::Prepared) => (Starting, Some(Effect::StartShim)),
            (Starting, Event::ShimUp) => (Attaching, Some(Effect::AttachNetwork)),
            (Attaching, Event::NetworkUp) => (Ready, None),
            // From here down: what may have begun is undone, newest first.
            (Ready, Event::Stop | Event::Lost) | (Killing, Event::Again) => {
                (Killing, Some(Effect::KillContainers))
            }
            (Attaching, Event::Failed | Event::Stop | Event::Lost)
            | (Killing, Event::ContainersGone)
            | (Detaching, Event::Again) => (Detaching, Some(Effect::DetachNetwork)),
            (Preparing, Event::Failed | Event::Stop)
            | (Starting, Event::Failed | Event::Stop | Event::Lost)
            | (Detaching, Event::Detached)
            | (Ending, Event::Again) => (Ending, Some(Effect::EndShim)),
            (Ending, Event::Ended) => (Stopped, None),
            (Stopped, Event::Remove) | (Removing, Event::Again) => (Removing, Some(Effect::Forget)),
            (Removing, Event::Removed) => (Gone, None),
            (same, _) => (same, None),
        };
        *self = next;
        effect
    }

    /// Whether its start is under way.
    pub(crate) fn is_starting(self) -> bool {
        matches!(self, Self::Preparing | Self::Starting | Self::Attaching)
    }

    /// The stage that a waiting caller is told, and the log word.
    pub(crate) fn stage(self) -> &'static str {
        match self {
            Self::Preparing => "prepare pod",
            Self::Starting => "start shim",
            Self::Attaching => "attach network",
            Self::Ready => "ready",
            Self::Killing => "kill containers",
            Self::Detaching => "detach network",
            Self::Ending => "end shim",
            Self::Stopped => "stopped",
            Self::Removing | Self::Gone => "remove pod",
        }
    }

    /// The state in words, for people.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Preparing | Self::Starting | Self::Attaching => "being started",
            Self::Ready => "ready",
            Self::Killing | Self::Detaching | Self::Ending => "being stopped",
            Self::Stopped => "stopped",
            Self::Removing | Self::Gone => "being removed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: [Event; 3] = [Event::Prepared, Event::ShimUp, Event::NetworkUp];
    const END: [Event; 6] = [
        Event::Stop,
        Event::ContainersGone,
        Event::Detached,
        Event::Ended,
        Event::Remove,
        Event::Removed,
    ];

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let others = [Event::Failed, Event::Lost, Event::Again];
        let all = [&START[..], &END, &others].concat();
        prop::collection::vec(prop::sample::select(all), 0..60)
    }

    /// How far a start comes before `events` happen; without it, few sequences reach Ready.
    fn started() -> impl Strategy<Value = &'static [Event]> {
        (0..=START.len()).prop_map(|n| &START[..n])
    }

    fn run(s: &mut State, events: &[Event]) -> Vec<Effect> {
        events.iter().filter_map(|e| s.on(*e)).collect()
    }

    #[test]
    fn a_whole_life_goes_through_every_effect() {
        let mut s = State::Preparing;
        assert_eq!(
            run(&mut s, &START),
            [Effect::StartShim, Effect::AttachNetwork]
        );
        assert_eq!(s, State::Ready);
        assert_eq!(
            run(&mut s, &END),
            [
                Effect::KillContainers,
                Effect::DetachNetwork,
                Effect::EndShim,
                Effect::Forget
            ]
        );
        assert_eq!(s, State::Gone);
    }

    proptest! {
        /// Whatever comes in whatever order: no effect comes before one of an earlier stage.
        #[test]
        fn effects_keep_their_order(start in started(), events in events()) {
            let effects = run(&mut State::Preparing, &[start, &events].concat());
            prop_assert!(effects.is_sorted(), "{effects:?}");
        }

        /// Wherever a stop meets a pod, what was begun is undone, newest first, and nothing else.
        #[test]
        fn a_stop_gives_back_what_was_begun(start in started(), events in events()) {
            let mut s = State::Preparing;
            let done = run(&mut s, &[start, &events, &END].concat());
            prop_assert_eq!(s, State::Gone);
            let did = |e| done.contains(&e);
            // The shim's end also removes what preparing made, so it always comes.
            prop_assert!(did(Effect::EndShim));
            prop_assert_eq!(did(Effect::AttachNetwork), did(Effect::DetachNetwork));
            prop_assert!(did(Effect::Forget));
        }

        /// After a stop, a pod never becomes ready again.
        #[test]
        fn a_stop_is_final(start in started(), before in events(), after in events()) {
            let mut s = State::Preparing;
            run(&mut s, &[start, &before, &[Event::Stop]].concat());
            for e in after {
                s.on(e);
                prop_assert!(!s.is_starting() && s != State::Ready);
            }
        }

        /// A simpler model: how many of the pod's two sides are up.
        #[test]
        fn a_pod_is_ready_exactly_after_its_start_and_before_anything_else(
            start in started(), events in events(),
        ) {
            let all = [start, &events].concat();
            let mut s = State::Preparing;
            let mut progress = 0;
            let mut broken = false;
            for e in all {
                let next = START.get(progress).copied();
                if !broken && Some(e) == next {
                    progress += 1;
                } else if match e {
                    Event::Failed => progress < 3,
                    Event::Stop => true,
                    Event::Lost => progress > 0,
                    _ => false,
                } {
                    broken = true;
                }
                s.on(e);
                prop_assert_eq!(s == State::Ready, progress == 3 && !broken);
            }
        }
    }
}
