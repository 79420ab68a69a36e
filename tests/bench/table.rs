//! The table that the bench prints, and the targets that its rows must meet.

use std::{
    fmt,
    fs::File,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::Result;
use sallyport_e2e::repository;

/// What a number must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// At least this.
    Least(f64),
    /// At most this.
    Most(f64),
    /// Shown for comparison.
    None,
}

/// Rows of names, numbers and targets.
#[derive(Debug, Default)]
pub(crate) struct Table {
    machine: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    target: Target,
}

impl Table {
    /// Adds a number.
    pub(crate) fn row(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: Target,
    ) {
        let row = Row { name: name.into(), value, unit, target };
        eprintln!("bench:   {row}");
        self.rows.push(row);
    }

    /// Adds a time in milliseconds.
    pub(crate) fn time(&mut self, name: impl Into<String>, took: Duration, target: Target) {
        self.row(name, took.as_secs_f64() * 1000.0, "ms", target);
    }

    /// Whether every target was met.
    pub(crate) fn all_met(&self) -> bool {
        self.rows.iter().all(Row::is_met)
    }

    /// Adds what the numbers depend on: cores, the disk, the build.
    pub(crate) fn about_the_machine(&mut self) -> Result<()> {
        let cores = std::thread::available_parallelism()?;
        let sync = fdatasync_median()?.as_secs_f64() * 1000.0;
        let build = if repository::is_release() { "release" } else { "NOT OPTIMISED" };
        self.machine = vec![format!("{cores} cores, {sync:.2} ms per fdatasync, {build} build")];
        Ok(())
    }
}

impl Row {
    fn is_met(&self) -> bool {
        match self.target {
            Target::Least(bound) => self.value >= bound,
            Target::Most(bound) => self.value <= bound,
            Target::None => true,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value, unit, target } = self;
        let value = match value.abs() {
            100.0.. => format!("{value:.0}"),
            10.0..100.0 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        };
        write!(f, "{name:<58} {value:>9} {unit:<9}")?;
        let verdict = if self.is_met() { "met" } else { "MISSED" };
        match target {
            Target::Least(bound) => write!(f, " at least {bound:<7} {verdict}"),
            Target::Most(bound) => write!(f, " at most  {bound:<7} {verdict}"),
            Target::None => Ok(()),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.machine {
            writeln!(f, "\n{line}")?;
        }
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        Ok(())
    }
}

/// How long this disk takes to make one page durable.
fn fdatasync_median() -> Result<Duration> {
    let folder = super::scenes::folder()?;
    let mut file = File::create(folder.path().join("sync"))?;
    let mut times = Vec::new();
    for _ in 0..51 {
        let started = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}
