//! A pod whose records a later release has written: it is shown, and left as it is.
//!
//! Somebody went back to an older wharf. What that one does not understand it must not take down: the
//! later one finds it again.

use super::driver::Surroundings;
use super::recovered::Recovered;
use super::request::{Request, Verb};
use crate::container::slot::{Slot, answer_one};
use crate::container::state::State;
use crate::error::RequestError;
use crate::record::VERSION;
use crate::view::{PodState, PodView};

/// Shows it. What is to be driven then refuses every request and says why, until the engine has gone.
pub(crate) fn hold(around: Surroundings, found: Recovered) -> impl Future<Output = ()> + Send {
    let Recovered {
        record,
        containers,
        newer,
    } = found;
    let form = newer.unwrap_or_default();
    let id = record.id.clone();
    tracing::error!(pod = %id, form, known = VERSION, "a pod of a later wharf is left as it is");
    around.board.put_pod(PodView {
        id: id.clone(),
        spec: record.spec.clone(),
        state: PodState::Unknown,
        stage: "of a later wharf",
        created_at_ns: record.created_at_ns,
        network: record.network.clone(),
        shim_pid: None,
        sandbox_pid: None,
        netns: record.netns.clone(),
        cgroup: record.cgroup.clone(),
        hostname: record.hostname.clone(),
    });
    for container in containers {
        let state = match container.exit {
            Some(_) => State::Exited,
            None => State::Running,
        };
        let digest = container.spec.digest();
        let slot = Slot::new(container.into(), digest, state);
        if let Some(view) = slot.view(false) {
            around.board.put_container(view);
        }
    }
    let mut requests = around.requests;
    async move {
        while let Some(request) = requests.recv().await {
            refuse(request, id.as_str(), form);
        }
    }
}

fn refuse(request: Request, pod: &str, form: u32) {
    let refused = |verb: &'static str| RequestError::State {
        verb,
        what: "pod",
        id: pod.to_owned(),
        state: format!(
            "of a later wharf (its records have form {form}, this one knows {VERSION}): start the later \
             wharf again"
        ),
    };
    match request {
        Request::Run(reply) => answer_one(reply, Err(refused("run"))),
        Request::Stop(reply) => answer_one(reply, Err(refused("stop"))),
        Request::Remove(reply) => answer_one(reply, Err(refused("remove"))),
        Request::Create { reply, .. } => answer_one(reply, Err(refused("create a container in"))),
        Request::Container(_, verb) => match verb {
            Verb::Start(reply) | Verb::Update(_, reply) | Verb::ReopenLog(reply) => {
                answer_one(reply, Err(refused("change a container of")));
            }
            Verb::Stop(_, reply) | Verb::Remove(reply) => {
                answer_one(reply, Err(refused("end a container of")));
            }
            Verb::Exec { reply, .. } => answer_one(reply, Err(refused("exec in a container of"))),
        },
    }
}
