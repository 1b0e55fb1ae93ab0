//! Runs the rows in every mode, and writes the table of what was seen.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;

use super::mode::{MODES, Mode, is_asked_for};
use super::rows::{Check, Row, rows};
use super::world::World;

/// Clusters that are tested at once.
const WORLDS: usize = 2;

const HEAD: &str = "\
# Conformance of the data planes

Made by `crates/node/tests/conformance.rs`, which fails when this page does not say what it saw;
`UPDATE=1 cargo nextest run -p node --test conformance` rewrites the page. Do not edit it.

Every row is seen with real packets: three nodes in two zones, pods on them and a client outside, each a network
namespace. Rows about packets are checked with TCP and UDP over IPv4 and IPv6, and what the kernel does is compared with
the executable specification, `plan::decide`: exactly the endpoints that it allows answer, and each sees the client's
address or the node's, as it says. The same comparison is made for random clusters and packets.

✔ seen to hold. ✘ seen to fail. – not there yet.

";

/// What was seen, or why not.
type Outcome = Result<bool, String>;

/// Fails unless every row holds in every mode and the page says so.
pub(crate) fn every_row_in_every_mode() {
    let only = std::env::var("ROW").ok();
    let chosen = |row: &Row| {
        only.as_ref().is_none_or(|word| row.behaviour.contains(word) || row.seen.contains(word))
    };
    let tasks: VecDeque<(usize, usize, &'static Row)> = MODES
        .iter()
        .enumerate()
        .filter(|(_, mode)| is_asked_for(**mode))
        .flat_map(|(mode, _)| rows().enumerate().map(move |(at, row)| (mode, at, row)))
        .filter(|(.., row)| chosen(row))
        .collect();
    let tasks = Mutex::new(tasks);
    let outcomes: Mutex<BTreeMap<(usize, usize), Outcome>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..WORLDS {
            scope.spawn(|| work(&tasks, &outcomes));
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|((mode, at), outcome)| {
            let row = rows().nth(*at).unwrap();
            let error = outcome.as_ref().err()?;
            let mode = MODES[*mode].name();
            Some(format!("{mode}: {}: {}: {error}", row.behaviour, row.seen))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    if only.is_none() && MODES.into_iter().all(is_asked_for) {
        compare(&page(&outcomes));
    }
}

fn work(
    tasks: &Mutex<VecDeque<(usize, usize, &'static Row)>>,
    outcomes: &Mutex<BTreeMap<(usize, usize), Outcome>>,
) {
    let mut world: Option<(usize, World)> = None;
    loop {
        let task = tasks.lock().unwrap().pop_front();
        let Some((mode, at, row)) = task else { return };
        if world.as_ref().is_none_or(|(of, _)| *of != mode) {
            world = Some((mode, World::new(MODES[mode])));
        }
        let outcome = match row.check {
            Check::Missing => Ok(false),
            Check::Packets(check) => {
                let (_, world) = world.as_mut().expect("it was just made");
                run(world, check)
            }
        };
        if outcome.is_err() {
            // What is left of the cluster may not be sound.
            world = None;
        }
        outcomes.lock().unwrap().insert((mode, at), outcome);
    }
}

fn run(world: &mut World, check: fn(&mut World)) -> Outcome {
    let result = catch_unwind(AssertUnwindSafe(|| {
        world.reset();
        check(world);
    }));
    result.map(|()| true).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
    })
}

fn page(outcomes: &BTreeMap<(usize, usize), Outcome>) -> String {
    let mut page = HEAD.to_owned();
    let names = MODES.map(Mode::name);
    let _ = writeln!(page, "| Behaviour | Seen | {} |", names.join(" | "));
    let _ = writeln!(page, "| --- | --- |{}", " --- |".repeat(names.len()));
    let mut last = "";
    for (at, row) in rows().enumerate() {
        let behaviour = if row.behaviour == last { "" } else { row.behaviour };
        last = row.behaviour;
        let _ = write!(page, "| {behaviour} | {} |", row.seen);
        for mode in 0..MODES.len() {
            let mark = match outcomes.get(&(mode, at)) {
                Some(Ok(true)) => "✔",
                Some(Err(_)) => "✘",
                Some(Ok(false)) | None => "–",
            };
            let _ = write!(page, " {mark} |");
        }
        page.push('\n');
    }
    page
}

fn compare(page: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/conformance.md does not say what was seen; UPDATE=1 rewrites it"
    );
}
