//! Names of migrations.

use super::support::Place;
use super::{assert_crossed, assert_says, recv, send, source_secret, target_secret};

#[test]
fn the_migration_of_the_same_name_is_met_and_another_is_told_so() {
    let place = Place::new();
    let named = format!("--listen 127.0.0.1:0 --migration guest-1 {}", target_secret(&place));
    let receiver = recv(&place, &named);
    let connects = format!("--connect {} {}", receiver.address(), source_secret(&place));
    for other in ["--migration guest-2", ""] {
        let ended = send(&place, &format!("{connects} {other}")).end();
        assert_says(&ended, 1, &["refused", "another name", "--migration"]);
        assert!(receiver.line_with("WARN").contains("listening on"));
    }
    let sender = send(&place, &format!("{connects} --migration guest-1"));
    assert_crossed(&place, sender, receiver);
}
