//! A container as its pod's driver holds it: state, wishes, and who waits for what.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};
use wharf_types::{ContainerId, Digest, Kind};

use super::keeper::Keeper;
use super::state::{Event, State};
use crate::error::RequestError;
use crate::limits::RETRY_FIRST;
use crate::record::{ContainerRecord, Exit};
use crate::spec::{ContainerSpec, ResourceSpec};
use crate::view::{ContainerState, ContainerView};
use crate::world::{Remains, StepFailure, exit_of, lost_exit};

/// Where an answer goes. Nobody waiting there any more is fine.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, RequestError>>;

/// Gives every waiter the same answer.
pub(crate) fn answer_all<T: Clone>(waiters: &mut Vec<Reply<T>>, answer: &Result<T, RequestError>) {
    for waiter in waiters.drain(..) {
        answer_one(waiter, answer.clone());
    }
}

/// Answers; a caller that has gone is fine.
pub(crate) fn answer_one<T>(waiter: Reply<T>, answer: Result<T, RequestError>) {
    drop(waiter.send(answer));
}

/// How a container ended, before the remains were looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RawExit {
    /// The shim said so.
    Seen { code: i32, signal: i32, at_ns: i64 },
    /// The shim is gone: the remains may tell. Found out at this time.
    Lost { at_ns: i64 },
    /// Decided already: nobody saw it, or it never started.
    Decided(Exit),
}

impl RawExit {
    pub(crate) fn with(&self, remains: Remains) -> Exit {
        match self {
            Self::Seen {
                code,
                signal,
                at_ns,
            } => exit_of(*code, *signal, *at_ns, remains),
            Self::Lost { at_ns } => lost_exit(*at_ns, remains),
            Self::Decided(exit) => exit.clone(),
        }
    }
}

/// What a caller wants of a container, beyond what is under way.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    /// It has to end now.
    pub(crate) kill: bool,
    /// It has to end by then; the earliest of all requests.
    pub(crate) stop: Option<Instant>,
    /// It has to go.
    pub(crate) remove: bool,
}

/// A container of a driver.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) record: Arc<ContainerRecord>,
    pub(crate) keeper: Keeper,
    pub(crate) digest: Digest,
    pub(crate) state: State,
    pub(crate) pid: Option<u32>,
    pub(crate) wish: Wish,
    pub(crate) exit: Option<RawExit>,
    /// Why it could not be made.
    pub(crate) failure: Option<RequestError>,
    /// A step that takes down has failed: the state shown does not wait for it any longer.
    pub(crate) overdue: bool,
    pub(crate) retry: Duration,
    pub(crate) creators: Vec<Reply<ContainerId>>,
    /// Who repeats a creation that is being undone: it begins anew when the name is free.
    pub(crate) repeaters: Vec<(ContainerSpec, Reply<ContainerId>)>,
    pub(crate) starters: Vec<Reply<()>>,
    pub(crate) stoppers: Vec<Reply<()>>,
    pub(crate) removers: Vec<Reply<()>>,
    pub(crate) updates: VecDeque<(ResourceSpec, Reply<()>)>,
    pub(crate) updating: bool,
}

impl Slot {
    /// A container in `state`; `digest` is its specification's.
    pub(crate) fn new(record: Arc<ContainerRecord>, digest: Digest, state: State) -> Self {
        Self {
            keeper: Keeper::new(record.clone()),
            record,
            digest,
            state,
            pid: None,
            wish: Wish::default(),
            exit: None,
            failure: None,
            overdue: false,
            retry: RETRY_FIRST,
            creators: Vec::new(),
            repeaters: Vec::new(),
            starters: Vec::new(),
            stoppers: Vec::new(),
            removers: Vec::new(),
            updates: VecDeque::new(),
            updating: false,
        }
    }

    /// The event that follows from what has happened and what is wished, in the state that it is in.
    pub(crate) fn next_event(&self) -> Option<Event> {
        use State::{Created, Exited, Killing, Running, Stopping};
        match self.state {
            Created | Running | Stopping | Killing if self.exit.is_some() => Some(Event::Exited),
            Created | Running | Stopping if self.wish.kill || self.wish.remove => Some(Event::Kill),
            Running if self.wish.stop.is_some() => Some(Event::Stop),
            Exited if self.wish.remove => Some(Event::Remove),
            _ => None,
        }
    }

    /// Changes the record.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut ContainerRecord)) {
        change(Arc::make_mut(&mut self.record));
    }

    /// What readers see; `None` while it is being made, and when its making failed or is undone.
    pub(crate) fn view(&self, reachable: bool) -> Option<ContainerView> {
        let record = &self.record;
        let facts = record.facts.clone()?;
        let (unstarted, live) = match reachable {
            true => (ContainerState::Created, ContainerState::Running),
            false => (ContainerState::Unknown, ContainerState::Unknown),
        };
        let state = match self.state {
            State::Creating | State::Gone => return None,
            State::Created | State::Starting => unstarted,
            State::Running | State::Stopping => live,
            // Killed before it was started: it was never running.
            State::Killing if record.started_at_ns == 0 => unstarted,
            State::Killing => live,
            // An end is shown with its reason, which is still being found out.
            State::Collecting if self.overdue || record.started_at_ns == 0 => {
                ContainerState::Exited
            }
            State::Collecting => live,
            // It never ran, and is being undone.
            State::Removing if record.exit.is_none() => return None,
            State::Exited | State::Removing => ContainerState::Exited,
        };
        let known = record
            .exit
            .clone()
            .or_else(|| self.exit.as_ref().map(|raw| raw.with(Remains::default())));
        let exit = known.filter(|_| state == ContainerState::Exited);
        let started = state != ContainerState::Created && record.started_at_ns > 0;
        // The wall clock may have been set back meanwhile: clients subtract these from each other.
        let started_at_ns = record.started_at_ns.max(record.created_at_ns);
        let begun_at_ns = if started { started_at_ns } else { 0 };
        let least = record.created_at_ns.max(begun_at_ns);
        Some(ContainerView {
            id: record.id.clone(),
            pod: record.pod.clone(),
            spec: record.spec.clone(),
            state,
            created_at_ns: record.created_at_ns,
            started_at_ns: begun_at_ns,
            finished_at_ns: exit.as_ref().map_or(0, |e| e.at_ns.max(least)),
            exit_code: exit.as_ref().map_or(0, |e| e.code),
            reason: exit.as_ref().map_or_else(String::new, |e| e.reason.clone()),
            message: exit.map_or_else(String::new, |e| e.message),
            facts,
            resources: record.resources.clone(),
            pid: self.pid.filter(|_| self.exit.is_none()),
        })
    }

    /// It was never made, and what there is of it is being removed: its creation failed, or was cut off by
    /// the end of a daemon.
    pub(crate) fn is_undone(&self) -> bool {
        let is_making = matches!(self.state, State::Creating | State::Created);
        // No shim has ever said that it made it.
        let is_made = self.pid.is_some() || self.record.started_at_ns > 0;
        self.wish.remove && !is_made && !is_making
    }

    /// A failed step, as an answer.
    pub(crate) fn error(&self, failure: &StepFailure) -> RequestError {
        step_error(failure, format!("container {}", self.record.spec.metadata))
    }

    /// A request that the state does not allow.
    pub(crate) fn refusal(&self, verb: &'static str) -> RequestError {
        RequestError::State {
            verb,
            what: "container",
            id: self.record.id.to_string(),
            state: self.state.word().to_owned(),
        }
    }
}

/// A failed step of `subject`, as an answer. What a step found wrong with the request itself is said
/// as it is.
pub(crate) fn step_error(failure: &StepFailure, subject: String) -> RequestError {
    if let Some(refused) = failure.source.downcast_ref::<RequestError>() {
        return refused.clone();
    }
    RequestError::Step {
        stage: failure.stage,
        subject,
        kind: failure.kind,
        source: failure.source.clone(),
    }
}

/// A step that did not end in its time.
pub(crate) fn overdue(stage: &'static str, seconds: u64) -> StepFailure {
    let text = format!("its processes are still there after {seconds} s; it is tried again");
    StepFailure::new(stage, Kind::Unavailable, text)
}
