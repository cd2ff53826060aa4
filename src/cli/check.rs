//! `redbouncer check`: the doctor's findings, for people and for scripts.

use serde_json::{Value, json};
use textwrap::Options;

use crate::config::{Config, ConfigError};
use crate::hygiene::doctor::{Finding, Findings, Level, Plan, examine};

/// Findings are read on a terminal.
const WIDTH: usize = 80;
/// Where the text begins: behind level and subject.
const INDENT: usize = 23;

/// Examines what the configuration describes.
pub(super) async fn run(config: &Config) -> Findings {
    let mut findings = Findings::default();
    configuration(config, &mut findings);
    let plan =
        Plan { upstream: &config.upstream, hygiene: &config.hygiene, cap: config.pool.max_connections };
    findings.extend(examine(plan).await);
    findings
}

fn configuration(config: &Config, findings: &mut Findings) {
    let (cap, workers) = (config.pool.max_connections, config.workers);
    let text = format!(
        "{}, at most {cap} connections, {workers} worker{}",
        config.upstream_shown(),
        if workers == 1 { "" } else { "s" }
    );
    if workers > 1 && cap < 4 + 3 * workers {
        findings.warning(
            "configuration",
            &text,
            "every worker keeps connections of its own: little is left for leases; fewer workers, or a larger cap",
        );
    } else if cap < 6 {
        findings.warning(
            "configuration",
            &text,
            "with fewer than 6 connections subscribers and leases wait for each other: 8 is the default",
        );
    } else {
        findings.ok("configuration", &text);
    }
}

/// A configuration that cannot be used is a finding, too.
pub(super) fn unusable(errors: &[ConfigError]) -> Findings {
    let mut findings = Findings::default();
    for wrong in errors {
        findings.failure("configuration", &wrong.to_string(), "");
    }
    findings
}

/// The findings, a line each, at most 80 columns.
pub(super) fn listing(findings: &Findings) -> String {
    let mut out: String = findings.iter().map(lines).collect();
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (warnings, failures) = (count(Level::Warning), count(Level::Failure));
    let verdict = match findings.worst() {
        Level::Failure => "redbouncer could not serve",
        Level::Warning | Level::Ok => "redbouncer can serve",
    };
    out.push_str(&format!("\n{verdict}: {failures} failures, {warnings} warnings\n"));
    out
}

fn lines(finding: &Finding) -> String {
    let indent = " ".repeat(INDENT);
    let head = format!("{:<7}  {:<13} ", finding.level.word(), finding.subject);
    let wrapped = |text: &str, first: &str, rest: &str| {
        textwrap::fill(text, Options::new(WIDTH).initial_indent(first).subsequent_indent(rest))
    };
    let mut out = wrapped(&finding.text, &head, &indent);
    out.push('\n');
    if !finding.advice.is_empty() {
        out.push_str(&wrapped(&finding.advice, &format!("{indent}→ "), &format!("{indent}  ")));
        out.push('\n');
    }
    out
}

/// The same for scripts.
pub(super) fn as_json(findings: &Findings) -> Value {
    let rows: Vec<Value> = findings
        .iter()
        .map(|finding| {
            json!({
                "level": finding.level.word(),
                "subject": finding.subject,
                "text": finding.text,
                "advice": finding.advice,
            })
        })
        .collect();
    json!({ "can_serve": findings.worst() != Level::Failure, "findings": rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_fit_80_columns() {
        let mut findings = Findings::default();
        findings.ok("tcp-keepalive", "60 s");
        findings.warning("configuration", &"word ".repeat(60), &"more words ".repeat(40));
        findings.failure("TLS", &"x".repeat(200), "");
        let listing = listing(&findings);
        assert!(listing.lines().all(|line| line.chars().count() <= WIDTH), "{listing}");
        assert!(listing.starts_with("ok       tcp-keepalive 60 s\n"), "{listing}");
        assert!(listing.ends_with("redbouncer could not serve: 1 failures, 1 warnings\n"), "{listing}");
    }
}
