//! `cargo xtask header [--check]`: include/sealane.h from ffi/src, by the cbindgen that Cargo.toml
//! pins.

use std::fs;

use crate::Result;

const HEADER: &str = "include/sealane.h";

/// Writes the header, or with `check` says that it is not what the sources give.
///
/// # Errors
///
/// Where it cannot be made, or differs.
pub fn run(check: bool) -> Result {
    let new = generate()?;
    let old = fs::read_to_string(HEADER).unwrap_or_default();
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
    // Rust's obligations of a caller are C's everyday: the header says them once, at its head.
    Ok(without_safety(&text))
}

/// Drops the sections `# Safety` of doc comments.
fn without_safety(text: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut skips = false;
    for line in text.lines() {
        let comment = line.trim_start().strip_prefix("//");
        skips = match comment.map(str::trim) {
            Some("# Safety") => true,
            Some(_) => skips,
            None => false,
        };
        if skips {
            while kept.last().is_some_and(|last| last.trim() == "//") {
                kept.pop();
            }
            continue;
        }
        kept.push(line);
    }
    kept.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::without_safety;

    #[test]
    fn safety_is_left_out_and_nothing_else() {
        let text =
            "// Does it.\n//\n// # Safety\n//\n// `x` lives.\nint f(void);\n// g\nint g(void);\n";
        assert_eq!(without_safety(text), "// Does it.\nint f(void);\n// g\nint g(void);\n");
    }
}
