//! The source tree keeps its shape: what a reader may rely on is checked here, file by file.
//!
//! Each rule is a small function from text to complaints, with a test of its own that shows it failing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;
const MAX_FILE_BYTES: u64 = 1 << 20;

/// All that may stand at the top: a reader's first look should find nothing to wonder about.
const TOP_LEVEL: &[&str] = &[
    ".ci",
    ".dockerignore",
    ".github",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "Makefile",
    "README.md",
    "benches",
    "clippy.toml",
    "crates",
    "deny.toml",
    "deploy",
    "model_repository",
    "proto",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "tests",
];

/// A line and what to do about it.
type Complaint = (usize, String);

// The rules.

#[test]
fn every_rust_file_says_what_it_is_for() {
    check("//!", is_rust, |text| starts_with_doc(text).into_iter().collect());
}

#[test]
fn no_file_is_too_long_to_read() {
    check("file length", is_rust, |text| too_long(text).into_iter().collect());
}

#[test]
fn no_function_is_too_long_to_read() {
    check("function length", is_rust, |text| long_functions(text, MAX_FUNCTION_LINES));
}

#[test]
fn nothing_is_left_unfinished() {
    check("unfinished marks", is_written_by_hand, unfinished);
}

#[test]
fn no_path_of_one_machine_is_named() {
    check("absolute paths", is_written_by_hand, home_paths);
}

#[test]
fn relative_links_lead_somewhere() {
    check_files(
        "links",
        |path| has_extension(path, &["md"]),
        |path, text| {
            let folder = root().join(path);
            let folder = folder.parent().expect("a file lies in a folder");
            dead_links(text, |target| folder.join(target).exists())
        },
    );
}

#[test]
fn the_top_level_holds_only_what_was_agreed() {
    let mut names: Vec<String> = files().iter().filter_map(|path| first_part(path)).collect();
    names.dedup();
    names.retain(|name| !TOP_LEVEL.contains(&name.as_str()));
    assert!(
        names.is_empty(),
        "{names:?} stand at the top of the tree: move them into a folder, or agree on them in tests/tidy.rs"
    );
}

#[test]
fn no_large_file_is_tracked() {
    let mut large = String::new();
    for path in files() {
        let bytes = root().join(&path).metadata().map_or(0, |data| data.len());
        if bytes > MAX_FILE_BYTES {
            _ = writeln!(large, "{}: {bytes} bytes: fetch or generate it instead", path.display());
        }
    }
    assert!(large.is_empty(), "files over {MAX_FILE_BYTES} bytes:\n{large}");
}

// What they look at.

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file that git tracks or would track, relative to the root; without git, all but build outputs.
fn files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let mut files = match listed {
        Ok(listed) if listed.status.success() => {
            let names = String::from_utf8(listed.stdout).expect("file names are UTF-8");
            names.split_terminator('\0').map(PathBuf::from).collect()
        }
        _ => walk(Path::new("")),
    };
    files.retain(|path| root().join(path).exists());
    files.sort();
    files.dedup();
    assert!(files.contains(&PathBuf::from("tests/tidy.rs")), "the tree was not listed: {files:?}");
    files
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in root().join(folder).read_dir().expect("the tree can be read").flatten() {
        let (path, name) = (folder.join(entry.file_name()), entry.file_name());
        if [".git", "target", "node_modules", "__pycache__", ".venv"].iter().any(|skip| name == *skip) {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        found.extend(if is_folder { walk(&path) } else { vec![path] });
    }
    found
}

fn first_part(path: &Path) -> Option<String> {
    Some(path.components().next()?.as_os_str().to_str()?.to_owned())
}

fn has_extension(path: &Path, wanted: &[&str]) -> bool {
    path.extension().is_some_and(|have| wanted.iter().any(|want| have == *want))
}

fn is_rust(path: &Path) -> bool {
    has_extension(path, &["rs"])
}

fn is_written_by_hand(path: &Path) -> bool {
    let generated = ["Cargo.lock", "package-lock.json", "LICENSE-APACHE"];
    let text =
        ["rs", "py", "sh", "js", "mjs", "ts", "cpp", "h", "proto", "toml", "yaml", "yml", "md", "json"];
    let named = ["Makefile", "Dockerfile", ".ci/run"];
    !generated.iter().any(|name| path.ends_with(name))
        && (has_extension(path, &text) || named.iter().any(|name| path.ends_with(name)))
}

fn check(rule: &str, wanted: fn(&Path) -> bool, complaints: impl Fn(&str) -> Vec<Complaint>) {
    check_files(rule, wanted, |_, text| complaints(text));
}

/// Fails with every complaint about every wanted file, each with its file and line.
fn check_files(rule: &str, wanted: fn(&Path) -> bool, complaints: impl Fn(&Path, &str) -> Vec<Complaint>) {
    let mut report = String::new();
    for path in files().iter().filter(|path| wanted(path)) {
        let text = std::fs::read_to_string(root().join(path)).expect("a text file");
        for (line, what) in complaints(path, &text) {
            _ = writeln!(report, "{}:{line}: {what}", path.display());
        }
    }
    assert!(report.is_empty(), "{rule}:\n{report}");
}

// The scanners.

fn starts_with_doc(text: &str) -> Option<Complaint> {
    (!text.starts_with("//! "))
        .then(|| (1, "open the file with a `//!` sentence that says what it is".into()))
}

fn too_long(text: &str) -> Option<Complaint> {
    let lines = text.lines().count();
    (lines > MAX_FILE_LINES).then(|| {
        (lines, format!("{lines} lines, the limit is {MAX_FILE_LINES}: split the file by what it does"))
    })
}

fn unfinished(text: &str) -> Vec<Complaint> {
    // Written in two parts, so that this file does not complain about itself.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let calls = [concat!("todo", "!"), concat!("unimplemented", "!")];
    let mut found = Vec::new();
    for (line, text) in numbered(text) {
        let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let marks = marks.iter().filter(|mark| words.contains(mark));
        for mark in marks.chain(calls.iter().filter(|call| text.contains(*call))) {
            found.push((line, format!("`{mark}`: finish it, or open an issue and drop the mark")));
        }
    }
    found
}

fn home_paths(text: &str) -> Vec<Complaint> {
    let homes = [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/")];
    let mut found = Vec::new();
    for (line, text) in numbered(text) {
        for home in homes {
            // Inside a longer path it is not absolute: `$HOME/...`, `../...`, `crates/...`.
            let absolute =
                |at: usize| !text[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}~)".contains(c));
            if text.match_indices(home).any(|(at, _)| absolute(at)) {
                found.push((line, format!("`{home}`: a path of one machine; make it relative or a setting")));
            }
        }
    }
    found
}

/// Links `[text](target)` outside of code, to files for which `exists` is false.
fn dead_links(text: &str, exists: impl Fn(&str) -> bool) -> Vec<Complaint> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (line, text) in numbered(text) {
        if text.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let prose: String = text.split('`').step_by(2).collect();
        for after in prose.split("](").skip(1) {
            let target = after.split([')', ' ']).next().unwrap_or_default().trim_matches(['<', '>']);
            let file = target.split('#').next().unwrap_or_default();
            let elsewhere = target.contains("://") || target.starts_with("mailto:") || file.is_empty();
            if !elsewhere && !exists(file) {
                found.push((line, format!("the link to `{target}` leads nowhere: correct or drop it")));
            }
        }
    }
    found
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn long_functions(text: &str, limit: usize) -> Vec<Complaint> {
    let code = without_literals(text);
    let line_of = |at: usize| code[..at].matches('\n').count() + 1;
    let mut found = Vec::new();
    for (at, name) in functions(&code) {
        let Some(end) = end_of_body(&code, at) else { continue };
        let lines = line_of(end) - line_of(at) + 1;
        if lines > limit {
            let what = format!("`{name}` has {lines} lines, the limit is {limit}: split it by what it does");
            found.push((line_of(at), what));
        }
    }
    found
}

/// Where each `fn name` stands. (A function pointer's type has no name.)
fn functions(code: &str) -> Vec<(usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let starts = code.match_indices("fn ").filter(|(at, _)| !code[..*at].ends_with(is_word));
    let named = starts.map(|(at, _)| {
        let rest = code[at + 3..].trim_start();
        (at, &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())])
    });
    named.filter(|(_, name)| !name.is_empty()).collect()
}

/// The closing brace of the function that starts at `start`; none when it ends with `;` before a body.
fn end_of_body(code: &str, start: usize) -> Option<usize> {
    let (mut braces, mut brackets) = (0, 0);
    for (at, c) in code[start..].char_indices() {
        match c {
            '(' | '[' if braces == 0 => brackets += 1,
            ')' | ']' if braces == 0 => brackets -= 1,
            ';' if braces == 0 && brackets == 0 => return None,
            '{' if brackets == 0 => braces += 1,
            '}' if brackets == 0 => {
                braces -= 1;
                if braces == 0 {
                    return Some(start + at);
                }
            }
            _ => {}
        }
    }
    None
}

/// The same text, lines kept, with blanks for comments, strings and characters: the braces left are code's.
fn without_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = literal_length(rest, code.chars().next_back());
        if skipped == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[skipped..];
        }
    }
    code
}

/// How many bytes at the start of `rest` are a comment or a literal; zero when it is code.
fn literal_length(rest: &str, before: Option<char>) -> usize {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_length(rest);
    }
    if let Some(inside) = rest.strip_prefix('"') {
        return 1 + closing(inside, '"');
    }
    if rest.starts_with('\'') {
        return character_length(rest);
    }
    if !in_word && rest.starts_with(['r', 'b', 'c']) {
        let prefix = rest.len() - rest.trim_start_matches(['r', 'b', 'c']).len();
        return if rest[..prefix].contains('r') { raw_string_length(rest, prefix) } else { 0 };
    }
    0
}

/// Bytes up to and including the next unescaped `quote`.
fn closing(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

/// A character literal, or zero for a lifetime: `'a'` and `'\n'` close, `'a` does not.
fn character_length(rest: &str) -> usize {
    let mut inside = rest.chars().skip(1);
    let (first, second) = (inside.next(), inside.next());
    if first == Some('\\') || second == Some('\'') { 1 + closing(&rest[1..], '\'') } else { 0 }
}

fn raw_string_length(rest: &str, prefix: usize) -> usize {
    let hashes = rest[prefix..].len() - rest[prefix..].trim_start_matches('#').len();
    let open = prefix + hashes + 1;
    if !rest[prefix + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    rest[open..].find(&end).map_or(rest.len(), |at| open + at + end.len())
}

fn block_comment_length(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

// The scanners can fail.

#[test]
fn a_missing_doc_comment_is_seen() {
    assert!(starts_with_doc("//! Says.\n").is_none());
    assert!(starts_with_doc("// Says.\n").is_some());
    assert!(starts_with_doc("\n//! Late.\n").is_some());
}

#[test]
fn a_long_file_is_seen() {
    assert!(too_long(&"\n".repeat(MAX_FILE_LINES)).is_none());
    assert!(too_long(&"\n".repeat(MAX_FILE_LINES + 1)).is_some());
}

#[test]
fn unfinished_marks_are_seen_as_words() {
    let text = ["fine", concat!("// TO", "DO: later"), "MY_TODOS", concat!("    todo", "!()")].join("\n");
    let lines: Vec<usize> = unfinished(&text).into_iter().map(|(line, _)| line).collect();
    assert_eq!(lines, [2, 4]);
}

#[test]
fn absolute_home_paths_are_seen_and_relative_ones_are_not() {
    assert_eq!(home_paths(concat!("a\nlet x = \"/ho", "me/me/models\";"))[0].0, 2);
    assert!(home_paths(concat!("$HOME/wo", "rk/x ../wo", "rk/y docs/ho", "me/z")).is_empty());
}

#[test]
fn dead_links_are_seen_outside_of_code() {
    let text =
        "[a](there.md#part) [b](gone.md)\n```\n[c](gone.md)\n```\n`[d](gone.md)` [e](https://x.y) [f](#g)";
    let found = dead_links(text, |target| target == "there.md");
    assert_eq!(found.len(), 1);
    assert!(found[0].0 == 1 && found[0].1.contains("gone.md"), "{found:?}");
}

#[test]
fn long_functions_are_seen_whatever_their_literals_hold() {
    let text = concat!(
        "trait T { fn none(&self, a: [u8; 4]); }\n",
        "fn short<'a>(x: &'a str) -> char { '}' }\n",
        "fn long() {\n    let _ = \"}\\\"}\"; // }\n    /* } /* } */ } */ r#\"}\"}\"#;\n",
        "    b'}';\n    inner(|| {});\n}\n",
        "fn after(f: fn(u8)) {}\n",
    );
    assert_eq!(functions(&without_literals(text)).len(), 4);
    let found = long_functions(text, 5);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].0 == 3 && found[0].1.contains("`long` has 6 lines"), "{found:?}");
    assert!(long_functions(text, 6).is_empty());
}
