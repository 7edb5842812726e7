//! Which module of a crate uses which: a module is a file, its uses are the paths that begin with `crate`, `self`,
//! `super` or a module inside of it. What a module passes on (`pub use`) it does not use itself.

use std::collections::{BTreeMap, BTreeSet};

use crate::lexer::{Token, tokens, without_tests};

/// The place of a module in its crate: names from the root down.
type Place = Vec<String>;

/// A crate's modules, and for each the others that it uses.
pub type Graph = BTreeMap<String, BTreeSet<String>>;

/// The graph of a crate from its files: paths below `src`, and texts.
pub fn graph(files: &[(&str, &str)]) -> Graph {
    let modules: BTreeMap<Place, Module> = files.iter().map(|(path, text)| (place(path), Module::read(text))).collect();
    let tree = Tree(modules);
    let mut graph = Graph::new();
    for place in tree.0.keys() {
        let uses = tree.uses(place).into_iter().filter(|used| used != place).map(|used| name(&used)).collect();
        graph.insert(name(place), uses);
    }
    graph
}

/// Groups of modules in which each leads to each other.
pub fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = graph.keys().map(|from| (from, reach(graph, from))).collect();
    let mut circles: Vec<Vec<String>> = Vec::new();
    for (module, others) in &reached {
        if circles.iter().any(|circle| circle.contains(module)) {
            continue;
        }
        let circle: Vec<String> =
            others.iter().filter(|other| reached[**other].contains(*module)).map(|other| other.to_string()).collect();
        if circle.len() > 1 {
            circles.push(circle);
        }
    }
    circles
}

/// All modules that one leads to.
fn reach<'a>(graph: &'a Graph, from: &'a String) -> BTreeSet<&'a String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(module) = open.pop() {
        for used in graph.get(module).into_iter().flatten() {
            if seen.insert(used) {
                open.push(used);
            }
        }
    }
    seen
}

/// `a/b.rs` and `a/b/mod.rs` are `[a, b]`; `lib.rs` is the root.
fn place(path: &str) -> Place {
    let bare = path.strip_suffix(".rs").unwrap_or(path);
    let bare = bare.strip_suffix("/mod").unwrap_or(bare);
    if bare == "lib" { Vec::new() } else { bare.split('/').map(str::to_string).collect() }
}

fn name(place: &Place) -> String {
    if place.is_empty() { "lib".to_string() } else { place.join("::") }
}

/// A path in code, and the name by which it is known afterwards.
struct Import {
    path: Vec<String>,
    name: String,
    /// Whether it is passed on only.
    public: bool,
}

struct Module {
    imports: Vec<Import>,
    /// Paths in other places than `use`.
    paths: Vec<Vec<String>>,
}

impl Module {
    fn read(text: &str) -> Self {
        let code: Vec<Token> = without_tests(&tokens(text));
        let code: Vec<Token> = code.into_iter().filter(|token| !matches!(token, Token::Comment { .. })).collect();
        let mut module = Module { imports: Vec::new(), paths: Vec::new() };
        let mut at = 0;
        while at < code.len() {
            match word(&code, at) {
                Some("use") => {
                    let public = is_public(&code[..at]);
                    at = module.tree(&code, at + 1, &[], public);
                }
                Some(_) => {
                    let (path, end) = path(&code, at);
                    if path.len() > 1 && !ends_with_colons(&code[..at]) {
                        module.paths.push(path);
                    }
                    at = end;
                }
                None => at += 1,
            }
        }
        module
    }

    /// Reads what stands after `use`, or inside of its braces, and gives the place after it.
    fn tree(&mut self, code: &[Token], at: usize, before: &[String], public: bool) -> usize {
        let (rest, mut at) = path(code, at);
        let path = [before, &rest].concat();
        match code.get(at) {
            Some(Token::Symbol('{')) => {
                at += 1;
                while !matches!(code.get(at), Some(Token::Symbol('}')) | None) {
                    at = self.tree(code, at, &path, public);
                    if code.get(at) == Some(&Token::Symbol(',')) {
                        at += 1;
                    }
                }
                at + 1
            }
            Some(Token::Symbol('*')) => {
                self.imports.push(Import { path, name: "*".to_string(), public });
                at + 1
            }
            _ => {
                let mut path = path;
                if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
                    path.pop();
                }
                let mut name = path.last().cloned().unwrap_or_default();
                if word(code, at) == Some("as") {
                    name = word(code, at + 1).unwrap_or_default().to_string();
                    at += 2;
                }
                self.imports.push(Import { path, name, public });
                if at < code.len() && matches!(code[at], Token::Symbol('}' | ',' | ';')) { at } else { at + 1 }
            }
        }
    }
}

/// Words with `::` between them, and the place after them; `::` at the end belongs to it.
fn path(code: &[Token], mut at: usize) -> (Vec<String>, usize) {
    let mut path = Vec::new();
    while let Some(segment) = word(code, at) {
        path.push(segment.to_string());
        at += 1;
        match code.get(at..at + 2) {
            Some([Token::Symbol(':'), Token::Symbol(':')]) => at += 2,
            _ => break,
        }
    }
    (path, at)
}

fn word(code: &[Token], at: usize) -> Option<&str> {
    match code.get(at) {
        Some(Token::Word(word)) => Some(word),
        _ => None,
    }
}

fn ends_with_colons(code: &[Token]) -> bool {
    code.ends_with(&[Token::Symbol(':'), Token::Symbol(':')])
}

/// Whether `pub` or `pub(...)` stands last.
fn is_public(before: &[Token]) -> bool {
    let mut at = before.len();
    if before.last() == Some(&Token::Symbol(')')) {
        at = before.iter().rposition(|token| *token == Token::Symbol('(')).unwrap_or(0);
    }
    at > 0 && word(before, at - 1) == Some("pub")
}

struct Tree(BTreeMap<Place, Module>);

impl Tree {
    fn uses(&self, place: &Place) -> BTreeSet<Place> {
        let module = &self.0[place];
        let imports = module.imports.iter().filter(|import| !import.public).map(|import| &import.path);
        imports.chain(&module.paths).filter_map(|path| self.resolve(place, path, 0)).collect()
    }

    /// The module that a path leads to, if it is one of this crate.
    fn resolve(&self, from: &Place, path: &[String], depth: usize) -> Option<Place> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(self.descend(Vec::new(), rest, depth)),
            "self" => Some(self.descend(from.clone(), rest, depth)),
            "super" => {
                let mut up = from.clone();
                up.pop()?;
                match rest.first().map(String::as_str) {
                    Some("super") => self.resolve(&up, rest, depth),
                    _ => Some(self.descend(up, rest, depth)),
                }
            }
            _ if self.0.contains_key(&child(from, first)) => Some(self.descend(from.clone(), path, depth)),
            _ => None,
        }
    }

    /// Follows names from a module on, through modules and through what they import.
    fn descend(&self, mut at: Place, names: &[String], depth: usize) -> Place {
        for (i, name) in names.iter().enumerate() {
            let inner = child(&at, name);
            if self.0.contains_key(&inner) {
                at = inner;
                continue;
            }
            let Some(module) = self.0.get(&at).filter(|_| depth < 8) else { break };
            let imported = module.imports.iter().find(|import| import.name == *name);
            let target = imported.and_then(|import| self.resolve(&at, &import.path, depth + 1));
            return match target {
                Some(target) => self.descend(target, &names[i + 1..], depth + 1),
                None => at,
            };
        }
        at
    }
}

fn child(place: &Place, name: &str) -> Place {
    [place.as_slice(), &[name.to_string()]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(files: &[(&str, &str)], module: &str) -> Vec<String> {
        graph(files)[module].iter().cloned().collect()
    }

    #[test]
    fn every_way_to_name_a_module_is_seen() {
        let files = [
            ("lib.rs", "mod a; pub mod b; pub use b::c::Thing;"),
            ("a.rs", "use crate::{Thing as Other, b::{self, d}}; fn f() { super::e::g() }"),
            ("b/mod.rs", "mod c; pub(crate) mod d; pub use c::Thing; fn f() { d::g() }"),
            ("b/c.rs", "pub struct Thing;"),
            ("b/d.rs", "use super::super::e; #[cfg(test)] mod tests { use crate::a; }"),
            ("e.rs", "use std::fmt;"),
        ];
        assert_eq!(uses(&files, "a"), ["b", "b::c", "b::d", "e"]);
        assert_eq!(uses(&files, "b"), ["b::d"]);
        assert_eq!(uses(&files, "b::d"), ["e"]);
        assert!(uses(&files, "lib").is_empty() && uses(&files, "e").is_empty());
        assert!(circles(&graph(&files)).is_empty());
    }

    #[test]
    fn circles_are_found_whole() {
        let files = [
            ("lib.rs", "pub use a::X; mod a; mod b; mod c; mod d;"),
            ("a.rs", "use crate::b::Y;"),
            ("b.rs", "fn f() -> crate::c::Z {}"),
            ("c.rs", "use crate::X;"),
            ("d.rs", "use crate::X;"),
        ];
        assert_eq!(circles(&graph(&files)), [["a", "b", "c"]]);
    }

    #[test]
    fn a_module_and_one_inside_of_it_make_a_circle_too() {
        let files =
            [("lib.rs", "mod a;"), ("a/mod.rs", "mod b; use b::f; const N: u8 = 1;"), ("a/b.rs", "use super::N;")];
        assert_eq!(circles(&graph(&files)), [["a", "a::b"]]);
    }
}
