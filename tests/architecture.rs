//! Imports go down only, a store sees no other store, and no file grows out of hand.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

const EDGE: [&str; 5] = ["layer", "service", "future", "body", "transaction"];
const PARTS: [&str; 4] = ["exchange", "policy", "store", "model"];
const LONGEST_FILE: usize = 500;

struct Source {
    /// Below `src`, with slashes and without `.rs` and `/mod`.
    module: Vec<String>,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|end| end == "lua" || end == "sql")
            {
                // What the crate sends to a server, and does not import.
                let store = path.parent().unwrap().parent().unwrap();
                assert!(store.ends_with("src/store"), "{path:?}");
            } else {
                assert!(path.extension().is_some_and(|end| end == "rs"), "{path:?}");
                let module = module(path.strip_prefix(&root).unwrap());
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { module, text });
            }
        }
    }
    assert!(found.len() > 20, "only {} files", found.len());
    found
}

fn module(path: &Path) -> Vec<String> {
    let path: PathBuf = path.with_extension("");
    let mut module: Vec<String> = path
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    module.pop_if(|last| last == "mod");
    module
}

/// The code without its comments and without strings that hold `//`.
fn code(text: &str) -> String {
    text.lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Every path from the crate's root that the code names, in `use` lines and elsewhere:
/// `crate::`, and as many `super::` as there are. Of a group, every member.
fn paths(source: &Source) -> Vec<Vec<String>> {
    let code = code(&source.text);
    let mut paths = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            let is_whole = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':');
            if is_whole {
                expand(&mut Vec::new(), code[at..].trim_start(), &mut paths);
            }
        }
    }
    paths
        .into_iter()
        .filter_map(|path| absolute(&source.module, &path))
        .collect()
}

/// The paths of `a::b::{c, d::e}`, given the text from its beginning on. Gives what
/// follows.
fn expand<'a>(prefix: &mut Vec<String>, text: &'a str, paths: &mut Vec<Vec<String>>) -> &'a str {
    let depth = prefix.len();
    let mut rest = text;
    loop {
        if let Some(mut inner) = rest.strip_prefix('{') {
            loop {
                inner = inner.trim_start();
                match inner.strip_prefix('}') {
                    Some(after) => {
                        prefix.truncate(depth);
                        return after;
                    }
                    None => inner = expand(prefix, inner, paths).trim_start(),
                }
                inner = inner.trim_start_matches(',');
            }
        }
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*')
            .unwrap_or(rest.len());
        if end == 0 {
            // Nothing of ours: an alias, or the end.
            prefix.truncate(depth);
            return rest.get(1..).unwrap_or_default();
        }
        prefix.push(rest[..end].to_owned());
        rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(after) => rest = after,
            None => {
                paths.push(prefix.clone());
                prefix.truncate(depth);
                let alias = rest.trim_start().strip_prefix("as ");
                return alias.map_or(rest, |alias| {
                    alias.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_')
                });
            }
        }
    }
}

fn absolute(module: &[String], path: &[String]) -> Option<Vec<String>> {
    let ups = path.iter().take_while(|part| *part == "super").count();
    let from = if ups > 0 {
        // Deeper than the file itself are its own inline modules.
        module.len().checked_sub(ups)?
    } else {
        return Some(path[1..].to_vec());
    };
    Some([&module[..from], &path[ups..]].concat())
}

fn part(path: &[String]) -> &str {
    path.first().map_or("", String::as_str)
}

/// The parts that a file of this one may name.
fn may_name(from: &str) -> &'static [&'static str] {
    match from {
        "exchange" => &["exchange", "policy", "store", "model"],
        "policy" => &["policy", "model"],
        "store" => &["store", "model"],
        "model" => &["model"],
        // `*` is what a module inside of such a file sees of it.
        _ => &[
            "*",
            "layer",
            "service",
            "future",
            "body",
            "transaction",
            "exchange",
            "policy",
            "store",
            "model",
        ],
    }
}

#[test]
fn imports_go_down_only() {
    let mut seen = 0;
    for source in sources() {
        let from = part(&source.module).to_owned();
        if from == "lib" {
            continue;
        }
        assert!(
            EDGE.contains(&&from[..]) || PARTS.contains(&&from[..]),
            "{:?} is in no layer",
            source.module
        );
        for path in paths(&source) {
            seen += 1;
            assert!(
                may_name(&from).contains(&part(&path)),
                "{} must not name {}",
                source.module.join("::"),
                path.join("::")
            );
        }
    }
    assert!(seen > 100, "only {seen} paths");
}

#[test]
fn the_crate_root_holds_no_logic() {
    let lib = sources()
        .into_iter()
        .find(|source| source.module == ["lib"]);
    let code = code(&lib.unwrap().text);
    for word in [
        "fn ",
        "impl ",
        "enum ",
        "trait ",
        "macro_rules",
        "let ",
        "unsafe ",
    ] {
        assert!(!code.contains(word), "{word}");
    }
}

#[test]
fn a_store_knows_no_other_store() {
    // What belongs to all of them.
    const COMMON: [&str; 6] = ["mod", "any", "check", "conformance", "sql", "transaction"];
    let sources = sources();
    let stores: Vec<&str> = sources
        .iter()
        .filter(|source| part(&source.module) == "store")
        .filter_map(|source| source.module.get(1).map(String::as_str))
        .filter(|name| !COMMON.contains(name))
        .collect();
    assert!(stores.contains(&"memory"), "{stores:?}");
    let type_of = |name: &str| {
        let (first, rest) = name.split_at(1);
        format!("{}{rest}Store", first.to_uppercase())
    };
    for source in sources.iter().filter(|source| source.module.len() > 1) {
        let own = source.module[1].as_str();
        for path in paths(source) {
            if part(&path) != "store" || path.len() < 2 {
                continue;
            }
            for other in stores.iter().filter(|&&name| name != own) {
                assert!(
                    path[1] != *other && path[1] != type_of(other),
                    "{} must not name {}",
                    source.module.join("::"),
                    path.join("::")
                );
            }
            // The suite tests stores, and no store leans on it.
            if stores.contains(&own) {
                assert_ne!(path[1], "conformance", "{}", source.module.join("::"));
            }
        }
    }
}

#[test]
fn no_file_is_longer_than_it_may_be() {
    for source in sources() {
        let lines = source.text.lines().count();
        let name = source.module.join("/");
        assert!(lines <= LONGEST_FILE, "{name}.rs has {lines} lines");
    }
}

#[test]
fn paths_are_read_as_they_are_meant() {
    let text = "use crate::a::{self, b::{c, d as e}, F};\n// use crate::not::this;\n\
                use super::x::Y;\nlet z = crate::g::h(super::super::k::L);\n";
    let source = Source {
        module: ["p", "q", "r"].map(str::to_owned).to_vec(),
        text: text.to_owned(),
    };
    let mut read: Vec<String> = paths(&source).iter().map(|path| path.join("::")).collect();
    read.sort();
    let expected = [
        "a::F",
        "a::b::c",
        "a::b::d",
        "a::self",
        "g::h",
        "p::k::L",
        "p::q::x::Y",
    ];
    assert_eq!(read, expected);
}
