//! Runs the rows in every mode, and writes the table of what was seen.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;

use super::machine;
use super::mode::{MODES, Mode, Note, is_asked_for};
use super::rows::{Check, Row, rows};
use super::world::World;

/// What a test in the virtual machine says of each row, before the number of the mode, that of the row, and `holds` or why
/// it does not.
const SAYS: &str = "row: ";
/// The test that runs there.
pub(crate) const INNER: &str = "rows_in_the_machine";
/// Words of the only rows and modes to look at.
const ONLY: [&str; 2] = ["ROW", "MODE"];
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

IPVS, and what the kernel under the tests may lack, is seen in a virtual machine with Debian's kernel.

✔ seen to hold. ≈ seen to hold in the mode's own way, as said below. ✘ seen to fail. – not there, as said below.

";

/// What was seen, or why not.
type Outcome = Result<(), String>;

/// A mode, a row, and their numbers.
type Task = (usize, usize, &'static Row);

/// What is to be seen on a kernel: this one, or the virtual machine's.
fn tasks(in_machine: bool) -> VecDeque<Task> {
    let only = std::env::var("ROW").ok();
    let chosen = |row: &Row| {
        only.as_ref().is_none_or(|word| row.behaviour.contains(word) || row.seen.contains(word))
    };
    let modes = MODES.iter().enumerate().filter(|(_, mode)| is_asked_for(**mode));
    let all = modes.flat_map(|(at, mode)| {
        let here = move |(_, row): &(usize, &'static Row)| {
            let needs = mode.needs_machine() || matches!(row.check, Check::Machine(_));
            needs == in_machine && !matches!(mode.note(row), Some(Note::Lacks(_)))
        };
        rows().enumerate().filter(here).map(move |(row_at, row)| (at, row_at, row))
    });
    all.filter(|(.., row)| chosen(row)).collect()
}

fn see(in_machine: bool) -> BTreeMap<(usize, usize), Outcome> {
    let tasks = Mutex::new(tasks(in_machine));
    let outcomes: Mutex<BTreeMap<(usize, usize), Outcome>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..WORLDS {
            scope.spawn(|| work(&tasks, &outcomes));
        }
    });
    outcomes.into_inner().unwrap()
}

/// Fails unless every row holds in every mode and the page says so.
pub(crate) fn every_row_in_every_mode() {
    let machine = std::thread::spawn(in_machine);
    let mut outcomes = see(false);
    outcomes.extend(machine.join().unwrap());
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
    if ONLY.iter().all(|name| std::env::var_os(name).is_none()) {
        compare(&page(&outcomes));
    }
}

/// What is seen in the virtual machine.
fn in_machine() -> BTreeMap<(usize, usize), Outcome> {
    let mut outcomes = BTreeMap::new();
    if tasks(true).is_empty() {
        return outcomes;
    }
    for line in machine::run(INNER, &ONLY).lines() {
        let Some((_, said)) = line.split_once(SAYS) else { continue };
        let words: Vec<&str> = said.splitn(3, ' ').collect();
        let [mode, row, outcome] = words[..] else { panic!("{line}") };
        let outcome = match outcome {
            "holds" => Ok(()),
            error => Err(error.to_owned()),
        };
        outcomes.insert((mode.parse().unwrap(), row.parse().unwrap()), outcome);
    }
    outcomes
}

/// Runs in the machine, and says what was seen.
pub(crate) fn say_what_is_seen() {
    let mut stdout = std::io::stdout();
    for ((mode, row), outcome) in see(true) {
        let outcome = match outcome {
            Ok(()) => "holds".to_owned(),
            Err(error) => error.replace('\n', "; "),
        };
        writeln!(stdout, "{SAYS}{mode} {row} {outcome}").unwrap();
    }
}

fn work(tasks: &Mutex<VecDeque<Task>>, outcomes: &Mutex<BTreeMap<(usize, usize), Outcome>>) {
    let mut world: Option<(usize, World)> = None;
    loop {
        let task = tasks.lock().unwrap().pop_front();
        let Some((mode, at, row)) = task else { return };
        if world.as_ref().is_none_or(|(of, _)| *of != mode) {
            world = Some((mode, World::new(MODES[mode])));
        }
        let (Check::Packets(check) | Check::Machine(check)) = row.check;
        let (_, current) = world.as_mut().expect("it was just made");
        let outcome = run(current, check);
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
    result.map_err(|panic| {
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
        for (mode, of) in MODES.iter().enumerate() {
            let mark = match outcomes.get(&(mode, at)) {
                Some(Ok(())) if of.note(row).is_some() => "≈",
                Some(Ok(())) => "✔",
                Some(Err(_)) => "✘",
                None => "–",
            };
            let _ = write!(page, " {mark} |");
        }
        page.push('\n');
    }
    page.push('\n');
    for mode in MODES {
        for row in rows() {
            if let Some(Note::Holds(note) | Note::Lacks(note)) = mode.note(row) {
                let (mode, Row { behaviour, seen, .. }) = (mode.name(), row);
                let _ = writeln!(page, "- {mode}, {behaviour}, {seen}: {note}.");
            }
        }
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
