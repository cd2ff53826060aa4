//! The page for operators: its files, and the feed that keeps it up to date.
//!
//! The files are part of the binary and name no other host. The page asks for `events`, a stream of server-sent events: the
//! last 15 minutes first, then one picture a second. A picture is made from `/status` and `/metrics`, so the page cannot
//! disagree with them.

mod feed;
mod history;
mod picture;
mod tally;

pub(super) use feed::{Feed, VIEWERS, Viewer};
pub use history::Sample;

/// What a browser may load for the page: files of this port, and nothing written into the page itself.
pub(super) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the page: its media type and its content.
pub(super) type File = (&'static str, &'static str);

/// The file at `path`, if it is one of the page.
pub(super) fn file(path: &str) -> Option<File> {
    const SCRIPT: &str = "text/javascript; charset=utf-8";
    Some(match path {
        "/" => ("text/html; charset=utf-8", include_str!("page.html")),
        "/dashboard.css" => ("text/css; charset=utf-8", include_str!("dashboard.css")),
        "/dashboard.js" => (SCRIPT, include_str!("dashboard.js")),
        "/chart.js" => (SCRIPT, include_str!("chart.js")),
        "/details.js" => (SCRIPT, include_str!("details.js")),
        "/words.js" => (SCRIPT, include_str!("words.js")),
        "/icon.svg" => ("image/svg+xml", include_str!("icon.svg")),
        _ => return None,
    })
}
