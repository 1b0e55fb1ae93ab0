//! The loop by itself: nobody waits for a busy key, failures come again, and wake-ups are not lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::StatusError;

use super::*;
use crate::transport::InProcess;

/// No test takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn timers_come_in_order_and_each_key_has_one() {
    let (mut timers, start) = (Timers::default(), Instant::now());
    let after = |seconds| start + Duration::from_secs(seconds);
    for (key, seconds) in [("a", 3), ("b", 1), ("c", 2), ("b", 4)] {
        timers.set(key, after(seconds));
    }
    let mut order = Vec::new();
    while let Some((at, key)) = timers.first().copied() {
        timers.remove(&key);
        order.push((key, at));
    }
    assert_eq!(order, [("c", after(2)), ("a", after(3)), ("b", after(4))]);
}

fn client() -> Client {
    let respond = |_: http::Request<bytes::Bytes>| {
        let answer: futures_util::future::BoxFuture<'static, _> =
            Box::pin(std::future::ready(http::Response::new(crate::empty_body())));
        answer
    };
    Client::new(Arc::new(InProcess::new(respond)), "test")
}

type Turn = dyn FnMut(u32) -> Result<Next, ApplyError> + Send;

/// Does with each key what the test says.
struct Scripted(Box<Turn>);

impl Reconcile for Scripted {
    const NAME: &'static str = "scripted";
    type Key = u32;
    type Snapshot = ();
    type Plan = ();

    fn plan(&self, (): &(), _: &u32) {}

    async fn apply(&mut self, key: &u32, (): ()) -> Result<Next, ApplyError> {
        tokio::task::yield_now().await;
        (self.0)(*key)
    }
}

/// Runs the loop until `turn` says that it is done.
async fn until_done(
    inputs: Inputs<u32>,
    mut turn: impl FnMut(u32) -> (bool, Result<Next, ApplyError>) + Send + 'static,
) {
    let shutdown = CancellationToken::new();
    let end = shutdown.clone();
    let scripted = Scripted(Box::new(move |key| {
        let (done, result) = turn(key);
        if done {
            end.cancel();
        }
        result
    }));
    let running = run(scripted, client(), inputs, || (), shutdown);
    tokio::time::timeout(PATIENCE, running).await.expect("the loop comes to it");
}

#[tokio::test]
async fn a_busy_key_keeps_no_other_waiting() {
    let inputs = Inputs::new().with(1).with(7);
    let poke = inputs.poke();
    until_done(inputs, move |key| {
        poke(1);
        (key == 7, Ok(Next::Wait))
    })
    .await;
}

#[tokio::test]
async fn a_busy_key_keeps_no_timer_waiting() {
    let inputs = Inputs::new().with(1).with(7);
    let (poke, mut turns) = (inputs.poke(), 0);
    until_done(inputs, move |key| {
        poke(1);
        turns += usize::from(key == 7);
        let next = if key == 7 { Next::After(Duration::from_millis(1)) } else { Next::Wait };
        (turns == 3, Ok(next))
    })
    .await;
}

#[tokio::test]
async fn failures_come_again_whatever_they_are() {
    let mut tries = 0;
    until_done(Inputs::new().with(1), move |_| {
        tries += 1;
        let failure = match tries {
            1 => ApplyError::Api(Error::Status(StatusError::not_found("", "pods", "a"))),
            2 => ApplyError::Api(Error::Status(StatusError::internal("broken"))),
            _ => ApplyError::sink("a rule", std::io::Error::other("refused")),
        };
        (tries == 4, Err(failure))
    })
    .await;
}

/// Every poke is followed by a turn, from however many threads they come.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost() {
    const POKES: usize = 2000;
    let inputs = Inputs::new().with(0);
    let wanted: Arc<[AtomicUsize; 4]> = Arc::default();
    let pokers: Vec<_> = (0..4)
        .map(|at| {
            let (poke, wanted) = (inputs.poke(), Arc::clone(&wanted));
            tokio::spawn(async move {
                for round in 0..POKES {
                    wanted[at].fetch_add(1, Ordering::SeqCst);
                    poke(u32::try_from(at).expect("there are four"));
                    if round % 16 == at {
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    let mut seen = [0; 4];
    let counts = Arc::clone(&wanted);
    until_done(inputs, move |key| {
        let at = usize::try_from(key).expect("there are four");
        // What a turn sees was asked for before its end, so that the last turn of a key sees all.
        seen[at] = counts[at].load(Ordering::SeqCst);
        (seen.iter().sum::<usize>() == 4 * POKES, Ok(Next::Wait))
    })
    .await;
    for poker in pokers {
        poker.await.expect("no poker panics");
    }
}
