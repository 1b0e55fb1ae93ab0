//! The rows of the requirements' section on the data plane, each with what is done to see that it holds.

#[path = "rows/addresses.rs"]
mod addresses;
#[path = "rows/choice.rs"]
mod choice;
#[path = "rows/flows.rs"]
mod flows;
#[path = "rows/health.rs"]
mod health;
#[path = "rows/kernel.rs"]
mod kernel_state;
#[path = "rows/resets.rs"]
mod resets;
#[path = "rows/source.rs"]
mod source;

use super::world::World;

/// A row: one thing that is seen to hold, or why it does not.
pub(crate) struct Row {
    /// The requirement.
    pub(crate) behaviour: &'static str,
    /// What is seen.
    pub(crate) seen: &'static str,
    /// How.
    pub(crate) check: Check,
}

/// How a row is checked.
#[derive(Clone, Copy)]
pub(crate) enum Check {
    /// With packets: fails by panic.
    Packets(fn(&mut World)),
    /// The same, where only the kernel of a virtual machine has what it takes.
    Machine(fn(&mut World)),
}

const fn row(behaviour: &'static str, seen: &'static str, check: fn(&mut World)) -> Row {
    Row { behaviour, seen, check: Check::Packets(check) }
}

const fn in_machine(behaviour: &'static str, seen: &'static str, check: fn(&mut World)) -> Row {
    Row { behaviour, seen, check: Check::Machine(check) }
}

/// All rows, in the order of the table.
pub(crate) fn rows() -> impl Iterator<Item = &'static Row> {
    let parts: [&[Row]; 6] = [
        &choice::ROWS,
        &source::ROWS,
        &addresses::ROWS,
        &flows::ROWS,
        &health::ROWS,
        &kernel_state::ROWS,
    ];
    parts.into_iter().flatten()
}
