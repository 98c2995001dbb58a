//! A disk that forgets: a block device whose writes are remembered one by one, so that a test can have
//! the disk as it would be had the power been cut at any moment.
//!
//! ```text
//! file system ─► /dev/loopN ─► one file by FUSE ─► our thread: writes and barriers, in order
//! ```
//!
//! At a cut, everything before the last barrier is there. Of what was written after it any part may be:
//! whole writes, or only some of their 512-byte sectors, in whatever order. Which, a seed decides.
//!
//! Protocol: `linux/fuse.h`, version 7.31; the root of the mount is the only file (`rootmode`).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Bytes of one write that the kernel may send.
const WRITE_MAX: u32 = 256 << 10;
/// Bytes of a request without its data.
const HEADER_MAX: usize = 4096;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// Bytes that are left out of an image file where they are all zero.
const BLOCK: usize = 64 << 10;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What was written, in order.
#[derive(Debug)]
enum Event {
    Write(usize, Vec<u8>),
    /// Everything before it is on the disk.
    Barrier,
}

#[derive(Debug)]
struct Memory {
    /// As it was before the first event.
    base: Vec<u8>,
    now: Vec<u8>,
    events: Vec<Event>,
}

/// The disk. It goes with the value; unmount it before.
#[derive(Debug)]
pub struct Forgetful {
    memory: Arc<Mutex<Memory>>,
    device: Option<Loop>,
    file: PathBuf,
    server: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Forgetful {
    /// A disk of `size` bytes with what `format` writes to the file it is given.
    ///
    /// # Errors
    /// There is no FUSE, no loop device, or `format` fails.
    pub fn new(size: usize, format: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<Self> {
        let dir = crate::temporary()?;
        let (template, file) = (dir.path().join("template"), dir.path().join("disk"));
        File::create(&template)?.set_len(u64::try_from(size).map_err(io::Error::other)?)?;
        format(&template)?;
        let base = std::fs::read(&template)?;
        std::fs::remove_file(&template)?;
        File::create(&file)?;
        let memory = Arc::new(Mutex::new(Memory {
            now: base.clone(),
            base,
            events: Vec::new(),
        }));
        let fuse = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!(
            "fd={},rootmode=100000,user_id=0,group_id=0",
            fuse.as_raw_fd()
        );
        let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
        mount(
            "wharf-test",
            &file,
            "fuse",
            MountFlags::NODEV | MountFlags::NOSUID,
            Some(&*options),
        )?;
        let served = Arc::clone(&memory);
        let server = std::thread::Builder::new()
            .name("forgetful".into())
            .spawn(move || serve(fuse, &served))?;
        let mut disk = Self {
            memory,
            device: None,
            file,
            server: Some(server),
            _dir: dir,
        };
        disk.device = Some(Loop::on(&disk.file)?);
        Ok(disk)
    }

    /// The block device.
    ///
    /// # Panics
    /// Never: it is there from the beginning.
    pub fn device(&self) -> &Path {
        self.device.as_ref().expect("it was attached").device()
    }

    /// How many writes and barriers there were so far.
    pub fn moment(&self) -> usize {
        lock(&self.memory).events.len()
    }

    /// Writes the disk as it is after the power was cut at `moment` to the file `to`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn cut(&self, moment: usize, seed: u64, to: &Path) -> io::Result<()> {
        let memory = lock(&self.memory);
        let events = &memory.events[..moment.min(memory.events.len())];
        let disk = surviving(&memory.base, events, seed);
        drop(memory);
        let mut file = File::create(to)?;
        file.set_len(u64::try_from(disk.len()).map_err(io::Error::other)?)?;
        for (n, block) in disk.chunks(BLOCK).enumerate() {
            if *block != ZEROS[..block.len()] {
                let at = u64::try_from(n * BLOCK).map_err(io::Error::other)?;
                file.seek(SeekFrom::Start(at))?;
                file.write_all(block)?;
            }
        }
        Ok(())
    }
}

/// What is left of `events` after a cut.
fn surviving(base: &[u8], events: &[Event], seed: u64) -> Vec<u8> {
    let barrier = |event: &Event| matches!(event, Event::Barrier);
    let safe = events.iter().rposition(barrier).unwrap_or(0);
    let mut disk = base.to_vec();
    let mut dice = Dice::new(seed);
    for (at, event) in events.iter().enumerate() {
        let Event::Write(offset, data) = event else {
            continue;
        };
        let fate = if at < safe { 0 } else { dice.below(4) };
        for (n, sector) in data.chunks(SECTOR).enumerate() {
            let written = match fate {
                0 | 1 => true,
                2 => dice.below(2) == 0,
                _ => false,
            };
            if written {
                let start = offset + n * SECTOR;
                disk[start..start + sector.len()].copy_from_slice(sector);
            }
        }
    }
    disk
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        drop(self.device.take());
        // By force: the connection ends, although namespaces that were made meanwhile have copies of the
        // mount; and with it the server.
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
        if let Err(e) = unmount(&self.file, flags) {
            eprintln!("testkit: unmount {}: {e}", self.file.display());
            return;
        }
        if let Some(server) = self.server.take() {
            let _ended = server.join();
        }
    }
}

/// A block device that is a file. It goes with the value; where it is mounted then, with its last mount.
#[derive(Debug)]
pub struct Loop(PathBuf);

impl Loop {
    /// Puts a free loop device on `file`.
    ///
    /// # Errors
    /// None is free, or losetup is missing.
    pub fn on(file: &Path) -> io::Result<Self> {
        let mut losetup = Command::new("losetup");
        let out = losetup.args(["--find", "--show"]).arg(file).output()?;
        if !out.status.success() {
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            return Err(io::Error::other(format!("losetup: {}", text.trim())));
        }
        Ok(Self(String::from_utf8_lossy(&out.stdout).trim().into()))
    }

    /// Its path.
    pub fn device(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let done = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("testkit: {} stays", self.0.display());
        }
    }
}

/// Numbers that a seed decides (splitmix64).
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from 0 to below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }
}

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let mut value = [0; 8];
    value[..width].copy_from_slice(&bytes[at..at + width]);
    u64::from_le_bytes(value)
}

/// Answers the kernel until the file system is gone.
fn serve(mut fuse: File, memory: &Mutex<Memory>) {
    const NOT_SUPPORTED: i32 = -38;
    let mut request = vec![0; usize::try_from(WRITE_MAX).unwrap_or(0) + HEADER_MAX];
    loop {
        let length = match fuse.read(&mut request) {
            Ok(length) => length,
            // Interrupted, or aborted before it was read.
            Err(e) if matches!(e.raw_os_error(), Some(2 | 4)) => continue,
            // Unmounted.
            Err(_) => return,
        };
        let request = &request[..length];
        let (code, unique) = (number(request, 4, 4), number(request, 8, 8));
        let answer = match code {
            // FORGET, INTERRUPT, BATCH_FORGET: nobody waits.
            2 | 36 | 42 => continue,
            26 => Ok(init()),
            3 | 4 => Ok(attributes(memory)),
            14 => Ok(open()),
            15 => Ok(read(request, memory)),
            16 => Ok(write(request, memory)),
            20 => {
                lock(memory).events.push(Event::Barrier);
                Ok(Vec::new())
            }
            // RELEASE, FLUSH (a close), DESTROY.
            18 | 25 | 38 => Ok(Vec::new()),
            _ => Err(NOT_SUPPORTED),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (error, Vec::new()),
        };
        let mut reply = Vec::with_capacity(16 + body.len());
        let whole = u32::try_from(16 + body.len()).unwrap_or(0);
        reply.extend_from_slice(&whole.to_le_bytes());
        reply.extend_from_slice(&error.to_le_bytes());
        reply.extend_from_slice(&unique.to_le_bytes());
        reply.extend_from_slice(&body);
        // The request may have been aborted meanwhile.
        let _told = fuse.write(&reply);
    }
}

/// `fuse_init_out`.
fn init() -> Vec<u8> {
    const BIG_WRITES: u32 = 1 << 5;
    const MAX_PAGES: u32 = 1 << 22;
    let mut out = Vec::new();
    for word in [7, 31, 0, BIG_WRITES | MAX_PAGES] {
        out.extend_from_slice(&u32::to_le_bytes(word));
    }
    out.extend_from_slice(&[0; 4]);
    for word in [WRITE_MAX, 1] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let pages = u16::try_from(WRITE_MAX / 4096).unwrap_or(1);
    out.extend_from_slice(&pages.to_le_bytes());
    out.resize(64, 0);
    out
}

/// `fuse_attr_out`: a regular file.
fn attributes(memory: &Mutex<Memory>) -> Vec<u8> {
    let size = u64::try_from(lock(memory).now.len()).unwrap_or(0);
    let mut out = vec![0; 16];
    for word in [1, size, size / 512, 0, 0, 0] {
        out.extend_from_slice(&u64::to_le_bytes(word));
    }
    for word in [0, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0] {
        out.extend_from_slice(&u32::to_le_bytes(word));
    }
    out
}

/// `fuse_open_out` with `FOPEN_DIRECT_IO`: the kernel keeps nothing back.
fn open() -> Vec<u8> {
    let mut out = vec![0; 16];
    out[8] = 1;
    out
}

/// Body of `fuse_read_in` and `fuse_write_in`: handle, offset, size.
fn range(request: &[u8]) -> (usize, usize) {
    let part = |at: usize, width| usize::try_from(number(request, 40 + at, width)).unwrap_or(0);
    (part(8, 8), part(16, 4))
}

fn read(request: &[u8], memory: &Mutex<Memory>) -> Vec<u8> {
    let (offset, size) = range(request);
    let memory = lock(memory);
    let end = (offset + size).min(memory.now.len());
    memory.now[offset.min(end)..end].to_vec()
}

fn write(request: &[u8], memory: &Mutex<Memory>) -> Vec<u8> {
    let (offset, size) = range(request);
    let data = &request[80..80 + size];
    let mut memory = lock(memory);
    let end = (offset + size).min(memory.now.len());
    let data = &data[..end.saturating_sub(offset)];
    memory.now[offset..end].copy_from_slice(data);
    memory.events.push(Event::Write(offset, data.to_vec()));
    let mut out = u32::try_from(data.len())
        .unwrap_or(0)
        .to_le_bytes()
        .to_vec();
    out.resize(8, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_is_there_after_a_cut_and_before_it_was_not() {
        if !crate::needs_root("what_was_synced_is_there") {
            return;
        }
        let disk = Forgetful::new(1 << 20, |_| Ok(())).unwrap();
        let device = File::options().write(true).open(disk.device()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&device, &[1; 8192], 4096).unwrap();
        device.sync_all().unwrap();
        let dir = crate::temporary().unwrap();
        let image = |moment| {
            let path = dir.path().join("image");
            disk.cut(moment, 1, &path).unwrap();
            std::fs::read(path).unwrap()
        };
        assert!(image(0).iter().all(|b| *b == 0));
        let after = image(disk.moment());
        assert_eq!(after.len(), 1 << 20);
        assert!(after[4096..12288].iter().all(|b| *b == 1));
        assert_eq!(after.iter().filter(|b| **b == 1).count(), 8192);
    }

    #[test]
    fn of_what_was_not_synced_any_sectors_may_be_there_and_no_half_ones() {
        let base = vec![0; 64 << 10];
        let write = |at, byte| Event::Write(at, vec![byte; 4096]);
        let mut events = vec![write(0, 1), Event::Barrier];
        events.extend((1..16).map(|n| write(n * 4096, 2)));
        let (mut lost, mut torn, mut whole) = (0, 0, 0);
        for seed in 0..50 {
            let disk = surviving(&base, &events, seed);
            assert_eq!(
                disk,
                surviving(&base, &events, seed),
                "the same seed, the same disk"
            );
            assert!(disk[..4096].iter().all(|b| *b == 1));
            for block in disk[4096..].chunks(4096) {
                let sectors = block.chunks(SECTOR);
                let there = sectors.filter(|s| s.iter().all(|b| *b == 2)).count();
                assert_eq!(block.iter().filter(|b| **b == 2).count(), there * SECTOR);
                match there {
                    0 => lost += 1,
                    8 => whole += 1,
                    _ => torn += 1,
                }
            }
        }
        assert!(
            lost > 50 && torn > 50 && whole > 50,
            "{lost} {torn} {whole}"
        );
    }
}
