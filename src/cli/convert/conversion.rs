//! The result of a conversion: settings of redbouncer, remarks, and settings that cannot be converted.

use std::fmt::Write as _;

use toml::Value;

/// The sections that a conversion fills, in the order of `config.toml`.
const SECTIONS: [&str; 4] = ["listen", "upstream", "pool", "client"];

/// The result of a conversion.
#[derive(Debug, Default)]
pub(super) struct Conversion {
    settings: Vec<Setting>,
    /// Without an equivalent, and redbouncer does well without it.
    remarks: Vec<String>,
    /// Settings that need a decision of the operator.
    refused: Vec<String>,
}

#[derive(Debug)]
struct Setting {
    section: &'static str,
    key: &'static str,
    value: Value,
    /// The name of the setting, without its value.
    from: String,
}

impl Conversion {
    /// `section.key` is `value`, because of `from` in the other configuration.
    pub(super) fn set(
        &mut self,
        section: &'static str,
        key: &'static str,
        value: impl Into<Value>,
        from: &str,
    ) {
        self.settings.push(Setting { section, key, value: value.into(), from: from.to_owned() });
    }

    /// Something has no equivalent, and nothing is lost.
    pub(super) fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    /// Something cannot be converted.
    pub(super) fn refuse(&mut self, text: impl Into<String>) {
        self.refused.push(text.into());
    }

    /// Settings that cannot be converted.
    pub(super) fn refused(&self) -> &[String] {
        &self.refused
    }

    /// The configuration as TOML.
    pub(super) fn render(&self, source: &str) -> String {
        let mut out = format!("# Converted by redbouncer convert from {source}.\n");
        for section in SECTIONS {
            let mut settings = self.settings.iter().filter(|setting| setting.section == section).peekable();
            if settings.peek().is_some() {
                let _ = write!(out, "\n[{section}]\n");
            }
            for setting in settings {
                let _ = write!(out, "# {}\n{} = {}\n", setting.from, setting.key, setting.value);
            }
        }
        list(&mut out, "Without an equivalent", &self.remarks);
        list(&mut out, "NOT CONVERTED", &self.refused);
        out
    }
}

fn list(out: &mut String, head: &str, lines: &[String]) {
    if !lines.is_empty() {
        let _ = write!(out, "\n# {head}:\n");
    }
    for line in lines {
        let wrapped = textwrap::fill(
            line,
            textwrap::Options::new(110).initial_indent("# - ").subsequent_indent("#   "),
        );
        let _ = writeln!(out, "{wrapped}");
    }
}

/// `redis://host:port/database`.
pub(super) fn url(host: &str, port: u16, database: u32) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    match database {
        0 => format!("redis://{host}:{port}"),
        _ => format!("redis://{host}:{port}/{database}"),
    }
}

/// `host:port`, also with an IPv6 address, in brackets or without.
pub(super) fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port.parse().ok().filter(|port| *port > 0)?;
    (!host.is_empty()).then_some((host, port))
}

/// A duration as the configuration has it.
pub(super) fn milliseconds(count: u64) -> String {
    if count.is_multiple_of(1000) { format!("{}s", count / 1000) } else { format!("{count}ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_and_put_together() {
        assert_eq!(host_and_port("10.0.0.7:6379"), Some(("10.0.0.7", 6379)));
        assert_eq!(host_and_port("[::1]:6379"), Some(("::1", 6379)));
        assert_eq!(host_and_port("redis.example.com"), None);
        assert_eq!(host_and_port(":6379"), None);
        assert_eq!(url("::1", 6379, 0), "redis://[::1]:6379");
        assert_eq!(url("redis.example.com", 6380, 3), "redis://redis.example.com:6380/3");
        assert_eq!((milliseconds(400), milliseconds(2000)), ("400ms".to_owned(), "2s".to_owned()));
    }
}
