//! Logs in real files.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const LINES: &str = "2026-01-02T03:04:05.000000001Z stdout F one\n\
    2026-01-02T03:04:06.000000002Z stderr F two\n\
    2026-01-02T03:04:07.000000003Z stdout P thr\n\
    2026-01-02T03:04:07.000000004Z stdout F ee\n\
    2026-01-02T03:04:08.000000005Z stdout F \n\
    2026-01-02T03:04:09.000000006Z stdout F five six\n";

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn options(query: &str) -> Result<LogOptions, OptionsError> {
    LogOptions::parse(&Query::parse(query), "2026-01-02T03:04:10Z".parse().unwrap())
}

async fn shown(path: &Path, query: &str) -> String {
    let (out, mut seen) = mpsc::channel(64);
    send(path.to_owned(), &options(query).unwrap(), None, &out).await.unwrap();
    drop(out);
    let mut all = Vec::new();
    while let Some(part) = seen.recv().await {
        all.extend_from_slice(&part);
    }
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn options_choose_lines() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    append(&path, LINES);
    append(&path, "no entry\n");
    for (query, expected) in [
        ("", "one\ntwo\nthree\n\nfive six\n"),
        ("tailLines=0", ""),
        ("tailLines=4", "three\n\nfive six\n"), // the broken line counts
        ("tailLines=99", "one\ntwo\nthree\n\nfive six\n"),
        ("limitBytes=6", "one\ntw"),
        ("sinceSeconds=2", "\nfive six\n"),
        ("sinceTime=2026-01-02T03:04:09Z", "five six\n"),
        ("stream=Stderr", "two\n"),
        (
            "timestamps=true&sinceTime=2026-01-02T03:04:07Z&limitBytes=69",
            "2026-01-02T03:04:07.000000003Z three\n2026-01-02T03:04:08.000000005Z \n",
        ),
    ] {
        assert_eq!(shown(&path, query).await, expected, "{query}");
    }
}

#[test]
fn bad_options_are_refused_as_upstream_does() {
    assert_eq!(options("tailLines=-1"), Err(OptionsError::Invalid));
    assert_eq!(options("limitBytes=0"), Err(OptionsError::Invalid));
    assert_eq!(options("sinceSeconds=x"), Err(OptionsError::Decode));
    assert_eq!(
        options("sinceSeconds=1&sinceTime=2026-01-02T03:04:09Z"),
        Err(OptionsError::Invalid)
    );
}

#[tokio::test]
async fn rotated_files_come_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let entry = |text| format!("2026-01-02T03:04:05.000000001Z stdout F {text}\n");
    append(&directory.path().join("0.log.20260102-030406.000000000"), &entry("b"));
    append(&directory.path().join("0.log.20260102-030405.000000000"), &entry("a"));
    append(&directory.path().join("10.log"), &entry("other"));
    append(&path, &entry("c"));
    assert_eq!(shown(&path, "").await, "a\nb\nc\n");
    assert_eq!(shown(&path, "tailLines=2").await, "b\nc\n");
}

#[tokio::test]
async fn a_log_is_followed_over_a_rotation_to_its_containers_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    append(&path, LINES);
    let alive = Arc::new(AtomicBool::new(true));
    let (out, mut seen) = mpsc::channel(64);
    let task = tokio::spawn({
        let (path, alive) = (path.clone(), Arc::clone(&alive));
        async move {
            let live = move || alive.load(Ordering::SeqCst);
            send(path, &options("follow=true&tailLines=1").unwrap(), Some(&live), &out).await
        }
    });
    assert_eq!(seen.recv().await.unwrap(), "five six\n");
    append(&path, "2026-01-02T03:04:10.000000000Z stdout F sev");
    append(&path, "en\n");
    assert_eq!(seen.recv().await.unwrap(), "seven\n");
    append(&path, "2026-01-02T03:04:11.000000000Z stdout F eight\n");
    std::fs::rename(&path, directory.path().join("0.log.20260102-030412.000000000")).unwrap();
    append(&path, "2026-01-02T03:04:12.000000000Z stdout F nine\n");
    let mut rest = Vec::new();
    while !rest.ends_with(b"nine\n") {
        rest.extend_from_slice(&seen.recv().await.unwrap());
    }
    assert_eq!(rest, b"eight\nnine\n");
    alive.store(false, Ordering::SeqCst);
    assert_eq!(seen.recv().await, None);
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_follower_that_leaves_ends_the_reading() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    append(&path, LINES);
    let (out, seen) = mpsc::channel(64);
    let task = tokio::spawn(async move {
        send(path, &options("follow=true").unwrap(), Some(&|| true), &out).await
    });
    drop(seen);
    task.await.unwrap().unwrap();
}
