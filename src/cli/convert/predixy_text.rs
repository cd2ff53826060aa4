//! The text of predixy's configuration: a directive a line, blocks in braces, `Include`.

use std::fs;
use std::path::Path;

use super::error::ConvertError;

/// Files that include each other have an end.
const DEEPEST: usize = 8;

/// `Name value`, and what stands in braces behind it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Directive {
    pub(super) name: String,
    pub(super) values: Vec<String>,
    pub(super) children: Vec<Directive>,
    pub(super) line: usize,
}

impl Directive {
    /// Names differ by more than case.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// The first value, or nothing.
    pub(super) fn value(&self) -> &str {
        self.values.first().map_or("", String::as_str)
    }

    /// The first directive inside with this name.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.is(name))
    }
}

/// Reads a text, and the files that it includes, which are named relative to `path`.
///
/// # Errors
/// A file cannot be read; braces or quotes that do not match.
pub(super) fn read(path: &Path, text: &str) -> Result<Vec<Directive>, ConvertError> {
    read_nested(path, text, 0)
}

fn read_nested(path: &Path, text: &str, depth: usize) -> Result<Vec<Directive>, ConvertError> {
    let wrong = |line, what| ConvertError::Predixy { path: path.display().to_string(), line, what };
    // The blocks that are open, the file itself first.
    let mut open = vec![Vec::new()];
    let mut heads = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line)) {
        let mut words = words(line).ok_or_else(|| wrong(number, "a quote is not closed"))?;
        let Some(first) = words.first() else { continue };
        if first == "}" {
            let children = open.pop().unwrap_or_default();
            let (name, values, line) = heads.pop().ok_or_else(|| wrong(number, "a brace closes nothing"))?;
            if let Some(block) = open.last_mut() {
                block.push(Directive { name, values, children, line });
            }
            continue;
        }
        let opens = words.last().is_some_and(|word| word == "{");
        words.truncate(words.len() - usize::from(opens));
        let name = if words.is_empty() { String::new() } else { words.remove(0) };
        if opens {
            heads.push((name, words, number));
            open.push(Vec::new());
        } else if name.eq_ignore_ascii_case("include") {
            let included = path.with_file_name(words.first().map_or("", String::as_str));
            if depth >= DEEPEST {
                return Err(wrong(number, "files include each other"));
            }
            let text = fs::read_to_string(&included)
                .map_err(|source| ConvertError::Read { path: included.display().to_string(), source })?;
            if let Some(block) = open.last_mut() {
                block.extend(read_nested(&included, &text, depth + 1)?);
            }
        } else if let Some(block) = open.last_mut() {
            block.push(Directive { name, values: words, children: Vec::new(), line: number });
        }
    }
    if !heads.is_empty() {
        return Err(wrong(text.lines().count(), "a brace is not closed"));
    }
    Ok(open.pop().unwrap_or_default())
}

/// The words of a line, without a comment; `None` where a quote is not closed.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut signs = line.chars().peekable();
    loop {
        while signs.next_if(|sign| sign.is_whitespace()).is_some() {}
        match signs.peek() {
            None | Some('#') => return Some(words),
            Some('"') => {
                signs.next();
                let mut word = String::new();
                loop {
                    match signs.next()? {
                        '"' => break,
                        '\\' => word.push(signs.next()?),
                        sign => word.push(sign),
                    }
                }
                words.push(word);
            }
            Some(_) => {
                let mut word = String::new();
                while let Some(sign) = signs.next_if(|sign| !sign.is_whitespace()) {
                    word.push(sign);
                }
                words.push(word);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Directive>, String> {
        read(Path::new("predixy.conf"), text).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn blocks_values_quotes_and_comments_are_read() {
        let found =
            parse("Name a # comment\nAuthority {\n  Auth \"#a \\\"b\" {\n    Mode admin\n  }\n}\n").unwrap();
        assert_eq!((found[0].value(), found[1].name.as_str()), ("a", "Authority"));
        let auth = &found[1].children[0];
        assert_eq!((auth.value(), auth.line, auth.child("mode").unwrap().value()), ("#a \"b", 3, "admin"));
    }

    #[test]
    fn what_does_not_match_is_named_with_its_line() {
        assert!(parse("A {\nB {\n}\n").unwrap_err().contains("line 3: a brace is not closed"));
        assert!(parse("A 1\n}\n").unwrap_err().contains("line 2: a brace closes nothing"));
        assert!(parse("A \"b\n").unwrap_err().contains("line 1: a quote is not closed"));
    }

    #[test]
    fn files_that_include_each_other_have_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.conf");
        std::fs::write(&path, "Include a.conf\n").unwrap();
        let wrong = read(&path, "Include a.conf\n").unwrap_err().to_string();
        assert!(wrong.contains("include each other"), "{wrong}");
    }
}
