//! The eBPF programs at sockets: real connections and datagrams of a control group, in a network namespace.

#![expect(clippy::unwrap_used, reason = "a kernel without namespaces or cgroup2 fails its test")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kernel::bpf::{self, Connect, Counter, Place, Tables};
use kernel::link::Netlink;
use kernel::netns;
use net::bpf::{Choice, EndpointSet, Frontend, FrontendKey, Steps, Tables as Wanted};
use testkit::machine::Machine;

const TCP: u8 = 6;
const UDP: u8 = 17;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// A network namespace, a control group and a place for pins. Dropped, they are gone.
struct World {
    name: String,
    root: PathBuf,
    connect: Connect,
    tables: Tables,
    wanted: Wanted,
    /// The namespace's.
    cookie: u64,
}

impl World {
    fn new() -> Self {
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        testkit::leftovers::sweep();
        let name = format!("rhumb-bpf-{}-{number}", std::process::id());
        let path = netns::named(&name);
        netns::create(&path).unwrap();
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        executor
            .block_on(async { Netlink::open_in(&path).unwrap().set_up("lo", true).await })
            .unwrap();
        let root = Self::hierarchy();
        let (connect, tables) = Connect::open(&pins(&name), &name).unwrap();
        // Threads of one process may be in groups of their own then.
        std::fs::write(root.join(&name).join("cgroup.type"), "threaded").unwrap();
        let cookie = netns::within(&path, || bpf::netns_cookie().unwrap()).unwrap();
        Self { name, root, connect, tables, wanted: Wanted::default(), cookie }
    }

    fn hierarchy() -> PathBuf {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields[2] == "cgroup2").then(|| PathBuf::from(fields[1]))
        });
        root.unwrap()
    }

    /// Runs on a thread in the namespace, outside the group.
    fn aside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::within(&netns::named(&self.name), work).unwrap()
    }

    /// Runs on a thread in the namespace and the group.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let threads = self.root.join(&self.name).join("cgroup.threads");
        self.aside(|| {
            std::fs::write(threads, nix::unistd::gettid().to_string()).unwrap();
            work()
        })
    }

    fn place(&mut self, place: Place) {
        self.tables.put_namespace(self.cookie, place).unwrap();
    }

    /// Leads a frontend to these endpoints, as a pod and as the node sees it.
    fn lead(&mut self, protocol: u8, frontend: &str, set: u64, endpoints: &[SocketAddr]) {
        let count = u32::try_from(endpoints.len()).unwrap();
        let choice = Choice { set, count, ..Choice::default() };
        let mut wanted = self.wanted.clone();
        let key = FrontendKey { address: at(frontend), protocol };
        let told = Frontend { pods: choice, node: choice, ..Frontend::default() };
        wanted.frontends.insert(key, told);
        let own: Vec<IpAddr> = endpoints.iter().map(SocketAddr::ip).collect();
        let set_of = EndpointSet {
            endpoints: endpoints.to_vec(),
            own,
            remembered: protocol == UDP,
            ..EndpointSet::default()
        };
        wanted.sets.insert(set, Arc::new(set_of));
        let used = |set: &u64| wanted.frontends.values().any(|frontend| frontend.pods.set == *set);
        let sets = wanted.sets.iter().filter(|(set, _)| used(set));
        let sets = sets.map(|(set, all)| (*set, Arc::clone(all))).collect();
        self.tell(Wanted { sets, ..wanted });
    }

    fn tell(&mut self, wanted: Wanted) {
        let Steps { endpoints, members, frontends, spare } =
            self.tables.read().unwrap().steps(&wanted.entries());
        endpoints.iter().for_each(|(key, to)| self.tables.put_endpoint(*key, *to).unwrap());
        members.iter().for_each(|member| self.tables.put_member(member).unwrap());
        for (key, frontend) in &frontends {
            match frontend {
                Some(frontend) => self.tables.put_frontend(key, frontend).unwrap(),
                None => self.tables.remove_frontend(key).unwrap(),
            }
        }
        spare.endpoints.iter().for_each(|key| self.tables.remove_endpoint(*key).unwrap());
        spare.members.iter().for_each(|member| self.tables.remove_member(member).unwrap());
        assert_eq!(self.tables.read().unwrap(), wanted.entries());
        self.wanted = wanted;
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.tables.counted(counter).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        bpf::remove(&pins(&self.name)).unwrap();
        netns::delete(&netns::named(&self.name)).unwrap();
        std::fs::remove_dir(self.root.join(&self.name)).unwrap();
    }
}

fn pins(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{name}-pins"))
}

/// A TCP server that says its number and whom it sees.
fn serve_tcp(world: &World, address: &'static str, number: u8) -> SocketAddr {
    let listener = world.aside(|| TcpListener::bind(address).unwrap());
    let bound = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(&[number]);
        }
    });
    bound
}

fn serve_udp(world: &World, address: &'static str, number: u8) -> SocketAddr {
    let socket = world.aside(|| UdpSocket::bind(address).unwrap());
    let bound = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 8];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&[number], peer);
        }
    });
    bound
}

fn ask(to: SocketAddr) -> std::io::Result<(u8, SocketAddr)> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
    let peer = stream.peer_addr()?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok((answer[0], peer))
}

const VIP4: &str = "127.96.0.10:80";
const VIP6: &str = "[fd96::10]:80";

#[test]
fn connects_are_led_to_an_endpoint_and_show_the_service() {
    let mut world = World::new();
    let v4 = [serve_tcp(&world, "127.0.0.1:0", 1), serve_tcp(&world, "127.0.0.1:0", 2)];
    let v6 = serve_tcp(&world, "[::1]:0", 3);
    world.lead(TCP, VIP4, 4, &v4);
    world.lead(TCP, VIP6, 6, &[v6]);
    // Whose the namespace is, is not known: nothing is touched.
    assert!(world.within(|| ask(at(VIP4))).is_err());
    world.place(Place::Node);
    let mut seen = [0_u32; 4];
    for _ in 0..40 {
        let (number, peer) = world.within(|| ask(at(VIP4))).unwrap();
        assert_eq!(peer, at(VIP4));
        seen[usize::from(number)] += 1;
    }
    assert!(seen[1] > 4 && seen[2] > 4, "{seen:?}");
    assert_eq!(world.within(|| ask(at(VIP6))).unwrap(), (3, at(VIP6)));
    let (number, peer) = world.within(|| ask(at("[::ffff:127.96.0.10]:80"))).unwrap();
    assert!(number < 3);
    assert_eq!(peer, at("[::ffff:127.96.0.10]:80"));
    assert_eq!(world.counted(Counter::Connected4), 41);
    assert_eq!(world.counted(Counter::Connected6), 1);
    // Others than the group's processes are not led.
    assert!(world.aside(|| ask(at(VIP4))).is_err());
    // And what was there before goes on without tables: the frontend goes, the connection stays.
    let mut stream = world.within(|| TcpStream::connect(at(VIP4)).unwrap());
    world.tell(Wanted::default());
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert!(world.within(|| ask(at(VIP4))).is_err());
}

#[test]
fn a_pod_that_is_an_endpoint_is_left_to_the_rules() {
    let mut world = World::new();
    let own = serve_tcp(&world, "127.0.0.1:0", 1);
    world.lead(TCP, VIP4, 4, &[own]);
    world.place(Place::Pod(Some(Ipv4Addr::new(127, 0, 0, 2)), None));
    assert_eq!(world.within(|| ask(at(VIP4))).unwrap().0, 1);
    world.place(Place::Pod(Some(Ipv4Addr::LOCALHOST), None));
    assert!(world.within(|| ask(at(VIP4))).is_err());
    assert_eq!(world.counted(Counter::Left4), 1);
}

/// One datagram to a frontend and its answer: from whom, and who it was.
fn exchange(socket: &UdpSocket, to: SocketAddr) -> (u8, SocketAddr) {
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket.send_to(b"?", to).unwrap();
    let mut buffer = [0; 8];
    let (_, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[0], from)
}

#[test]
fn datagrams_stay_with_their_endpoint_while_it_is_one() {
    for (vip, any, loopback) in [(VIP4, "0.0.0.0:0", "127.0.0.1:0"), (VIP6, "[::]:0", "[::1]:0")] {
        let mut world = World::new();
        world.place(Place::Node);
        let servers: Vec<SocketAddr> =
            (1..=3).map(|number| serve_udp(&world, loopback, number)).collect();
        world.lead(UDP, vip, 1, &servers);
        let sockets: Vec<UdpSocket> =
            world.within(|| (0..20).map(|_| UdpSocket::bind(any).unwrap()).collect());
        let all = |world: &World| -> Vec<u8> {
            let answers = world.within(|| {
                sockets.iter().map(|socket| exchange(socket, at(vip))).collect::<Vec<_>>()
            });
            assert!(answers.iter().all(|(_, from)| *from == at(vip)), "{answers:?}");
            answers.into_iter().map(|(number, _)| number).collect()
        };
        let first = all(&world);
        assert!((1..=3).all(|number| first.contains(&number)), "{first:?}");
        assert_eq!(all(&world), first, "a socket has one endpoint");
        // One endpoint goes: its sockets move, the others stay.
        world.lead(UDP, vip, 2, &servers[..2]);
        for (before, now) in first.iter().zip(all(&world)) {
            assert!(now < 3);
            assert!(*before == 3 || *before == now, "{before} moved to {now}");
        }
    }
}

#[test]
fn a_connected_datagram_socket_is_left_to_the_rules() {
    let mut world = World::new();
    world.place(Place::Node);
    let server = serve_udp(&world, "127.0.0.1:0", 1);
    world.lead(UDP, VIP4, 1, &[server]);
    let socket = world.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.connect(at(VIP4)).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), at(VIP4));
    assert_eq!(world.counted(Counter::Sent4), 0);
}

#[test]
fn programs_stay_without_their_agent_and_are_taken_over() {
    let mut world = World::new();
    world.place(Place::Node);
    let server = serve_tcp(&world, "127.0.0.1:0", 1);
    world.lead(TCP, VIP4, 4, &[server]);
    let links = |pins: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(pins).unwrap().flatten().map(|entry| entry.path()).collect()
    };
    let before = links(&pins(&world.name));
    let (connect, tables) = Connect::open(&pins(&world.name), &world.name).unwrap();
    assert!(connect.is_whole());
    assert_eq!(tables.read().unwrap(), world.wanted.entries());
    drop((
        std::mem::replace(&mut world.connect, connect),
        std::mem::replace(&mut world.tables, tables),
    ));
    assert_eq!(links(&pins(&world.name)), before);
    assert_eq!(world.within(|| ask(at(VIP4))).unwrap().0, 1);
    // Somebody takes one away: that is seen, and mended without losing the tables.
    let folder = before.iter().find(|path| path.to_string_lossy().contains("connect-")).unwrap();
    std::fs::remove_file(folder.join("connect4")).unwrap();
    assert!(!world.connect.is_whole());
    assert!(world.within(|| ask(at(VIP4))).is_err());
    let (connect, tables) = Connect::open(&pins(&world.name), &world.name).unwrap();
    assert!(connect.is_whole());
    assert_eq!(tables.read().unwrap(), world.wanted.entries());
    assert_eq!(world.within(|| ask(at(VIP4))).unwrap().0, 1);
    bpf::remove(&pins(&world.name)).unwrap();
    assert!(!bpf::is_pinned(&pins(&world.name)));
    assert!(world.within(|| ask(at(VIP4))).is_err());
}

#[test]
fn the_kernel_of_debian_12_runs_them_too() {
    Machine::new().unwrap().run_test("in_the_machine").unwrap();
}

#[test]
#[ignore = "runs in the virtual machine"]
fn in_the_machine() {
    connects_are_led_to_an_endpoint_and_show_the_service();
    a_pod_that_is_an_endpoint_is_left_to_the_rules();
    datagrams_stay_with_their_endpoint_while_it_is_one();
    a_connected_datagram_socket_is_left_to_the_rules();
    programs_stay_without_their_agent_and_are_taken_over();
}

#[test]
fn objects_are_what_the_sources_compile_to() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    let made = tempfile::tempdir().unwrap();
    let done = Command::new(folder.join("compile.sh")).arg(made.path()).status().unwrap();
    assert!(done.success(), "clang-14 is needed to check the objects: tools/install-packages.sh");
    let mut objects = 0;
    for entry in std::fs::read_dir(made.path()).unwrap().flatten() {
        let committed = std::fs::read(folder.join(entry.file_name())).unwrap_or_default();
        let fresh = std::fs::read(entry.path()).unwrap();
        assert!(committed == fresh, "{:?}: run crates/kernel/bpf/compile.sh", entry.file_name());
        objects += 1;
    }
    assert!(objects > 0);
}
