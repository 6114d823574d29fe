//! Migrations that succeed.

use sealane_qemu::{Options, Proxy, contains, kvm_is_here};
use serde_json::Value;

use crate::pair::{Case, Pair, new_secret, qemu, use_secret};

/// What stands in the guest's memory, and nowhere on the wire.
const CANARY: &[u8; 64] = b"in a coal mine it would sing; on the wire nobody may ever see it";
/// Less than what a guest of 32 MiB has for content.
const CONTENT_BYTES: usize = 20 << 20;

#[test]
fn memory_crosses_by_tcp_and_by_unix() {
    let pair = Pair::new(&Case::memory());
    pair.start();
    let info = pair.finish();
    assert!(info.transferred_bytes > 90 << 20, "{info:?}");
    pair.assert_memory_arrived();

    let pair = Pair::new(&Case::memory());
    let uri = format!("unix:{}", pair.target.path("migration").display());
    pair.target.listen(&uri);
    pair.source.migrate(&uri);
    pair.finish();
    pair.assert_memory_arrived();
}

#[test]
fn a_live_guest_moves_without_losing_a_page() {
    for engine in ["uring", "syscalls"] {
        let pair = Pair::new(&Case { engine, ..Case::live() });
        pair.start();
        pair.finish();
        pair.assert_lives_at_target();
    }
}

#[test]
fn multifd_moves_content_and_zero_pages_by_two_and_by_eight() {
    for channels in [2, 8] {
        let case = Case { channels, ..Case::memory().with(&["multifd"]) };
        let pair = Pair::new(&case);
        pair.start();
        let info = pair.finish();
        assert!(info.all["ram"]["multifd-bytes"].as_u64() > Some(90 << 20), "{info:?}");
        assert!(info.all["ram"]["duplicate"].as_u64() > Some(8000), "zero pages: {info:?}");
        pair.assert_memory_arrived();
    }
}

#[test]
fn a_live_guest_moves_by_multifd() {
    let pair = Pair::new(&Case::live().with(&["multifd"]));
    pair.start();
    pair.finish();
    pair.assert_lives_at_target();
}

#[test]
fn a_live_guest_moves_by_postcopy() {
    if let Some(error) = qemu().refuses_postcopy() {
        println!("SKIP: a_live_guest_moves_by_postcopy: {error}");
        return;
    }
    for capabilities in [&["postcopy-ram"][..], &["postcopy-ram", "postcopy-preempt"]] {
        let pair = Pair::new(&Case::live().with(capabilities));
        pair.start_slowly();
        pair.source.start_postcopy();
        let info = pair.finish();
        let asked = info.all["ram"]["postcopy-requests"].as_u64();
        assert!(asked > Some(0), "no page was fetched: {info:?}");
        pair.assert_lives_at_target();
    }
}

#[test]
fn a_return_path_and_other_capabilities_change_nothing() {
    let pair = Pair::new(&Case::memory().with(&["return-path"]));
    pair.start();
    pair.finish();
    pair.assert_memory_arrived();

    let pair = Pair::new(&Case::live().with(&["events", "validate-uuid", "auto-converge"]));
    pair.start();
    pair.finish();
    pair.assert_lives_at_target();
    for end in [&pair.source, &pair.target] {
        let events = end.take_events();
        let completed = |event: &Value| event["data"]["status"] == "completed";
        assert!(events.iter().any(completed), "{}: {events:?}", end.name());
    }
}

#[test]
fn a_live_guest_moves_under_kvm() {
    if !kvm_is_here() {
        println!("SKIP: a_live_guest_moves_under_kvm: no /dev/kvm for this user");
        return;
    }
    let options = Options { kvm: true, ..Options::live() };
    for capabilities in [&[][..], &["multifd"]] {
        let pair = Pair::new(&Case { options: options.clone(), ..Case::live().with(capabilities) });
        pair.start();
        pair.finish();
        pair.assert_lives_at_target();
    }
}

/// The pages have been read when a write returns, whoever asks: there is nothing to flush.
#[test]
fn zero_copy_send_is_refused_in_one_sentence() {
    let pair = Pair::new(&Case::memory().with(&["multifd"]));
    let error = pair.source.try_set_capabilities(&["zero-copy-send"]).unwrap_err();
    assert!(error.contains("Zero copy only available for"), "{error}");
    pair.start();
    pair.finish();
    pair.assert_memory_arrived();
}

#[test]
fn a_guest_moves_on_with_another_secret_and_never_with_one_that_has_served() {
    let first = Pair::new(&Case::live());
    first.start();
    first.finish();
    first.assert_lives_at_target();
    first.target.cont();
    // Onwards: the guest's QEMU was a target and is a source now.
    let case = Case::live();
    let onwards = sealane_qemu::Guest::start(&qemu(), "third", &case.options.target());
    let secret = new_secret();
    first.target.execute("object-del", serde_json::json!({"id": "s0"}));
    use_secret(&first.target, "client", &secret).unwrap();
    use_secret(&onwards, "server", &secret).unwrap();
    onwards.listen("tcp:127.0.0.1:0");
    first.target.prepare(&[], 0);
    first.target.migrate(&format!("tcp:127.0.0.1:{}", onwards.port()));
    let onwards = Pair { source: first.target, target: onwards };
    onwards.finish();
    onwards.assert_lives_at_target();

    // The first source again, with the secret that has served, which a new target knows too.
    let served = std::fs::read_to_string(first.source.path("secret")).unwrap();
    let again = sealane_qemu::Guest::start(&qemu(), "fourth", &case.options.target());
    use_secret(&again, "server", &served).unwrap();
    again.listen("tcp:127.0.0.1:0");
    first.source.cont();
    first.source.migrate(&format!("tcp:127.0.0.1:{}", again.port()));
    let info = first.source.wait_status("failed");
    let error = info.all["error-desc"].as_str().unwrap_or_default();
    assert!(error.contains("a completed migration has used"), "{error}");
}

#[test]
fn nothing_of_the_guest_can_be_read_on_the_wire() {
    let options = Options { mib: 32, ..Options::default() };
    for capabilities in [&[][..], &["multifd"]] {
        let case = Case { options: options.clone(), ..Case::memory().with(capabilities) };
        let pair = Pair::new(&case);
        for mib in [1, 7, 20, 31] {
            pair.source.memory().write((mib << 20) + 100, CANARY);
        }
        let uri = pair.listen();
        let proxy = Proxy::recording(uri.strip_prefix("tcp:").unwrap());
        pair.source.migrate(&format!("tcp:{}", proxy.address));
        pair.finish();
        pair.assert_memory_arrived();
        // That it would be found is shown with a plain migration in the tunnel's tests.
        for record in proxy.wait_records(CONTENT_BYTES) {
            assert!(!contains(&record, CANARY));
            assert!(!contains(&record[..record.len().min(4096)], b"QEVM"));
        }
    }
}
