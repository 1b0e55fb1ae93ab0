//! `/exec` and `/attach`: a process's stdio, carried to the client, and at the end how it went.
//!
//! Upstream counterpart: `k8s.io/kubelet/pkg/cri/streaming/remotecommand`.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;
use runtime::{Attach, Exec, ExecSpec, Runtime};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::query::Query;
use super::upgrade::{Wanted, refused};
use super::wire::{self, Channel, Size, Streams, Wire};
use super::{Body, Place, Shared, plain};

/// Protocols of exec and attach over SPDY.
const SPDY: [&str; 1] = ["v4.channel.k8s.io"];
/// And over WebSocket; the newest can end stdin.
const WEB_SOCKET: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Bytes of output read at once.
const READ_BYTES: usize = 32 << 10;

type Input = Box<dyn AsyncWrite + Send + Unpin>;
type Output = Box<dyn AsyncRead + Send + Unpin>;

/// What is run, or joined.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Work {
    Exec(Vec<String>),
    Attach,
}

/// Answers an exec or attach.
pub(super) fn respond(
    shared: &Arc<Shared>,
    place: &Place,
    query: &Query,
    request: Request<Incoming>,
) -> Response<Body> {
    let found = shared.handle.lookup(&place.namespace, &place.pod, &place.container);
    let found = match found {
        Ok(found) => found,
        Err(crate::kubelet::LookupError::NoPod) => {
            return plain(StatusCode::NOT_FOUND, "pod does not exist");
        }
        Err(_) => return no_container(place),
    };
    let running = found.running && place.uid.as_ref().is_none_or(|uid| *uid == found.pod_uid);
    let (Some(id), true) = (found.container_id, running) else { return no_container(place) };
    let exec = place.verb == "exec";
    let tty = if exec { query.flag(&["tty"]) } else { found.tty };
    let wanted = Streams {
        stdin: query.flag(&["input", "stdin"]),
        stdout: query.flag(&["output", "stdout"]),
        // A terminal has one output.
        stderr: query.flag(&["error", "stderr"]) && !tty,
        tty: query.flag(&["tty"]),
    };
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        let text = "you must specify at least 1 of stdin, stdout, stderr";
        return plain(StatusCode::BAD_REQUEST, text);
    }
    let command = query.all("command").map(str::to_owned).collect();
    let work = if exec { Work::Exec(command) } else { Work::Attach };
    let Some(upgrade) = Wanted::of(request.headers()) else {
        return plain(StatusCode::BAD_REQUEST, "Upgrade request required");
    };
    let offers = upgrade.offers(request.headers());
    let ours: &[&'static str] = match upgrade {
        Wanted::Spdy => &SPDY,
        Wanted::WebSocket => &WEB_SOCKET,
    };
    let Some(protocol) = ours.iter().copied().find(|one| offers.contains(one)) else {
        return refused(&offers, ours);
    };
    let shared = Arc::clone(shared);
    upgrade.accept(request, protocol, move |io| async move {
        let closing = shared.shutdown.clone();
        let session = |wire| Box::pin(run(shared.runtime.clone(), id, work, wanted, wire));
        let carried = async {
            match upgrade {
                Wanted::Spdy => wire::over_spdy(io, wanted, session).await,
                Wanted::WebSocket => wire::over_web_socket(io, wanted, session).await,
            }
        };
        tokio::select! {
            () = Box::pin(carried) => {}
            () = closing.cancelled() => {}
        }
    })
}

fn no_container(place: &Place) -> Response<Body> {
    let text = format!("container not found ({:?})", place.container);
    plain(StatusCode::INTERNAL_SERVER_ERROR, &text)
}

/// Runs to the end of the process or of the client, and says how it went.
async fn run(runtime: Runtime, id: String, work: Work, wanted: Streams, wire: Wire) {
    let out = wire.out.clone();
    let gone = wire.gone.clone();
    let ran = async {
        match work {
            Work::Exec(argv) => {
                let spec =
                    ExecSpec { argv, tty: wanted.tty, stdin: wanted.stdin, ..ExecSpec::default() };
                match runtime.exec(&id, spec).await {
                    Ok(exec) => execute(exec, wanted, wire).await,
                    Err(error) => failure("executing command in", &error),
                }
            }
            Work::Attach => match runtime.attach(&id, wanted.stdin).await {
                Ok(attach) => join(attach, wanted, wire).await,
                Err(error) => failure("attaching to", &error),
            },
        }
    };
    tokio::select! {
        status = ran => {
            let _ = out.send((Channel::Error, status.to_string().into())).await; // the client may be gone
        }
        () = gone.cancelled() => {}
    }
}

async fn execute(mut exec: Exec, wanted: Streams, wire: Wire) -> Value {
    let stdio = (exec.stdin.take(), exec.stdout.take(), exec.stderr.take());
    let exec = Mutex::new(exec); // for the compiler: the outputs that were taken are not Sync
    carry(stdio, wanted, wire, |size| exec.lock().resize(size.width, size.height)).await;
    match exec.into_inner().wait().await {
        Ok(0) => success(),
        Ok(code) => exit_status(code),
        Err(error) => failure("executing command in", &error),
    }
}

async fn join(mut attach: Attach, wanted: Streams, wire: Wire) -> Value {
    let stdio = (attach.stdin.take(), attach.stdout.take(), attach.stderr.take());
    let attach = Mutex::new(attach); // as above
    carry(stdio, wanted, wire, |size| attach.lock().resize(size.width, size.height)).await;
    success()
}

/// Carries until the outputs end.
async fn carry(
    (stdin, stdout, stderr): (Option<Input>, Option<Output>, Option<Output>),
    wanted: Streams,
    wire: Wire,
    resize: impl Fn(Size),
) {
    let Wire { stdin: typed, mut sizes, out, .. } = wire;
    let input = async {
        if let Some(stdin) = stdin {
            feed(stdin, typed).await;
        }
        std::future::pending::<()>().await;
    };
    let sizing = async {
        while let Some(size) = sizes.recv().await {
            resize(size);
        }
        std::future::pending::<()>().await;
    };
    let to = |channel, wanted: bool| (channel, wanted.then(|| out.clone()));
    let outputs = async {
        tokio::join!(
            drain(stdout, to(Channel::Stdout, wanted.stdout)),
            drain(stderr, to(Channel::Stderr, wanted.stderr))
        )
    };
    tokio::select! {
        _ = outputs => {}
        () = input => {}
        () = sizing => {}
    }
}

/// Types what the client sends; its end is the process's end of file.
async fn feed(mut stdin: Input, mut typed: mpsc::Receiver<Bytes>) {
    while let Some(data) = typed.recv().await {
        if stdin.write_all(&data).await.is_err() {
            return; // the process has closed it
        }
    }
    let _ = stdin.shutdown().await; // the same
}

/// Sends an output to its end; one that nobody asked for is read away.
async fn drain(
    output: Option<Output>,
    (channel, to): (Channel, Option<mpsc::Sender<(Channel, Bytes)>>),
) {
    let Some(mut output) = output else { return };
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        buffer.reserve(READ_BYTES);
        match output.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let data = buffer.split().freeze();
        for part in 0..data.len().div_ceil(READ_BYTES) {
            let from = part * READ_BYTES;
            let part = data.slice(from..data.len().min(from + READ_BYTES));
            if let Some(to) = &to
                && to.send((channel, part)).await.is_err()
            {
                return;
            }
        }
    }
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

fn exit_status(code: i32) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: command terminated with exit code {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failure(doing: &str, error: &dyn std::error::Error) -> Value {
    let mut text = format!("error {doing} container: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {text}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": text}]},
        "code": 500,
    })
}
