//! Our own program, where no container can change it.
//!
//! A process of ours that enters a container can be made to execute itself (`/proc/self/exe` as entry
//! point, or as interpreter of a script), and then the container holds our program's file. It cannot be
//! written to while it runs, but afterwards: the next container would be made by the attacker's program
//! (CVE-2019-5736). So the program that runs is never the host's file itself, but that file seen through a
//! read-only mount that belongs to nobody, and cannot be remounted.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use wharf_sys::exec::Image;
use wharf_sys::mount::{Change, RDONLY, set_attributes};

const SELF: &CStr = c"/proc/self/exe";

/// Our own program could not be put out of reach.
#[derive(Debug, thiserror::Error)]
#[error("put the own program out of a container's reach: {call}")]
#[non_exhaustive]
pub struct OwnCopyError {
    /// What was attempted.
    pub call: &'static str,
    /// The answer.
    pub source: io::Error,
}

fn failed<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> OwnCopyError {
    move |e| OwnCopyError {
        call,
        source: e.into(),
    }
}

/// Begins this program anew from a file that cannot be written to, with the same arguments, environment,
/// process id and descriptors; returns when that is so already. `name` is then the process's name, which
/// would else be a number. The first call of `main`: the process has one thread, and nothing is open.
///
/// That it is so is seen at the file itself: no caller can pretend it.
///
/// # Errors
///
/// [`OwnCopyError`]; the program must then make no container.
pub fn ensure(name: &CStr) -> Result<(), OwnCopyError> {
    if is_out_of_reach().map_err(failed("look at /proc/self/exe"))? {
        return wharf_sys::process::set_name(name).map_err(failed("set the name"));
    }
    let args: Vec<Vec<u8>> = std::env::args_os().map(OsStringExt::into_vec).collect();
    let variables = std::env::vars_os().map(|(key, value)| {
        let mut variable = key.into_vec();
        variable.push(b'=');
        variable.extend(value.into_vec());
        variable
    });
    let variables: Vec<Vec<u8>> = variables.collect();
    let image = Image::new(&args, &variables).map_err(failed("copy arguments"))?;
    if let Ok(view) = read_only_view() {
        // Comes back where programs of such a mount may not be executed.
        let _refused = image.execute_file(view.as_fd());
    }
    // Without CAP_SYS_ADMIN, or in another mount namespace than the file's.
    let copy = sealed_copy()?;
    Err(failed("execute the sealed copy")(
        image.execute_file(copy.as_fd()),
    ))
}

fn is_out_of_reach() -> Result<bool, Errno> {
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let program = rustix::fs::open(SELF, path, Mode::empty())?;
    let flags = rustix::fs::fstatvfs(&program)?.f_flag;
    if flags.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    let read = OFlags::RDONLY | OFlags::CLOEXEC;
    let seals = rustix::fs::open(SELF, read, Mode::empty()).and_then(rustix::fs::fcntl_get_seals);
    // No memfd, or not to be read by us: no seals.
    Ok(seals.is_ok_and(|seals| seals.contains(SEALS)))
}

const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// The same file in a detached mount that is read-only; the mount lasts as long as the program runs.
fn read_only_view() -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = rustix::mount::open_tree(CWD, SELF, flags)?;
    let change = Change {
        set: RDONLY,
        ..Change::default()
    };
    set_attributes(&view, &change, false)?;
    Ok(view)
}

/// A copy in memory that can never be written to again.
fn sealed_copy() -> Result<OwnedFd, OwnCopyError> {
    let name = c"wharf-own-copy";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC) {
        // Below Linux 6.3: all can be executed.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        other => other,
    };
    let mut copy = File::from(copy.map_err(failed("memfd_create"))?);
    let read = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::open(SELF, read, Mode::empty()).map_err(failed("open /proc/self/exe"))?;
    io::copy(&mut File::from(own), &mut copy).map_err(failed("copy /proc/self/exe"))?;
    rustix::fs::fcntl_add_seals(&copy, SEALS).map_err(failed("seal the copy"))?;
    // What is open for writing cannot be executed.
    let same = format!("/proc/self/fd/{}", copy.as_raw_fd());
    rustix::fs::open(same, read, Mode::empty()).map_err(failed("open the copy"))
}
