//! The command line of the helper: what it serves, which nothing that comes over its socket changes.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use sallyport_core::sign::Policy;

use crate::{BoxToken, Error, Modules, Sessions};

/// A token, and how the helper serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedToken {
    /// The PKCS#11 module.
    pub module: PathBuf,
    /// Label of the token.
    pub label: String,
    /// Serial number of the token, if the label is not enough.
    pub serial: Option<String>,
    /// Sessions that work at once, if the token has room for them.
    pub sessions: Sessions,
    /// Whether the module may use the network.
    pub network: bool,
    /// Folders that the module may write to.
    pub writable: Vec<PathBuf>,
}

/// Whose documents are signed, and in which token.
pub(super) struct Arguments {
    pub(super) policy: Policy,
    pub(super) token: ServedToken,
}

impl Arguments {
    /// Reads server name, module, label of the token, and options; or where the settings are that say so, and the modules.
    pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let mut arguments = arguments.into_iter().peekable();
        if arguments.peek().is_some_and(|first| first == "--settings") {
            return Self::of_settings(arguments);
        }
        let mut next =
            |what| arguments.next().ok_or_else(|| invalid(&format!("no {what} is given")));
        let server_name = text(next("server name")?)?;
        let server_name = server_name.try_into().map_err(|_| invalid("not a server name"))?;
        let policy = Policy { server_name };
        let mut token = ServedToken {
            module: next("module")?.into(),
            label: text(next("label of a token")?)?,
            serial: None,
            sessions: Sessions::default(),
            network: false,
            writable: Vec::new(),
        };
        while let Some(option) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| invalid("an option without a value"));
            match option.to_str() {
                Some("--network") => token.network = true,
                Some("--writable") => token.writable.push(value()?.into()),
                Some("--serial") => token.serial = Some(text(value()?)?),
                Some("--sessions") => {
                    let number: Option<u8> = text(value()?)?.parse().ok();
                    let sessions = number.and_then(|number| number.try_into().ok());
                    token.sessions = sessions.ok_or_else(|| invalid("not 1 to 16 sessions"))?;
                }
                _ => return Err(invalid("an option that is not known")),
            }
        }
        Ok(Self { policy, token })
    }

    fn of_settings(arguments: impl Iterator<Item = OsString>) -> Result<Self, Error> {
        let arguments: Vec<_> = arguments.collect();
        let [_, settings, option, modules] = arguments.as_slice() else {
            return Err(invalid("not `--settings FILE --modules FOLDER`"));
        };
        if option != "--modules" {
            return Err(invalid("no modules are given"));
        }
        let token = BoxToken::read(Path::new(settings))?;
        let policy = Policy { server_name: token.server_name.clone() };
        Ok(Self { policy, token: token.served(&Modules::new(Path::new(modules)))? })
    }
}

/// What [`Arguments::parse`] reads.
pub(super) fn command_line(policy: &Policy, token: &ServedToken) -> Vec<OsString> {
    let mut line = vec![
        policy.server_name.as_str().into(),
        token.module.clone().into(),
        token.label.clone().into(),
        "--sessions".into(),
        token.sessions.get().to_string().into(),
    ];
    if let Some(serial) = &token.serial {
        line.extend(["--serial".into(), serial.into()]);
    }
    if token.network {
        line.push("--network".into());
    }
    for folder in &token.writable {
        line.extend(["--writable".into(), folder.into()]);
    }
    line
}

fn text(argument: OsString) -> Result<String, Error> {
    argument.into_string().map_err(|_| invalid("an argument is not text"))
}

fn invalid(what: &str) -> Error {
    Error::Helper(io::Error::new(io::ErrorKind::InvalidInput, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, Error> {
        Arguments::parse(line.split(' ').filter(|word| !word.is_empty()).map(OsString::from))
    }

    #[test]
    fn a_command_line_survives_being_written_again() {
        for line in
            ["alpha.example /m.so label", "alpha.example /m.so label --serial 12ab --sessions 4"]
        {
            let Arguments { policy, token } = parse(line).unwrap();
            let again = Arguments::parse(command_line(&policy, &token)).unwrap();
            assert_eq!(again.policy.server_name, policy.server_name);
            assert_eq!(again.token, token);
            assert_eq!(
                token.sessions.get(),
                if line.contains('4') { 4 } else { Sessions::default().get() }
            );
            assert_eq!(token.serial.is_some(), line.contains("12ab"));
            assert_eq!(token.network, line.contains("--network"));
            assert_eq!(token.writable.len(), line.matches("--writable").count());
        }
    }

    #[test]
    fn what_is_missing_or_unknown_is_refused() {
        for line in [
            "",
            "alpha.example /m.so",
            "no/server /m.so label",
            "alpha.example /m.so label --serial",
            "alpha.example /m.so label --sessions 0",
            "alpha.example /m.so label --sessions 17",
            "alpha.example /m.so label --sessions x",
            "alpha.example /m.so label --more",
            "alpha.example /m.so label more",
            "--settings",
            "--settings /nowhere --modules",
            "--settings /nowhere --module /m.so",
            "--settings /nowhere --modules /nowhere",
            "--settings /nowhere --modules /nowhere --network",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
