//! Which user and groups a container runs as, from the image's own `/etc/passwd` and `/etc/group`
//! (upstream: moby/sys/user `GetExecUser`).

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::pod::Security;

/// Longest `/etc/passwd` or `/etc/group` that is read, bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The ids a process gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Opens a path below a root; symbolic links cannot leave it.
pub(crate) fn open_in_root(root: &Path, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    let directory = File::open(root).map_err(|_| nix::errno::Errno::ENOENT)?;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(&directory, path, how)
}

fn read_in_root(root: &Path, path: &str) -> String {
    let mut text = Vec::new();
    if let Ok(fd) = open_in_root(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        let _ = File::from(fd).take(FILE_BYTES_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Resolves the pod's wishes over the image's `User`.
pub(crate) fn resolve(root: &Path, image_user: &str, wish: &Security) -> Result<User, String> {
    let passwd = read_in_root(root, "/etc/passwd");
    let group = read_in_root(root, "/etc/group");
    resolve_in(&passwd, &group, image_user, wish)
}

fn resolve_in(passwd: &str, group: &str, image: &str, wish: &Security) -> Result<User, String> {
    let (image_name, image_group) = match image.split_once(':') {
        Some((name, group)) => (name, group),
        None => (image, ""),
    };
    let name = wish.run_as_user.map_or_else(|| image_name.to_owned(), |uid| uid.to_string());
    let name = if name.is_empty() { "0".to_owned() } else { name };
    let rows = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let by_name = |row: &Vec<&str>| row.first() == Some(&name.as_str());
    let by_id = |row: &Vec<&str>| row.get(2) == Some(&name.as_str());
    let row = rows().find(by_name).or_else(|| rows().find(by_id));
    let column = |index: usize| row.as_ref().and_then(|row| row.get(index).copied());
    let uid = match column(2).and_then(|uid| uid.parse().ok()) {
        Some(uid) => uid,
        None => name.parse().map_err(|_| {
            format!("unable to find user {name}: no matching entries in passwd file")
        })?,
    };
    let mut gid = column(3).and_then(|gid| gid.parse().ok()).unwrap_or(0);
    let groups_of = || group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    if wish.run_as_user.is_none() && !image_group.is_empty() {
        let found = groups_of().find(|row| row.first() == Some(&image_group));
        let number = found.as_ref().and_then(|row| row.get(2).copied()).unwrap_or(image_group);
        gid = number.parse().map_err(|_| {
            format!("unable to find group {image_group}: no matching entries in group file")
        })?;
    }
    gid = wish.run_as_group.unwrap_or(gid);
    let mut groups = wish.supplemental_groups.clone();
    if let Some(login) = column(0) {
        let member =
            |row: &Vec<&str>| row.get(3).is_some_and(|all| all.split(',').any(|one| one == login));
        groups.extend(groups_of().filter(member).filter_map(|row| row.get(2)?.parse::<u32>().ok()));
    }
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    let home = column(5).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    Ok(User { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlogs:x:4:syslog,web\n";

    #[test]
    fn image_user_by_name_brings_its_groups_and_home() {
        let user = resolve_in(PASSWD, GROUP, "web", &Security::default()).unwrap();
        assert_eq!(user, User { uid: 101, gid: 102, groups: vec![4, 102], home: "/srv".into() });
    }

    #[test]
    fn image_group_by_name_and_number() {
        assert_eq!(resolve_in(PASSWD, GROUP, "web:logs", &Security::default()).unwrap().gid, 4);
        assert_eq!(resolve_in(PASSWD, GROUP, "7:8", &Security::default()).unwrap().gid, 8);
    }

    #[test]
    fn the_pods_user_wins_and_unknown_numbers_get_group_root() {
        let wish = Security {
            run_as_user: Some(1000),
            supplemental_groups: vec![2000],
            ..Security::default()
        };
        let user = resolve_in(PASSWD, GROUP, "web:logs", &wish).unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (1000, 0, vec![0, 2000]));
    }

    #[test]
    fn unknown_names_are_refused() {
        let refused = resolve_in(PASSWD, GROUP, "nobody-here", &Security::default());
        assert_eq!(
            refused,
            Err("unable to find user nobody-here: no matching entries in passwd file".into())
        );
    }
}
