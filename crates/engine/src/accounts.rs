//! Who a container runs as: what was asked for, resolved against the image's own /etc/passwd and
//! /etc/group, which are read beneath its root and never trusted to be files, or short, or sane.

use std::collections::HashSet;
use std::io::{ErrorKind, Read as _};
use std::os::fd::BorrowedFd;

use wharf_runtime::launch::sources::regular_file;

use crate::error::RequestError;
use crate::limits::{ACCOUNTS_FILE_MAX, GROUPS_MAX};
use crate::spec::{GroupsPolicy, SecuritySpec};
use crate::view::UserView;

/// The user, and where it is at home.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) user: UserView,
    pub(crate) home: String,
}

/// The image's account files; empty when it has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Accounts {
    pub(crate) passwd: String,
    pub(crate) group: String,
}

/// Reads both files beneath `root`.
///
/// # Errors
///
/// One is larger than any sane file, no regular file, or cannot be read.
pub(crate) fn read(root: BorrowedFd<'_>) -> Result<Accounts, RequestError> {
    Ok(Accounts {
        passwd: read_file(root, "etc/passwd")?,
        group: read_file(root, "etc/group")?,
    })
}

fn read_file(root: BorrowedFd<'_>, path: &'static str) -> Result<String, RequestError> {
    let bad = |reason: String| RequestError::Invalid {
        field: "image",
        reason: format!("/{path} of the image {reason}"),
    };
    let file = match regular_file(root, path) {
        Ok(file) => file,
        Err(e) => match e.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => return Ok(String::new()),
            ErrorKind::InvalidInput => return Err(bad("is no regular file".to_owned())),
            _ => return Err(bad(format!("cannot be opened: {e}"))),
        },
    };
    let mut bytes = Vec::new();
    file.take(ACCOUNTS_FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| bad(format!("cannot be read: {e}")))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > ACCOUNTS_FILE_MAX {
        return Err(bad(format!(
            "is over the limit of {ACCOUNTS_FILE_MAX} bytes"
        )));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl Accounts {
    /// The user asked for, or the image's own.
    pub(crate) fn resolve(
        &self,
        security: &SecuritySpec,
        image_user: &str,
    ) -> Result<Account, RequestError> {
        let (user, group) = asked(security, image_user)?;
        let found = self.find_user(&user);
        let uid = match (&user, &found) {
            (Who::Id(id), _) => *id,
            (Who::Name(_), Some(entry)) => entry.uid,
            (Who::Name(name), None) => {
                return Err(unknown("user", name, "/etc/passwd"));
            }
        };
        let gid = match group {
            Some(Who::Id(id)) => id,
            Some(Who::Name(name)) => self.find_group(&name)?,
            // A number without an entry has no group of its own.
            None => found.as_ref().map_or(0, |entry| entry.gid),
        };
        let mut groups = vec![gid];
        let mut known = HashSet::from([gid]);
        let mut add = |id| {
            if known.insert(id) {
                groups.push(id);
            }
        };
        if security.supplemental_groups_policy == GroupsPolicy::Merge
            && let Some(entry) = &found
        {
            self.groups_of(entry.name).for_each(&mut add);
        }
        for id in &security.supplemental_groups {
            add(number("linux.security_context.supplemental_groups", *id)?);
        }
        if groups.len() > GROUPS_MAX {
            return Err(RequestError::Limit {
                what: "the number of groups of the container's user",
                limit: GROUPS_MAX,
            });
        }
        let home = found.as_ref().map_or("", |entry| entry.home);
        let home = if home.starts_with('/') { home } else { "/" }.to_owned();
        Ok(Account {
            user: UserView { uid, gid, groups },
            home,
        })
    }

    fn users(&self) -> impl Iterator<Item = Passwd<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let home = fields.nth(1).unwrap_or("");
            (!name.is_empty()).then_some(Passwd {
                name,
                uid,
                gid,
                home,
            })
        })
    }

    /// A number is looked up as a number first; a name that looks like one is a name only to those who
    /// made such an entry.
    fn find_user(&self, who: &Who) -> Option<Passwd<'_>> {
        self.users().find(|entry| match who {
            Who::Id(id) => entry.uid == *id,
            Who::Name(name) => entry.name == name,
        })
    }

    fn group_lines(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or("")))
        })
    }

    fn find_group(&self, name: &str) -> Result<u32, RequestError> {
        let found = self.group_lines().find(|(known, ..)| *known == name);
        found
            .map(|(_, gid, _)| gid)
            .ok_or_else(|| unknown("group", name, "/etc/group"))
    }

    fn groups_of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = u32> + 'a {
        self.group_lines()
            .filter(move |(_, _, members)| members.split(',').any(|m| m.trim() == user))
            .map(|(_, gid, _)| gid)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    Id(u32),
    Name(String),
}

fn asked(security: &SecuritySpec, image_user: &str) -> Result<(Who, Option<Who>), RequestError> {
    let group = security
        .run_as_group
        .map(|id| number("linux.security_context.run_as_group", id).map(Who::Id))
        .transpose()?;
    if let Some(id) = security.run_as_user {
        let uid = number("linux.security_context.run_as_user", id)?;
        return Ok((Who::Id(uid), group));
    }
    if !security.run_as_username.is_empty() {
        return Ok((who(&security.run_as_username), group));
    }
    if group.is_some() {
        return Err(RequestError::Invalid {
            field: "linux.security_context.run_as_group",
            reason: "a group without a user: set run_as_user or run_as_username too".to_owned(),
        });
    }
    if image_user.is_empty() {
        return Ok((Who::Id(0), None));
    }
    match image_user.split_once(':') {
        Some((user, group)) if !user.is_empty() && !group.is_empty() => {
            Ok((who(user), Some(who(group))))
        }
        Some((user, "")) if !user.is_empty() => Ok((who(user), None)),
        Some(_) => Err(RequestError::Invalid {
            field: "image",
            reason: format!("its user {image_user:?} is not user[:group]"),
        }),
        None => Ok((who(image_user), None)),
    }
}

fn who(text: &str) -> Who {
    match text.parse::<u32>() {
        Ok(id) => Who::Id(id),
        Err(_name) => Who::Name(text.to_owned()),
    }
}

/// An id that the kernel takes: the highest number means "none" to it.
fn number(field: &'static str, id: i64) -> Result<u32, RequestError> {
    match u32::try_from(id) {
        Ok(id) if id < u32::MAX => Ok(id),
        _ => Err(RequestError::Invalid {
            field,
            reason: format!("{id} is not an id: 0 to {} are", u32::MAX - 1),
        }),
    }
}

fn unknown(what: &'static str, name: &str, file: &'static str) -> RequestError {
    RequestError::Invalid {
        field: "linux.security_context",
        reason: format!(
            "the image has no {what} {name:?} in its {file}: use a number, or another image"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use rustix::fs::{FileType, Mode, OFlags};

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nweb:x:33:44:Web:/var/www:\n\
                     12:x:90:91::relative:\nhalf:x:7\n"
                .to_owned(),
            group: "root:x:0:\nweb:x:44:\nlog:x:50:web, other\nadm:x:4:root,web\nbad:x:nan:web\n"
                .to_owned(),
        }
    }

    fn security() -> SecuritySpec {
        SecuritySpec::default()
    }

    type Ids<'a> = (u32, u32, &'a [u32], &'a str);

    fn ids(account: &Account) -> Ids<'_> {
        (
            account.user.uid,
            account.user.gid,
            &account.user.groups,
            &account.home,
        )
    }

    #[test]
    fn the_images_user_counts_when_none_is_asked_for() {
        let cases: [(&str, Ids<'_>); 8] = [
            ("", (0, 0, &[0, 4], "/root")),
            ("web", (33, 44, &[44, 50, 4], "/var/www")),
            ("33", (33, 44, &[44, 50, 4], "/var/www")),
            ("web:adm", (33, 4, &[4, 50], "/var/www")),
            ("33:1234", (33, 1234, &[1234, 50, 4], "/var/www")),
            ("web:", (33, 44, &[44, 50, 4], "/var/www")),
            ("4242", (4242, 0, &[0], "/")),
            // A relative home is no home.
            ("90", (90, 91, &[91], "/")),
        ];
        for (user, expected) in cases {
            let account = accounts().resolve(&security(), user).unwrap();
            assert_eq!(ids(&account), expected, "{user:?}");
        }
    }

    #[test]
    fn what_is_asked_for_replaces_the_images_user_and_group() {
        let asked = SecuritySpec {
            run_as_user: Some(33),
            ..security()
        };
        let account = accounts().resolve(&asked, "nobody:nogroup").unwrap();
        assert_eq!(ids(&account), (33, 44, &[44, 50, 4][..], "/var/www"));
        let asked = SecuritySpec {
            run_as_username: "web".to_owned(),
            run_as_group: Some(9),
            ..security()
        };
        let account = accounts().resolve(&asked, "").unwrap();
        assert_eq!(ids(&account), (33, 9, &[9, 50, 4][..], "/var/www"));
    }

    #[test]
    fn strict_groups_are_the_list_and_the_primary_group() {
        let asked = SecuritySpec {
            run_as_user: Some(33),
            supplemental_groups: vec![1234, 44],
            supplemental_groups_policy: GroupsPolicy::Strict,
            ..security()
        };
        assert_eq!(
            accounts().resolve(&asked, "").unwrap().user.groups,
            [44, 1234]
        );
        let merged = SecuritySpec {
            supplemental_groups_policy: GroupsPolicy::Merge,
            ..asked
        };
        assert_eq!(
            accounts().resolve(&merged, "").unwrap().user.groups,
            [44, 50, 4, 1234]
        );
    }

    #[test]
    fn what_cannot_be_resolved_is_named() {
        let group_alone = SecuritySpec {
            run_as_group: Some(1),
            ..security()
        };
        let name = SecuritySpec {
            run_as_username: "ghost".to_owned(),
            ..security()
        };
        let negative = SecuritySpec {
            run_as_user: Some(-1),
            ..security()
        };
        let top = SecuritySpec {
            run_as_user: Some(i64::from(u32::MAX)),
            ..security()
        };
        let groups = SecuritySpec {
            supplemental_groups: vec![1 << 40],
            ..security()
        };
        for (asked, image, word) in [
            (group_alone, "", "run_as_user"),
            (name, "", "\"ghost\""),
            (negative, "", "-1"),
            (top, "", "4294967295"),
            (groups, "", "1099511627776"),
            (security(), "ghost", "\"ghost\""),
            (security(), "web:ghosts", "\"ghosts\""),
            (security(), ":web", ":web"),
        ] {
            let e = accounts().resolve(&asked, image).unwrap_err();
            assert_eq!(e.kind(), wharf_types::Kind::Invalid);
            assert!(e.to_string().contains(word), "{e}");
        }
    }

    #[test]
    fn more_groups_than_a_process_can_have_are_refused() {
        let many = |count: usize| {
            let lines = (1..=count).map(|n| format!("g{n}:x:{n}:web\n"));
            Accounts {
                group: lines.collect(),
                ..accounts()
            }
        };
        let account = many(GROUPS_MAX).resolve(&security(), "web").unwrap();
        assert_eq!(account.user.groups.len(), GROUPS_MAX);
        let e = many(GROUPS_MAX + 1)
            .resolve(&security(), "web")
            .unwrap_err();
        assert!(e.to_string().contains("groups"), "{e}");
    }

    #[test]
    fn account_files_stay_beneath_the_root_and_are_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        assert_eq!(read(root.as_fd()).unwrap(), Accounts::default());
        let etc = dir.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        // A link to the host's file leads into the image, where there is none.
        std::os::unix::fs::symlink("/../../../etc/hostname", etc.join("passwd")).unwrap();
        assert_eq!(read(root.as_fd()).unwrap().passwd, "");
        std::fs::write(etc.join("real"), "root:x:0:0::/:\n").unwrap();
        std::fs::remove_file(etc.join("passwd")).unwrap();
        std::os::unix::fs::symlink("/etc/real", etc.join("passwd")).unwrap();
        assert_eq!(read(root.as_fd()).unwrap().passwd, "root:x:0:0::/:\n");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            etc.join("group"),
            FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(
            read(root.as_fd())
                .unwrap_err()
                .to_string()
                .contains("/etc/group")
        );
        std::fs::remove_file(etc.join("group")).unwrap();
        let big = File::create(etc.join("group")).unwrap();
        big.set_len(ACCOUNTS_FILE_MAX + 1).unwrap();
        assert!(
            read(root.as_fd())
                .unwrap_err()
                .to_string()
                .contains("limit")
        );
    }
}
