//! Finds secrets that other users of this host can read. They are allowed, with a warning at the start, because a file
//! may be readable on purpose.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::Origin;
use super::key::Key;
use super::keys::KEYS;
use super::source::Layers;
use super::{Config, Exposure};

/// Files that are secrets, or hold some.
const FILES: [&str; 5] = [
    "listen.tls.key",
    "auth.users_file",
    "upstream.password_file",
    "upstream.tls.key",
    "upstream.sentinel.password_file",
];

/// The exposed secrets of a valid configuration.
pub(super) fn found(config: &Config, layers: &Layers) -> Vec<Exposure> {
    let mut found = Vec::new();
    if config.upstream.password.is_some() {
        let keys = ["upstream.password", "upstream.url"];
        let named = keys.into_iter().find(|key| *key == "upstream.url" || is_given(layers, key));
        // By a file of its own the password stands in neither.
        let key = named.filter(|_| !is_given(layers, "upstream.password_file"));
        match key.map(|key| (key, layers.origin(key))) {
            Some((_, Origin::Flag(flag))) => found.push(Exposure::CommandLine(flag)),
            Some((key, Origin::File { path, .. })) if others_may_read(&path) => {
                found.push(Exposure::File { key, path });
            }
            Some((_, Origin::File { .. } | Origin::Environment(_) | Origin::Command | Origin::Default))
            | None => {}
        }
    }
    if is_given(layers, "upstream.sentinel.password") {
        match layers.origin("upstream.sentinel.password") {
            Origin::Flag(flag) => found.push(Exposure::CommandLine(flag)),
            Origin::File { path, .. } if others_may_read(&path) => {
                found.push(Exposure::File { key: "upstream.sentinel.password", path });
            }
            Origin::File { .. } | Origin::Environment(_) | Origin::Command | Origin::Default => {}
        }
    }
    for key in FILES {
        if let Some(path) = text(layers, key).map(PathBuf::from).filter(|path| others_may_read(path)) {
            found.push(Exposure::File { key, path });
        }
    }
    found
}

/// Whether users of this host who are neither its owner nor of its group may read a file.
pub(super) fn others_may_read(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o004 != 0)
}

fn text(layers: &Layers, key: &str) -> Option<String> {
    let (given, _) = KEYS.iter().find(|known: &&Key| known.path == key).and_then(|key| layers.given(key))?;
    given.text().ok().filter(|text| !text.is_empty())
}

fn is_given(layers: &Layers, key: &str) -> bool {
    text(layers, key).is_some()
}
