//! Rosters as CSV (RFC 4180), the way a spreadsheet saves them.
//!
//! The first line names the columns, in any order; only `localpart` is needed:
//!
//! | column | content |
//! |---|---|
//! | `localpart` | part of the user id before the server name; a whole user id of this enclave is understood as well |
//! | `display_name`, `unit`, `external_id` | text |
//! | `clearance` | `SECRET until 2027-06-30; +ATOMAL`: levels and, with `+`, categories, separated by `;` or <code>\|</code> |
//! | `active` | `true` (also when empty) or `false` |
//! | `home_enclave` | server name |
//! | `moved_from`, `moved_to` | whole user ids |
//! | `cert_sha256` | hexadecimal, separated by `;` or <code>\|</code> |
//!
//! Columns may be separated by `,`, `;` or tabs; a byte order mark is skipped.

use csv::{ReaderBuilder, StringRecord};

use super::{
    Head, Place, Problems, Roster,
    check::{Collector, Fault},
    draft::Draft,
    problem::shown,
};
use crate::limits::ROSTER_BYTES_MAX;

/// Names of the columns, in the order that a person would write them.
pub const COLUMNS: [&str; 10] = [
    "localpart",
    "display_name",
    "unit",
    "clearance",
    "active",
    "home_enclave",
    "moved_from",
    "moved_to",
    "cert_sha256",
    "external_id",
];

/// Reads a roster from CSV in UTF-8.
///
/// # Errors
/// Everything that is wrong with it, by line.
pub fn parse(bytes: &[u8], head: Head) -> Result<Roster, Problems> {
    let mut collector = Collector::new(head);
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if let Err((place, fault)) = read(bytes, &mut collector) {
        collector.problems.push(fault.at(place, ""));
    }
    collector.finish()
}

fn read(bytes: &[u8], collector: &mut Collector) -> Result<(), (Place, Fault)> {
    if bytes.len() > ROSTER_BYTES_MAX {
        let what = format!("is larger than {} MiB", ROSTER_BYTES_MAX >> 20);
        return Err((Place::File, Fault::new("", what, "split it into delta rosters")));
    }
    let delimiter = delimiter(bytes);
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(bytes);
    let columns = Columns::of(reader.headers().map_err(|e| read_fault(&e))?)
        .map_err(|fault| (Place::Line(1), fault))?;
    let mut row = StringRecord::new();
    while collector.has_room() && reader.read_record(&mut row).map_err(|e| read_fault(&e))? {
        let place = Place::Line(row.position().map_or(0, csv::Position::line));
        if row.iter().all(|cell| cell.trim().is_empty()) {
            continue;
        }
        let (draft, fault) = columns.draft(&row);
        match fault {
            Some(fault) => collector.problems.push(fault.at(place, draft.localpart)),
            None => collector.add_draft(place, &draft),
        }
    }
    Ok(())
}

/// The sign between the columns: that of `,`, `;` and tab which the first line has most of.
fn delimiter(bytes: &[u8]) -> u8 {
    let header = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let count = |sign: u8| header.iter().filter(|b| **b == sign).count();
    [b';', b'\t']
        .into_iter()
        .fold(b',', |best, sign| if count(sign) > count(best) { sign } else { best })
}

/// Where each of [`COLUMNS`] is in a row.
struct Columns([Option<usize>; COLUMNS.len()]);

impl Columns {
    fn of(header: &StringRecord) -> Result<Self, Fault> {
        let mut places = [None; COLUMNS.len()];
        for (n, name) in header.iter().enumerate() {
            let name = name.trim();
            let column = COLUMNS.iter().position(|column| column.eq_ignore_ascii_case(name));
            let Some(place) = column.and_then(|column| places.get_mut(column)) else {
                let what = format!("the column {:?} is not known", shown(name));
                let fix = format!("remove it, or use one of {}", COLUMNS.join(", "));
                return Err(Fault::new("", what, fix));
            };
            if place.replace(n).is_some() {
                let what = format!("the column {name} is there twice");
                return Err(Fault::new("", what, "keep one of the two"));
            }
        }
        match places {
            [Some(_), ..] => Ok(Self(places)),
            _ => Err(Fault::new(
                "",
                "there is no column localpart",
                "name the columns in the first line, for example localpart,display_name,unit",
            )),
        }
    }

    /// The texts of a row, and what is wrong with its `active`.
    fn draft<'a>(&self, row: &'a StringRecord) -> (Draft<'a>, Option<Fault>) {
        let cells = self.0.map(|place| place.and_then(|place| row.get(place)));
        let [
            localpart,
            display_name,
            unit,
            clearance,
            active,
            home_enclave,
            moved_from,
            moved_to,
            certificates,
            external_id,
        ] = cells;
        let (locked, fault) = match active.unwrap_or_default().trim().to_ascii_lowercase().as_str()
        {
            "" | "true" | "yes" | "1" => (false, None),
            "false" | "no" | "0" => (true, None),
            other => {
                let what = format!("{:?} is neither true nor false", shown(other));
                (false, Some(Fault::new("active", what, "write true or false")))
            }
        };
        let draft = Draft {
            localpart: localpart.unwrap_or_default(),
            display_name,
            unit,
            clearances: parts(clearance).map(clearance_and_day).collect(),
            locked,
            home_enclave,
            moved_from,
            moved_to,
            certificates: parts(certificates).collect(),
            external_id,
        };
        (draft, fault)
    }
}

/// The parts of a cell that holds a list.
fn parts(cell: Option<&str>) -> impl Iterator<Item = &str> {
    cell.unwrap_or_default().split([';', '|']).map(str::trim).filter(|part| !part.is_empty())
}

/// `SECRET until 2027-06-30` as name and day.
fn clearance_and_day(part: &str) -> (&str, Option<&str>) {
    match part.split_once(" until ") {
        Some((name, day)) => (name, Some(day)),
        None => (part, None),
    }
}

fn read_fault(error: &csv::Error) -> (Place, Fault) {
    let place = error.position().map_or(Place::File, |position| Place::Line(position.line()));
    let fault = match error.kind() {
        csv::ErrorKind::Utf8 { .. } => {
            Fault::new("", "is not UTF-8", "save the file as \"CSV UTF-8\"")
        }
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let what = format!("has {len} columns, the first line has {expected_len}");
            Fault::new("", what, "put cells that contain the separator in double quotes")
        }
        other => {
            Fault::new("", format!("cannot be read ({other:?})"), "save the file as CSV again")
        }
    };
    (place, fault)
}
