//! Unmodified kubectls, from Debian's 1.20 to a current one, driven through the transcripts in `kubectl/`.
//!
//! Every kubectl plays every transcript in a namespace and with a node of its own, all at the same time.

use anyhow::{Result, bail};
use testkit::lab::Lab;
use testkit::tools;

#[path = "kubectl/stage.rs"]
mod stage;
#[path = "kubectl/transcript.rs"]
mod transcript;

use stage::Stage;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

/// Plays transcripts on one cluster with every kubectl; the failures of all of them.
fn play(images: &[&str], transcripts: &[(&str, &str)]) -> Result<()> {
    let kubectls = tools::kubectls()?;
    let lab = Lab::up(BINARY, u32::try_from(kubectls.len())?, images)?;
    let played: Vec<Result<Vec<String>>> = std::thread::scope(|scope| {
        let players: Vec<_> = (1..)
            .zip(&kubectls)
            .map(|(number, kubectl)| {
                let lab = &lab;
                scope.spawn(move || {
                    let stage = Stage::new(lab, kubectl, &format!("n{number}"))?;
                    let mut failures = Vec::new();
                    for (name, text) in transcripts {
                        failures.extend(stage.play(name, text)?);
                    }
                    Ok(failures)
                })
            })
            .collect();
        players.into_iter().map(|player| player.join().expect("no player panics")).collect()
    });
    let failures: Vec<String> =
        played.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    if !failures.is_empty() {
        bail!("{} steps fail\n\n{}", failures.len(), failures.join("\n\n"));
    }
    Ok(())
}

#[test]
fn objects_are_made_read_changed_and_deleted() -> Result<()> {
    play(
        &[],
        &[
            ("discovery.txt", include_str!("kubectl/discovery.txt")),
            ("objects.txt", include_str!("kubectl/objects.txt")),
        ],
    )
}

#[test]
fn workloads_are_run_changed_and_taken_down() -> Result<()> {
    play(
        &["web-app", "my-backend-v1", "busybox"],
        &[("workloads.txt", include_str!("kubectl/workloads.txt"))],
    )
}

#[test]
fn containers_are_talked_to() -> Result<()> {
    play(&["busybox"], &[("streams.txt", include_str!("kubectl/streams.txt"))])
}
