//! The rules, each a function from what was read to what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use crate::lexer::{Token, tokens, without_tests};
use crate::modules;

/// A source file.
pub struct File {
    /// Below the workspace's root, as `crates/NAME/src/x.rs`.
    pub path: String,
    pub text: String,
}

impl File {
    /// The name of its crate.
    fn krate(&self) -> &str {
        self.path.split('/').nth(1).unwrap_or_default()
    }

    /// Its path below `src`, if it is part of a library.
    fn in_library(&self) -> Option<&str> {
        let inner = self.path.splitn(4, '/').nth(3).filter(|_| self.path.split('/').nth(2) == Some("src"))?;
        (!inner.starts_with("bin/")).then_some(inner)
    }
}

/// Direct dependencies of each package, those for tests left out.
pub type Packages = BTreeMap<String, BTreeSet<String>>;

/// What a package must not reach through packages of ours; `candle*` stands for all names that begin so.
pub type Edge = (&'static str, &'static [&'static str]);

/// Packages of ours that reach what they must not know.
pub fn forbidden_edges(packages: &Packages, edges: &[Edge]) -> Vec<String> {
    let mut problems = Vec::new();
    for (from, forbidden) in edges {
        let Some(direct) = packages.get(*from) else {
            problems.push(format!("{from}: expected a package of this name"));
            continue;
        };
        let mut open: Vec<(&str, &String)> = direct.iter().map(|to| (*from, to)).collect();
        let mut seen = BTreeSet::new();
        while let Some((by, package)) = open.pop() {
            if !seen.insert(package) {
                continue;
            }
            if forbidden.iter().any(|pattern| matches(pattern, package)) {
                problems.push(format!("{from} must not know {package}, which {by} depends on"));
            }
            open.extend(packages.get(package).into_iter().flatten().map(|to| (package.as_str(), to)));
        }
    }
    problems
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == pattern,
    }
}

/// Modules of a crate that lead to each other, but for those that are still to be cut: a crate, and a module of the
/// circle.
pub fn circles(files: &[File], to_cut: &[(&str, &str)]) -> Vec<String> {
    let mut crates: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for file in files {
        if let Some(inner) = file.in_library() {
            crates.entry(file.krate()).or_default().push((inner, &file.text));
        }
    }
    let mut problems = Vec::new();
    let mut needed = BTreeSet::new();
    for (name, files) in crates {
        let graph = modules::graph(&files);
        for circle in modules::circles(&graph) {
            let listed = to_cut.iter().find(|(of, module)| *of == name && circle.iter().any(|other| other == module));
            if let Some(listed) = listed {
                needed.insert(listed);
                continue;
            }
            let edges = circle.iter().flat_map(|from| {
                graph[from].iter().filter(|to| circle.contains(to)).map(move |to| format!("{from} -> {to}"))
            });
            problems.push(format!("{name}: a circle of modules: {}", edges.collect::<Vec<_>>().join(", ")));
        }
    }
    let idle = to_cut.iter().filter(|listed| !needed.contains(listed));
    problems.extend(idle.map(|(name, module)| format!("{name}, {module}: no circle any more; take it off the list")));
    problems
}

/// Crates that have more than a part of all lines of all crates, tests beside the sources left out.
pub fn large_crates(files: &[File], percent: usize) -> Vec<String> {
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    for file in files.iter().filter(|file| file.in_library().is_some()) {
        *lines.entry(file.krate()).or_default() += file.text.lines().count();
    }
    let all: usize = lines.values().sum();
    let too_large = lines.into_iter().filter(|(_, count)| count * 100 > all * percent);
    too_large
        .map(|(name, count)| format!("{name} has {count} of {all} lines, more than {percent} %: what is it besides?"))
        .collect()
}

/// Exceptions from a rule: a path, and how often it may break it. They only ever become fewer.
pub type Exceptions = [(&'static str, usize)];

/// What is found by file, against the exceptions: neither more, nor less.
fn against(found: BTreeMap<&str, Vec<String>>, exceptions: &Exceptions) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, allowed) in exceptions {
        let count = found.get(path).map_or(0, Vec::len);
        if count < *allowed {
            problems
                .push(format!("{path}: only {count} of {allowed} exceptions are needed; lower the number in the list"));
        }
    }
    for (path, found) in found {
        let allowed = exceptions.iter().find(|(name, _)| *name == path).map_or(0, |(_, allowed)| *allowed);
        if found.len() > allowed {
            problems.extend(found.into_iter().map(|problem| format!("{problem} (allowed: {allowed})")));
        }
    }
    problems
}

/// Most lines of a file.
const LINES: usize = 600;

/// Files that are longer than a reader takes in, but for those that have a reason; a reason without need is one too
/// many.
pub fn long_files(files: &[File], reasons: &[(&str, &str)]) -> Vec<String> {
    let long = |file: &&File| file.text.lines().count() > LINES;
    let mut problems: Vec<String> = files
        .iter()
        .filter(long)
        .filter(|file| !reasons.iter().any(|(path, _)| *path == file.path))
        .map(|file| {
            format!("{}: {} lines, at most {LINES}: which two ideas is it?", file.path, file.text.lines().count())
        })
        .collect();
    let idle = reasons.iter().filter(|(path, _)| !files.iter().filter(long).any(|file| file.path == *path));
    problems.extend(idle.map(|(path, _)| format!("{path}: not over {LINES} lines; take it off the list")));
    problems
}

/// Texts of libraries that speak of options of the command line: each front spells them in its own way.
pub fn option_words(files: &[File], crates: &[&str], exceptions: &Exceptions) -> Vec<String> {
    let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.in_library().is_some() && crates.contains(&file.krate())) {
        for token in without_tests(&tokens(&file.text)) {
            if let Token::Text { line, content } = token
                && let Some(option) = option_in(&content)
            {
                found
                    .entry(&file.path)
                    .or_default()
                    .push(format!("{}:{line}: {option:?} is the command line's", file.path));
            }
        }
    }
    against(found, exceptions)
}

/// The first `--word` of a text.
fn option_in(text: &str) -> Option<&str> {
    let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.find(|word| word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase())))
}

/// Most columns of a line that holds a comment: rustfmt does not wrap them.
const COLUMNS: usize = 120;

/// Comments that are wider than the code may be, but for files below paths that are still to be wrapped.
pub fn wide_comments(files: &[File], to_wrap: &[&str]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut needed: BTreeSet<&str> = BTreeSet::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        let lines: Vec<&str> = file.text.lines().collect();
        let commented = tokens(&file.text).into_iter().filter_map(|token| match token {
            Token::Comment { line } => Some(line),
            _ => None,
        });
        for line in commented.collect::<BTreeSet<usize>>() {
            let width = lines.get(line - 1).map_or(0, |text| text.chars().count());
            if width <= COLUMNS {
                continue;
            }
            match to_wrap.iter().find(|below| file.path.starts_with(**below)) {
                Some(below) => drop(needed.insert(below)),
                None => problems.push(format!("{}:{line}: a comment of {width} columns, at most {COLUMNS}", file.path)),
            }
        }
    }
    let idle = to_wrap.iter().filter(|below| !needed.contains(**below));
    problems.extend(idle.map(|below| format!("{below}: all is wrapped; take it off the list")));
    problems
}

/// Notes to oneself that were left behind.
pub fn left_notes(files: &[File]) -> Vec<String> {
    let note = ["FIX", "ME"].concat();
    let lines = files.iter().flat_map(|file| file.text.lines().enumerate().map(move |(i, line)| (file, i + 1, line)));
    lines
        .filter(|(.., line)| line.contains(&note))
        .map(|(file, line, _)| format!("{}:{line}: {note}", file.path))
        .collect()
}

const NUMBERS: [&str; 41] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
    "twenty-one",
    "twenty-two",
    "twenty-three",
    "twenty-four",
    "twenty-five",
    "twenty-six",
    "twenty-seven",
    "twenty-eight",
    "twenty-nine",
    "thirty",
    "thirty-one",
    "thirty-two",
    "thirty-three",
    "thirty-four",
    "thirty-five",
    "thirty-six",
    "thirty-seven",
    "thirty-eight",
    "thirty-nine",
    "forty",
];

/// How many caching methods a text says there are, against how many there are.
pub fn number_of_methods(text: &str, methods: usize) -> Vec<String> {
    let words: Vec<String> = text
        .split(|c: char| !(c.is_alphanumeric() || c == '-'))
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let mut said = Vec::new();
    for three in words.windows(3) {
        let about_methods = matches!(three[1].as_str(), "caching" | "cache") && three[2] == "methods";
        let number = NUMBERS.iter().position(|name| *name == three[0]).or_else(|| three[0].parse().ok());
        said.extend(number.filter(|_| about_methods));
    }
    if said.is_empty() {
        return vec![format!("README.md: expected \"{} caching methods\", found no number of them", NUMBERS[methods])];
    }
    let wrong = said.into_iter().filter(|said| *said != methods);
    wrong.map(|said| format!("README.md: {said} caching methods, the registry has {methods}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_string(), text: text.to_string() }
    }

    #[test]
    fn a_forbidden_edge_is_found_through_packages_of_ours() {
        let packages: Packages = [("a", vec!["b", "serde"]), ("b", vec!["candle-core"]), ("c", vec!["candle-core"])]
            .into_iter()
            .map(|(name, to)| (name.to_string(), to.into_iter().map(str::to_string).collect()))
            .collect();
        let problems = forbidden_edges(&packages, &[("a", &["candle*"]), ("b", &["serde"])]);
        assert_eq!(problems, ["a must not know candle-core, which b depends on"]);
        assert_eq!(forbidden_edges(&packages, &[("gone", &[])]).len(), 1);
    }

    #[test]
    fn a_circle_is_found_in_its_crate() {
        let files = [
            file("crates/x/src/lib.rs", "mod a; mod b;"),
            file("crates/x/src/a.rs", "use crate::b;"),
            file("crates/x/src/b.rs", "use super::a;"),
            file("crates/y/src/a.rs", "use crate::b;"),
            file("crates/y/src/b.rs", ""),
        ];
        assert_eq!(circles(&files, &[]), ["x: a circle of modules: a -> b, b -> a"]);
        assert!(circles(&files, &[("x", "b")]).is_empty());
        assert_eq!(circles(&files, &[("x", "b"), ("y", "a")]).len(), 1);
    }

    #[test]
    fn a_large_crate_is_found() {
        let files = [
            file("crates/x/src/lib.rs", &"\n".repeat(30)),
            file("crates/x/tests/x.rs", &"\n".repeat(900)),
            file("crates/y/src/lib.rs", &"\n".repeat(70)),
        ];
        let problems = large_crates(&files, 60);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("y has 70 of 100 lines"), "{problems:?}");
    }

    #[test]
    fn a_long_file_needs_a_reason_and_a_reason_a_long_file() {
        let files = [file("crates/x/src/a.rs", &"\n".repeat(601)), file("crates/x/src/b.rs", &"\n".repeat(600))];
        assert_eq!(long_files(&files, &[]).len(), 1);
        assert_eq!(long_files(&files, &[("crates/x/src/a.rs", "a table")]), Vec::<String>::new());
        let problems = long_files(&files, &[("crates/x/src/a.rs", "a table"), ("crates/x/src/b.rs", "a table")]);
        assert_eq!(problems, ["crates/x/src/b.rs: not over 600 lines; take it off the list"]);
    }

    #[test]
    fn an_option_in_a_librarys_text_is_found_and_an_idle_exception() {
        let path = "crates/x/src/a.rs";
        let text = "// --comment\nfn f() { g(\"a -- b\", \"--size width\"); }\n#[cfg(test)] mod tests { const A: &str = \"--x\"; }";
        let files = [file(path, text), file("crates/cli/src/args.rs", "const A: &str = \"--size\";")];
        assert_eq!(
            option_words(&files, &["x"], &[]),
            ["crates/x/src/a.rs:2: \"--size\" is the command line's (allowed: 0)"]
        );
        assert!(option_words(&files, &["x"], &[(path, 1)]).is_empty());
        assert_eq!(option_words(&files, &["x"], &[(path, 2)]).len(), 1);
    }

    #[test]
    fn a_wide_comment_is_found_and_wide_code_is_not() {
        let wide = "x".repeat(COLUMNS);
        let text = format!("/// {wide}\nconst A: &str = \"{wide}\";\nlet b = 1; // ä{}\n", "ä".repeat(COLUMNS - 15));
        let problems = wide_comments(&[file("a/b.rs", &text)], &["c/"]);
        assert_eq!(
            problems,
            ["a/b.rs:1: a comment of 124 columns, at most 120", "c/: all is wrapped; take it off the list"]
        );
        assert!(wide_comments(&[file("a/b.rs", &text)], &["a/"]).is_empty());
    }

    #[test]
    fn a_note_is_found() {
        let note = ["// FIX", "ME"].concat();
        assert_eq!(left_notes(&[file("a.rs", &format!("\n{note}\n"))]).len(), 1);
    }

    #[test]
    fn the_number_of_methods_is_that_of_the_registry() {
        assert!(number_of_methods("navicache runs eighteen caching methods.", 18).is_empty());
        assert!(number_of_methods("18 cache\nmethods", 18).is_empty());
        assert_eq!(number_of_methods("Twenty-one caching methods", 18).len(), 1);
        assert_eq!(number_of_methods("all caching methods", 18).len(), 1);
    }
}
