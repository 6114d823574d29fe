//! docs/sealane.3.md as a page for man(1): pulldown-cmark reads it, roff writes. Own code, since
//! mandown knows no tables. What this does not know is an error, and not left out.

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use roff::{Inline, Roff, bold, italic, roman};

use crate::Result;

const SOURCE: &str = "docs/sealane.3.md";

/// Writes `target/man/sealane.3`.
///
/// # Errors
///
/// Where the manual has what this does not know, or a file cannot be read or written.
pub fn run() -> Result {
    let markdown = std::fs::read_to_string(SOURCE).map_err(|e| format!("{SOURCE}: {e}"))?;
    let page = render(&markdown, env!("CARGO_PKG_VERSION"))?;
    std::fs::write("target/man/sealane.3", page).map_err(|e| format!("target/man/sealane.3: {e}"))
}

/// A page from markdown whose first heading is `name(section)`.
fn render(markdown: &str, version: &str) -> Result<String> {
    let mut page =
        Page { roff: Roff::new(), line: vec![], mark: roman, cells: vec![], fresh: true };
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        page.take(event, version)?;
    }
    // The first line tells man(1) that there are tables.
    Ok(format!("'\\\" t\n{}", page.roff.render()))
}

struct Page {
    roff: Roff,
    /// What is collected for the next line of text.
    line: Vec<Inline>,
    /// The font of the next words.
    mark: fn(String) -> Inline,
    /// What is collected for the next row of a table.
    cells: Vec<Inline>,
    /// Behind a heading or the beginning of an item, where no paragraph has to begin.
    fresh: bool,
}

impl Page {
    fn take(&mut self, event: Event<'_>, version: &str) -> Result {
        match event {
            Event::Text(text) => self.line.push((self.mark)(text.into_string())),
            Event::Code(text) => self.line.push(bold(text.into_string())),
            Event::SoftBreak => self.line.push(roman(" ")),
            Event::Start(tag) => self.start(&tag)?,
            Event::End(TagEnd::Heading(level)) => self.heading(level, version)?,
            Event::End(end) => self.end(end)?,
            other => return Err(format!("{SOURCE}: {other:?} is not rendered")),
        }
        Ok(())
    }

    fn start(&mut self, tag: &Tag<'_>) -> Result {
        match tag {
            Tag::Heading { .. } | Tag::List(None) | Tag::TableHead => {}
            Tag::TableRow | Tag::TableCell => {}
            Tag::Paragraph => self.paragraph(),
            Tag::Strong => self.mark = bold,
            Tag::Emphasis => self.mark = italic,
            Tag::Item => {
                self.roff.control("IP", ["\\(bu", "2"]);
                self.fresh = true;
            }
            Tag::CodeBlock(_) => {
                self.paragraph();
                self.roff.control("EX", []);
            }
            Tag::Table(columns) => {
                let row = |format: &str| vec![format; columns.len()].join(" ");
                self.paragraph();
                self.roff.control("TS", []).text([roman("tab(|);")]);
                self.roff.text([roman(row("lB"))]).text([roman(row("l") + ".")]);
            }
            other => return Err(format!("{SOURCE}: {other:?} is not rendered")),
        }
        Ok(())
    }

    fn end(&mut self, end: TagEnd) -> Result {
        match end {
            TagEnd::Strong | TagEnd::Emphasis => self.mark = roman,
            TagEnd::List(_) => {}
            TagEnd::Paragraph | TagEnd::Item => {
                if !self.line.is_empty() {
                    self.roff.text(std::mem::take(&mut self.line));
                }
                self.fresh = false;
            }
            TagEnd::CodeBlock => {
                for line in plain(&std::mem::take(&mut self.line)).lines() {
                    self.roff.text([roman(line.replace('\t', "    "))]);
                }
                self.roff.control("EE", []);
            }
            TagEnd::TableCell => {
                self.cells.append(&mut self.line);
                self.cells.push(roman("|"));
            }
            TagEnd::TableHead | TagEnd::TableRow => {
                self.cells.pop();
                self.roff.text(std::mem::take(&mut self.cells));
            }
            TagEnd::Table => drop(self.roff.control("TE", [])),
            other => return Err(format!("{SOURCE}: {other:?} is not rendered")),
        }
        Ok(())
    }

    fn heading(&mut self, level: HeadingLevel, version: &str) -> Result {
        let text = plain(&std::mem::take(&mut self.line));
        match level {
            HeadingLevel::H1 => {
                let (name, section) = text
                    .strip_suffix(')')
                    .and_then(|text| text.split_once('('))
                    .ok_or_else(|| format!("{SOURCE}: {text} is no name(section)"))?;
                let version = format!("{name} {version}");
                self.roff.control("TH", [&name.to_uppercase(), section, "\"\"", &version]);
                // Names of functions are neither hyphenated nor pulled apart.
                self.roff.control("nr", ["HY", "0"]).control("ad", ["l"]);
            }
            HeadingLevel::H2 => drop(self.roff.control("SH", [text.as_str()])),
            _ => drop(self.roff.control("SS", [text.as_str()])),
        }
        self.fresh = true;
        Ok(())
    }

    fn paragraph(&mut self) {
        if !std::mem::take(&mut self.fresh) {
            self.roff.control("PP", []);
        }
    }
}

fn plain(line: &[Inline]) -> String {
    let text = |part: &Inline| match part {
        Inline::Roman(text) | Inline::Bold(text) | Inline::Italic(text) => text.clone(),
        Inline::LineBreak => "\n".to_owned(),
    };
    line.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANUAL: &str = include_str!("../../docs/sealane.3.md");
    const HEADER: &str = include_str!("../../include/sealane.h");
    const EXAMPLES: [&str; 2] =
        [include_str!("../../examples/c/source.c"), include_str!("../../examples/c/target.c")];

    /// One blank between words, none behind a bracket: prototypes are broken elsewhere there.
    fn flat(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(")
    }

    /// What the header declares: prototypes, callbacks and the members of structs.
    fn declarations() -> Vec<String> {
        let code = HEADER.split("#include <sys/uio.h>").nth(1).expect("its includes");
        let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
        let lines = lines.filter(|line| !line.starts_with('#') && !line.contains("extern \"C\""));
        let code = flat(&lines.collect::<Vec<_>>().join("\n"));
        code.split_inclusive(';').map(|part| part.trim_matches([' ', '}']).to_owned()).collect()
    }

    #[test]
    fn the_manual_has_all_that_the_header_declares() {
        let (manual, declarations) = (flat(MANUAL), declarations());
        let functions = declarations.iter().filter(|part| part.contains('(')).count();
        assert!(functions > 60, "{functions}: the header is read wrongly");
        let opaque = |part: &str| part.starts_with("struct ") && !part.contains(['(', '{']);
        let parts = declarations.iter().filter(|part| !opaque(part));
        let missing: Vec<_> = parts.filter(|part| !manual.contains(part.as_str())).collect();
        assert!(missing.is_empty(), "docs/sealane.3.md lacks {missing:#?}");
        for define in HEADER.lines().filter_map(|line| line.strip_prefix("#define SEALANE_")) {
            let (name, number) = define.split_once(' ').unwrap_or((define, ""));
            let name = format!("SEALANE_{name}");
            assert!(name == "SEALANE_H" || manual.contains(&name), "{name} is not in the manual");
            if name.starts_with("SEALANE_E_") {
                assert!(manual.contains(&format!("- **{name}** ({number}):")), "{name} in ERRORS");
            }
        }
    }

    #[test]
    fn its_examples_are_parts_of_the_examples() {
        let examples = MANUAL.split("## EXAMPLES").nth(1).expect("examples");
        let blocks: Vec<_> = examples.split("```").skip(1).step_by(2).collect();
        assert!(blocks.len() >= 2);
        for block in blocks {
            for function in block.trim_start_matches("c\n").split("\n}\n") {
                let found = EXAMPLES.iter().any(|file| file.contains(function.trim()));
                assert!(found, "examples/c has no {function}");
            }
        }
    }

    #[test]
    fn markdown_becomes_roff_and_the_unknown_an_error() {
        let page = render(
            "# a(3)\n\n## B\n\nx **y**() -1\n.z\n\n```c\n\t'\\n';\n```\n\n- it\n\n| k | v |\n\
             | - | - |\n| 1 | |\n",
            "0.1",
        )
        .unwrap();
        let body = page.split(".TH A 3 \"\" \"a 0.1\"\n.nr HY 0\n.ad l\n").nth(1).unwrap();
        let wanted = ".SH B\nx \\fBy\\fR() \\-1 .z\n.PP\n.EX\n    \\*(Aq\\\\n\\*(Aq;\n.EE\n\
            .IP \\(bu 2\nit\n.PP\n.TS\ntab(|);\nlB lB\nl l.\nk|v\n1|\n.TE\n";
        assert_eq!(body, wanted);
        assert!(page.starts_with("'\\\" t\n"));
        assert!(render("<b>", "").is_err() && render("# a", "").is_err());
        assert!(render(MANUAL, "0.1.0").is_ok());
    }
}
