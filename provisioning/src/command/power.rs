//! `sallyctl power-button`: somebody presses the power button, and the machine goes off in order. There is no login manager that would listen.

use std::{fs::File, io::Read, path::PathBuf, process::Command as Process};

use anyhow::{Context as _, ensure};
use clap::Args;

/// What asks the service manager to stop everything and switch off.
const SWITCH_OFF: [&str; 2] = ["/usr/bin/systemctl", "poweroff"];
/// Bytes of an event of Linux' input layer on 64-bit machines: a time, a kind, a code and a value.
const EVENT_BYTES: usize = 24;
/// The kind of keys, the power button among them, and the value when one goes down.
const KEY: [u8; 2] = 1_u16.to_ne_bytes();
const POWER: [u8; 2] = 116_u16.to_ne_bytes();
const DOWN: [u8; 4] = 1_i32.to_ne_bytes();

#[derive(Args)]
pub(crate) struct Command {
    /// The button: an input device.
    #[arg(long, value_name = "DEVICE")]
    device: PathBuf,
}

impl Command {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let shown = self.device.display();
        let button = File::open(&self.device).with_context(|| format!("cannot open {shown}"))?;
        pressed(button).with_context(|| format!("{shown} says nothing any more"))?;
        let [program, argument] = SWITCH_OFF;
        let ended = Process::new(program)
            .arg(argument)
            .status()
            .with_context(|| format!("cannot start {program}"))?;
        ensure!(ended.success(), "{program} {argument} failed");
        Ok(())
    }
}

/// Waits until the button goes down.
fn pressed(mut button: impl Read) -> std::io::Result<()> {
    let mut event = [0; EVENT_BYTES];
    loop {
        button.read_exact(&mut event)?;
        let (_, said) = event.split_at(EVENT_BYTES - 8);
        if said == [&KEY[..], &POWER, &DOWN].concat() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut event = vec![7; 16];
        event.extend(kind.to_ne_bytes());
        event.extend(code.to_ne_bytes());
        event.extend(value.to_ne_bytes());
        event
    }

    #[test]
    fn only_the_button_going_down_counts() {
        // A report's end, the button going up, another key.
        let others = [event(0, 0, 0), event(1, 116, 0), event(1, 142, 1)].concat();
        assert!(pressed(&*others).is_err());
        let then = [others, event(1, 116, 1), event(0, 0, 0)].concat();
        assert!(pressed(&*then).is_ok());
    }
}
