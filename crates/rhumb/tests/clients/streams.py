"""The official client runs commands in pods, attaches, forwards ports and follows logs, over WebSockets."""

import json
import socket
import threading
import urllib.request

from common import ApiException, check, eventually, namespace, pod, running
from kubernetes import watch
from kubernetes.stream import portforward, stream
from kubernetes.stream.ws_client import ERROR_CHANNEL

SPACE = "py-streams"

ECHO = "echo started; while read -r line; do echo \"said $line\"; [ \"$line\" = end ] && exit 3; done"


def executing(core):
    def run(command, **options):
        return stream(core.connect_get_namespaced_pod_exec, "shell", SPACE, command=command, stdout=True, **options)

    said = run(["sh", "-c", "echo out; echo err >&2"], stderr=True, stdin=False, tty=False)
    check("out\n" in said and "err\n" in said, "both outputs", said)
    session = run(["sh"], stderr=True, stdin=True, tty=False, _preload_content=False)
    session.write_stdin("echo $((6 * 7)); echo wrong >&2; exit 5\n")
    session.run_forever(timeout=30)
    check(session.read_stdout() == "42\n" and session.read_stderr() == "wrong\n", "an answer on each channel")
    check(session.returncode == 5, "the exit code", session.returncode)
    whole = run(["true"], stderr=True, stdin=False, tty=False, _preload_content=False)
    whole.run_forever(timeout=30)
    check(whole.returncode == 0, "success", whole.returncode)
    big = run(["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"], stderr=True, stdin=False, tty=False)
    check(len(big) == 3_000_000 and set(big) == {"x"}, "three megabytes arrive whole", len(big))
    terminal = run(["sh", "-c", "tty && stty size"], stderr=False, stdin=True, tty=True, _preload_content=False)
    terminal.run_forever(timeout=30)
    shown = terminal.read_all()
    check("/dev/pts/" in shown or "/dev/console" in shown, "a terminal", shown)
    missing = run(["/no/such/program"], stderr=True, stdin=False, tty=False, _preload_content=False)
    missing.run_forever(timeout=30)
    status = json.loads(missing.read_channel(ERROR_CHANNEL))
    check(status["status"] == "Failure" and "no such file or directory" in status["message"], "what is missing", status)


def refusing(core):
    try:
        stream(core.connect_get_namespaced_pod_exec, "nobody", SPACE, command=["true"], stdout=True)
    except ApiException as error:
        check("404" in str(error), "the handshake tells", error)
    else:
        check(False, "a pod that is not there was run in")
    try:
        stream(core.connect_get_namespaced_pod_exec, "shell", SPACE, command=["true"], stdout=True, container="other")
    except ApiException as error:
        check("400" in str(error), "the handshake tells", error)
    else:
        check(False, "a container that is not there was run in")


def attaching(core):
    session = stream(core.connect_get_namespaced_pod_attach, "echo", SPACE, stdin=True, stdout=True, stderr=True,
                     tty=False, _preload_content=False)
    session.write_stdin("one\n")
    check(session.readline_stdout(timeout=30) == "said one", "the process answers")
    session.write_stdin("end\n")
    session.run_forever(timeout=30)

    def ended():
        state = core.read_namespaced_pod("echo", SPACE).status.container_statuses[0].state
        return state.terminated and state.terminated.exit_code == 3

    eventually("the process ended with its code", ended)
    log = core.read_namespaced_pod_log("echo", SPACE)
    check(log == "started\nsaid one\nsaid end\n", "all of it is in the log", log)


def forwarding(core):
    tunnel = portforward(core.connect_get_namespaced_pod_portforward, "web", SPACE, ports="8080,9999")
    web = tunnel.socket(8080)
    web.setblocking(True)
    web.sendall(b"GET /healthz HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
    answer = b""
    while True:
        part = web.recv(4096)
        if not part:
            break
        answer += part
    check(answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"ok\n"), "the pod answers", answer)
    check(tunnel.error(8080) is None, "no error on the port", tunnel.error(8080))
    closed = tunnel.socket(9999)
    closed.setblocking(True)
    check(closed.recv(10) == b"", "nothing listens there")
    said = eventually("the error channel tells", lambda: tunnel.error(9999))
    check("9999" in said and "onnection refused" in said, "it names the port", said)


def through_urllib(core):
    """The pattern of the client's own example: a host name that leads into the cluster."""
    plain = socket.create_connection

    def into(address, *args, **kwargs):
        if not address[0].endswith(".kubernetes"):
            return plain(address, *args, **kwargs)
        tunnel = portforward(core.connect_get_namespaced_pod_portforward, "web", SPACE, ports=str(address[1]))
        return tunnel.socket(address[1])

    socket.create_connection = into
    try:
        with urllib.request.urlopen("http://web.kubernetes:8080/hello") as page:
            check(b"path=/hello" in page.read(), "a page through the tunnel")
    finally:
        socket.create_connection = plain


def logging(core):
    everything = core.read_namespaced_pod_log("counter", SPACE)
    eventually("five lines", lambda: core.read_namespaced_pod_log("counter", SPACE).count("\n") >= 5)
    tail = core.read_namespaced_pod_log("counter", SPACE, tail_lines=2)
    check(tail.count("\n") == 2, "the last two lines", tail)
    short = core.read_namespaced_pod_log("counter", SPACE, limit_bytes=4)
    check(len(short) == 4, "no more bytes than asked for", short)
    stamped = core.read_namespaced_pod_log("counter", SPACE, timestamps=True, tail_lines=1)
    check(stamped[:4].isdigit() and "T" in stamped.split(" ")[0], "a time before the line", stamped)
    check(everything == "" or everything.startswith("line 1\n"), "from the first line", everything)
    lines, watcher = [], watch.Watch()
    for line in watcher.stream(core.read_namespaced_pod_log, "counter", SPACE):
        lines.append(line)
        if len(lines) == 5:
            core.delete_namespaced_config_map("go-on", SPACE)
            threading.Thread(target=lambda: stream(
                core.connect_get_namespaced_pod_exec, "counter", SPACE, command=["touch", "/tmp/go"], stdout=True)).start()
        if len(lines) == 8:
            watcher.stop()
    check(lines == [f"line {number}" for number in range(1, 9)], "what was and what comes", lines)
    running(core, SPACE, "again")
    previous = core.read_namespaced_pod_log("again", SPACE, previous=True)
    check(previous == "life\n", "the log of the container before", previous)


def main():
    core = namespace(SPACE)
    core.create_namespaced_config_map(SPACE, {"metadata": {"name": "go-on"}})
    counting = ("for i in 1 2 3 4 5; do echo line $i; done; until [ -e /tmp/go ]; do sleep 0.05; done; "
                "for i in 6 7 8 9; do echo line $i; done; sleep 1000")
    again = "echo life; [ -e /data/mark ] && exec sleep 1000; touch /data/mark"
    for made in (
            pod("shell", "sleep 1000"), pod("echo", ECHO, container={"stdin": True}, restartPolicy="Never"),
            pod("web", None, container={"image": "mycompany/web-app:latest", "command": None}),
            pod("counter", counting),
            pod("again", again, volumes=[{"name": "data", "emptyDir": {}}],
                container={"volumeMounts": [{"name": "data", "mountPath": "/data"}]})):
        core.create_namespaced_pod(SPACE, made)
    for name in ("shell", "echo", "web", "counter"):
        running(core, SPACE, name)
    for theme in (executing, refusing, attaching, forwarding, through_urllib, logging):
        theme(core)
        print(f"{theme.__name__}: well", flush=True)
    core.delete_namespace(SPACE)


main()
