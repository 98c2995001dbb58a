//! One piece of work for all who want its result, in a task of its own: who asked first may leave.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Work in flight, by key. `E` is made by [`From<Lost>`] when the work ends without a result.
#[derive(Debug)]
pub(crate) struct Flights<K, V, E> {
    running: Arc<Mutex<HashMap<K, Flight<V, E>>>>,
    linger: Duration,
}

/// The work ended without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Nobody waited any more.
    Abandoned,
    /// It panicked, or the runtime shut down.
    Died,
}

type Outcome<V, E> = Option<Result<V, E>>;

#[derive(Debug)]
struct Flight<V, E> {
    outcome: watch::Receiver<Outcome<V, E>>,
    waiters: Arc<watch::Sender<usize>>,
}

impl<V, E> Clone for Flight<V, E> {
    fn clone(&self) -> Self {
        Self {
            outcome: self.outcome.clone(),
            waiters: Arc::clone(&self.waiters),
        }
    }
}

/// Counts as a waiter while it lives.
struct Waiting(Arc<watch::Sender<usize>>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V, E> Flights<K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + From<Lost> + 'static,
{
    /// Work is cancelled when nobody has waited for it for `linger`.
    pub(crate) fn new(linger: Duration) -> Self {
        Self {
            running: Arc::default(),
            linger,
        }
    }

    /// Waits for the work of `key`; starts it when nobody has. The first value: whether it was
    /// started here.
    pub(crate) async fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> (bool, Result<V, E>)
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let (started, flight, waiting) = {
            let mut running = lock(&self.running);
            match running.get(&key) {
                // One that gives up at this moment is not joined.
                Some(flight) if flight.waiters.receiver_count() > 0 => {
                    let flight = flight.clone();
                    flight.waiters.send_modify(|n| *n += 1);
                    let waiting = Waiting(Arc::clone(&flight.waiters));
                    (false, flight, waiting)
                }
                _ => {
                    let (flight, waiting) = self.start(&mut running, key, work());
                    (true, flight, waiting)
                }
            }
        };
        let mut outcome = flight.outcome;
        let result = match outcome.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or_else(|| Err(Lost::Died.into())),
            Err(_) => Err(Lost::Died.into()),
        };
        drop(waiting);
        (started, result)
    }

    fn start<F>(
        &self,
        running: &mut HashMap<K, Flight<V, E>>,
        key: K,
        work: F,
    ) -> (Flight<V, E>, Waiting)
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let (outcome_in, outcome) = watch::channel(None);
        let (waiters, count) = watch::channel(1);
        let waiters = Arc::new(waiters);
        let flight = Flight {
            outcome,
            waiters: Arc::clone(&waiters),
        };
        running.insert(key.clone(), flight.clone());
        let entry = Entry {
            running: Arc::clone(&self.running),
            key,
            own: Arc::clone(&waiters),
        };
        let linger = self.linger;
        drop(tokio::spawn(async move {
            let result = tokio::select! {
                result = work => result,
                () = abandoned(count, linger, &entry) => Err(Lost::Abandoned.into()),
            };
            drop(entry);
            outcome_in.send_replace(Some(result));
        }));
        (flight, Waiting(waiters))
    }
}

/// Takes the flight out of the map, also when its task dies.
struct Entry<K: Hash + Eq, V, E> {
    running: Arc<Mutex<HashMap<K, Flight<V, E>>>>,
    key: K,
    own: Arc<watch::Sender<usize>>,
}

impl<K: Hash + Eq, V, E> Entry<K, V, E> {
    fn remove(&self, running: &mut HashMap<K, Flight<V, E>>) {
        if running
            .get(&self.key)
            .is_some_and(|f| Arc::ptr_eq(&f.waiters, &self.own))
        {
            running.remove(&self.key);
        }
    }
}

impl<K: Hash + Eq, V, E> Drop for Entry<K, V, E> {
    fn drop(&mut self) {
        let running = Arc::clone(&self.running);
        self.remove(&mut lock(&running));
    }
}

/// Returns when nobody waits, and nobody came for `linger`; then nobody can join any more.
async fn abandoned<K: Hash + Eq, V, E>(
    mut count: watch::Receiver<usize>,
    linger: Duration,
    entry: &Entry<K, V, E>,
) {
    loop {
        if count.wait_for(|n| *n == 0).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(linger) => {}
            _ = count.wait_for(|n| *n > 0) => continue,
        }
        let mut running = lock(&entry.running);
        if *count.borrow() == 0 {
            entry.remove(&mut running);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::oneshot;

    impl From<Lost> for String {
        fn from(lost: Lost) -> Self {
            format!("{lost:?}")
        }
    }

    type Gate = Arc<tokio::sync::Mutex<Option<oneshot::Receiver<()>>>>;
    type Work = Flights<&'static str, u32, String>;

    #[tokio::test]
    async fn many_callers_share_one_run() {
        let flights = Arc::new(Work::new(Duration::ZERO));
        let runs = Arc::new(AtomicUsize::new(0));
        let (go, gate) = oneshot::channel::<()>();
        let gate = Arc::new(tokio::sync::Mutex::new(Some(gate)));
        let work = async move |runs: Arc<AtomicUsize>, gate: Gate| {
            runs.fetch_add(1, Ordering::SeqCst);
            gate.lock().await.take().unwrap().await.unwrap();
            Ok(7)
        };
        let mut callers = Vec::new();
        for _ in 0..20 {
            let (flights, runs, gate) = (flights.clone(), runs.clone(), gate.clone());
            callers.push(tokio::spawn(async move {
                flights.join("a", move || work(runs, gate)).await
            }));
        }
        let waiting = async || {
            let running = lock(&flights.running);
            running.get("a").map_or(0, |f| *f.waiters.borrow())
        };
        while waiting().await < 20 {
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
        let mut started = 0;
        for caller in callers {
            let (first, result) = caller.await.unwrap();
            assert_eq!(result, Ok(7));
            started += usize::from(first);
        }
        assert_eq!((started, runs.load(Ordering::SeqCst)), (1, 1));
        assert!(lock(&flights.running).is_empty());
    }

    #[tokio::test]
    async fn the_first_caller_may_leave_and_the_last_ends_the_work() {
        let flights = Arc::new(Work::new(Duration::ZERO));
        let (alive, mut gone) = oneshot::channel::<()>();
        let (go, gate) = oneshot::channel::<u32>();
        let work = move || async move {
            let _alive = alive;
            Ok(gate.await.unwrap())
        };
        let first = tokio::spawn({
            let flights = flights.clone();
            async move { flights.join("a", work).await.1 }
        });
        while lock(&flights.running).is_empty() {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn({
            let flights = flights.clone();
            let other = async || Ok(0);
            async move { flights.join("a", other).await.1 }
        });
        while *lock(&flights.running)["a"].waiters.borrow() < 2 {
            tokio::task::yield_now().await;
        }
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert!(
            gone.try_recv()
                .is_err_and(|e| e == oneshot::error::TryRecvError::Empty)
        );
        second.abort();
        assert!(gone.await.is_err(), "dropped when the last left");
        assert!(go.send(1).is_err());
        assert_eq!(flights.join("a", || async { Ok(3) }).await, (true, Ok(3)));
    }

    #[tokio::test]
    async fn a_panic_is_an_error_for_all() {
        let flights = Work::new(Duration::ZERO);
        let work = || async { panic!("on purpose") };
        assert_eq!(flights.join("a", work).await.1, Err("Died".to_owned()));
        assert!(lock(&flights.running).is_empty());
    }
}
