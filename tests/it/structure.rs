//! The shape of the source tree: a module imports only from those above it in the reading order.
//!
//! Import cycles are how proxies become unreadable; once there is one, the rest follow. So the order is a test.

use std::fs;
use std::path::{Path, PathBuf};

/// The reading order, which is the import order.
const ORDER: [&str; 15] = [
    "telemetry",
    "shutdown",
    "resp",
    "command",
    "session",
    "upstream",
    "pool",
    "hub",
    "hygiene",
    "admin",
    "downstream",
    "config",
    "proxy",
    "cli",
    "fuzzing",
];

fn position(module: &str) -> Option<usize> {
    ORDER.iter().position(|name| *name == module)
}

/// Every Rust file under `directory`.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The modules that a text names as `crate::module`, comments left out; `crate::{a, b}` names several.
fn imported(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (start, _) in code.match_indices("crate::") {
            // `$crate::` in a macro is the same crate, `mycrate::` another one.
            let before = code[..start].chars().next_back();
            if before.is_some_and(|symbol| symbol.is_alphanumeric() || symbol == '_') {
                continue;
            }
            let rest = &code[start + "crate::".len()..];
            let names: Vec<&str> = match rest.strip_prefix('{') {
                Some(group) => group.split(['{', '}', ',']).map(str::trim).collect(),
                None => vec![rest],
            };
            for name in names {
                let end = name.find(|symbol: char| !(symbol.is_alphanumeric() || symbol == '_'));
                let name = &name[..end.unwrap_or(name.len())];
                if !name.is_empty() {
                    found.push((number + 1, name.to_owned()));
                }
            }
        }
    }
    found
}

/// The modules that `lib.rs` declares, in its order.
fn declared(library: &str) -> Vec<String> {
    let lines = library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    lines.map(str::to_owned).collect()
}

#[test]
fn a_module_imports_only_from_those_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for path in sources(&root) {
        let relative = path.strip_prefix(&root).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let module = first.trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let Some(own) = position(module) else {
            wrong.push(format!("{}: the module is not in the reading order", relative.display()));
            continue;
        };
        for (line, name) in imported(&fs::read_to_string(&path).unwrap()) {
            if position(&name).is_some_and(|other| other > own) {
                wrong.push(format!(
                    "{}:{line} imports {name}, which comes after {module}",
                    relative.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_library_lists_its_modules_in_reading_order() {
    let library = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let modules = declared(&library);
    let positions: Vec<usize> =
        modules.iter().map(|name| position(name).unwrap_or_else(|| panic!("{name} has no place"))).collect();
    assert!(!positions.is_empty());
    assert!(positions.is_sorted(), "{modules:?}");
}

#[test]
fn the_reader_of_imports_sees_groups_macros_and_no_comments() {
    let text = "use crate::resp::Protocol;\nuse crate::{pool::Budget, upstream};\n// use crate::cli;\nmycrate::proxy()\n";
    let names: Vec<String> = imported(text).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["resp", "pool", "upstream"]);
}

#[test]
fn unsafe_code_is_forbidden() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert!(manifest.lines().any(|line| line.trim() == "unsafe_code = \"forbid\""));
}
