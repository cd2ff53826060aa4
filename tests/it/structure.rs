//! The shape of the source tree: a module imports only from those above it in the reading order, and no files of one module
//! import each other in a circle ([`imports`] says what an import is).
//!
//! Import cycles are how proxies become unreadable; once there is one, the rest follow. So the order is a test.

mod imports;

use std::fs;
use std::path::{Path, PathBuf};

use imports::{Sources, circles};

/// The reading order, which is the import order.
const ORDER: [&str; 18] = [
    "telemetry",
    "shutdown",
    "resp",
    "command",
    "session",
    "upstream",
    "cluster",
    "pool",
    "nodes",
    "hub",
    "hygiene",
    "admin",
    "downstream",
    "takeover",
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

/// The circles among files.
fn circles_in<'a>(files: impl IntoIterator<Item = (&'a Path, &'a str)>) -> Vec<Vec<String>> {
    circles(&Sources::read(files).edges())
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let texts: Vec<_> = sources(&root)
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(&root).unwrap().to_owned(), text)
        })
        .collect();
    let found = circles_in(texts.iter().map(|(path, text)| (path.as_path(), text.as_str())));
    assert!(found.is_empty(), "these import each other: {found:?}");
}

/// A circle planted in each way that an import can be written; and what looks like one and is none.
#[test]
fn a_planted_circle_is_found_however_it_is_written() {
    let found =
        |files: &[(&str, &str)]| circles_in(files.iter().map(|(path, text)| (Path::new(path), *text)));
    let lib = ("lib.rs", "pub mod room;");
    let room = ("room/mod.rs", "mod a; mod b; mod c; pub use a::A; pub use b::B; pub use c::C;");
    let a = ("room/a.rs", "pub struct A;");
    let none =
        [lib, room, a, ("room/b.rs", "use super::A; pub struct B(A);"), ("room/c.rs", "pub struct C;")];
    assert!(found(&none).is_empty());
    for (a, b) in [
        ("use super::b::B; pub struct A(B);", "use super::a::A; pub struct B(A);"),
        ("use super::B; pub struct A(B);", "use super::A; pub struct B(A);"),
        ("use crate::room::{B as Other}; pub struct A(Other);", "pub fn b() { let _ = super::a::A; }"),
        (
            "pub struct A; mod inner { use super::super::B; fn f(_: B) {} }",
            "use crate::room::a; pub struct B(a::A);",
        ),
        ("use super::*; pub struct A;", "use super::A; pub struct B(A);"),
    ] {
        let files = [lib, room, ("room/a.rs", a), ("room/b.rs", b), ("room/c.rs", "pub struct C;")];
        assert!(!found(&files).is_empty(), "{a} {b}");
    }
    // By way of a third file.
    let files = [
        lib,
        room,
        ("room/a.rs", "use super::B; pub struct A(B);"),
        ("room/b.rs", "use super::C; pub struct B(C);"),
        ("room/c.rs", "use super::A; pub struct C(A);"),
    ];
    assert_eq!(found(&files), [["room/a", "room/b", "room/c"]]);
    // A parent that uses what it re-exports, and a child that uses an item of the parent's own file.
    let uses = "mod a; pub use a::A; pub struct Own(A);";
    let child = ("room/a.rs", "use super::Own; pub struct A(Box<Own>);");
    assert_eq!(found(&[lib, ("room/mod.rs", uses), child]), [["room", "room/a"]]);
    // A parent that only passes on what the child has, though the child uses the parent's own.
    let passes = "mod a; pub use a::A; pub struct Own;";
    assert!(found(&[lib, ("room/mod.rs", passes), child]).is_empty());
    // Tests may look at everything.
    let tests = "pub struct A; #[cfg(test)] mod tests { use crate::room::b::B; fn f(_: B) {} }";
    let b = ("room/b.rs", "use super::A; pub struct B(A);");
    assert!(found(&[lib, room, ("room/a.rs", tests), b, ("room/c.rs", "pub struct C;")]).is_empty());
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
