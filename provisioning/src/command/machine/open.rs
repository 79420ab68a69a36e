//! The data partition of a box whose TPM does not open it, or that has none: somebody at the console does.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use zeroize::Zeroizing;

use super::{
    dialogue::{Dialogue, Told},
    seal::{self, Typed},
    stick,
};
use crate::{
    notice,
    update::{disk::LocalDisk, system::System},
};

/// The name of the notice and of the pipe for its answer.
const NOTICE: &str = "data";
/// Beside the notices, while a key for the data is asked for: sticks are looked at for a recovery key, and for nothing else.
const WANTED: &str = "recovery-wanted";
/// Beside the notices: the data partition is open, and the console of services may begin.
const OPEN: &str = "data-open";
/// The first pause after wrong passphrases; each try takes the machine a second or two anyway.
const PAUSE: Duration = Duration::from_secs(10);

/// Characters of a passphrase. It stands against whoever has the disk and as much time as they like.
const PASSPHRASE_CHARS_MIN: usize = 16;
const PASSPHRASE_CHARS_MAX: usize = 128;
/// Different characters in it.
const PASSPHRASE_DIFFERENT_MIN: usize = 8;

const CHOOSE: Told<'_> = Told {
    title: "THIS MACHINE HAS NO TPM, or it is switched off in the firmware. A passphrase is to protect the data of this box, and is asked for at each start.",
    lines: &[
        "Choose one of at least 16 characters: five or six words that dice chose, not a sentence of a book. Whoever takes the disk",
        "can try as many as they like for years. Letters, digits and signs of an American keyboard; what you type is not shown.",
    ],
    ask: Some("New passphrase:"),
    secret: true,
};
const LOCKED: Told<'_> = Told {
    title: "THE DATA OF THIS BOX IS LOCKED.",
    lines: &["The recovery key opens it as well: typed, or on a stick."],
    ask: Some("Passphrase (what you type is not shown):"),
    secret: true,
};
const SEALED: Told<'_> = Told {
    title: "THE DATA OF THIS BOX CANNOT BE OPENED.",
    lines: &[
        "Firmware, its keys or the TPM changed, or the disk was in another machine. The recovery key opens it: typed, or on a stick.",
    ],
    ask: Some("Recovery key, with its dashes (nothing changes if it is wrong):"),
    secret: false,
};

/// Sticks are looked at for a recovery key as long as this is there.
struct Wanted<'a>(&'a Path);

impl<'a> Wanted<'a> {
    fn new(state: &'a Path) -> anyhow::Result<Self> {
        fs::write(state.join(WANTED), b"").context("cannot ask for sticks")?;
        Ok(Self(state))
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        // The folder is gone at the next start of the machine in any case.
        let _ = notice::withdraw(&self.0.join(WANTED));
    }
}

/// `sallyctl machine recover`.
pub(super) fn recover(state: &Path, device: &Path) -> anyhow::Result<()> {
    let _wanted = Wanted::new(state)?;
    let typed = Typed::new(state);
    let dialogue = Dialogue::open(state, NOTICE)?;
    dialogue.ask_until(SEALED, PAUSE, |answer| {
        typed.keep(&given(state, answer)?)?;
        let sealed = typed.seal(device);
        typed.forget()?;
        sealed
    })
}

/// `sallyctl machine open`.
pub(super) fn open(state: &Path) -> anyhow::Result<()> {
    let here = System("/".into()).here()?;
    let disk = seal::disk(&here.root_hash)?;
    let typed = Typed::new(state);
    let dialogue = Dialogue::open(state, NOTICE)?;
    if seal::data_partition(&disk)?.is_some() {
        unlock(state, &disk, &typed, &dialogue)?;
    } else {
        typed.keep(&choose(&dialogue)?)?;
        dialogue.tell(Told {
            title: "The data partition is being made. This takes a moment.",
            ..Told::default()
        })?;
        typed.make_partition()?;
        attach(&disk, &typed)?;
    }
    fs::write(state.join(OPEN), b"").context("cannot say that the data is open")
}

/// Opens a partition that is there. One that was sealed to the TPM of another machine gets a passphrase.
fn unlock(
    state: &Path,
    disk: &LocalDisk,
    typed: &Typed,
    dialogue: &Dialogue,
) -> anyhow::Result<()> {
    let _wanted = Wanted::new(state)?;
    dialogue.ask_until(LOCKED, PAUSE, |answer| {
        typed.keep(&given(state, answer)?)?;
        attach(disk, typed)
    })?;
    let partition = seal::data_partition(disk)?.context("the data partition is gone")?;
    let device = disk.device_of(&partition.place)?;
    if Typed::has_passphrase(&device)? {
        return Ok(());
    }
    let chosen = choose(dialogue)?;
    typed.set_passphrase(&device, &chosen)?;
    typed.keep(&chosen)
}

fn attach(disk: &LocalDisk, typed: &Typed) -> anyhow::Result<()> {
    let partition = seal::data_partition(disk)?.context("the data partition was not made")?;
    typed.attach(&disk.device_of(&partition.place)?)
}

/// What opens the data: what somebody typed, or, if they only pressed Enter, what their stick has.
fn given(state: &Path, answer: Zeroizing<String>) -> anyhow::Result<Zeroizing<String>> {
    if answer.is_empty() {
        return stick::key(state).context("Nothing was typed, and there is no stick with a key.");
    }
    Ok(seal::recovery_key(&answer).unwrap_or(answer))
}

/// Has somebody choose a passphrase, and type it twice.
fn choose(dialogue: &Dialogue) -> anyhow::Result<Zeroizing<String>> {
    let again = Told { ask: Some("The same once more:"), ..CHOOSE };
    dialogue.ask_until(CHOOSE, Duration::ZERO, |first| {
        acceptable(&first)?;
        ensure!(dialogue.ask(again)? == first, "The two were not the same.");
        Ok(first)
    })
}

fn acceptable(passphrase: &str) -> anyhow::Result<()> {
    let characters: BTreeSet<char> = passphrase.chars().collect();
    ensure!(
        passphrase.chars().all(|c| c.is_ascii_graphic() || c == ' '),
        "It has a character that not every keyboard has."
    );
    ensure!(
        (PASSPHRASE_CHARS_MIN..=PASSPHRASE_CHARS_MAX).contains(&passphrase.len()),
        "It has {} characters, and {PASSPHRASE_CHARS_MIN} to {PASSPHRASE_CHARS_MAX} are wanted.",
        passphrase.len()
    );
    ensure!(
        characters.len() >= PASSPHRASE_DIFFERENT_MIN,
        "It has {} different characters, and at least {PASSPHRASE_DIFFERENT_MIN} are wanted.",
        characters.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passphrases_are_long_varied_and_of_any_keyboard() {
        for good in ["correct horse battery", "0123456789abcdef"] {
            acceptable(good).unwrap();
        }
        for (bad, why) in [
            ("", "0 characters"),
            ("0123456789abcde", "15 characters"),
            (&"ab cdefg".repeat(17), "136 characters"),
            ("aaaaaaaaaaaaaaaaaaaaaaaaa", "1 different"),
            ("grüße aus der küche", "not every keyboard"),
            ("tab\tbed separated words", "not every keyboard"),
        ] {
            let error = acceptable(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
    }

    #[test]
    fn enter_takes_the_key_of_a_stick() {
        let folder = tempfile::tempdir().unwrap();
        let typed = |text: &str| given(folder.path(), Zeroizing::new(text.to_owned()));
        assert_eq!(*typed("some words").unwrap(), "some words");
        assert!(typed("").is_err());
        let key = ["cbdefghi"; 8].join("-");
        assert_eq!(*typed(&key.replace('-', " ")).unwrap(), key);
        fs::write(folder.path().join(stick::KEY), &key).unwrap();
        assert_eq!(*typed("").unwrap(), key);
    }
}
