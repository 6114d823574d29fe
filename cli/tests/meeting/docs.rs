//! The commands of docs/meeting.md.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::command;
use super::hosts::{EAST, WEST, nft, two_hosts};
use super::support::{Ended, Place, Running};
use super::ways::free_ports;

const TEXT: &str = include_str!("../../../docs/meeting.md");

fn blocks(kind: &str) -> Vec<&'static str> {
    let begin = format!("```{kind}\n");
    TEXT.split(&begin[..]).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn the_check_in_the_docs_works_as_it_stands_and_prints_what_it_says() {
    let [script] = blocks("sh")[..] else { panic!("one script") };
    assert!(script.contains("127.0.0.1:7812"));
    let script = script.replace(":7812", &format!(":{}", free_ports(1)));
    let place = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_sealane"));
    std::os::unix::fs::symlink(program, place.path().join("sealane")).unwrap();
    let path = format!("{}:{}", place.path().display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("timeout");
    shell.args(["60", "sh", "-e", "-c", &script]).env("PATH", path).current_dir(place.path());
    let output = shell.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");

    let names = |text: &str| -> Vec<String> {
        let name = |line: &str| line.trim().split("  ").next().unwrap().to_owned();
        text.lines().map(name).filter(|name| name != "here" && name != "there").collect()
    };
    let sample = TEXT.lines().skip_while(|line| !line.starts_with("    trust "));
    let sample: Vec<_> = sample.take_while(|line| line.starts_with("    ")).collect();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(names(&printed), names(&sample.join("\n")), "{printed}");
    let far = fs::read_to_string(place.path().join("far.txt")).unwrap();
    assert_eq!(names(&far), names(&printed), "{far}");
}

#[test]
fn the_firewalls_in_the_docs_let_a_rendezvous_through() {
    let test = "the_firewalls_in_the_docs_let_a_rendezvous_through";
    let [source_rules, target_rules] = blocks("nft")[..] else { panic!("two firewalls") };
    let here = |text: &str| text.replace("192.0.2.7", WEST).replace("198.51.100.7", EAST);
    let line = |begin: &str| {
        let line = TEXT.lines().find(|line| line.trim().starts_with(begin));
        here(line.unwrap().split_once("sealane ").unwrap().1)
    };
    let place = Place::new();
    for (directory, key) in [("source", "key"), ("target", "key2")] {
        fs::create_dir(place.file(directory)).unwrap();
        fs::rename(place.file(key), place.file(&format!("{directory}/key"))).unwrap();
    }
    fs::rename(place.file("image"), place.file("source/guest.ram")).unwrap();
    let host = |rules: String, line: String, directory: &'static str| {
        let directory = place.file(directory);
        move || -> Ended {
            nft(&rules);
            Running::start(command(&line).current_dir(directory)).end()
        }
    };
    let source = host(here(source_rules), line("source$ sealane send guest.ram --rend"), "source");
    let target = host(here(target_rules), line("target$ sealane recv guest.ram --rend"), "target");
    let Some((sent, received)) = two_hosts(test, "", source, target) else { return };
    assert_eq!((sent.code(), received.code()), (0, 0), "{sent:?} {received:?}");
    assert!(sent.error.contains("4 lanes"), "{sent:?}");
    assert!(fs::read(place.file("target/guest.ram")).unwrap() == place.content);
}
