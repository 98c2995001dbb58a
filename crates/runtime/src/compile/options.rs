//! Words of a mount: what is said to the kernel by attribute, by propagation, by parameter.

use super::CompileError;

// MOUNT_ATTR_* of linux/mount.h.
const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
/// The bits that say when access times are written; they are set together.
const ATIME: u64 = 0x70;
const RELATIME: u64 = 0x0;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

// MS_* of linux/mount.h.
const MS_REC: u64 = 1 << 14;
const MS_UNBINDABLE: u64 = 1 << 17;
const MS_PRIVATE: u64 = 1 << 18;
const MS_SLAVE: u64 = 1 << 19;
const MS_SHARED: u64 = 1 << 20;

/// Attributes to set and to clear, as `mount_setattr(2)` takes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) set: u64,
    pub(super) clear: u64,
}

impl Attributes {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Set(bit) => {
                self.set |= bit;
                self.clear &= !bit;
            }
            Change::Clear(bit) => {
                self.set &= !bit;
                self.clear |= bit;
            }
            Change::Atime(value) => {
                self.set = self.set & !ATIME | value;
                self.clear |= ATIME;
            }
            Change::NotAtime(value) => {
                if self.set & ATIME == value && self.clear & ATIME != 0 {
                    self.set &= !ATIME;
                    self.clear &= !ATIME;
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Set(u64),
    Clear(u64),
    /// Access times are written so.
    Atime(u64),
    /// Access times are not written so: takes an earlier word back.
    NotAtime(u64),
}

/// The options of a mount, sorted by whom they are for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) bind: bool,
    pub(super) recursive: bool,
    /// Of the mount itself.
    pub(super) attributes: Attributes,
    /// Of the mount and all below it (`rro`…).
    pub(super) recursive_attributes: Attributes,
    /// `MS_PRIVATE`…; the last one counts.
    pub(super) propagation: Option<u64>,
    pub(super) copy_up: bool,
    /// For the file system, in order.
    pub(super) parameters: Vec<String>,
}

/// Sorts the words of a mount.
pub(super) fn parse(words: &[String], field: &str) -> Result<Options, CompileError> {
    let mut options = Options::default();
    for word in words {
        if let Some(change) = attribute(word) {
            options.attributes.apply(change);
        } else if let Some(change) = recursive_attribute(word) {
            options.recursive_attributes.apply(change);
        } else if let Some(flags) = propagation_flags(word) {
            options.propagation = Some(flags);
        } else {
            match word.as_str() {
                "bind" => options.bind = true,
                "rbind" => (options.bind, options.recursive) = (true, true),
                "tmpcopyup" => options.copy_up = true,
                // Nothing to do: what they ask for is so, or has no effect.
                "defaults" | "loud" | "silent" | "noiversion" | "" => {}
                "remount" => {
                    return Err(CompileError::Unsupported(format!("{field}: remount")));
                }
                "idmap" | "ridmap" => {
                    return Err(CompileError::Unsupported(format!(
                        "{field}: idmapped mounts"
                    )));
                }
                _ => options.parameters.push(word.clone()),
            }
        }
    }
    Ok(options)
}

fn attribute(word: &str) -> Option<Change> {
    Some(match word {
        "ro" => Change::Set(RDONLY),
        "rw" => Change::Clear(RDONLY),
        "nosuid" => Change::Set(NOSUID),
        "suid" => Change::Clear(NOSUID),
        "nodev" => Change::Set(NODEV),
        "dev" => Change::Clear(NODEV),
        "noexec" => Change::Set(NOEXEC),
        "exec" => Change::Clear(NOEXEC),
        "nodiratime" => Change::Set(NODIRATIME),
        "diratime" => Change::Clear(NODIRATIME),
        "nosymfollow" => Change::Set(NOSYMFOLLOW),
        "symfollow" => Change::Clear(NOSYMFOLLOW),
        "noatime" => Change::Atime(NOATIME),
        "relatime" | "atime" => Change::Atime(RELATIME),
        "strictatime" => Change::Atime(STRICTATIME),
        "norelatime" => Change::NotAtime(RELATIME),
        "nostrictatime" => Change::NotAtime(STRICTATIME),
        _ => return None,
    })
}

fn recursive_attribute(word: &str) -> Option<Change> {
    Some(match word {
        "rro" => Change::Set(RDONLY),
        "rrw" => Change::Clear(RDONLY),
        "rnosuid" => Change::Set(NOSUID),
        "rsuid" => Change::Clear(NOSUID),
        "rnodev" => Change::Set(NODEV),
        "rdev" => Change::Clear(NODEV),
        "rnoexec" => Change::Set(NOEXEC),
        "rexec" => Change::Clear(NOEXEC),
        "rnodiratime" => Change::Set(NODIRATIME),
        "rdiratime" => Change::Clear(NODIRATIME),
        "rnosymfollow" => Change::Set(NOSYMFOLLOW),
        "rsymfollow" => Change::Clear(NOSYMFOLLOW),
        "rnoatime" => Change::Atime(NOATIME),
        "rstrictatime" => Change::Atime(STRICTATIME),
        // The kernel's default is what is left when another one is cleared.
        "rrelatime" | "ratime" | "rnorelatime" | "rnostrictatime" => Change::Atime(RELATIME),
        _ => return None,
    })
}

fn propagation_flags(word: &str) -> Option<u64> {
    let (word, recursive) = match word {
        "rprivate" | "rslave" | "rshared" | "runbindable" => (word.get(1..)?, MS_REC),
        _ => (word, 0),
    };
    let flag = match word {
        "private" => MS_PRIVATE,
        "slave" => MS_SLAVE,
        "shared" => MS_SHARED,
        "unbindable" => MS_UNBINDABLE,
        _ => return None,
    };
    Some(flag | recursive)
}

/// `linux.rootfsPropagation`; 0 when nothing is asked for.
pub(super) fn propagation(word: &str) -> Result<u64, CompileError> {
    if word.is_empty() {
        return Ok(0);
    }
    propagation_flags(word).ok_or_else(|| {
        CompileError::invalid(
            "linux.rootfsPropagation",
            format!("{word:?} is not one of [r]private, [r]slave, [r]shared, [r]unbindable"),
        )
    })
}

/// The propagation of a bind mount about which nothing is said: the root's, else private.
pub(super) fn bind_default(rootfs: u64) -> u64 {
    if rootfs == 0 {
        MS_PRIVATE | MS_REC
    } else {
        rootfs | MS_REC
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(words: &str) -> Options {
        let words: Vec<_> = words.split(',').map(str::to_owned).collect();
        parse(&words, "mounts[0]").unwrap()
    }

    #[test]
    fn the_last_word_wins() {
        let options = sorted("ro,nosuid,rw,noatime,strictatime,rprivate,rslave");
        assert_eq!(options.attributes.set, NOSUID | STRICTATIME);
        assert_eq!(options.attributes.clear, RDONLY | ATIME);
        assert_eq!(options.propagation, Some(MS_SLAVE | MS_REC));
    }

    #[test]
    fn words_go_to_whom_they_are_for() {
        let options = sorted("rbind,rro,ro,mode=1777,size=64k,tmpcopyup,defaults,sync");
        assert!(options.bind && options.recursive && options.copy_up);
        assert_eq!(options.recursive_attributes.set, RDONLY);
        assert_eq!(options.attributes.set, RDONLY);
        assert_eq!(options.parameters, ["mode=1777", "size=64k", "sync"]);
        assert_eq!(sorted("noatime,atime").attributes.set, 0);
        assert_eq!(sorted("strictatime,nostrictatime").attributes.clear, 0);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for word in ["remount", "idmap", "ridmap"] {
            parse(&[word.to_owned()], "mounts[0]").unwrap_err();
        }
        propagation("sideways").unwrap_err();
        assert_eq!(propagation("rshared").unwrap(), MS_SHARED | MS_REC);
    }
}
