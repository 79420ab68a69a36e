//! Rosters as SCIM 2.0 JSON: a `ListResponse` is a full roster, a `BulkRequest` a delta.
//!
//! Core attributes that are read (RFC 7643, section 4.1): `userName` (the localpart), `displayName`, `active`,
//! `externalId`. All others of the core schema are skipped, except `password`, which has no place in a roster. What Matrix enclaves need more
//! stands in the extension [`EXTENSION`]: `clearance` (names, or objects of `value` and `until`; categories begin with
//! `+`), `clearanceExpiry` (the day for those that have none), `unit`, `homeEnclave`, `movedFrom`, `movedTo`,
//! `certSha256`.
//!
//! Operations of a `BulkRequest` (RFC 7644, section 3.7): `POST /Users` and `PUT /Users/{userName}` state the whole
//! account, `DELETE /Users/{userName}` locks it. Nothing is ever deleted.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, SeqAccess, Visitor},
};

use super::{
    Head, Localpart, Mode, Place, Problems, Roster,
    check::{Collector, Fault},
    draft::Draft,
    problem::shown,
};
use crate::limits::{ROSTER_ACCOUNTS_MAX, ROSTER_BYTES_MAX};

/// Schema URN of our attributes of a user.
pub const EXTENSION: &str = "urn:sallyport:scim:1.0:User";
/// Schema URN of a full roster (RFC 7644, section 3.4.2).
pub const LIST_RESPONSE: &str = "urn:ietf:params:scim:api:messages:2.0:ListResponse";
/// Schema URN of a delta roster (RFC 7644, section 3.7).
pub const BULK_REQUEST: &str = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";

/// Reads a roster from SCIM JSON. The message decides the mode, whatever `head` says.
///
/// # Errors
/// Everything that is wrong with it, by entry; a syntax error by line.
pub fn parse(bytes: &[u8], mut head: Head) -> Result<Roster, Problems> {
    let message = message(bytes);
    head.mode = match &message {
        Ok(Message { operations: Some(_), .. }) => Mode::Delta,
        _ => Mode::Full,
    };
    let mut collector = Collector::new(head);
    match message {
        Err((place, fault)) => collector.problems.push(fault.at(place, "")),
        Ok(message) => {
            let places = (1..).map(Place::Entry);
            for (place, user) in places.clone().zip(message.resources.unwrap_or_default().0) {
                add_user(&mut collector, place, &user);
            }
            for (place, operation) in places.zip(message.operations.unwrap_or_default().0) {
                operate(&mut collector, place, &operation);
            }
        }
    }
    collector.finish()
}

/// Either of the two messages.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    schemas: Vec<Cow<'a, str>>,
    #[serde(rename = "totalResults")]
    total_results: Option<u64>,
    #[serde(rename = "Resources", borrow)]
    resources: Option<Bounded<User<'a>>>,
    #[serde(rename = "Operations", borrow)]
    operations: Option<Bounded<Operation<'a>>>,
}

#[derive(Deserialize)]
struct User<'a> {
    #[serde(rename = "userName", borrow, default)]
    user_name: Cow<'a, str>,
    #[serde(rename = "displayName", borrow)]
    display_name: Option<Cow<'a, str>>,
    #[serde(rename = "externalId", borrow)]
    external_id: Option<Cow<'a, str>>,
    #[serde(default = "active")]
    active: bool,
    password: Option<IgnoredAny>,
    #[serde(rename = "urn:sallyport:scim:1.0:User", borrow, default)]
    extension: Extension<'a>,
}

fn active() -> bool {
    true
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Extension<'a> {
    #[serde(borrow)]
    clearance: Vec<Clearance<'a>>,
    #[serde(borrow)]
    clearance_expiry: Option<Cow<'a, str>>,
    #[serde(borrow)]
    unit: Option<Cow<'a, str>>,
    #[serde(borrow)]
    home_enclave: Option<Cow<'a, str>>,
    #[serde(borrow)]
    moved_from: Option<Cow<'a, str>>,
    #[serde(borrow)]
    moved_to: Option<Cow<'a, str>>,
    #[serde(borrow)]
    cert_sha256: Vec<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Clearance<'a> {
    #[serde(borrow)]
    Name(Cow<'a, str>),
    #[serde(borrow)]
    Dated(Dated<'a>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dated<'a> {
    #[serde(borrow)]
    value: Cow<'a, str>,
    #[serde(borrow)]
    until: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Operation<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(borrow)]
    data: Option<User<'a>>,
}

/// A list of at most [`ROSTER_ACCOUNTS_MAX`] entries, refused while it is read: the smallest entry takes two bytes of
/// JSON and a hundred times as much memory.
struct Bounded<T>(Vec<T>);

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Bounded<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {ROSTER_ACCOUNTS_MAX} entries")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Bounded<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = entries.next_element()? {
                    if list.len() == ROSTER_ACCOUNTS_MAX {
                        return Err(A::Error::invalid_length(list.len() + 1, &self));
                    }
                    list.push(entry);
                }
                Ok(Bounded(list))
            }
        }

        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

fn message(bytes: &[u8]) -> Result<Message<'_>, (Place, Fault)> {
    let whole = |key, what: String, fix: &str| Err((Place::File, Fault::new(key, what, fix)));
    if bytes.len() > ROSTER_BYTES_MAX {
        let what = format!("is larger than {} MiB", ROSTER_BYTES_MAX >> 20);
        return whole("", what, "split it into several BulkRequests");
    }
    let message: Message<'_> = serde_json::from_slice(bytes).map_err(|e| {
        let place = u64::try_from(e.line()).map_or(Place::File, Place::Line);
        (place, Fault::new("", format!("is not SCIM ({e})"), "export the list again"))
    })?;
    let is = |schema: &str| message.schemas.iter().any(|s| s.eq_ignore_ascii_case(schema));
    match (&message.resources, &message.operations) {
        (None, Some(_)) if is(BULK_REQUEST) => Ok(message),
        // An empty ListResponse may leave `Resources` out.
        (resources, None) if is(LIST_RESPONSE) => {
            let here = resources.as_ref().map_or(0, |list| list.0.len());
            let total = message.total_results.unwrap_or_default();
            if usize::try_from(total) == Ok(here) {
                return Ok(message);
            }
            let what = format!("holds {here} of {total} users");
            whole(
                "totalResults",
                what,
                "export all pages into one file: the others would be locked",
            )
        }
        _ => {
            let what = "is neither a ListResponse with Resources nor a BulkRequest with Operations";
            whole("schemas", what.to_owned(), "export the users as a SCIM 2.0 ListResponse")
        }
    }
}

fn operate(collector: &mut Collector, place: Place, operation: &Operation<'_>) {
    let named = match operation.path.strip_prefix("/Users") {
        Some("") => None,
        Some(rest) => rest.strip_prefix('/').map(percent_decoded),
        None => {
            let what = format!("the path {:?} is not /Users", shown(&operation.path));
            let fault = Fault::new("path", what, "put only users into a roster");
            collector.problems.push(fault.at(place, ""));
            return;
        }
    };
    let account = named.clone().unwrap_or_default();
    let fault = match (operation.method.to_ascii_uppercase().as_str(), named, &operation.data) {
        ("POST", None, Some(user)) => return add_user(collector, place, user),
        ("PUT", Some(named), Some(user)) => match same_account(collector, &named, user) {
            Ok(()) => return add_user(collector, place, user),
            Err(fault) => fault,
        },
        ("DELETE", Some(named), None) => match collector.localpart(&named) {
            Ok(localpart) if collector.has_room() => return collector.lock(place, localpart),
            Ok(_) => return,
            Err(fault) => fault,
        },
        _ => {
            let what =
                format!("{} {} is not known", shown(&operation.method), shown(&operation.path));
            let fix = "use POST /Users or PUT /Users/NAME with the whole user as data, or DELETE /Users/NAME to lock";
            Fault::new("method", what, fix)
        }
    };
    collector.problems.push(fault.at(place, &account));
}

fn same_account(collector: &Collector, named: &str, user: &User<'_>) -> Result<(), Fault> {
    let localparts: (Localpart, Localpart) =
        (collector.localpart(named)?, collector.localpart(&user.user_name)?);
    if localparts.0 == localparts.1 {
        return Ok(());
    }
    let what = format!("differs from the {:?} of the path", shown(named));
    Err(Fault::new(
        "userName",
        what,
        "localparts cannot change: make a new account and lock this one",
    ))
}

fn add_user(collector: &mut Collector, place: Place, user: &User<'_>) {
    if !collector.has_room() {
        return;
    }
    if user.password.is_some() {
        let fix = "remove it: people choose their own with an activation code";
        let fault = Fault::new("password", "is in the roster", fix);
        collector.problems.push(fault.at(place, &user.user_name));
        return;
    }
    let extension = &user.extension;
    let expiry = extension.clearance_expiry.as_deref();
    let clearances = extension.clearance.iter().map(|clearance| match clearance {
        Clearance::Name(name) => (name.as_ref(), expiry),
        Clearance::Dated(dated) => (dated.value.as_ref(), dated.until.as_deref().or(expiry)),
    });
    let draft = Draft {
        localpart: &user.user_name,
        display_name: user.display_name.as_deref(),
        unit: extension.unit.as_deref(),
        clearances: clearances.collect(),
        locked: !user.active,
        home_enclave: extension.home_enclave.as_deref(),
        moved_from: extension.moved_from.as_deref(),
        moved_to: extension.moved_to.as_deref(),
        certificates: extension.cert_sha256.iter().map(Cow::as_ref).collect(),
        external_id: user.external_id.as_deref(),
    };
    collector.add_draft(place, &draft);
}

/// `%2F` and its like as characters (RFC 3986, section 2.1); what is not well-formed stays as it is, and is then no localpart.
fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte =
            digits.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| first == b'%');
        decoded.push(byte.unwrap_or(first));
        rest = if byte.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8(decoded).unwrap_or_else(|_| text.to_owned())
}
