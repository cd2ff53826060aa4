//! What was found: a line each, with what to do about it.

use crate::telemetry::printable;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// redbouncer works, but something could be better.
    Warning,
    /// redbouncer could not serve.
    Failure,
}

impl Level {
    /// The word in the listing.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at, in a word or two.
    pub subject: &'static str,
    /// What was found.
    pub text: String,
    /// What to do about it, or to know; empty where there is nothing to do.
    pub advice: String,
}

/// All findings, in the order of looking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter()
    }

    /// The worst level among them.
    #[must_use]
    pub fn worst(&self) -> Level {
        self.0.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    /// Adds those of another look.
    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Adds what is as it should be.
    pub fn ok(&mut self, subject: &'static str, text: &str) {
        self.add(Level::Ok, subject, text, "");
    }

    /// Adds what is as it should be, and what to know about it.
    pub fn note(&mut self, subject: &'static str, text: &str, advice: &str) {
        self.add(Level::Ok, subject, text, advice);
    }

    /// Adds what could be better.
    pub fn warning(&mut self, subject: &'static str, text: &str, advice: &str) {
        self.add(Level::Warning, subject, text, advice);
    }

    /// Adds what makes serving impossible.
    pub fn failure(&mut self, subject: &'static str, text: &str, advice: &str) {
        self.add(Level::Failure, subject, text, advice);
    }

    fn add(&mut self, level: Level, subject: &'static str, text: &str, advice: &str) {
        // Names, versions and settings in it are the server's words.
        let text = printable(text.as_bytes());
        self.0.push(Finding { level, subject, text, advice: printable(advice.as_bytes()) });
    }
}
