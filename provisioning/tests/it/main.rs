//! `sallyctl` as a person uses it: the real binary, what it prints and how it ends.
//!
//! Commands that talk to a box are tested where the box is.

#[cfg(test)]
mod approve;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod ceremony;
#[cfg(test)]
mod codes;
#[cfg(test)]
mod desk;
#[cfg(test)]
mod provision;
#[cfg(test)]
mod roster;
#[cfg(test)]
mod stick;
#[cfg(test)]
mod update;

#[cfg(test)]
use desk::Desk;

#[test]
fn help_leads_through_the_first_day() {
    let desk = Desk::new();
    let help = desk.run("--help").ok();
    for line in [
        "Make, sign, check and import rosters",
        "A first day, step by step:",
        "3 the box does not answer",
    ] {
        assert!(help.contains(line), "{help}");
    }
    desk.run("roster").fails(2, "Usage: sallyctl roster [OPTIONS] <COMMAND>");
    desk.run("roster make list.csv").fails(2, "--enclave <NAME>");
}

#[test]
fn a_box_that_is_not_there() {
    let desk = Desk::new();
    desk.run("status")
        .fails(3, "sallyctl: the box does not answer on FOLDER/admin.sock: is it running");
    desk.run("peer list --json").fails(3, "the box does not answer");
}
