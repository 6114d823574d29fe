//! The house rules that no compiler checks. Each find names its place.

use std::fs;
use std::path::{Path, PathBuf};

const COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 500;
/// Where `unsafe` may be said: these modules, and tests and benches of what is unsafe to call.
const UNSAFE: [&str; 7] =
    ["src/buffer", "src/memory", "src/engine", "ffi", "tests", "cli/tests", "benches"];
const NOTHING_ABOVE_CONFIG: &[&str] = &[
    "crate::seal",
    "crate::engine",
    "crate::lane",
    "crate::migrate",
    "crate::session",
    "crate::trust",
    "crate::wire",
    "crate::memory",
];
/// Modules that know no connection being made, and what makes and uses them.
const LOWER: [&str; 10] = [
    "src/wire",
    "src/seal",
    "src/session",
    "src/memory",
    "src/engine",
    "src/lane",
    "src/trust",
    "src/buffer",
    "src/config",
    "src/error",
];
const ABOVE_LANES: &[&str] =
    &["crate::establish", "crate::stream", "crate::tunnel", "crate::check"];
/// Who must not name whom (ARCHITECTURE.md): arrows point the other way.
const ARROWS: [(&str, &[&str]); 15] = [
    (
        "src/wire",
        &[
            "crate::seal",
            "crate::engine",
            "crate::lane",
            "crate::migrate",
            "crate::trust",
            "crate::buffer",
            "crate::memory",
            "std::net",
            "std::thread",
        ],
    ),
    (
        "src/seal",
        &[
            "crate::engine",
            "crate::lane",
            "crate::migrate",
            "crate::trust",
            "crate::buffer",
            "crate::memory",
            "std::net",
            "std::thread",
        ],
    ),
    (
        "src/session",
        &["crate::engine", "crate::lane", "crate::migrate", "std::net", "std::thread", "std::time"],
    ),
    ("src/memory", &["crate::seal", "crate::engine", "crate::lane", "crate::migrate"]),
    ("src/engine", &["crate::seal", "crate::lane", "crate::migrate", "crate::session"]),
    ("src/lane", &["crate::migrate", "crate::session"]),
    ("src/trust", &["crate::engine", "crate::lane", "crate::migrate", "crate::session"]),
    ("src/buffer", NOTHING_ABOVE_CONFIG),
    ("src/config", NOTHING_ABOVE_CONFIG),
    ("src/error", NOTHING_ABOVE_CONFIG),
    ("src/establish", &["crate::migrate", "crate::stream", "crate::tunnel", "crate::session"]),
    ("src/migrate", &["crate::stream", "crate::tunnel"]),
    ("src/stream", &["crate::migrate", "crate::tunnel", "crate::session"]),
    ("src/tunnel", &["crate::migrate", "crate::session", "crate::check"]),
    ("src/check", &["crate::migrate", "crate::session", "crate::tunnel"]),
];

pub fn run(root: &Path) -> Result<(), String> {
    let mut finds = Vec::new();
    for directory in
        ["src", "cli", "ffi", "xtask", "benches", "tests", "fuzz/fuzz_targets", "examples"]
    {
        for file in rust_files(&root.join(directory)) {
            let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            finds.extend(check(&name, &text));
        }
    }
    finds.extend(uncited_rules(root)?);
    if finds.is_empty() {
        println!("tidy: nothing found");
        return Ok(());
    }
    Err(format!("tidy:\n{}", finds.join("\n")))
}

fn check(name: &str, text: &str) -> Vec<String> {
    let mut finds = Vec::new();
    let mut find = |line: usize, what: String| finds.push(format!("{name}:{}: {what}", line + 1));
    let is_test = name.ends_with("tests.rs") || name.contains("tests/");
    let production = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    if !is_test && production.lines().count() > FILE_LINES_MAX {
        find(0, format!("{} lines, at most {FILE_LINES_MAX}", production.lines().count()));
    }
    let mut function: Option<(usize, usize)> = None;
    for (number, line) in text.lines().enumerate() {
        if line.chars().count() > COLUMNS_MAX && !name.starts_with("xtask/src/tidy") {
            find(number, format!("{} columns, at most {COLUMNS_MAX}", line.chars().count()));
        }
        let indent = line.len() - line.trim_start().len();
        let start = line.trim_start();
        let begins = ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "pub unsafe fn "];
        if begins.iter().any(|begin| start.starts_with(begin)) {
            function = Some((number, indent));
        }
        if let Some((first, depth)) = function
            && start == "}"
            && indent == depth
        {
            if number - first > FUNCTION_LINES_MAX {
                find(first, format!("a function of {} lines", number - first));
            }
            function = None;
        }
        let code = start.split("//").next().unwrap_or(start);
        let names_unsafe =
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl");
        if names_unsafe
            && !UNSAFE.iter().any(|place| name.starts_with(place))
            && !name.starts_with("xtask")
        {
            find(number, "unsafe outside buffer, memory, engine, ffi, tests".to_owned());
        }
    }
    let lower = LOWER.iter().map(|place| (*place, ABOVE_LANES));
    let rows: Vec<_> =
        ARROWS.into_iter().chain(lower).filter(|(place, _)| name.starts_with(place)).collect();
    for (number, line) in production.lines().enumerate().filter(|_| !rows.is_empty()) {
        if line.trim_start().starts_with("use crate::{") {
            find(number, "one use for each module, so that the arrows show".to_owned());
        }
        for (place, forbidden) in rows.iter().filter(|_| !is_test) {
            // seal measures itself for `doctor`; nothing else there knows the time.
            if let Some(word) = forbidden.iter().find(|word| line.contains(**word)) {
                find(number, format!("{place} must not name {word}"));
            }
        }
    }
    finds
}

/// Rules of docs/wire-format.md that no line of the code cites.
fn uncited_rules(root: &Path) -> Result<Vec<String>, String> {
    let path = root.join("docs/wire-format.md");
    let rules = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut code = String::new();
    for file in rust_files(&root.join("src")) {
        code.push_str(&fs::read_to_string(&file).map_err(|e| e.to_string())?);
    }
    let names = rules.lines().filter_map(|line| line.strip_prefix("**W-")?.split("**").next());
    Ok(names
        .filter(|n| !cites(&code, n))
        .map(|n| format!("docs/wire-format.md: W-{n} is cited nowhere"))
        .collect())
}

fn cites(code: &str, number: &str) -> bool {
    let name = format!("W-{number}");
    code.match_indices(&name)
        .any(|(at, _)| !code[at + name.len()..].starts_with(|next: char| next.is_ascii_digit()))
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return files };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_what_breaks_it() {
        assert!(check("src/wire/a.rs", "fn ok() {\n}\n").is_empty());
        let long = format!("fn f() {{\n{}}}\n", "    x();\n".repeat(71));
        for (name, text) in [
            ("src/a.rs", "x".repeat(101)),
            ("src/a.rs", long),
            ("src/a.rs", "//\n".repeat(501)),
            ("src/session/a.rs", format!("{} {{ }}", "unsafe")),
            ("src/wire/a.rs", "use crate::lane::Lane;".to_owned()),
            ("src/trust/a.rs", "use crate::migrate::Lanes;".to_owned()),
            ("src/trust/a.rs", "use crate::{error, migrate};".to_owned()),
            ("src/session/a.rs", "use std::time::Instant;".to_owned()),
        ] {
            assert_eq!(check(name, &text).len(), 1, "{text:.60}");
        }
        assert!(cites("// W-1: x", "1") && !cites("// W-12", "1"));
    }
}
