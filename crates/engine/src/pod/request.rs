//! What a driver is asked for, and what its child tasks report.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wharf_types::{ContainerId, Digest, PodId};

use crate::container::slot::Reply;
use crate::record::{Exit, PodRecord};
use crate::spec::{ContainerSpec, ExecSyncOutput, ResourceSpec};
use crate::world::{Adoption, Made, ShimFacts, StepFailure};

/// A request to the driver of a pod.
#[derive(Debug)]
pub(crate) enum Request {
    /// The pod's start, or its repetition.
    Run(Reply<PodId>),
    /// Stop the pod.
    Stop(Reply<()>),
    /// Remove the pod.
    Remove(Reply<()>),
    /// Create a container.
    Create {
        spec: Box<ContainerSpec>,
        digest: Digest,
        reply: Reply<ContainerId>,
    },
    /// Something with a container.
    Container(ContainerId, Verb),
}

/// A request that concerns a container.
#[derive(Debug)]
pub(crate) enum Verb {
    Start(Reply<()>),
    Stop(Duration, Reply<()>),
    Remove(Reply<()>),
    Update(Box<ResourceSpec>, Reply<()>),
    ReopenLog(Reply<()>),
    Exec {
        cmd: Vec<String>,
        timeout: Option<Duration>,
        reply: Reply<ExecSyncOutput>,
    },
}

/// What a child task reports.
#[derive(Debug)]
pub(crate) enum Outcome {
    Pod(PodOutcome),
    Container(ContainerId, ContainerOutcome),
    /// An exec, a reopened log: its caller was answered.
    Served {
        exec: bool,
    },
}

/// The end of a pod's effect, or of a pause.
#[derive(Debug)]
pub(crate) enum PodOutcome {
    Prepared(Result<(), StepFailure>),
    ShimUp(Result<ShimFacts, StepFailure>),
    /// With the record as it was written.
    NetworkUp(Result<Arc<PodRecord>, StepFailure>),
    Detached(Result<(), StepFailure>),
    Ended(Result<(), StepFailure>),
    Forgotten(Result<(), StepFailure>),
    Adopted(Result<Adoption, StepFailure>),
    /// The pause before the next try is over.
    Again,
    /// The pause before a silent shim is asked again is over.
    AskAgain,
}

/// The end of a container's effect, or of a pause.
#[derive(Debug)]
pub(crate) enum ContainerOutcome {
    Made(Result<Made, StepFailure>),
    Started(Result<(), StepFailure>),
    Signalled(Result<(), StepFailure>),
    Killed(Result<(), StepFailure>),
    /// With its end, as it was written.
    Collected(Result<Exit, StepFailure>),
    Removed(Result<(), StepFailure>),
    Updated(Box<ResourceSpec>, Result<(), StepFailure>, Reply<()>),
    /// The grace of a stop is over.
    GraceOver(Instant),
    /// A killed container should be gone by now.
    KillCheck,
    /// The pause before the next try is over.
    CollectAgain,
    /// The pause before the next try is over.
    RemoveAgain,
}
