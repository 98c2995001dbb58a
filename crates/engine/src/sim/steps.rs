//! How a step goes in the simulation: it is delayed, may fail before, in the middle of and after its
//! effect, and goes no further when its daemon has died.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use wharf_types::{Kind, PodId};

use super::dice::Fault;
use super::machine::{Machine, Part};
use crate::world::{ShimEvent, ShimEvents, Step, StepFailure};

/// A silent shim is looked at again after this.
const LOOK: Duration = Duration::from_millis(500);

/// A part that needs no shim.
pub(super) fn alone(
    act: impl FnOnce(&mut Machine) -> Result<(), StepFailure> + Send + 'static,
) -> Part {
    Part {
        shim: None,
        act: Box::new(act),
    }
}

/// A part that a shim does.
pub(super) fn asked(
    pod: &PodId,
    within: Duration,
    act: impl FnOnce(&mut Machine) -> Result<(), StepFailure> + Send + 'static,
) -> Part {
    Part {
        shim: Some((pod.clone(), within)),
        act: Box::new(act),
    }
}

/// What becomes of a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fine,
    /// Before this part.
    FailsAt(usize),
    FailsAfter,
    PanicsAt(usize),
}

pub(super) fn failure(stage: &'static str, kind: Kind, text: &'static str) -> StepFailure {
    StepFailure::new(stage, kind, text)
}

pub(super) fn lost(stage: &'static str) -> StepFailure {
    failure(
        stage,
        Kind::Unavailable,
        "the connection to the shim was lost",
    )
}

/// The simulated world. Cheap to clone.
#[derive(Clone)]
pub(super) struct SimWorld(Arc<Mutex<Machine>>);

/// A step under way; its parts are with the machine, where the daemon's death finds them in their order.
struct UnderWay {
    world: SimWorld,
    number: u64,
}

impl UnderWay {
    fn begin(world: &SimWorld, parts: Vec<Part>) -> Self {
        let mut machine = world.lock();
        machine.ids += 1;
        let number = machine.ids;
        machine.under_way.insert(number, parts.into());
        let world = world.clone();
        Self { world, number }
    }

    fn take(&self) -> Option<Part> {
        let mut machine = self.world.lock();
        machine.under_way.get_mut(&self.number)?.pop_front()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut machine = self.world.lock();
        if !machine.dead {
            machine.under_way.remove(&self.number);
        }
    }
}

impl SimWorld {
    pub(super) fn new(machine: Machine) -> Self {
        Self(Arc::new(Mutex::new(machine)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits for ever when this daemon has died.
    pub(super) async fn alive(&self, life: u64) {
        let over = {
            let machine = self.lock();
            machine.dead || machine.life != life
        };
        if over {
            std::future::pending::<()>().await;
        }
    }

    async fn pause(&self, life: u64) {
        let pause = {
            let mut machine = self.lock();
            match machine.dice.below(100) {
                _ if machine.calm => machine.dice.millis(4),
                0..40 => Duration::ZERO,
                40..90 => machine.dice.millis(20),
                90..99 => machine.dice.millis(1500),
                _ => {
                    machine.tally.count(Fault::Slow);
                    Duration::from_secs(5) + machine.dice.millis(25_000)
                }
            }
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        self.alive(life).await;
    }

    fn begin(&self, name: &'static str, whom: &str, parts: usize) -> Fate {
        let mut machine = self.lock();
        machine.tick(name, whom);
        if machine.calm {
            return Fate::Fine;
        }
        let (fault, fate) = match machine.dice.below(1000) {
            0..25 => (Fault::FailedBefore, Fate::FailsAt(0)),
            25..50 if parts > 1 => {
                let at = 1 + machine.dice.below(parts - 1);
                (Fault::FailedHalfway, Fate::FailsAt(at))
            }
            50..75 => (Fault::FailedAfter, Fate::FailsAfter),
            75..80 => {
                let at = machine.dice.below(parts.max(1));
                (Fault::StepPanicked, Fate::PanicsAt(at))
            }
            _ => return Fate::Fine,
        };
        machine.tally.count(fault);
        fate
    }

    /// A fault of ours in a driver, now and then; called in the driver itself.
    pub(super) fn driver_fault(&self, whom: &str) {
        let broken = {
            let mut machine = self.lock();
            let broken = !machine.calm && !machine.dead && machine.dice.per_mille(2);
            if broken {
                machine.tally.count(Fault::DriverPanicked);
                machine.note("the driver panics", whom);
                machine.told.forget_stages();
            }
            broken
        };
        if broken {
            // Without a word on stderr.
            resume_unwind(Box::new("made to panic"));
        }
    }

    pub(super) fn step<T: Send + 'static>(
        &self,
        name: &'static str,
        whom: &str,
        parts: Vec<Part>,
        last: impl FnOnce(&mut Machine) -> T + Send + 'static,
    ) -> Step<T> {
        let (world, whom) = (self.clone(), whom.to_owned());
        let life = self.lock().life;
        Box::pin(async move {
            world.alive(life).await;
            let (fate, count) = (world.begin(name, &whom, parts.len()), parts.len());
            let under_way = UnderWay::begin(&world, parts);
            world.pause(life).await;
            for at in 0..count {
                match fate {
                    Fate::FailsAt(n) if n == at => {
                        return Err(failure(name, Kind::Internal, "made to fail"));
                    }
                    Fate::PanicsAt(n) if n == at => resume_unwind(Box::new("made to panic")),
                    _ => {}
                }
                world.part(name, &whom, &under_way, life).await?;
                world.pause(life).await;
            }
            if fate != Fate::Fine {
                return Err(failure(name, Kind::Internal, "made to fail after all"));
            }
            Ok(last(&mut world.lock()))
        })
    }

    async fn part(
        &self,
        name: &'static str,
        whom: &str,
        under_way: &UnderWay,
        life: u64,
    ) -> Result<(), StepFailure> {
        let shim = {
            let machine = self.lock();
            let parts = machine.under_way.get(&under_way.number);
            let next = parts.and_then(|parts| parts.front());
            next.and_then(|part| part.shim.clone())
        };
        if let Some((pod, within)) = shim {
            let deadline = Instant::now() + within;
            loop {
                self.alive(life).await;
                let silent = self.lock().held.shims.get(&pod).map(|shim| shim.silent);
                match silent {
                    None => return Err(lost(name)),
                    Some(false) => break,
                    Some(true) if Instant::now() >= deadline => {
                        self.given_up(&pod, under_way);
                        return Err(failure(name, Kind::Unavailable, "the shim does not answer"));
                    }
                    Some(true) => {}
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        let part = under_way.take();
        let mut machine = self.lock();
        let done = match part {
            Some(part) => (part.act)(&mut machine),
            None => Ok(()),
        };
        let how = if done.is_ok() { "did" } else { "failed" };
        machine.tick(&format!("{how} {name}"), whom);
        done
    }

    /// A request that the shim has not read yet: it will, when it goes on.
    fn given_up(&self, pod: &PodId, under_way: &UnderWay) {
        let part = under_way.take();
        let mut machine = self.lock();
        machine.unsure.insert(pod.clone());
        let Some(shim) = machine.held.shims.get_mut(pod) else {
            return;
        };
        if let Some(part) = part {
            shim.late.push(part.act);
        }
        if let Some(events) = &shim.events {
            events.try_send(ShimEvent::Silent).ok();
        }
    }

    /// Carries a shim's messages to the driver, in their order, as slowly as it likes.
    pub(super) fn connect(&self, machine: &mut Machine, pod: &PodId, events: ShimEvents) {
        let (life, world, pod) = (machine.life, self.clone(), pod.clone());
        let Some(shim) = machine.held.shims.get_mut(&pod) else {
            return;
        };
        shim.link += 1;
        shim.outbox.clear();
        shim.events = Some(events.clone());
        // The end of the connection before.
        std::mem::take(&mut shim.moved).notify_one();
        if machine.dead {
            return;
        }
        let (link, moved) = (shim.link, shim.moved.clone());
        tokio::spawn(async move {
            loop {
                world.pause(life).await;
                let Some(said) = world.lock().says(&pod, link) else {
                    return;
                };
                world.alive(life).await;
                let Some(event) = said else {
                    moved.notified().await;
                    continue;
                };
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
    }
}
