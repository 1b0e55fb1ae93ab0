//! From a pod's object to what the runtime is asked for. Upstream: `generateContainerConfig`, `generatePodSandboxConfig`.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use api::Kind;
use api::core::{Container, Pod, SecurityContext, VolumeMount};
use plan::pods::resources::{self, CPU_PERIOD_US, Limits};
use plan::pods::{env, files};
use runtime::{ContainerSpec, Image, Mount, PodResources, PodSandbox, Propagation, Security};

use super::paths::Paths;
use super::volumes::Mounted;

/// Why a container cannot be created from its object: the message of `CreateContainerConfigError`.
pub(super) type ConfigError = String;

/// What the runtime is asked for when the pod's sandbox is made.
pub(super) fn sandbox(pod: &Pod, netns: Option<PathBuf>, cluster_domain: &str) -> PodSandbox {
    let spec = pod.spec.as_ref();
    let flag = |value: Option<Option<bool>>| value.flatten().unwrap_or(false);
    let sysctls = spec.and_then(|spec| spec.security_context.as_ref()?.sysctls.as_ref());
    let labels = BTreeMap::from([
        ("io.kubernetes.pod.name".to_owned(), pod.name().to_owned()),
        ("io.kubernetes.pod.namespace".to_owned(), pod.namespace().to_owned()),
        ("io.kubernetes.pod.uid".to_owned(), pod.uid().to_owned()),
    ]);
    let host_network = flag(spec.map(|spec| spec.host_network));
    PodSandbox {
        uid: pod.uid().to_owned(),
        name: pod.name().to_owned(),
        namespace: pod.namespace().to_owned(),
        hostname: if host_network {
            node_hostname()
        } else {
            files::uts_hostname(pod, cluster_domain)
        },
        domainname: String::new(),
        netns,
        share_pid: flag(spec.map(|spec| spec.share_process_namespace)),
        host_pid: flag(spec.map(|spec| spec.host_pid)),
        host_ipc: flag(spec.map(|spec| spec.host_ipc)),
        sysctls: sysctls
            .into_iter()
            .flatten()
            .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
            .collect(),
        resources: spec.map(|spec| limits(resources::pod_limits(spec))).unwrap_or_default(),
        labels,
        annotations: pod.meta().annotations.clone().unwrap_or_default(),
    }
}

/// The name of the machine that the agent runs on.
pub(super) fn node_hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn limits(limits: Limits) -> PodResources {
    PodResources {
        cpu_shares: limits.cpu_shares,
        cpu_quota_us: limits.cpu_quota_us,
        cpu_period_us: CPU_PERIOD_US,
        memory_limit_bytes: limits.memory_bytes,
        pids_limit: 0,
    }
}

/// Everything that [`container`] needs beside the object.
pub(super) struct Parts<'a> {
    pub(super) pod: &'a Pod,
    pub(super) paths: &'a Paths,
    pub(super) mounted: &'a Mounted,
    pub(super) env: Vec<(String, String)>,
    pub(super) image: &'a Image,
    pub(super) memory_bytes: i64,
}

/// What the runtime is asked for when a container is made.
pub(super) fn container(
    parts: Parts<'_>,
    container: &Container,
    attempt: u32,
) -> Result<ContainerSpec, ConfigError> {
    let pod = parts.pod;
    let security = security(pod, container, parts.image)?;
    let mounts = mounts(&parts, container, attempt)?;
    let spec = pod.spec.as_ref().ok_or("the pod has no spec")?;
    let hostname = std::fs::read_to_string(parts.paths.file(pod.uid(), "hostname"));
    let hostname = hostname.map(|name| name.trim().to_owned()).unwrap_or_default();
    let mut all = vec![("HOSTNAME".to_owned(), hostname)];
    if container.tty == Some(true) {
        all.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    all.extend(parts.env);
    Ok(ContainerSpec {
        pod_uid: pod.uid().to_owned(),
        name: container.name.clone(),
        attempt,
        image: parts.image.id.clone(),
        command: env::expand_all(container.command.as_ref(), &all),
        args: env::expand_all(container.args.as_ref(), &all),
        env: all,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts,
        resources: limits(resources::container_limits(container)),
        security,
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        log_path: Some(parts.paths.log(pod, &container.name, attempt)),
        oom_score_adj: resources::oom_score_adj(spec, container, parts.memory_bytes),
        labels: BTreeMap::from([(
            "io.kubernetes.container.name".to_owned(),
            container.name.clone(),
        )]),
    })
}

fn security(pod: &Pod, container: &Container, image: &Image) -> Result<Security, ConfigError> {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let shared = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let id = |own: Option<i64>, shared: Option<i64>| {
        own.or(shared).and_then(|id| u32::try_from(id).ok())
    };
    let user = id(own.run_as_user, shared.and_then(|shared| shared.run_as_user));
    let group = id(own.run_as_group, shared.and_then(|shared| shared.run_as_group));
    let not_root =
        own.run_as_non_root.or(shared.and_then(|shared| shared.run_as_non_root)).unwrap_or(false);
    if not_root {
        check_not_root(pod, container, user, image)?;
    }
    let mut groups: Vec<u32> = Vec::new();
    if let Some(shared) = shared {
        let extra = shared.supplemental_groups.iter().flatten();
        groups.extend(shared.fs_group.iter().chain(extra).filter_map(|id| u32::try_from(*id).ok()));
    }
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let plain = |names: Option<Vec<String>>| -> Vec<String> {
        let names = names.unwrap_or_default().into_iter();
        names.map(|name| name.trim_start_matches("CAP_").to_owned()).collect()
    };
    Ok(Security {
        run_as_user: user,
        run_as_group: group,
        supplemental_groups: groups,
        add_capabilities: plain(capabilities.add),
        drop_capabilities: plain(capabilities.drop),
        privileged: own.privileged.unwrap_or(false),
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

/// `runAsNonRoot`, in upstream's words.
fn check_not_root(
    pod: &Pod,
    container: &Container,
    user: Option<u32>,
    image: &Image,
) -> Result<(), ConfigError> {
    let who = format!(
        "(pod: \"{}_{}({})\", container: {})",
        pod.name(),
        pod.namespace(),
        pod.uid(),
        container.name
    );
    match user {
        Some(0) => return Err(format!("container's runAsUser breaks non-root policy {who}")),
        Some(_) => return Ok(()),
        None => {}
    }
    let name = image.config.user.split(':').next().unwrap_or_default();
    match name.parse::<u32>() {
        Ok(0) => Err(format!("container has runAsNonRoot and image will run as root {who}")),
        Ok(_) => Ok(()),
        Err(_) if name.is_empty() => {
            Err(format!("container has runAsNonRoot and image will run as root {who}"))
        }
        Err(_) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {who}"
        )),
    }
}

fn mounts(
    parts: &Parts<'_>,
    container: &Container,
    attempt: u32,
) -> Result<Vec<Mount>, ConfigError> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        mounts.push(volume_mount(parts, container, mount)?);
    }
    let uid = parts.pod.uid();
    let mut add = |host_path: PathBuf, container_path: &str, read_only: bool| {
        let container_path = PathBuf::from(container_path);
        if mounts.iter().all(|mount: &Mount| mount.container_path != container_path) {
            let propagation = Propagation::Private;
            mounts.push(Mount { host_path, container_path, read_only, propagation });
        }
    };
    add(parts.paths.file(uid, "etc-hosts"), "/etc/hosts", false);
    add(parts.paths.file(uid, "hostname"), "/etc/hostname", false);
    add(parts.paths.file(uid, "resolv.conf"), "/etc/resolv.conf", false);
    let message = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    let file = parts.paths.termination(uid, &container.name, attempt);
    make_file(&file).map_err(|error| error.to_string())?;
    add(file, message, false);
    // Parents before children, so that a mount never hides another.
    mounts.sort_by_key(|mount| mount.container_path.components().count());
    Ok(mounts)
}

/// An empty file that every user of the container may write.
fn make_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, "")?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}

fn volume_mount(
    parts: &Parts<'_>,
    container: &Container,
    mount: &VolumeMount,
) -> Result<Mount, ConfigError> {
    let root = parts.mounted.get(&mount.name).ok_or_else(|| {
        format!("cannot find volume {:?} to mount into container {:?}", mount.name, container.name)
    })?;
    let expression = mount.sub_path_expr.as_deref().unwrap_or_default();
    let sub = if expression.is_empty() {
        mount.sub_path.clone().unwrap_or_default()
    } else {
        let lookup = |name: &str| {
            parts.env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone())
        };
        env::expand(expression, lookup)
    };
    let host_path = if sub.is_empty() {
        root.clone()
    } else {
        sub_path(root, &sub).map_err(|_| {
            format!(
                "failed to prepare subPath for volumeMount {:?} of container {:?}",
                mount.name, container.name
            )
        })?
    };
    let volumes = parts.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let by_kind =
        volumes.into_iter().find(|volume| volume.name == mount.name).is_some_and(|volume| {
            let claim = volume.persistent_volume_claim.as_ref();
            plan::pods::volumes::is_object_volume(volume)
                || claim.is_some_and(|claim| claim.read_only == Some(true))
        });
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        _ => Propagation::Private,
    };
    Ok(Mount {
        host_path,
        container_path: PathBuf::from(&mount.mount_path),
        read_only: by_kind || mount.read_only.unwrap_or(false),
        propagation,
    })
}

/// A path below a volume; made as a directory when missing. Links must not lead out of the volume.
fn sub_path(root: &Path, sub: &str) -> std::io::Result<PathBuf> {
    let inside = Path::new(sub).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        return Err(std::io::Error::other("the path leaves the volume"));
    }
    let (root, path) = (root.canonicalize()?, root.join(sub));
    let within = |path: &Path| -> std::io::Result<PathBuf> {
        let real = path.canonicalize()?;
        let leaves = || std::io::Error::other("a link leaves the volume");
        if real.starts_with(&root) { Ok(real) } else { Err(leaves()) }
    };
    if !path.exists() {
        // What exists of the path is checked before anything is made below it.
        let known = path.ancestors().find(|part| part.exists()).unwrap_or(&root);
        within(known)?;
        std::fs::create_dir_all(&path)?;
    }
    within(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_paths_stay_in_their_volume() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        assert_eq!(sub_path(&root, "a/b").unwrap(), root.join("a/b"));
        assert!(sub_path(&root, "../x").is_err());
        std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
        assert!(sub_path(&root, "out").is_err());
    }

    #[test]
    fn non_root_is_checked_against_the_image() {
        let pod = Pod::default();
        let container = Container::default();
        let mut image = Image::default();
        assert!(check_not_root(&pod, &container, None, &image).is_err());
        assert!(check_not_root(&pod, &container, Some(0), &image).is_err());
        assert!(check_not_root(&pod, &container, Some(7), &image).is_ok());
        image.config.user = "nginx".to_owned();
        let error = check_not_root(&pod, &container, None, &image).unwrap_err();
        assert!(error.contains("non-numeric user (nginx)"), "{error}");
        image.config.user = "101:101".to_owned();
        assert!(check_not_root(&pod, &container, None, &image).is_ok());
    }
}
