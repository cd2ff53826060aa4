//! The documents that can drift, held to the code: metrics, reasons, error texts, and the links between pages.
//!
//! People read these pages in the middle of an outage, so a row that is missing or wrong is a fault like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use redbouncer::command::FAMILIES;
use redbouncer::resp::ErrorCode;
use redbouncer::session::Pin;
use redbouncer::telemetry::{ClientClose, METRICS, PROCESS_METRICS, Reap, UpstreamClose};
use redbouncer::upstream::Capability;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The rows of the table behind `heading` (behind the page's first table head without one), as their cells.
fn table<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let lines = page.lines().skip_while(|line| *line != heading).skip_while(|line| !line.starts_with('|'));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// The rows of all tables of a page, without their heads.
fn tables(page: &str) -> Vec<Vec<&str>> {
    let mut rows = Vec::new();
    for block in page.split("\n\n") {
        let lines = block.lines().skip_while(|line| !line.starts_with("|---"));
        rows.extend(lines.skip(1).map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()));
    }
    rows
}

/// The words in backquotes of each row's first cell.
fn first_words(rows: &[Vec<&str>]) -> Vec<String> {
    rows.iter().map(|row| row[0].trim_matches('`').to_owned()).collect()
}

/// Files below `directory` that end in `end`, build output and downloads left out.
fn files(directory: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && !["target", "node_modules"].contains(&name.as_str()) {
                found.extend(files(&path, end));
            }
        } else if name.ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_metric_is_documented_as_the_code_describes_it() {
    let rows = METRICS.iter().map(|(name, kind, labels, meaning)| {
        let row = format!("| `{name}` | {kind} | {labels} | {meaning} |\n");
        row.replace("|  |", "| |")
    });
    let head = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    written("docs/reference/metrics.md", "# Metrics", &(head + &rows.collect::<String>()));
    let rows = PROCESS_METRICS.iter().map(|(name, kind, text)| format!("| `{name}` | {kind} | {text} |\n"));
    let head = "| metric | type | meaning |\n|---|---|---|\n".to_owned();
    written("docs/reference/metrics.md", "## Process", &(head + &rows.collect::<String>()));
}

#[test]
fn every_kind_of_error_is_documented() {
    let page = read("docs/reference/metrics.md");
    let row = table(&page, "## Label values").into_iter().find(|row| row[0] == "`kind` of errors").unwrap();
    for code in ErrorCode::ALL {
        assert!(row[1].contains(&format!("`{}`", code.label())), "{}", code.label());
    }
    let row = table(&page, "## Label values").into_iter().find(|row| row[0] == "`family`").unwrap();
    for (_, family) in FAMILIES {
        assert!(row[1].contains(&format!("`{family}`")), "{family}");
    }
}

/// Holds the first table behind `heading` to `expected`; writes it instead where REDBOUNCER_WRITE is set.
fn written(path: &str, heading: &str, expected: &str) {
    let page = read(path);
    let from = page.find(&format!("{heading}\n")).unwrap_or_else(|| panic!("{path} has no {heading}"));
    let begin = from + page[from..].find("\n|").unwrap() + 1;
    let end = page[begin..].find("\n\n").map_or(page.len(), |at| begin + at + 1);
    if std::env::var_os("REDBOUNCER_WRITE").is_some() {
        let new = [&page[..begin], expected, &page[end..]].concat();
        return fs::write(root().join(path), new).unwrap();
    }
    assert_eq!(
        &page[begin..end],
        expected,
        "{path}: to write it, REDBOUNCER_WRITE=1 cargo nextest run -E 'test(docs::)'"
    );
}

#[test]
fn every_metric_is_counted_somewhere() {
    let mut uses: BTreeMap<&str, usize> = METRICS.iter().map(|(name, ..)| (*name, 0)).collect();
    for path in files(&root().join("src"), ".rs") {
        let text = fs::read_to_string(&path).unwrap();
        for (name, count) in &mut uses {
            *count += text.matches(name).count();
        }
    }
    // A name that begins another one is found in it, too; so each must be found more often than it is listed.
    for (name, count) in &uses {
        let listed = METRICS.iter().filter(|(other, ..)| other.contains(name)).count();
        assert!(*count > listed, "{name} is listed and never set");
    }
}

#[test]
fn every_reason_for_closing_a_client_is_documented() {
    let page = read("docs/reference/metrics.md");
    let known: Vec<_> = ClientClose::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(first_words(&table(&page, "## Why clients are closed")), known);
}

#[test]
fn every_reason_for_closing_an_upstream_connection_is_documented() {
    let page = read("docs/reference/metrics.md");
    let known: Vec<_> = UpstreamClose::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(first_words(&table(&page, "## Why upstream connections are closed")), known);
}

#[test]
fn every_reason_for_killing_an_orphan_is_documented() {
    let page = read("docs/reference/metrics.md");
    let known: Vec<_> = Reap::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(first_words(&table(&page, "## Why orphans are killed")), known);
}

/// Closes are counted in one place for each side, so that none is counted without a reason of the enum.
#[test]
fn no_close_is_counted_past_the_reasons() {
    for metric in ["redbouncer_clients_closed_total", "redbouncer_upstream_closed_total"] {
        let users: Vec<_> = files(&root().join("src"), ".rs")
            .into_iter()
            .filter(|path| fs::read_to_string(path).unwrap().contains(metric))
            .collect();
        assert_eq!(users, [root().join("src/telemetry/metrics.rs")], "{metric}");
    }
}

/// A connection to the server is counted as closed by the permit that it had, which also counts those whose end nobody
/// reported; a client where it is refused, or where its task ends.
#[test]
fn closes_are_reported_by_those_who_hold_the_connection() {
    let users = |call: &str| -> Vec<_> {
        let sources = files(&root().join("src"), ".rs").into_iter();
        let users = sources.filter(|path| fs::read_to_string(path).unwrap().contains(call));
        users.map(|path| path.strip_prefix(root().join("src")).unwrap().display().to_string()).collect()
    };
    assert_eq!(users("upstream_closed("), ["pool/budget/permit.rs", "telemetry/metrics.rs"]);
    let clients =
        ["listen/accept", "listen/handshake", "routes/task", "worker/admit", "worker/drain", "workers"];
    let clients = clients.map(|name| format!("downstream/{name}.rs"));
    assert_eq!(users("client_closed("), [&clients[..], &["telemetry/metrics.rs".to_owned()]].concat());
}

#[test]
fn everything_that_can_be_lacking_is_documented_with_what_follows() {
    let page = read("docs/guides/providers.md");
    let rows = table(&page, "## Fallbacks");
    let documented: Vec<_> = rows.iter().map(|row| (row[0].trim_matches('`'), row[2])).collect();
    let names = Capability::ALL.map(|what| what.to_string());
    let expected: Vec<_> =
        names.iter().zip(Capability::ALL).map(|(name, what)| (name.as_str(), what.without())).collect();
    assert_eq!(documented, expected);
}

#[test]
fn every_recipe_for_a_provider_names_tests_that_exist() {
    let page = read("docs/guides/providers.md");
    let tests = read("tests/it/providers.rs");
    let recipes = page.split("\n## ").filter(|section| section.contains("REDBOUNCER_UPSTREAM__URL"));
    let mut count = 0;
    for recipe in recipes {
        let named: Vec<_> =
            recipe.split("`providers::").skip(1).filter_map(|rest| rest.split('`').next()).collect();
        assert!(!named.is_empty(), "no test: {recipe}");
        for name in named {
            assert!(tests.contains(&format!("fn {name}()")), "no such test: {name}");
        }
        count += 1;
    }
    assert_eq!(count, 6);
}

/// The tests of a file: functions behind `#[test]`, and those that `on_both!` makes two of.
fn tests_of(source: &str) -> BTreeSet<&str> {
    let name = |text: &str| text.find(|sign: char| !sign.is_alphanumeric() && sign != '_');
    let mut found = BTreeSet::new();
    for rest in source.split("#[test]\n").skip(1) {
        // Other attributes may stand between.
        if let Some((_, rest)) = rest.split_once("fn ") {
            found.extend(name(rest).map(|end| &rest[..end]));
        }
    }
    for list in source.split("on_both!(").skip(1) {
        let list = list.split(");").next().unwrap_or_default();
        found.extend(list.split([',', ':']).map(str::trim));
    }
    found
}

#[test]
fn tests_that_the_compatibility_page_names_exist() {
    let page = read("docs/reference/compatibility.md");
    let mut checked = 0;
    for word in page.split('`').skip(1).step_by(2) {
        let Some((file, test)) = word.split_once("::") else { continue };
        let is_known = tests_of(&read(&format!("tests/it/{file}.rs"))).contains(test);
        assert!(is_known, "docs/reference/compatibility.md names {word}");
        checked += 1;
    }
    assert!(checked >= 80, "only {checked} names were found: the reader is broken");
}

/// Every row and every item of the page names the tests that show it.
#[test]
fn every_difference_on_the_compatibility_page_has_its_test() {
    let page = read("docs/reference/compatibility.md");
    for section in page.split("\n## ").skip(1) {
        let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
        let items = section.split("\n- ").skip(1).map(|item| item.split("\n\n").next().unwrap_or_default());
        for difference in rows.chain(items) {
            let is_shown = difference.split('`').skip(1).step_by(2).any(|word| word.contains("::"));
            assert!(is_shown, "no test is named: {difference}");
        }
    }
}

/// A link, or a test that exists; what nobody has stated or measured says so.
#[test]
fn every_cell_of_the_comparison_has_a_source() {
    let page = read("docs/explanation/comparison.md");
    let mut checked = 0;
    for row in table(&page, "## Proxies") {
        for cell in &row[1..] {
            let is_told = cell.starts_with("not ") || *cell == "as directly";
            assert!(is_told || cell.contains("](") || cell.contains("::"), "{}: {cell}", row[0]);
            checked += 1;
        }
    }
    assert!(checked >= 50, "only {checked} cells were found: the reader is broken");
    for word in page.split('`').skip(1).step_by(2) {
        let Some((file, test)) = word.split_once("::") else { continue };
        let is_known = tests_of(&read(&format!("tests/it/{file}.rs"))).contains(test);
        assert!(is_known, "docs/explanation/comparison.md names {word}");
    }
}

#[test]
fn every_pin_is_documented() {
    let page = read("docs/reference/metrics.md");
    let known: Vec<_> = Pin::ALL.iter().map(|pin| pin.label()).collect();
    assert_eq!(first_words(&table(&page, "## Why leases are taken")), known);
}

/// The fixed beginnings of our own error texts in a source file: up to the first value or line end.
fn error_texts(source: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let literals = |before: &str, put: &str| -> Vec<String> {
        code.match_indices(before)
            .map(|(at, _)| {
                let text = &code[at + before.len()..];
                format!("{put}{}", text[..text.find(['"', '{', '\\']).unwrap_or(0)].trim_end())
            })
            .collect()
    };
    let dial = "ERR redbouncer: no upstream connection: ";
    let mut texts = BTreeSet::new();
    texts.extend(literals("\"ERR redbouncer: ", "ERR redbouncer: "));
    texts.extend(literals("\"-ERR redbouncer: ", "ERR redbouncer: "));
    texts.extend(literals("\"redbouncer: no upstream", "ERR redbouncer: no upstream"));
    texts.extend(literals("\"redbouncer: this instance", "ERR redbouncer: this instance"));
    texts.extend(literals(" own(\"", dial));
    texts.extend(literals(" own(&format!(\"", dial));
    texts
}

#[test]
fn every_error_text_of_ours_is_in_the_page_of_errors() {
    let page = read("docs/reference/errors.md");
    let documented: Vec<String> = first_words(&tables(&page));
    let mut texts = BTreeSet::new();
    // Modules of tests that have a file of their own are tests as those behind `#[cfg(test)]` are.
    let is_test = |path: &Path| path.iter().any(|part| part == "tests" || part == "tests.rs");
    let source = root().join("src");
    for path in files(&source, ".rs").into_iter().filter(|path| !is_test(path.strip_prefix(&source).unwrap()))
    {
        for text in error_texts(&fs::read_to_string(&path).unwrap()) {
            // The page writes ⟨value⟩ where the source has {value}.
            let known = documented.iter().any(|row| row.starts_with(&text));
            assert!(known, "{}: {text:?} has no row in docs/reference/errors.md", path.display());
            texts.insert(text);
        }
    }
    assert!(texts.len() >= 15, "only {texts:?} were found: the reader is broken");
    // A row whose text is no longer in the source is an error as well.
    for row in documented.iter().filter(|row| row.starts_with("ERR redbouncer: ")) {
        assert!(texts.iter().any(|text| row.starts_with(text.as_str())), "no such error: {row}");
    }
}

/// The fixed beginnings of the warnings and errors that a source file logs. The message is the last text of the call.
fn warnings(source: &str) -> BTreeSet<String> {
    let code = source.split("\nmod tests").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for call in ["tracing::warn!(", "tracing::error!("] {
        for rest in code.split(call).skip(1) {
            let (mut open, mut last, mut begin) = (1, "", None);
            for (at, sign) in rest.char_indices() {
                match (sign, begin) {
                    ('"', Some(from)) => (last, begin) = (&rest[from..at], None),
                    ('"', None) => begin = Some(at + 1),
                    ('(', None) => open += 1,
                    (')', None) => open -= 1,
                    _ => {}
                }
                if open == 0 {
                    break;
                }
            }
            found.extend(last.split(['{', '\\']).next().map(|text| text.trim_end().to_owned()));
        }
    }
    // A message that is one value is documented where the value comes from.
    found.remove("");
    found
}

#[test]
fn every_warning_and_error_of_the_log_is_documented() {
    let page = read("docs/reference/log.md");
    let mut seen = 0;
    let source = root().join("src");
    let is_test =
        |path: &Path| path.iter().any(|part| part == "tests" || part == "tests.rs" || part == "fuzzing");
    for path in files(&source, ".rs").into_iter().filter(|path| !is_test(path.strip_prefix(&source).unwrap()))
    {
        for text in warnings(&fs::read_to_string(&path).unwrap()) {
            seen += 1;
            let known = page.contains(&format!("`{text}"));
            assert!(known, "{}: {text:?} has no row in docs/reference/log.md", path.display());
        }
    }
    assert!(seen >= 20, "only {seen} texts were found: the reader is broken");
}

#[test]
fn the_reader_of_warnings_takes_the_message_up_to_its_first_value() {
    let source = "tracing::warn!(user = %name(\"a\"), \"a login {failed}\"); tracing::info!(\"up\"); tracing::error!(\"down\")";
    assert_eq!(warnings(source).into_iter().collect::<Vec<_>>(), ["a login", "down"]);
}

#[test]
fn the_reader_of_error_texts_stops_at_values_and_skips_tests() {
    let source =
        "f(\"ERR redbouncer: '{name}' is refused\"); own(\"down\");\n#[cfg(test)] \"ERR redbouncer: test\"";
    let texts: Vec<_> = error_texts(source).into_iter().collect();
    assert_eq!(texts, ["ERR redbouncer: '", "ERR redbouncer: no upstream connection: down"]);
}

/// The anchor that a heading gets: lower case, spaces to hyphens, other signs left out.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|sign| sign.is_alphanumeric() || [' ', '-', '_'].contains(sign));
    kept.map(|sign| if sign == ' ' { '-' } else { sign }).collect()
}

/// The anchors of a page, code blocks left out.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

/// The targets of a page's links.
fn links(page: &str) -> Vec<&str> {
    page.match_indices("](").filter_map(|(at, _)| page[at + 2..].split(')').next()).collect()
}

#[test]
fn links_between_pages_resolve() {
    let mut checked = 0;
    for path in files(root(), ".md") {
        let page = fs::read_to_string(&path).unwrap();
        for link in links(&page) {
            if link.contains("://") {
                continue;
            }
            let (target, fragment) = link.split_once('#').unwrap_or((link, ""));
            let file = if target.is_empty() { path.clone() } else { path.parent().unwrap().join(target) };
            assert!(file.exists(), "{}: {link} leads nowhere", path.display());
            if !fragment.is_empty() {
                let known = anchors(&fs::read_to_string(&file).unwrap());
                assert!(known.contains(fragment), "{}: {link} has no such heading", path.display());
            }
            checked += 1;
        }
    }
    assert!(checked >= 20, "only {checked} links were found: the reader is broken");
}

#[test]
fn every_file_of_integration_tests_is_in_one_group_of_the_contributing_page() {
    let page = read("CONTRIBUTING.md");
    let commands =
        page.lines().filter_map(|line| line.split_once("cargo nextest run -E 'binary(it) & test(/^("));
    // Commands inside a sentence are no groups.
    let groups = commands.filter(|(before, _)| before.trim().is_empty());
    let mut grouped: Vec<&str> = groups
        .filter_map(|(_, rest)| rest.split_once(")::/)'"))
        .flat_map(|(names, _)| names.split('|'))
        .collect();
    grouped.sort_unstable();
    let main = read("tests/it/main.rs");
    let mut modules: Vec<&str> =
        main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')).collect();
    modules.retain(|name| *name != "harness");
    assert_eq!(grouped, modules);
}

/// All pages in the root and in `docs/` by path, except decision records, which are never rewritten.
fn pages() -> Vec<(String, String)> {
    let mut pages = Vec::new();
    for path in files(root(), ".md") {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        if !name.starts_with("docs/decisions/") && (name.starts_with("docs/") || !name.contains('/')) {
            pages.push((name, fs::read_to_string(path).unwrap()));
        }
    }
    pages
}

#[test]
fn every_page_is_in_the_index() {
    let index = read("docs/README.md");
    let listed = links(&index);
    for (name, _) in pages() {
        if let Some(page) = name.strip_prefix("docs/").filter(|page| *page != "README.md") {
            assert!(listed.iter().any(|link| link.split('#').next() == Some(page)), "docs/README.md: {page}");
        }
    }
}

/// A page's words outside code blocks and backquotes, in lower case, with one space between them.
fn words(page: &str) -> String {
    let mut prose = String::new();
    let mut is_code = false;
    let mut is_behind_gap = true;
    for line in page.lines() {
        is_code = line.starts_with("    ") && (is_code || is_behind_gap);
        is_behind_gap = line.is_empty();
        if !is_code {
            prose += line;
            prose.push(' ');
        }
    }
    let plain: String = prose.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    let plain = plain.to_lowercase();
    let words = plain.split(|sign: char| !sign.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// Idioms that are not plain technical English, each with its replacement.
const IDIOMS: [(&str, &str); 8] = [
    ("somebody", "name who: a client, a user, a process"),
    ("nobody", "no client, no user, no process"),
    ("anew", "again"),
    ("at the most", "at most"),
    ("belongs into", "belongs in"),
    ("let in", "accepted"),
    ("be had", "be obtained, be available"),
    ("all the same", "still"),
];

fn idioms(page: &str) -> Vec<(&'static str, &'static str)> {
    let words = format!(" {} ", words(page));
    IDIOMS.into_iter().filter(|(idiom, _)| words.contains(&format!(" {idiom} "))).collect()
}

#[test]
fn pages_are_free_of_listed_idioms() {
    for (name, page) in pages() {
        assert_eq!(idioms(&page), [], "{name}");
    }
}

#[test]
fn the_reader_of_idioms_sees_line_ends_and_skips_what_is_quoted() {
    assert_eq!(idioms("At the\nmost two, and nobody.").len(), 2);
    assert_eq!(idioms("The line `nobody reads` is a quote, outlet in is none.\n\n    let in\n").len(), 0);
}

/// A longer page should be two pages. Tables do not count; reference pages may be long.
#[test]
fn guides_and_explanations_are_short() {
    for (name, page) in pages() {
        if name.starts_with("docs/guides/") || name.starts_with("docs/explanation/") {
            let prose: Vec<&str> = page.lines().filter(|line| !line.starts_with('|')).collect();
            let count = prose.join("\n").split_whitespace().count();
            assert!(count < 2000, "{name}: {count} words");
        }
    }
}

#[test]
fn source_files_that_the_architecture_names_exist() {
    for path in ["docs/architecture.md", "docs/explanation/internals.md", "docs/explanation/hubs.md"] {
        let page = read(path);
        let named =
            page.split('`').skip(1).step_by(2).filter(|word| word.ends_with(".rs") || word.ends_with('/'));
        let mut checked = 0;
        for word in named {
            let places = [root().join(word), root().join("src").join(word)];
            assert!(places.iter().any(|place| place.exists()), "{path} names {word}");
            checked += 1;
        }
        assert!(checked >= 10, "only {checked} names were found in {path}: the reader is broken");
    }
}

/// Each arrow of the diagram is an import, and every room has a row.
#[test]
fn the_diagram_of_the_architecture_is_that_of_the_code() {
    let page = read("docs/architecture.md");
    let diagram = page.split("```mermaid").nth(1).unwrap().split("```").next().unwrap();
    let arrows: Vec<_> = diagram.lines().filter_map(|line| line.trim().split_once(" --> ")).collect();
    assert!(arrows.len() >= 15, "only {} arrows were found: the reader is broken", arrows.len());
    for (from, to) in &arrows {
        let mut sources = files(&root().join("src").join(from), ".rs");
        sources.extend(Some(root().join(format!("src/{from}.rs"))).filter(|file| file.exists()));
        let uses = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap();
            text.contains(&format!("crate::{to}::")) || text.contains(&format!("use crate::{to};"))
        };
        assert!(sources.iter().any(uses), "nothing in {from} uses {to}");
    }
    let library = read("src/lib.rs");
    for room in library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')) {
        assert!(arrows.iter().any(|(from, to)| *from == room || *to == room), "{room} is not in the diagram");
        let named = [format!("| `src/{room}/` |"), format!("| `src/{room}.rs` |")];
        assert!(named.iter().any(|row| page.contains(row)), "{room} has no row");
    }
}

/// The lives of commands: steps of the form "`file` `function`".
#[test]
fn functions_that_the_architecture_names_exist() {
    let page = read("docs/architecture.md");
    let mut checked = 0;
    for step in page.lines().filter(|line| line.starts_with(|sign: char| sign.is_ascii_digit())) {
        let named: Vec<_> = step.split('`').skip(1).step_by(2).take(2).collect();
        let [file, function] = named[..] else { panic!("no file and function: {step}") };
        let source = read(file);
        let found = source
            .split("fn ")
            .skip(1)
            .any(|rest| rest.strip_prefix(function).is_some_and(|rest| rest.starts_with(['(', '<'])));
        assert!(found, "{file} has no function {function}");
        checked += 1;
    }
    assert!(checked >= 40, "only {checked} steps were found: the reader is broken");
    assert!(page.split_whitespace().count() < 1_500, "the map is to be short");
}
