//! The pair in examples/ does what it says, as two processes.
#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use sealane::OneTimeSecret;

/// Cargo builds the examples beside the tests' own folder.
fn example(name: &str) -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    Command::new(path.join("examples").join(name))
}

#[test]
fn the_target_takes_the_guest_where_the_source_left_it() {
    let place = tempfile::tempdir().unwrap();
    let secret = place.path().join("secret");
    OneTimeSecret::generate().unwrap().write_new(&secret).unwrap();
    let mut target = example("target")
        .arg("127.0.0.1:0")
        .arg(&secret)
        .stdout(Stdio::piped())
        .spawn()
        .expect("built by a plain `cargo test`, or by `cargo build --examples`");
    let mut said = BufReader::new(target.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening at ").unwrap();
    let source = example("source").arg(address).arg(&secret).output().unwrap();
    let ours = String::from_utf8_lossy(&source.stdout).into_owned();
    assert!(source.status.success(), "{ours}{}", String::from_utf8_lossy(&source.stderr));
    let mut theirs = String::new();
    said.read_to_string(&mut theirs).unwrap();
    assert!(target.wait().unwrap().success(), "{theirs}");

    let steps = number_after(&ours, "handed over after ");
    assert_eq!(number_after(&theirs, "took a guest of "), steps);
    // The last step wrote its number: memory came over as it was at the pause.
    assert_eq!(number_after(&theirs, "its last left "), steps - 1);
    assert!(steps > 1, "the guest ran meanwhile");
}

fn number_after(text: &str, words: &str) -> u64 {
    let (_, rest) = text.split_once(words).unwrap_or_else(|| panic!("no {words:?} in {text}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}
