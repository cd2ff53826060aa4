//! The URL that spans are sent to (`tracing.otlp_endpoint`).

use url::Url;

use super::value::Wrong;

/// Where a collector takes spans over HTTP (OTLP specification, "OTLP/HTTP Request").
const PATH: &str = "/v1/traces";

/// The URL with its path. Nothing of it is a secret: a user, a password or a query is refused, and no refusal repeats them.
pub(super) fn parse(text: &str) -> Result<String, Wrong> {
    if !cfg!(feature = "otlp") {
        return Err(
            "this redbouncer was built without the feature \"otlp\" and cannot export spans".to_owned()
        );
    }
    let form = "expected http://host:port/path, or https:// for TLS";
    let mut url = Url::parse(text).map_err(|wrong| format!("{form}, found no URL: {wrong}"))?;
    if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() {
        return Err(format!("{form}, found a URL of another kind"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(format!(
            "{form}, found a user, a password or a query: put what the collector asks for into the variable \
             OTEL_EXPORTER_OTLP_HEADERS"
        ));
    }
    if url.path() == "/" {
        url.set_path(PATH);
    }
    Ok(url.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[cfg(feature = "otlp")]
    #[test]
    fn the_path_may_be_left_out() {
        assert_eq!(parse("http://127.0.0.1:4318").unwrap(), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(parse("https://otel.example/api/otlp").unwrap(), "https://otel.example/api/otlp");
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn a_secret_is_refused_and_not_repeated() {
        for bad in
            ["http://me:hunter2@h:1", "https://h/v1/traces?key=hunter2", "hunter2", "redis://h:hunter2"]
        {
            assert!(!parse(bad).unwrap_err().contains("hunter2"), "{bad}");
        }
    }

    #[cfg(not(feature = "otlp"))]
    #[test]
    fn a_build_that_cannot_export_says_so() {
        assert!(parse("http://127.0.0.1:4318").unwrap_err().contains("without the feature \"otlp\""));
    }
}
