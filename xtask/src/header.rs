//! `cargo xtask header [--check]`: include/sealane.h from ffi/src, by the cbindgen that Cargo.toml
//! pins.

use std::collections::BTreeSet;
use std::fs;

use crate::Result;

const HEADER: &str = "include/sealane.h";
const MAP: &str = "ffi/exports.map";

/// Writes the header, or with `check` says that it is not what the sources give.
///
/// # Errors
///
/// Where it cannot be made, or differs.
pub fn run(check: bool) -> Result {
    let new = generate()?;
    let old = fs::read_to_string(HEADER).unwrap_or_default();
    exported(&new, &fs::read_to_string(MAP).map_err(|e| format!("{MAP}: {e}"))?)?;
    match (check, old == new) {
        (_, true) => Ok(()),
        (true, false) => Err(format!("{HEADER} is not what ffi/src gives: cargo xtask header")),
        (false, false) => {
            fs::create_dir_all("include").map_err(|e| format!("include: {e}"))?;
            fs::write(HEADER, new).map_err(|e| format!("{HEADER}: {e}"))
        }
    }
}

fn generate() -> Result<String> {
    let config = cbindgen::Config::from_file("ffi/cbindgen.toml")?;
    // The modules that lib.rs declares come with it.
    let builder = cbindgen::Builder::new().with_config(config).with_src("ffi/src/lib.rs");
    let bindings = builder.generate().map_err(|e| format!("cbindgen: {e}"))?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    let text = String::from_utf8(text).map_err(|e| format!("cbindgen: {e}"))?;
    // What Rust calls safety is what C calls the contract.
    Ok(with_contracts(&text))
}

/// Whether the map names just the functions that the header declares.
fn exported(header: &str, map: &str) -> Result {
    let names = |text: &str, end: char| {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with(['/', '#']));
        let code = lines.filter(|line| !line.starts_with("typedef"));
        code.filter_map(|line| {
            let before = line.split_once(end)?.0;
            let name = &before[before.rfind("sealane_")?..];
            let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            is_name.then(|| name.to_owned())
        })
        .collect::<BTreeSet<_>>()
    };
    let (declared, mapped) = (names(header, '('), names(map, ';'));
    match declared.symmetric_difference(&mapped).next() {
        None => Ok(()),
        Some(name) => Err(format!(
            "{name} is in the header or in {MAP}, not in both: a new function goes into the \
             newest node, and a released one stays"
        )),
    }
}

/// Turns the sections `# Safety` of doc comments into `Caller: ..`.
fn with_contracts(text: &str) -> String {
    let mut kept: Vec<String> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim() != "// # Safety" {
            kept.push(line.to_owned());
            continue;
        }
        // The empty line behind the heading goes with it.
        lines.next_if(|next| next.trim() == "//");
        if let Some(next) = lines.next() {
            kept.push(next.replacen("// ", "// Caller: ", 1));
        }
    }
    kept.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::{exported, with_contracts};

    #[test]
    fn a_function_that_the_map_lacks_is_named() {
        let header = "// As sealane_z().\nint sealane_a(int x);\nvoid sealane_b(void);\n";
        assert!(exported(header, "V {\nglobal:\n    sealane_a;\n    sealane_b;\n};\n").is_ok());
        let error = exported(header, "V {\nglobal:\n    sealane_a;\n};\n").unwrap_err();
        assert!(error.starts_with("sealane_b "), "{error}");
    }

    #[test]
    fn safety_becomes_the_callers_part() {
        let text = "// Does.\n//\n// # Safety\n//\n// `x` lives.\nint f(void);\n";
        assert_eq!(with_contracts(text), "// Does.\n//\n// Caller: `x` lives.\nint f(void);\n");
    }
}
