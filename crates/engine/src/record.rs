//! Records: one small file for each pod and container, written whole or not at all.
//!
//! ```text
//! <root>/pods/<pod id>/pod.json               what was asked for, how far it came; survives a reboot
//! <root>/pods/<pod id>/<container id>.json    the same for a container
//! <root>/pods/<pod id>/hosts…                 the files that its containers see in /etc
//! <state>/pods/<pod id>/                      what ends with the boot: sockets, process ids, plans
//! ```
//!
//! Intent is recorded before the act. No fsync: a process's death loses nothing, and after a power
//! cut nothing of a pod is left to be found but its files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use wharf_sys::fault::point;
use wharf_types::{ContainerId, Kind, PodId};

use crate::amendment::{ROOM, amend, amended};
use crate::limits::{RECORD_FILE_MAX, RECORD_MAX};
use crate::reserve::Reserve;
use crate::spec::{ContainerSpec, PodMetadata, PodSpec, ResourceSpec};
use crate::view::{ContainerFacts, NetworkView};

/// How far a pod has come, as far as the disk needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodPhase {
    /// Its start was begun and not yet answered: after a restart it is undone.
    Starting,
    /// Its start was answered.
    Ready,
    /// It is being stopped, or is stopped.
    Stopped,
}

/// What is known of a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodRecord {
    /// Version of this form; see [`VERSION`].
    pub version: u32,
    /// Its id.
    pub id: PodId,
    /// What was asked for.
    pub spec: Arc<PodSpec>,
    /// When, in nanoseconds since 1970.
    pub created_at_ns: i64,
    /// How far it came.
    pub phase: PodPhase,
    /// The boot in which it lives: `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// Its cgroup, relative to the hierarchies' roots.
    pub cgroup: String,
    /// The host name that its containers see.
    pub hostname: String,
    /// What its network gave.
    pub network: NetworkView,
    /// Name of its namespaces below `/run/netns`.
    pub netns: Option<PathBuf>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status, or 128 + signal.
    pub code: i32,
    /// When, in nanoseconds since 1970.
    pub at_ns: i64,
    /// `Completed`, `Error`, `OOMKilled`, `Unknown`, `StartError`.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Exit {
    /// What is said of a container whose end nobody saw.
    pub fn unseen(at_ns: i64, message: &str) -> Self {
        Self {
            code: 255,
            at_ns,
            reason: "Unknown".to_owned(),
            message: message.to_owned(),
        }
    }
}

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Version of this form; see [`VERSION`].
    pub version: u32,
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// What was asked for.
    pub spec: Arc<ContainerSpec>,
    /// When, in nanoseconds since 1970.
    pub created_at_ns: i64,
    /// What creating it found out; `None` while it is being created.
    pub facts: Option<Arc<ContainerFacts>>,
    /// Limits as they are now.
    pub resources: ResourceSpec,
    /// When its start was begun; 0 before.
    pub started_at_ns: i64,
    /// How it ended.
    pub exit: Option<Exit>,
}

/// The form of records that this build writes.
pub const VERSION: u32 = 1;

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The file system refused.
    #[error("{action} {path}{}", wharf_store::remedy(source))]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The file is no record.
    #[error("{path} is not a record of wharf")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The file was written by a later release.
    #[error(
        "{path} was written by a later wharf: its form is {version}, and this wharf knows {VERSION}"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Version of its form.
        version: u32,
        /// The pod's name, as far as it can be read.
        metadata: Box<PodMetadata>,
    },
    /// The file is larger than any record of ours.
    #[error("{path} is over the limit of {RECORD_FILE_MAX} bytes")]
    TooBig {
        /// The file.
        path: PathBuf,
    },
    /// What would be written could not be read again.
    #[error(
        "the record of {what} would have {size} bytes and is over the limit of {RECORD_MAX} bytes: \
         use fewer or shorter labels, annotations, arguments and environment variables"
    )]
    Unreadable {
        /// `pod <id>`, `container <id>`.
        what: String,
        /// Bytes of the record.
        size: usize,
    },
}

impl RecordError {
    /// The class of the failure.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => crate::error::io_kind(source),
            Self::Malformed { .. } | Self::TooBig { .. } => Kind::Internal,
            Self::Newer { .. } => Kind::Unsupported,
            Self::Unreadable { .. } => Kind::Exhausted,
        }
    }
}

/// What is kept in a file of its own.
trait Record: Serialize {
    /// Its end is written into it: that must never be refused for its size.
    fn has_ended(&self) -> bool;
}

impl Record for PodRecord {
    fn has_ended(&self) -> bool {
        self.phase == PodPhase::Stopped
    }
}

impl Record for ContainerRecord {
    fn has_ended(&self) -> bool {
        self.exit.is_some()
    }
}

impl PodRecord {
    /// A pod whose record cannot be read: a start that nobody was answered, to be undone. Its cgroup is
    /// its `own` unless one was `given`, which is not ours to remove.
    pub fn unreadable(id: PodId, boot: String, own: String, given: Option<String>) -> Self {
        let mut spec = PodSpec::default();
        // No request can have this name.
        spec.metadata.name = id.to_string();
        spec.cgroup_parent = given.clone().unwrap_or_default();
        let cgroup = given.unwrap_or(own);
        Self {
            version: VERSION,
            id,
            spec: Arc::new(spec),
            created_at_ns: 0,
            phase: PodPhase::Starting,
            boot,
            cgroup,
            hostname: String::new(),
            network: NetworkView::default(),
            netns: None,
        }
    }
}

impl ContainerRecord {
    /// A container whose record cannot be read: a creation that nobody was answered, to be undone.
    pub fn unreadable(id: ContainerId, pod: PodId) -> Self {
        let mut spec = ContainerSpec::default();
        // No request can have this name.
        spec.metadata.name = id.to_string();
        Self {
            version: VERSION,
            id,
            pod,
            spec: Arc::new(spec),
            created_at_ns: 0,
            facts: None,
            resources: ResourceSpec::default(),
            started_at_ns: 0,
            exit: None,
        }
    }
}

/// The directory of all records.
#[derive(Debug, Clone)]
pub struct Records {
    pods: PathBuf,
    reserve: Arc<Reserve>,
}

impl Records {
    /// Below the engine's root; the directory is made.
    ///
    /// # Errors
    ///
    /// The directory cannot be made.
    pub fn open(root: &Path) -> Result<Self, RecordError> {
        let pods = root.join("pods");
        std::fs::create_dir_all(&pods).map_err(io("create", &pods))?;
        let reserve = Arc::new(Reserve::at(&root.join("records.reserve")));
        Ok(Self { pods, reserve })
    }

    /// Writes a pod's record, and its directory when it is the first.
    ///
    /// # Errors
    ///
    /// The file system refuses, or the record is over [`RECORD_MAX`].
    pub fn save_pod(&self, record: &PodRecord) -> Result<(), RecordError> {
        let bytes = encode("pod", record.id.as_str(), record)?;
        let dir = self.pods.join(record.id.as_str());
        match std::fs::create_dir(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(io("create", &dir)(e));
            }
            _ => {}
        }
        point("save record: pod's directory made").map_err(io("create", &dir))?;
        self.save(&dir.join("pod.json"), &bytes)
    }

    /// Writes a container's record.
    ///
    /// # Errors
    ///
    /// The file system refuses, or the record is over [`RECORD_MAX`].
    pub fn save_container(&self, record: &ContainerRecord) -> Result<(), RecordError> {
        let bytes = encode("container", record.id.as_str(), record)?;
        let dir = self.pods.join(record.pod.as_str());
        self.save(&dir.join(format!("{}.json", record.id)), &bytes)
    }

    /// Writes a record whole or not at all. For one that exists there is space on a full disk, too.
    fn save(&self, path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
        let is_full = |saved: &Result<(), RecordError>| matches!(saved, Err(RecordError::Io { source, .. }) if wharf_store::is_full(source));
        let mut saved = save(path, bytes);
        if is_full(&saved) && path.exists() && self.reserve.release() {
            saved = save(path, bytes);
        }
        // Somebody else took that space.
        if is_full(&saved) && amend(path, bytes).is_ok() {
            saved = Ok(());
        }
        if saved.is_ok() {
            self.reserve.take();
        }
        saved
    }

    /// Whether a container's record could be written, as far as its size goes.
    ///
    /// # Errors
    ///
    /// The record is over [`RECORD_MAX`].
    pub fn check_container(record: &ContainerRecord) -> Result<(), RecordError> {
        encode("container", record.id.as_str(), record).map(drop)
    }

    /// Removes a container's record; one that is gone is fine.
    ///
    /// # Errors
    ///
    /// The file system refuses.
    pub fn forget_container(&self, pod: &PodId, id: &ContainerId) -> Result<(), RecordError> {
        let path = self.pods.join(pod.as_str()).join(format!("{id}.json"));
        absent_is_fine(std::fs::remove_file(&path)).map_err(io("remove", &path))?;
        point("remove container: record removed").map_err(io("remove", &path))
    }

    /// Removes a pod's record and directory; one that is gone is fine.
    ///
    /// # Errors
    ///
    /// The file system refuses.
    pub fn forget_pod(&self, pod: &PodId) -> Result<(), RecordError> {
        let path = self.pods.join(pod.as_str());
        absent_is_fine(std::fs::remove_dir_all(&path)).map_err(io("remove", &path))?;
        point("remove pod: records removed").map_err(io("remove", &path))
    }

    /// Every pod with its containers. A directory whose pod record is missing or broken is given as
    /// an error beside its name.
    ///
    /// # Errors
    ///
    /// The directory itself cannot be read.
    pub fn load(&self) -> Result<Vec<LoadedPod>, RecordError> {
        let mut pods = Vec::new();
        for entry in std::fs::read_dir(&self.pods).map_err(io("list", &self.pods))? {
            let entry = entry.map_err(io("list", &self.pods))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Ok(id) = name.parse::<PodId>() {
                pods.push(self.load_pod(id));
            }
        }
        pods.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(pods)
    }

    /// A pod with its containers; `None` when nothing of it is there. Nobody else may be writing it.
    ///
    /// # Errors
    ///
    /// Its directory cannot be looked at.
    pub fn find_pod(&self, id: &PodId) -> Result<Option<LoadedPod>, RecordError> {
        let dir = self.pods.join(id.as_str());
        match dir.try_exists() {
            Ok(there) => Ok(there.then(|| self.load_pod(id.clone()))),
            Err(e) => Err(io("look at", &dir)(e)),
        }
    }

    fn load_pod(&self, id: PodId) -> LoadedPod {
        let dir = self.pods.join(id.as_str());
        let pod = read(&dir.join("pod.json"));
        let mut containers = Vec::new();
        let mut broken = Vec::new();
        for name in list(&dir) {
            if name.ends_with(&format!(".{DRAFT}")) {
                // Of a daemon that died over it.
                std::fs::remove_file(dir.join(&name)).ok();
                continue;
            }
            let Some(id) = name
                .strip_suffix(".json")
                .and_then(|n| n.parse::<ContainerId>().ok())
            else {
                continue;
            };
            match read::<ContainerRecord>(&dir.join(&name)) {
                Ok(record) => containers.push(record),
                Err(e) => broken.push((id, e)),
            }
        }
        containers.sort_by_key(|c| c.created_at_ns);
        LoadedPod {
            id,
            pod,
            containers,
            broken,
        }
    }
}

/// What the disk knows of a pod.
#[derive(Debug)]
pub struct LoadedPod {
    /// Its id: the directory's name.
    pub id: PodId,
    /// Its record.
    pub pod: Result<PodRecord, RecordError>,
    /// Its containers, oldest first.
    pub containers: Vec<ContainerRecord>,
    /// Containers whose records cannot be read.
    pub broken: Vec<(ContainerId, RecordError)>,
}

fn list(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The bytes of a record that can be read again.
fn encode<T: Record>(what: &str, id: &str, record: &T) -> Result<Vec<u8>, RecordError> {
    let bytes = serde_json::to_vec(record).map_err(|source| RecordError::Malformed {
        path: PathBuf::from(format!("{what} {id}")),
        source,
    })?;
    let (size, limit) = match record.has_ended() {
        true => (bytes.len() + ROOM, RECORD_FILE_MAX),
        false => (bytes.len(), RECORD_MAX),
    };
    if u64::try_from(size).is_ok_and(|size| size <= limit) {
        return Ok(bytes);
    }
    Err(RecordError::Unreadable {
        what: format!("{what} {id}"),
        size: bytes.len(),
    })
}

/// Numbers drafts: two writers never have the same.
static DRAFTS: AtomicU64 = AtomicU64::new(0);
/// How a draft's name ends.
const DRAFT: &str = "new";

fn save(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
    let draft = path.with_extension(format!("{number}.{DRAFT}"));
    let saved = write(&draft, bytes)
        .and_then(|()| point("save record: draft written").map_err(io("write", &draft)))
        .and_then(|()| std::fs::rename(&draft, path).map_err(io("rename", path)))
        .and_then(|()| point("save record: written").map_err(io("write", path)));
    if saved.is_err() {
        // What stays all the same is removed at the next start.
        std::fs::remove_file(&draft).ok();
    }
    saved
}

fn write(draft: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    // Environments may hold secrets.
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(draft).map_err(io("create", draft))?;
    let mut whole = Vec::with_capacity(bytes.len() + ROOM);
    whole.extend_from_slice(bytes);
    whole.resize(bytes.len() + ROOM, b' ');
    file.write_all(&whole).map_err(io("write", draft))
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, RecordError> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(io("open", path))?;
    let mut bytes = Vec::new();
    file.take(RECORD_FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(io("read", path))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > RECORD_FILE_MAX {
        return Err(RecordError::TooBig {
            path: path.to_owned(),
        });
    }
    let malformed = |source| RecordError::Malformed {
        path: path.to_owned(),
        source,
    };
    if let Some(whole) = amended(&bytes).map_err(malformed)? {
        bytes = serde_json::to_vec(&whole).map_err(malformed)?;
    }
    let form: Form = parse(path, &bytes)?;
    if form.version > VERSION {
        // Of what comes later only the name is looked for.
        let named: Option<Named> = serde_json::from_slice(&bytes).ok();
        return Err(RecordError::Newer {
            path: path.to_owned(),
            version: form.version,
            metadata: Box::new(named.map(|named| named.spec.metadata).unwrap_or_default()),
        });
    }
    parse(path, &bytes)
}

/// What every form of record has.
#[derive(Deserialize)]
struct Form {
    version: u32,
}

/// Where every form of a pod's record has had its name.
#[derive(Deserialize)]
struct Named {
    spec: NamedSpec,
}

#[derive(Deserialize)]
struct NamedSpec {
    metadata: PodMetadata,
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path, bytes: &[u8]) -> Result<T, RecordError> {
    serde_json::from_slice(bytes).map_err(|source| RecordError::Malformed {
        path: path.to_owned(),
        source,
    })
}

fn absent_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> RecordError + use<> {
    let path = path.to_owned();
    move |source| RecordError::Io {
        action,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(n: u8) -> PodRecord {
        PodRecord {
            version: VERSION,
            id: PodId::from_random([n; 32]),
            spec: Arc::default(),
            created_at_ns: 1,
            phase: PodPhase::Starting,
            boot: "b".to_owned(),
            cgroup: "/c".to_owned(),
            hostname: "h".to_owned(),
            network: NetworkView::default(),
            netns: None,
        }
    }

    fn container(pod: &PodRecord, n: u8) -> ContainerRecord {
        ContainerRecord {
            version: VERSION,
            id: ContainerId::from_random([n; 32]),
            pod: pod.id.clone(),
            spec: Arc::default(),
            created_at_ns: i64::from(n),
            facts: None,
            resources: ResourceSpec::default(),
            started_at_ns: 0,
            exit: None,
        }
    }

    #[test]
    fn records_are_found_again_and_forgotten_twice() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let p = pod(1);
        records.save_pod(&p).unwrap();
        let mut c = container(&p, 2);
        records.save_container(&c).unwrap();
        c.exit = Some(Exit::unseen(5, "gone"));
        records.save_container(&c).unwrap();
        records.save_container(&container(&p, 1)).unwrap();
        let loaded = records.load().unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].pod.as_ref().unwrap(), &p);
        assert_eq!(loaded[0].containers, [container(&p, 1), c.clone()]);
        for _ in 0..2 {
            records.forget_container(&p.id, &c.id).unwrap();
        }
        assert_eq!(records.load().unwrap()[0].containers.len(), 1);
        for _ in 0..2 {
            records.forget_pod(&p.id).unwrap();
        }
        assert!(records.load().unwrap().is_empty());
    }

    #[test]
    fn a_broken_record_is_reported_and_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let (p, q) = (pod(1), pod(2));
        records.save_pod(&p).unwrap();
        records.save_pod(&q).unwrap();
        let c = container(&p, 3);
        records.save_container(&c).unwrap();
        std::fs::write(dir.path().join(format!("pods/{}/pod.json", q.id)), b"{").unwrap();
        std::fs::write(
            dir.path().join(format!("pods/{}/{}.json", p.id, c.id)),
            b"[]",
        )
        .unwrap();
        let loaded = records.load().unwrap();
        assert!(loaded.iter().any(|l| l.pod.is_ok() && l.broken.len() == 1));
        assert!(
            loaded
                .iter()
                .any(|l| matches!(l.pod, Err(RecordError::Malformed { .. })))
        );
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let p = pod(1);
        records.save_pod(&p).unwrap();
        let mut c = container(&p, 1);
        records.save_container(&c).unwrap();
        let size = usize::try_from(RECORD_MAX).unwrap();
        let written = c.clone();
        Arc::make_mut(&mut c.spec).log_path = "x".repeat(size);
        let e = records.save_container(&c).unwrap_err();
        assert_eq!(e.kind(), Kind::Exhausted);
        assert!(e.to_string().contains(&RECORD_MAX.to_string()), "{e}");
        assert_eq!(records.load().unwrap()[0].containers, [written]);
        // How it ended has room in any record that could be written.
        let over = serde_json::to_vec(&c).unwrap().len() - size;
        Arc::make_mut(&mut c.spec).log_path.truncate(size - over);
        records.save_container(&c).unwrap();
        c.exit = Some(Exit::unseen(5, "gone"));
        records.save_container(&c).unwrap();
        assert_eq!(records.load().unwrap()[0].containers, [c]);
    }

    #[test]
    fn writers_beside_each_other_leave_one_whole_record_and_no_drafts() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let p = pod(1);
        records.save_pod(&p).unwrap();
        std::thread::scope(|scope| {
            for n in 0..4 {
                let (records, mut c) = (&records, container(&p, 1));
                let length = 1 << (10 + n);
                Arc::make_mut(&mut c.spec).log_path = "x".repeat(length);
                scope.spawn(move || (0..200).for_each(|_| records.save_container(&c).unwrap()));
            }
        });
        let left = dir.path().join(format!("pods/{}/a.7.new", p.id));
        std::fs::write(&left, b"of a daemon that died").unwrap();
        let loaded = records.load().unwrap();
        assert_eq!((loaded[0].containers.len(), loaded[0].broken.len()), (1, 0));
        let files = list(left.parent().unwrap());
        assert_eq!(files.len(), 2, "{files:?}");
    }
}
