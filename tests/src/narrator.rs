//! Tells what happens, for people who watch: the demo and the development enclave. Tests are silent.

use std::fmt;

/// Where the words go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Narrator {
    /// Nowhere.
    Silent,
    /// To standard output.
    Loud,
}

/// How wide a line of prose gets.
const COLUMNS: usize = 96;

impl Narrator {
    /// Begins a part of the story.
    pub fn chapter(self, title: &str) {
        self.print(format_args!("\n== {title} =="));
    }

    /// Explains.
    pub fn tell(self, prose: &str) {
        let mut line = String::new();
        for word in prose.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > COLUMNS {
                self.print(format_args!("   {line}"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.print(format_args!("   {line}"));
    }

    /// Shows a command and what it printed.
    pub fn command(self, prompt: &str, command: &str, output: &str) {
        self.print(format_args!("   {prompt}$ {command}"));
        for line in output.trim_end().lines() {
            self.print(format_args!("      {line}"));
        }
    }

    /// Shows what somebody says in a room.
    pub fn speech(self, who: &str, what: &str) {
        self.print(format_args!("   {who}: \"{what}\""));
    }

    /// States something that was checked.
    pub fn checked(self, fact: &str) {
        self.print(format_args!("   [ok] {fact}"));
    }

    fn print(self, line: fmt::Arguments<'_>) {
        if self == Self::Loud {
            println!("{line}");
        }
    }
}
