//! Which source file imports from which.
//!
//! A file imports from another one when a path in it names an item of that file. `super`, `self`, `crate`, and modules that
//! the file declares are resolved. A name that a file has from elsewhere by `use` is followed to the file it comes from, so a
//! `mod.rs` that declares and re-exports imports nothing and nothing is imported from it. A re-export is an import of its own
//! only where the file uses the name too. A glob is an import of all that it brings. Code under `#[cfg(test)]` is left out.
//!
//! What is not seen: paths within the arguments of a macro, and methods, which need no import.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, UseTree, Visibility};

/// A module, as its path from the root of the crate.
type Module = Vec<String>;

/// One name that a file gets by `use`.
struct Import {
    /// The name in this file; `None` for a glob.
    name: Option<String>,
    /// The path as it is written, with the file's own module for `self`.
    path: Vec<String>,
    /// Whether the name is passed on (`pub use`).
    is_passed_on: bool,
}

/// What one source file declares, imports and names.
#[derive(Default)]
struct File {
    children: BTreeSet<String>,
    imports: Vec<Import>,
    /// Paths of the code itself.
    paths: Vec<Vec<String>>,
    /// How many inline modules deep the visit is.
    depth: usize,
}

impl File {
    fn read(text: &str) -> File {
        let mut file = File::default();
        let parsed = syn::parse_file(text).unwrap();
        if !parsed.attrs.iter().any(is_test) {
            file.visit_file(&parsed);
        }
        file
    }

    /// Drops the `super`s by which an inline module names its own file's items.
    fn outside_of_inner(&self, mut path: Vec<String>) -> Vec<String> {
        let inner = path.iter().take(self.depth).take_while(|segment| *segment == "super").count();
        path.drain(..inner);
        if inner > 0 && path.first().is_some_and(|first| first != "super") {
            path.insert(0, "self".to_owned());
        }
        path
    }

    fn note(&mut self, tree: &UseTree, before: &[String], is_passed_on: bool) {
        let mut path = before.to_vec();
        match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.note(&part.tree, &path, is_passed_on);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.note(tree, &path, is_passed_on);
                }
            }
            UseTree::Name(name) if name.ident == "self" => {
                self.imports.push(Import {
                    name: path.last().cloned(),
                    path: self.outside_of_inner(path),
                    is_passed_on,
                });
            }
            UseTree::Name(name) => {
                path.push(name.ident.to_string());
                self.imports.push(Import {
                    name: path.last().cloned(),
                    path: self.outside_of_inner(path),
                    is_passed_on,
                });
            }
            UseTree::Rename(name) => {
                path.push(name.ident.to_string());
                let known_as = Some(name.rename.to_string());
                self.imports.push(Import { name: known_as, path: self.outside_of_inner(path), is_passed_on });
            }
            UseTree::Glob(_) => {
                self.imports.push(Import { name: None, path: self.outside_of_inner(path), is_passed_on });
            }
        }
    }
}

/// Whether what carries this attribute is compiled for tests only.
fn is_test(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string().contains("test"))
}

impl<'ast> Visit<'ast> for File {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !attributes.iter().any(is_test) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        match &item.content {
            None => {
                self.children.insert(item.ident.to_string());
            }
            Some(_) => {
                self.depth += 1;
                visit::visit_item_mod(self, item);
                self.depth -= 1;
            }
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.note(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
    }

    // `pub(in crate::room)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.paths.push(self.outside_of_inner(segments));
        visit::visit_path(self, path);
    }
}

/// The files of a crate by their modules.
pub(crate) struct Sources(BTreeMap<Module, File>);

impl Sources {
    /// Reads sources; each is its path within `src` and its text.
    pub(crate) fn read<'a>(files: impl IntoIterator<Item = (&'a Path, &'a str)>) -> Sources {
        let files = files.into_iter().map(|(path, text)| (module_of(path), File::read(text)));
        let mut files: BTreeMap<Module, File> = files.collect();
        // What no file declares outside of tests is a test.
        let declared: BTreeSet<Module> = files
            .iter()
            .flat_map(|(module, file)| {
                file.children.iter().map(|child| [&module[..], std::slice::from_ref(child)].concat())
            })
            .collect();
        loop {
            let orphan = files.keys().find(|module| {
                module.len() > 1
                    && !(declared.contains(*module) && files.contains_key(&module[..module.len() - 1]))
            });
            let Some(orphan) = orphan.cloned() else { return Sources(files) };
            files.remove(&orphan);
        }
    }

    /// For each file, the files it imports from.
    pub(crate) fn edges(&self) -> BTreeMap<String, BTreeSet<String>> {
        let edges = self.0.iter().map(|(module, file)| {
            let used = file.imports.iter().filter(|import| !import.is_passed_on || is_used(file, import));
            let paths = used.map(|import| &import.path).chain(&file.paths);
            let mut found: BTreeSet<Module> = paths.filter_map(|path| self.home(module, path, 0)).collect();
            for glob in file.imports.iter().filter(|import| import.name.is_none()) {
                found.extend(
                    self.home(module, &glob.path, 0).into_iter().flat_map(|from| self.brought(&from)),
                );
            }
            found.remove(module);
            (name(module), found.iter().map(name).collect())
        });
        edges.collect()
    }

    /// The modules whose items a glob of `module` brings, its own aside.
    fn brought(&self, module: &Module) -> Vec<Module> {
        let imports = self.0.get(module).into_iter().flat_map(|file| &file.imports);
        imports.filter_map(|import| self.home(module, &import.path, 0)).collect()
    }

    /// The module whose file holds what `path`, written in `module`, names; `None` for what is not of this crate and for
    /// what the file names without a path.
    fn home(&self, module: &Module, path: &[String], depth: usize) -> Option<Module> {
        let file = self.0.get(module)?;
        let first = path.first()?;
        let (mut at, mut rest) = match first.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (module.clone(), &path[1..]),
            "super" => (module[..module.len().checked_sub(1)?].to_vec(), &path[1..]),
            child if file.children.contains(child) => (module.clone(), path),
            _ => return None,
        };
        while let Some(next) = rest.first() {
            if next == "super" {
                at.pop();
                rest = &rest[1..];
                continue;
            }
            let inner = [&at[..], std::slice::from_ref(next)].concat();
            if self.0.contains_key(&inner) {
                at = inner;
                rest = &rest[1..];
                continue;
            }
            // An item: defined here, or had from elsewhere.
            let here = self.0.get(&at);
            let import =
                here.and_then(|file| file.imports.iter().find(|import| import.name.as_ref() == Some(next)));
            return match import {
                Some(import) if depth < 8 => {
                    let full = [&import.path[..], &rest[1..]].concat();
                    self.home(&at, &full, depth + 1)
                }
                _ => Some(at),
            };
        }
        Some(at)
    }
}

/// Whether the code of `file` names what it re-exports.
fn is_used(file: &File, import: &Import) -> bool {
    file.paths.iter().any(|path| path.first() == import.name.as_ref())
}

fn module_of(path: &Path) -> Module {
    let mut module: Module =
        path.iter().map(|part| part.to_string_lossy().trim_end_matches(".rs").to_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

fn name(module: &Module) -> String {
    module.join("/")
}

/// The circles of a graph: files of which each is reached from each other one, in order of their names.
pub(crate) fn circles(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = edges
        .keys()
        .map(|start| {
            let mut seen = BTreeSet::new();
            let mut open: Vec<&String> = edges[start].iter().collect();
            while let Some(next) = open.pop() {
                if seen.insert(next) {
                    open.extend(edges.get(next).into_iter().flatten());
                }
            }
            (start, seen)
        })
        .collect();
    let mut circles: Vec<Vec<String>> = Vec::new();
    for (start, seen) in &reached {
        if seen.contains(start) && !circles.iter().flatten().any(|file| file == *start) {
            let both =
                seen.iter().filter(|other| reached.get(*other).is_some_and(|back| back.contains(start)));
            circles.push(both.map(|file| (*file).clone()).collect());
        }
    }
    circles
}
