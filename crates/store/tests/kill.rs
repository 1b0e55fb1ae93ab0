//! A process that is killed while it writes loses nothing that it acknowledged.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use store::{Embedded, Op, Store, Txn};

const DIRECTORY: &str = "STORE_KILL_TEST_DIRECTORY";
const WRITERS: u64 = 8;

/// Not a test of its own: what the child process runs. Each writer counts its own key up and prints every acknowledgement.
#[test]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let store = Arc::new(Embedded::open(&Path::new(&directory).join("store")).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let writers = (0..WRITERS).map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for count in 1_u64.. {
                    let text = format!("{count:0>1000}");
                    let ops = vec![Op::Put(format!("/registry/w/{writer}").into(), text.into())];
                    store.commit(Txn { compare: vec![], ops }).await.unwrap();
                    writeln!(std::io::stdout().lock(), "ack {writer} {count}").unwrap();
                }
            })
        });
        futures_util::future::join_all(writers).await;
    });
}

#[test]
fn kill_loses_no_acknowledged_write() {
    let directory = tempfile::tempdir().unwrap();
    for round in 1..=4_usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut acknowledged = [0_u64; 8];
        let mut note = |line: String| {
            let mut words =
                line.rsplit("ack ").next().unwrap_or("").split(' ').map(str::parse::<usize>);
            if let (Some(Ok(writer)), Some(Ok(count)), None) =
                (words.next(), words.next(), words.next())
            {
                acknowledged[writer] = count.try_into().unwrap();
            }
        };
        lines.by_ref().take(100 * round).for_each(&mut note);
        child.kill().unwrap();
        child.wait().unwrap();
        lines.for_each(&mut note);
        assert!(acknowledged.iter().any(|count| *count > 0), "the child wrote");

        let store = Embedded::open(&directory.path().join("store")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (writer, count) in acknowledged.into_iter().enumerate() {
            let entry = runtime.block_on(store.get(&format!("/registry/w/{writer}"))).unwrap();
            let stored: u64 = entry.map_or(0, |entry| {
                std::str::from_utf8(&entry.value).unwrap().trim_start_matches('0').parse().unwrap()
            });
            assert!(stored >= count, "writer {writer}: acknowledged {count}, stored {stored}");
        }
    }
}
