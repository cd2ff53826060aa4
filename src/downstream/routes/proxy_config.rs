//! PROXY RELOAD and PROXY CONFIG: the configuration of the running proxy, seen and changed.

use std::fmt::Write as _;
use std::rc::Rc;

use crate::command::glob::matches;
use crate::downstream::client::Client;
use crate::downstream::settings::{Outcome, SettingRow};
use crate::resp::Request;

const USAGE: &str =
    "ERR redbouncer: PROXY CONFIG takes no argument, GET with a pattern, or SET with a key and a value";
const ENDING: &str = "ERR redbouncer: shutting down";

impl Client {
    /// Has everything read again. Answers what has changed, or why nothing has.
    pub(super) async fn proxy_reload(self: &Rc<Self>) -> Result<String, String> {
        let outcome = told(self.context.config.reload().await.ok_or(ENDING)?);
        self.log_config_act("RELOAD", &outcome);
        outcome
    }

    /// Shows keys, or sets one.
    pub(super) async fn proxy_config(self: &Rc<Self>, asked: &Request<'_>) -> Result<String, String> {
        let word = |at| asked.arg(at).map(|word| String::from_utf8_lossy(word).into_owned());
        let sub = word(2).map(|word| word.to_ascii_lowercase());
        match (sub.as_deref(), word(3), word(4), asked.argc()) {
            (None, ..) => self.shown_keys("*").await,
            (Some("get"), Some(pattern), None, _) => self.shown_keys(&pattern).await,
            (Some("set"), Some(key), Some(value), 5) => {
                let act = format!("CONFIG SET {}", crate::telemetry::printable(key.as_bytes()));
                let outcome = told(self.context.config.set(key, value).await.ok_or(ENDING)?);
                self.log_config_act(&act, &outcome);
                outcome
            }
            _ => Err(USAGE.to_owned()),
        }
    }

    async fn shown_keys(&self, pattern: &str) -> Result<String, String> {
        let rows = self.context.config.list().await.ok_or(ENDING)?;
        let pattern = pattern.to_ascii_lowercase();
        let mut text = String::new();
        for row in rows.iter().filter(|row| matches(pattern.as_bytes(), row.key.as_bytes())) {
            let SettingRow { key, value, default, source, effect } = row;
            let or_none = |value: &'_ str| if value.is_empty() { "-".to_owned() } else { value.to_owned() };
            let (value, default) = (or_none(value), or_none(default));
            let effect = effect.replace(' ', "-");
            let _ =
                writeln!(text, "key={key} value={value} default={default} changes={effect} source={source}");
        }
        Ok(text)
    }

    /// Who has asked for it, from where, and whether it was done. Values are not logged here: a setting that has changed is, as it
    /// may be shown, and so are the mistakes in a file.
    fn log_config_act(&self, act: &str, outcome: &Result<String, String>) {
        self.log_act(act, if outcome.is_ok() { "done" } else { "nothing has changed" });
    }
}

/// What a reload has come to, for people.
fn told(outcome: Outcome) -> Result<String, String> {
    let report = outcome.map_err(|wrong| format!("ERR redbouncer: nothing has changed: {wrong}"))?;
    let mut text = String::new();
    if report.changed.is_empty() && report.restart.is_empty() {
        text.push_str("nothing has changed\n");
    }
    for key in report.changed {
        let _ = writeln!(text, "changed {key}");
    }
    for key in report.restart {
        let _ = writeln!(text, "needs a restart {key}");
    }
    Ok(text)
}
