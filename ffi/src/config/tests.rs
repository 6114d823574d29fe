//! Each setting does what its name says, by key and by setter.

use std::ffi::CString;

use super::*;

type Setter = fn(*mut sealane_config) -> c_int;

/// What a call makes of the defaults.
fn changed(set: impl FnOnce(*mut sealane_config) -> c_int) -> Config {
    let mut config = std::ptr::null_mut();
    // SAFETY: `config` may be written; the handle lives until it is destroyed.
    unsafe {
        assert_eq!(sealane_config_new(&mut config), 0);
        assert_eq!(set(config), 0);
        let made = settings(config).ok().expect("a handle");
        sealane_config_destroy(&mut config);
        made
    }
}

fn by_text(key: &str, value: &str) -> Config {
    let (key, value) = (CString::new(key).unwrap(), CString::new(value).unwrap());
    // SAFETY: the handle is alive, and both are strings.
    changed(|config| unsafe { sealane_config_set(config, key.as_ptr(), value.as_ptr()) })
}

/// By its key, by its setter and in Rust a setting is the same, and not the default.
fn same(key: &str, value: &str, setter: Setter, wanted: impl FnOnce(&mut Config)) {
    let mut expected = Config::default();
    wanted(&mut expected);
    assert_ne!(expected, Config::default(), "{key} = {value}");
    assert_eq!(by_text(key, value), expected, "{key} = {value}");
    assert_eq!(changed(setter), expected, "the setter of {key}");
}

/// Rows of: key, text, typed setter and its value, what it is in Rust.
macro_rules! table {
    ($($key:literal $text:literal $setter:ident($value:expr) $field:ident = $wanted:expr;)*) => {{
        $({
            let setter: Setter = |config| {
                // SAFETY: the handle is alive.
                unsafe { $setter(config, $value) }
            };
            same($key, $text, setter, |config| config.$field = $wanted);
        })*
        [$($key),*]
    }};
}

#[test]
fn a_key_and_a_setter_set_the_same() {
    let seconds = Duration::from_secs;
    let keys = table! {
        "lanes" "7" sealane_config_set_lanes(7) lanes = 7;
        "frame_bytes" "65536" sealane_config_set_frame_bytes(65536) frame_bytes = 65536;
        "slots_per_lane" "9" sealane_config_set_slots_per_lane(9) slots_per_lane = 9;
        "bandwidth_bytes_per_s" "5000000000"
            sealane_config_set_bandwidth_bytes_per_s(5_000_000_000)
            bandwidth_bytes_per_s = 5_000_000_000;
        "provider" "ring"
            sealane_config_set_provider(SEALANE_PROVIDER_RING) provider = ProviderChoice::Ring;
        "engine" "syscalls"
            sealane_config_set_engine(SEALANE_ENGINE_SYSCALLS) engine = EngineChoice::Syscalls;
        "zero_copy" "off"
            sealane_config_set_zero_copy(SEALANE_ZERO_COPY_OFF) zero_copy = ZeroCopy::Off;
        "sqpoll" "on" sealane_config_set_sqpoll(true) sqpoll = true;
        "handshake_timeout_ms" "7000"
            sealane_config_set_handshake_timeout_ms(7000) handshake_timeout = seconds(7);
        "peer_timeout_ms" "8000"
            sealane_config_set_peer_timeout_ms(8000) peer_timeout = seconds(8);
        "socket_buffer_bytes" "1048576"
            sealane_config_set_socket_buffer_bytes(1 << 20) socket_buffer_bytes = 1 << 20;
        "congestion" "cubic" sealane_config_set_congestion(c"cubic".as_ptr())
            congestion = Some("cubic".to_owned());
        "migration_name" "guest 7" sealane_config_set_migration_name(c"guest 7".as_ptr())
            migration_name = "guest 7".to_owned();
    };
    assert_eq!(keys.join(", "), KEYS, "every key has a row");
}

#[test]
fn a_word_and_a_constant_choose_the_same() {
    let providers = [
        (SEALANE_PROVIDER_AUTO, "auto", ProviderChoice::Auto),
        (SEALANE_PROVIDER_AWS_LC, "aws-lc", ProviderChoice::AwsLc),
        (SEALANE_PROVIDER_RING, "ring", ProviderChoice::Ring),
        (SEALANE_PROVIDER_AES_GCM, "aes-gcm", ProviderChoice::RustCrypto),
    ];
    let engines = [
        (SEALANE_ENGINE_URING, "uring", EngineChoice::Uring),
        (SEALANE_ENGINE_SYSCALLS, "syscalls", EngineChoice::Syscalls),
    ];
    let zero_copies = [
        (SEALANE_ZERO_COPY_AUTO, "auto", ZeroCopy::Auto),
        (SEALANE_ZERO_COPY_REQUIRE, "require", ZeroCopy::Require),
        (SEALANE_ZERO_COPY_OFF, "off", ZeroCopy::Off),
    ];
    // SAFETY: the handles are alive.
    unsafe {
        for (value, word, wanted) in providers {
            assert_eq!(by_text("provider", word).provider, wanted);
            let set = |config| sealane_config_set_provider(config, value);
            assert_eq!(changed(set).provider, wanted);
        }
        for (value, word, wanted) in engines {
            assert_eq!(by_text("engine", word).engine, wanted);
            assert_eq!(changed(|config| sealane_config_set_engine(config, value)).engine, wanted);
        }
        for (value, word, wanted) in zero_copies {
            assert_eq!(by_text("zero_copy", word).zero_copy, wanted);
            let set = |config| sealane_config_set_zero_copy(config, value);
            assert_eq!(changed(set).zero_copy, wanted);
        }
    }
    let (all, lengths) = ((PROVIDERS.len(), ENGINES.len(), ZERO_COPIES.len()), (4, 2, 3));
    assert_eq!(all, lengths, "each has a row");
}
