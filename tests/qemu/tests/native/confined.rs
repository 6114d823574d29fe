//! QEMU without privileges.

use sealane_qemu::Options;

use crate::pair::{Case, Pair};

/// What old systems give to each user.
const LOCKED_BYTES: u64 = 64 << 10;
pub const SANDBOX: &[&str] =
    &["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"];

#[test]
fn a_guest_moves_under_every_option_of_the_sandbox() {
    for capabilities in [&[][..], &["multifd"]] {
        let options = Options { more: SANDBOX, ..Options::live() };
        let pair = Pair::new(&Case { options, ..Case::live().with(capabilities) });
        pair.start();
        pair.finish();
        pair.assert_lives_at_target();
    }
}

/// Rings count as locked memory. What does not fit is told with the way out of it.
#[test]
fn an_ordinary_user_with_little_locked_memory_moves_one_channel_or_names_the_engine() {
    let options = Options { ordinary_user: Some(LOCKED_BYTES), ..Options::default() };
    let one = Case { options, ..Case::memory() };
    let nine = Case { channels: 8, ..one.clone().with(&["multifd"]) };
    for case in [one, Case { engine: "syscalls", ..nine.clone() }] {
        let pair = Pair::new(&case);
        pair.start();
        pair.finish_after("sends are not zero-copy");
        pair.assert_memory_arrived();
    }
    let pair = Pair::new(&nine);
    pair.start();
    let info = pair.source.wait_status("failed");
    let error = info.all["error-desc"].as_str().unwrap_or_default();
    for part in ["locked memory", "65536", "ulimit -l", "engine = syscalls"] {
        assert!(error.contains(part), "{error}");
    }
}
