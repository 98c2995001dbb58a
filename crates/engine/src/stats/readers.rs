//! Open files of cgroups, read again and again. Bounded: the one that was used longest ago goes first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::process::{Resource, getrlimit};
use wharf_cgroup::{Cgroups, StatsReader};

use super::usage::CgroupUsage;
use crate::limits::{CPU_RATE_MIN, STATS_FILES_MAX};

/// Readers of all cgroups that somebody asked for.
#[derive(Debug)]
pub(super) struct Readers {
    cgroups: Cgroups,
    files_max: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    by_cgroup: HashMap<String, Entry>,
    files: usize,
    turn: u64,
}

#[derive(Debug)]
struct Entry {
    reader: Arc<Reader>,
    used: u64,
}

/// A cgroup's files, and what is needed to tell a rate.
#[derive(Debug)]
struct Reader {
    files: StatsReader,
    rate: Mutex<Rate>,
}

impl Readers {
    pub(super) fn new(cgroups: Cgroups) -> Self {
        let soft = getrlimit(Resource::Nofile).current;
        let quarter = soft.map_or(usize::MAX, |n| usize::try_from(n / 4).unwrap_or(usize::MAX));
        Self::bounded(cgroups, quarter.min(STATS_FILES_MAX))
    }

    fn bounded(cgroups: Cgroups, files_max: usize) -> Self {
        Self {
            cgroups,
            files_max,
            open: Mutex::default(),
        }
    }

    pub(super) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// What a cgroup's processes use; none when it is gone or has no files that we may read. `alive`
    /// is asked after files were opened: whoever ends meanwhile has told us before that.
    pub(super) fn read(
        &self,
        cgroup: &str,
        at_ns: i64,
        buffer: &mut Vec<u8>,
        alive: impl Fn() -> bool,
    ) -> Option<CgroupUsage> {
        // Twice: a cgroup may have been removed and made again under the same name.
        for _ in 0..2 {
            let (reader, opened) = match self.known(cgroup) {
                Some(reader) => (reader, false),
                None => (self.open(cgroup)?, true),
            };
            let read = reader.files.read(buffer);
            if read.is_err() || (opened && !alive()) {
                self.forget(cgroup);
            }
            if let Ok(stats) = read {
                let nano_cores = stats
                    .cpu_nanoseconds
                    .and_then(|cpu| lock(&reader.rate).next(Instant::now(), cpu));
                return Some(CgroupUsage {
                    at_ns,
                    nano_cores,
                    stats,
                });
            }
        }
        None
    }

    /// Closes the files of a cgroup.
    pub(super) fn forget(&self, cgroup: &str) {
        let mut open = lock(&self.open);
        if let Some(entry) = open.by_cgroup.remove(cgroup) {
            open.files = open.files.saturating_sub(entry.reader.files.files());
        }
    }

    fn known(&self, cgroup: &str) -> Option<Arc<Reader>> {
        let mut open = lock(&self.open);
        open.turn += 1;
        let turn = open.turn;
        let entry = open.by_cgroup.get_mut(cgroup)?;
        entry.used = turn;
        Some(entry.reader.clone())
    }

    fn open(&self, cgroup: &str) -> Option<Arc<Reader>> {
        let opened = self.cgroups.open(cgroup);
        let files = opened.and_then(|cgroup| cgroup.stats_reader());
        let files = match files {
            Ok(files) => files,
            // Not made yet, or gone: nothing to tell of it.
            Err(wharf_cgroup::CgroupError::NotFound(_)) => return None,
            Err(e) => {
                tracing::debug!(cgroup, error = %wharf_types::chain(&e), "no statistics");
                return None;
            }
        };
        let reader = Arc::new(Reader {
            files,
            rate: Mutex::default(),
        });
        self.keep(cgroup, &reader);
        Some(reader)
    }

    fn keep(&self, cgroup: &str, reader: &Arc<Reader>) {
        self.forget(cgroup);
        let more = reader.files.files();
        let mut open = lock(&self.open);
        while open.files + more > self.files_max {
            let oldest = open.by_cgroup.iter().min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else {
                // One alone is over the limit: it is used once.
                return;
            };
            if let Some(entry) = open.by_cgroup.remove(&oldest) {
                open.files = open.files.saturating_sub(entry.reader.files.files());
            }
        }
        open.files += more;
        open.turn += 1;
        let entry = Entry {
            reader: reader.clone(),
            used: open.turn,
        };
        open.by_cgroup.insert(cgroup.to_owned(), entry);
    }
}

/// A processor rate between two looks that are far enough from each other.
#[derive(Debug, Default)]
struct Rate {
    from: Option<(Instant, u64)>,
    told: Option<u64>,
}

impl Rate {
    /// The rate at `now`, when `cpu` nanoseconds were used in all.
    fn next(&mut self, now: Instant, cpu: u64) -> Option<u64> {
        let Some((at, before)) = self.from else {
            self.from = Some((now, cpu));
            return None;
        };
        let since = now.saturating_duration_since(at);
        if since >= CPU_RATE_MIN {
            let used = u128::from(cpu.saturating_sub(before));
            let rate = used * 1_000_000_000 / since.as_nanos().max(1);
            self.told = u64::try_from(rate).ok();
            self.from = Some((now, cpu));
        }
        self.told
    }
}

// Held for map operations and sums only; a panic in between leaves nothing half-done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Three cgroups of a v2 tree, with two files each.
    fn tree() -> (tempfile::TempDir, Cgroups) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            let group = dir.path().join(name);
            std::fs::create_dir(&group).unwrap();
            std::fs::write(group.join("cpu.stat"), "usage_usec 5\n").unwrap();
            std::fs::write(group.join("pids.current"), "3\n").unwrap();
        }
        let cgroups = Cgroups::unified(dir.path(), &["pids"]);
        (dir, cgroups)
    }

    fn read(readers: &Readers, name: &str) -> Option<CgroupUsage> {
        readers.read(name, 1, &mut Vec::new(), || true)
    }

    #[test]
    fn files_stay_open_up_to_a_limit_and_the_oldest_go_first() {
        let (_dir, cgroups) = tree();
        let readers = Readers::bounded(cgroups, 4);
        for name in ["a", "b", "a", "c"] {
            let usage = read(&readers, name).unwrap();
            assert_eq!(usage.stats.pids, Some(3));
            assert_eq!(usage.stats.cpu_nanoseconds, Some(5000));
        }
        let open = lock(&readers.open);
        let mut kept: Vec<_> = open.by_cgroup.keys().cloned().collect();
        kept.sort();
        assert_eq!((kept, open.files), (vec!["a".into(), "c".into()], 4));
        drop(open);
        readers.forget("a");
        readers.forget("a");
        readers.forget("c");
        assert_eq!(lock(&readers.open).files, 0);
    }

    #[test]
    fn a_cgroup_larger_than_the_limit_is_read_all_the_same() {
        let (_dir, cgroups) = tree();
        let readers = Readers::bounded(cgroups, 1);
        assert_eq!(read(&readers, "a").unwrap().stats.pids, Some(3));
        assert_eq!(lock(&readers.open).files, 0);
    }

    #[test]
    fn what_is_missing_is_left_out() {
        let (dir, cgroups) = tree();
        let readers = Readers::bounded(cgroups, 100);
        assert_eq!(read(&readers, "none"), None);
        std::fs::remove_file(dir.path().join("b/pids.current")).unwrap();
        let usage = read(&readers, "b").unwrap();
        assert_eq!(usage.stats.cpu_nanoseconds, Some(5000));
    }

    #[test]
    fn files_of_what_ended_while_they_were_opened_are_not_kept() {
        let (_dir, cgroups) = tree();
        let readers = Readers::bounded(cgroups, 100);
        readers.read("a", 1, &mut Vec::new(), || false).unwrap();
        assert_eq!(lock(&readers.open).files, 0);
    }

    #[test]
    fn a_rate_is_told_over_a_second_at_least() {
        let mut rate = Rate::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(rate.next(at(0), 1_000), None);
        assert_eq!(rate.next(at(10), 9_000_000), None, "too early");
        assert_eq!(rate.next(at(2000), 1_000_001_000), Some(500_000_000));
        assert_eq!(rate.next(at(2001), 1_000_002_000), Some(500_000_000));
        assert_eq!(rate.next(at(4000), 1_000_001_000), Some(0));
    }
}
