//! Takes away what tests left that were killed: network namespaces, control groups, folders and what is mounted there. All
//! of it has the process number of its test in its name.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

/// A name that begins so, and has a number in it, is a test's.
const PREFIX: &str = "rhumb-";
/// Where named network namespaces are.
const NAMESPACES: &str = "/run/netns";

/// Takes away what belongs to no living process, once in this one. Labs call it before they make anything.
pub fn sweep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for name in left_in(Path::new(NAMESPACES)) {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for line in mounts.lines() {
            let mut words = line.split(' ').skip(1);
            let (Some(place), Some(kind)) = (words.next(), words.next()) else { continue };
            let place = Path::new(place);
            if kind == "cgroup2" {
                for name in left_in(place) {
                    let _ = fs::remove_dir(place.join(name));
                }
            } else if place.iter().any(|part| part.to_str().is_some_and(is_left)) {
                let _ = Command::new("umount").arg(place).status();
            }
        }
        let folder = std::env::temp_dir();
        for name in left_in(&folder) {
            let _ = fs::remove_dir_all(folder.join(name));
        }
    });
}

fn left_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| is_left(name)).collect()
}

/// Whether a name is of a test whose process is gone. The number is never last: what is may be random letters.
fn is_left(name: &str) -> bool {
    let Some((rest, _)) = name.strip_prefix(PREFIX).and_then(|rest| rest.rsplit_once('-')) else {
        return false;
    };
    let process = rest.split('-').find_map(|part| part.parse::<u32>().ok());
    process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::is_left;

    #[test]
    fn only_names_of_dead_processes_are_left() {
        let own = std::process::id();
        assert!(!is_left(&format!("rhumb-conf-{own}-0-n1")));
        // Numbers of processes are smaller than this.
        assert!(is_left("rhumb-conf-4194305-0-n1"));
        assert!(is_left("rhumb-conf-4194305-0-n1-pins"));
        assert!(!is_left("rhumb-test-4194305"));
        assert!(!is_left("rhumb-n1"));
        assert!(!is_left("other-4194305"));
    }
}
