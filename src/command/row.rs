//! One row of the command table.

use super::class::Class;

/// Where a command's keys are among its words; word 0 is the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keys {
    /// No keys.
    None,
    /// From `first` to `last` in steps of `step`; a negative `last` counts from the end, -1 being the last word.
    Range {
        /// Index of the first key.
        first: i8,
        /// Index of the last key, or counted from the end.
        last: i8,
        /// Distance from one key to the next.
        step: i8,
    },
    /// The arguments decide.
    Special,
}

/// One command, or one subcommand of a container.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Lower case; `client|kill` for a subcommand.
    pub name: &'static str,
    /// As in `COMMAND`: the number of words with the name (and subcommand); negative: at least so many. Where server
    /// versions differ, the widest.
    pub arity: i16,
    /// Its class.
    pub class: Class,
    /// Reaches beyond the own connection: subject to `auth.admin_commands`.
    pub policy: bool,
    /// Runs a script or function.
    pub script: bool,
    /// Where its keys are.
    pub keys: Keys,
    /// It runs, loads or names scripts or functions, which the server forgets.
    pub uses_scripts: bool,
    /// The state that it creates, and the reason for its route.
    pub why: &'static str,
}

impl Row {
    /// Whether the server would accept a request of `argc` words, the name included.
    pub const fn accepts(&self, argc: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { argc >= least } else { argc == least }
    }
}
