//! Real containers on this machine: each test has its own state directory, control group and image store.
//! They need root and Debian's busybox-static.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::{
    ContainerSpec, ContainerState, ExecSpec, ImageStore, Mount, Options, PodSandbox, Resources,
    Runtime, RuntimeError, Security,
};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A runtime of its own; checks at the end that nothing is left.
struct World {
    directory: tempfile::TempDir,
    cgroup: String,
    runtime: Option<Runtime>,
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An OCI layout with busybox as one layer and a small second one that hides a file.
fn layout(root: &Path, name: &str) {
    let blobs = root.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = digest(bytes);
        fs::write(blobs.join(&digest[7..]), bytes).unwrap();
        serde_json::json!({"digest": digest, "size": bytes.len()})
    };
    let mut base = tar::Builder::new(Vec::new());
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut file = |path: &str, bytes: &[u8], mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len().try_into().unwrap());
        header.set_mode(mode);
        header.set_cksum();
        base.append_data(&mut header, path, bytes).unwrap();
    };
    file("bin/busybox", &busybox, 0o755);
    file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n", 0o644);
    file("etc/group", b"root:x:0:\nweb:x:34:\n", 0o644);
    file("gone", b"lower", 0o644);
    for applet in
        ["sh", "sleep", "cat", "echo", "id", "hostname", "ps", "stty", "kill", "head", "tr", "wc"]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        base.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    let base = base.into_inner().unwrap();
    let mut top = tar::Builder::new(Vec::new());
    for name in [".wh.gone", "added"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        header.set_cksum();
        top.append_data(&mut header, name, &[][..]).unwrap();
    }
    let top = top.into_inner().unwrap();
    let mut squeezed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    squeezed.write_all(&top).unwrap();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sleep", "1000"], "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": [digest(&base), digest(&top)]},
    });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": put(config.to_string().as_bytes()),
        "layers": [put(&base), put(&squeezed.finish().unwrap())],
    });
    let mut descriptor = put(manifest.to_string().as_bytes());
    descriptor["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [descriptor]});
    fs::write(root.join("index.json"), index.to_string()).unwrap();
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        layout(&directory.path().join("layout"), "busybox:latest");
        let name = directory.path().file_name().unwrap().to_string_lossy().replace('.', "");
        let mut world = Self { directory, cgroup: format!("rhumb-test/{name}"), runtime: None };
        world.store().import(&world.directory.path().join("layout"), &[]).unwrap();
        world.open().await;
        world
    }

    fn store(&self) -> ImageStore {
        ImageStore::open(self.directory.path().join("images"), BTreeMap::new()).unwrap()
    }

    /// Opens the same state, as a restarted agent does.
    async fn open(&mut self) {
        self.runtime = None;
        let state = self.directory.path().join("state");
        let mut options = Options::new(state, self.cgroup.clone(), self.store());
        options.shim = vec![env!("CARGO_BIN_EXE_rhumb-runtime-shim").into()];
        self.runtime = Some(Runtime::open(options).await.unwrap());
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("logs/0.log")
    }

    async fn pod(&self) {
        let pod =
            PodSandbox { uid: "pod".into(), hostname: "web-0".into(), ..PodSandbox::default() };
        self.runtime().run_pod(pod).await.unwrap();
    }

    fn spec(&self, command: &[&str]) -> ContainerSpec {
        ContainerSpec {
            pod_uid: "pod".into(),
            name: "main".into(),
            image: "busybox".into(),
            command: command.iter().map(ToString::to_string).collect(),
            log_path: Some(self.log()),
            ..ContainerSpec::default()
        }
    }

    async fn run(&self, spec: ContainerSpec) -> String {
        let id = self.runtime().create_container(spec).await.unwrap();
        self.runtime().start_container(&id).await.unwrap();
        id
    }

    async fn sh(&self, script: &str) -> String {
        self.run(self.spec(&["sh", "-c", script])).await
    }

    /// Output and error output of the log, without times.
    fn logged(&self) -> Vec<String> {
        let text = fs::read_to_string(self.log()).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    /// Removes the pod and looks for leftovers.
    async fn end(&self) {
        self.runtime().remove_pod("pod").await.unwrap();
        let directory = self.directory.path().to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&directory), "{mounts}");
        assert!(!self.directory.path().join("state/pods/pod").exists());
        for controller in ["memory", "cpu", "pids", "devices", "freezer", "unified", ""] {
            let path = Path::new("/sys/fs/cgroup").join(controller).join(&self.cgroup);
            assert!(!path.join("podpod").exists(), "{}", path.display());
            let _ = fs::remove_dir(path);
        }
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&line).contains(&directory), "{:?}", entry.path());
        }
    }
}

/// A failed test must not leave its shim and containers running.
impl Drop for World {
    fn drop(&mut self) {
        let directory = self.directory.path().to_string_lossy().into_owned();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry.file_name().to_string_lossy().parse();
            if let Ok(pid) = pid
                && String::from_utf8_lossy(&line).contains(&directory)
            {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        let group = Path::new("/sys/fs/cgroup/memory").join(&self.cgroup);
        for entry in walk(&group) {
            for pid in fs::read_to_string(entry.join("cgroup.procs")).unwrap_or_default().lines() {
                let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        for _ in 0..200 {
            walk(&group).into_iter().for_each(|entry| drop(fs::remove_dir(entry)));
            runtime::forget_group(&self.cgroup);
            if !group.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| point.starts_with(&directory)) {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn walk(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let below = entries.flatten().filter(|one| one.path().is_dir());
    let mut all: Vec<PathBuf> = below.flat_map(|one| walk(&one.path())).collect();
    all.push(root.into());
    all
}

async fn all(output: Option<runtime::exec::Output>) -> String {
    let mut text = String::new();
    output.unwrap().read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_container_runs_to_its_end_and_its_output_is_logged() {
    let world = World::new().await;
    world.pod().await;
    let id = world
        .sh("echo out; echo err >&2; echo $FROM_IMAGE $HOME; hostname; test -e /gone || test -e /added && exit 3")
        .await;
    let status = world.runtime().wait_container(&id).await.unwrap();
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 3));
    assert_eq!(status.reason, "Error");
    assert!(status.started_at <= status.finished_at && status.started_at.is_some());
    let mut logged = world.logged();
    logged.sort();
    assert_eq!(logged, ["stderr F err", "stdout F out", "stdout F web-0", "stdout F yes /root"]);
    world.end().await;
}

#[tokio::test]
async fn exec_has_its_own_streams_and_exit_code() {
    let world = World::new().await;
    world.pod().await;
    let id = world.sh("sleep 1000").await;
    let argv = ["sh", "-c", "cat; echo $X >&2; exit 7"].map(str::to_owned).to_vec();
    let spec = ExecSpec {
        argv,
        env: vec![("X".into(), "set".into())],
        stdin: true,
        ..ExecSpec::default()
    };
    let mut exec = world.runtime().exec(&id, spec).await.unwrap();
    let mut stdin = exec.stdin.take().unwrap();
    stdin.write_all(b"through").await.unwrap();
    drop(stdin);
    assert_eq!(all(exec.stdout.take()).await, "through");
    assert_eq!(all(exec.stderr.take()).await, "set\n");
    assert_eq!(exec.wait().await.unwrap(), 7);
    let argv = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let done = world
        .runtime()
        .exec_sync(&id, argv(&["echo", "hi"]), Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!((done.exit_code, done.stdout.as_slice()), (0, &b"hi\n"[..]));
    let refused =
        world.runtime().exec_sync(&id, argv(&["nope"]), Duration::from_secs(10)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "OCI runtime exec failed: exec failed: unable to start container process: \
         exec: \"nope\": executable file not found in $PATH: unknown"
    );
    let late = world
        .runtime()
        .exec_sync(&id, argv(&["sleep", "500"]), Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(matches!(late, RuntimeError::Timeout { .. }), "{late}");
    world.end().await;
}

#[tokio::test]
async fn exec_with_a_terminal_is_sized() {
    let world = World::new().await;
    world.pod().await;
    let id = world.sh("sleep 1000").await;
    let argv = ["sh", "-c", "read line; stty size; echo got $line"].map(str::to_owned).to_vec();
    let spec = ExecSpec { argv, tty: true, stdin: true, ..ExecSpec::default() };
    let mut exec = world.runtime().exec(&id, spec).await.unwrap();
    exec.resize(123, 45);
    exec.stdin.as_mut().unwrap().write_all(b"hello\n").await.unwrap();
    let text = all(exec.stdout.take()).await;
    assert!(text.contains("45 123") && text.contains("got hello"), "{text:?}");
    assert_eq!(exec.wait().await.unwrap(), 0);
    world.end().await;
}

#[tokio::test]
async fn a_container_with_a_terminal_can_be_attached() {
    let world = World::new().await;
    world.pod().await;
    let mut spec = world.spec(&["sh", "-c", "read line; echo got $line; stty size"]);
    (spec.tty, spec.stdin) = (true, true);
    let id = world.run(spec).await;
    let mut attach = world.runtime().attach(&id, true).await.unwrap();
    attach.resize(100, 30);
    attach.stdin.as_mut().unwrap().write_all(b"there\n").await.unwrap();
    let text = all(attach.stdout.take()).await;
    assert!(text.contains("got there") && text.contains("30 100"), "{text:?}");
    assert_eq!(world.runtime().wait_container(&id).await.unwrap().exit_code, 0);
    world.end().await;
}

#[tokio::test]
async fn stdin_once_ends_with_its_client() {
    let world = World::new().await;
    world.pod().await;
    let mut spec = world.spec(&["cat"]);
    (spec.stdin, spec.stdin_once) = (true, true);
    let id = world.run(spec).await;
    let mut attach = world.runtime().attach(&id, true).await.unwrap();
    let mut stdin = attach.stdin.take().unwrap();
    stdin.write_all(b"a line\n").await.unwrap();
    drop(stdin);
    assert_eq!(all(attach.stdout.take()).await, "a line\n");
    assert_eq!(world.runtime().wait_container(&id).await.unwrap().exit_code, 0);
    world.end().await;
}

#[tokio::test]
async fn going_over_the_memory_limit_is_oom_killed() {
    let world = World::new().await;
    world.pod().await;
    let mut spec =
        world.spec(&["sh", "-c", "head -c 200000000 /dev/zero | tr '\\0' x | cat >/dev/shm/x"]);
    spec.command =
        ["sh", "-c", "x=xxxxxxxxxxxxxxxx; while true; do x=$x$x; done"].map(str::to_owned).to_vec();
    spec.resources = Resources { memory_limit_bytes: 16 << 20, ..Resources::default() };
    let id = world.run(spec).await;
    let status = world.runtime().wait_container(&id).await.unwrap();
    assert!(status.oom_killed, "{status:?}");
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    world.end().await;
}

#[tokio::test]
async fn containers_outlive_the_agent() {
    let mut world = World::new().await;
    world.pod().await;
    let id = world.sh("sleep 1000").await;
    let ending = world.sh("cat /dev/null; sleep 0.2; exit 9").await;
    let pid = world.runtime().container(&id).unwrap().pid;
    world.open().await;
    let found = world.runtime().container(&id).unwrap();
    assert_eq!((found.state, found.pid), (ContainerState::Running, pid));
    assert_eq!(world.runtime().wait_container(&ending).await.unwrap().exit_code, 9);
    let argv = vec!["hostname".to_owned()];
    let done = world.runtime().exec_sync(&id, argv, Duration::from_secs(10)).await.unwrap();
    assert_eq!(done.stdout, b"web-0\n");
    world.runtime().stop_container(&id, Duration::ZERO).await.unwrap();
    assert_eq!(world.runtime().container(&id).unwrap().signal, 9);
    world.end().await;
}

#[tokio::test]
async fn a_dead_shim_takes_its_containers_along() {
    let mut world = World::new().await;
    world.pod().await;
    let id = world.sh("sleep 1000").await;
    let pid = world.runtime().container(&id).unwrap().pid;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let shim: i32 = stat.rsplit(')').next().unwrap().split(' ').nth(2).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    let status = world.runtime().wait_container(&id).await.unwrap();
    assert_eq!(status.reason, "ContainerStatusUnknown");
    assert!(!world.runtime().pod("pod").unwrap().ready);
    world.open().await;
    assert_eq!(world.runtime().container(&id).unwrap().reason, "ContainerStatusUnknown");
    world.end().await;
}

#[tokio::test]
async fn stop_asks_first_and_kills_after_the_grace() {
    let world = World::new().await;
    world.pod().await;
    let polite = world.sh("trap 'exit 5' TERM; echo up; while true; do sleep 0.05; done").await;
    while fs::read_to_string(world.log()).unwrap_or_default().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.runtime().stop_container(&polite, Duration::from_secs(20)).await.unwrap();
    assert_eq!(world.runtime().container(&polite).unwrap().exit_code, 5);
    let stubborn = world.sh("trap '' TERM; while true; do sleep 0.05; done").await;
    world.runtime().stop_container(&stubborn, Duration::from_millis(100)).await.unwrap();
    assert_eq!(world.runtime().container(&stubborn).unwrap().exit_code, 137);
    world.runtime().remove_container(&stubborn).await.unwrap();
    assert_eq!(world.runtime().container(&stubborn), None);
    world.end().await;
}

#[tokio::test]
async fn users_mounts_and_read_only_roots() {
    let world = World::new().await;
    world.pod().await;
    let volume = world.directory.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("hosts"), "from the host").unwrap();
    let mut spec = world.spec(&[
        "sh",
        "-c",
        "id; cat /etc/hosts; echo; echo x >/x; echo y >/data/new; echo z >/ro/new; pwd; echo w >/dev/shm/w",
    ]);
    spec.security = Security {
        run_as_user: Some(33),
        supplemental_groups: vec![2000],
        read_only_root: true,
        ..Security::default()
    };
    std::os::unix::fs::chown(&volume, Some(33), None).unwrap();
    spec.working_dir = "/work/dir".into();
    let mount = |path: &Path, to: &str, read_only| Mount {
        host_path: path.into(),
        container_path: to.into(),
        read_only,
        ..Mount::default()
    };
    spec.mounts = vec![
        mount(&volume.join("hosts"), "/etc/hosts", false),
        mount(&volume, "/data", false),
        mount(&volume, "/ro", true),
    ];
    let id = world.run(spec).await;
    world.runtime().wait_container(&id).await.unwrap();
    let logged = world.logged().join("\n");
    for expected in [
        "uid=33(web) gid=34(web) groups=34(web),2000",
        "stdout F from the host",
        "can't create /x: Read-only file system",
        "can't create /ro/new: Read-only file system",
        "stdout F /work/dir",
    ] {
        assert!(logged.contains(expected), "{expected}: {logged}");
    }
    assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "y\n");
    world.end().await;
}

#[tokio::test]
async fn what_cannot_be_executed_is_said_as_runc_does() {
    let world = World::new().await;
    world.pod().await;
    let id = world.runtime().create_container(world.spec(&["nope"])).await.unwrap();
    let missing = world.runtime().start_container(&id).await.unwrap_err();
    assert_eq!(
        missing.to_string(),
        "OCI runtime create failed: unable to start container process: \
         exec: \"nope\": executable file not found in $PATH: unknown"
    );
    // It is a run that ended, as with containerd.
    let seen = world.runtime().container(&id).unwrap();
    assert_eq!((seen.state, seen.exit_code), (ContainerState::Exited, 128));
    assert_eq!((seen.reason.as_str(), seen.message), ("StartError", missing.to_string()));
    world.runtime().remove_container(&id).await.unwrap();
    let id = world.runtime().create_container(world.spec(&["/nope"])).await.unwrap();
    let path = world.runtime().start_container(&id).await.unwrap_err();
    world.runtime().remove_container(&id).await.unwrap();
    assert!(path.to_string().contains("exec: \"/nope\": stat /nope: no such file or directory"));
    let mut spec = world.spec(&["sh"]);
    spec.image = "absent".into();
    let image = world.runtime().create_container(spec).await.unwrap_err();
    assert_eq!(image.to_string(), "image \"absent\" not found");
    assert!(world.runtime().pod("pod").unwrap().containers.is_empty());
    world.end().await;
}

#[tokio::test]
async fn a_shared_pid_namespace_shows_all_containers() {
    let world = World::new().await;
    let pod = PodSandbox { uid: "pod".into(), share_pid: true, ..PodSandbox::default() };
    world.runtime().run_pod(pod).await.unwrap();
    world.sh("sleep 1234").await;
    let other = world.sh("sleep 1000").await;
    let argv = vec!["ps".to_owned()];
    let done = world.runtime().exec_sync(&other, argv, Duration::from_secs(10)).await.unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(text.contains("sleep 1234") && text.contains("sleep 1000"), "{text}");
    world.end().await;
}

#[tokio::test]
async fn images_in_use_stay_and_unused_layers_go() {
    let world = World::new().await;
    world.pod().await;
    let store = world.store();
    let image = store.get("docker.io/library/busybox:latest").unwrap();
    assert_eq!(image.config.exposed_ports, ["80/tcp"]);
    assert_eq!(store.get(&image.id).unwrap(), image);
    let id = world.sh("sleep 1000").await;
    let refused = store.remove("busybox").unwrap_err().to_string();
    assert!(refused.contains("is used by container"), "{refused}");
    world.runtime().remove_container(&id).await.unwrap();
    store.remove("busybox").unwrap();
    assert!(store.list().unwrap().is_empty());
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 0);
    world.end().await;
}

/// Serves a layout as a registry that wants a token, over plain HTTP; returns its base URL.
async fn registry(layout: PathBuf) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let realm = format!("{base}/token");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let index = fs::read(layout.join("index.json")).unwrap();
            let (code, body) = if path.starts_with("/token?") {
                ("200 OK", br#"{"token":"secret"}"#.to_vec())
            } else if !head.contains("uthorization: Bearer secret\r\n") {
                ("401 Unauthorized", Vec::new())
            } else if path == "/v2/library/busybox/manifests/latest" {
                ("200 OK", index)
            } else {
                let name =
                    path.rsplit_once("sha256:").map(|(_, hex)| format!("blobs/sha256/{hex}"));
                match name.and_then(|name| fs::read(layout.join(name)).ok()) {
                    Some(blob) => ("200 OK", blob),
                    None => ("404 Not Found", Vec::new()),
                }
            };
            let challenge = format!("Bearer realm=\"{realm}\",service=\"test\"");
            let head = format!(
                "HTTP/1.1 {code}\r\nWWW-Authenticate: {challenge}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&body).await.unwrap();
        }
    });
    base
}

#[tokio::test]
async fn an_image_is_pulled_with_a_token_and_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout");
    layout(&path, "busybox:latest");
    let mirrors = BTreeMap::from([("docker.io".to_owned(), registry(path.clone()).await)]);
    let store = ImageStore::open(directory.path().join("images"), mirrors).unwrap();
    let (one, other) = tokio::join!(store.pull("busybox", None), store.pull("busybox", None));
    let image = one.unwrap();
    assert_eq!(image, other.unwrap());
    assert_eq!(image.names, ["docker.io/library/busybox:latest"]);
    assert_eq!(store.get(&image.digests[0]).unwrap(), image);
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 2);
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    let absent = store.pull("nope", None).await.unwrap_err().to_string();
    assert_eq!(
        absent,
        "failed to pull and unpack image \"docker.io/library/nope:latest\": failed to resolve reference \
         \"docker.io/library/nope:latest\": docker.io/library/nope:latest: not found"
    );
    store.remove("busybox").unwrap();
    for blob in fs::read_dir(path.join("blobs/sha256")).unwrap().flatten() {
        let bytes = fs::read(blob.path()).unwrap();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            fs::write(blob.path(), [&bytes[..], b"x"].concat()).unwrap();
        }
    }
    let damaged = store.pull("busybox", None).await.unwrap_err().to_string();
    assert!(damaged.contains("failed to copy: "), "{damaged}");
    assert!(store.list().unwrap().is_empty());
}

#[tokio::test]
async fn pulls_fail_in_the_words_of_containerd() {
    let directory = tempfile::tempdir().unwrap();
    let mirrors = BTreeMap::from([("docker.io".to_owned(), "http://127.0.0.1:1".to_owned())]);
    let store = ImageStore::open(directory.path(), mirrors).unwrap();
    let refused = store.pull("nope", None).await.unwrap_err().to_string();
    assert_eq!(
        refused,
        "failed to pull and unpack image \"docker.io/library/nope:latest\": failed to resolve reference \
         \"docker.io/library/nope:latest\": failed to do request: Get \
         \"http://127.0.0.1:1/v2/library/nope/manifests/latest\": dial tcp 127.0.0.1:1: connect: connection refused"
    );
}
