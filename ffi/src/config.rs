//! Settings: by key, for those who pass on what a user wrote, and by typed setters.

use std::ffi::{c_char, c_int};
use std::sync::Mutex;
use std::time::Duration;

use sealane::{Config, EngineChoice, ProviderChoice, ZeroCopy};

use crate::fence::{Handle, Outcome, call, destroy, give, int, opaque, place, text, with};
use crate::lanes::lock;
use crate::{Failure, SEALANE_E_CONFIG};

/// Settings. Any thread may use it, and it may be changed or destroyed once the call that took
/// it has returned.
pub struct sealane_config(Handle<Mutex<Config>>);
opaque!(sealane_config, Mutex<Config>);

/// Fastest for this CPU; an error on a CPU without AES instructions.
pub const SEALANE_PROVIDER_AUTO: c_int = 0;
/// AWS-LC.
pub const SEALANE_PROVIDER_AWS_LC: c_int = 1;
/// ring.
pub const SEALANE_PROVIDER_RING: c_int = 2;
/// RustCrypto's aes-gcm; runs without AES instructions too, slowly.
pub const SEALANE_PROVIDER_AES_GCM: c_int = 3;

/// io_uring; an error where the kernel refuses it.
pub const SEALANE_ENGINE_URING: c_int = 0;
/// send, recv, pread, pwrite.
pub const SEALANE_ENGINE_SYSCALLS: c_int = 1;

/// Tried, kept where the kernel reports that it did not copy. Streams do without, and log it,
/// where the limit of locked memory is too low.
pub const SEALANE_ZERO_COPY_AUTO: c_int = 0;
/// An error where the kernel copies.
pub const SEALANE_ZERO_COPY_REQUIRE: c_int = 1;
/// Plain sends.
pub const SEALANE_ZERO_COPY_OFF: c_int = 2;

const PROVIDERS: [(&str, ProviderChoice); 4] = [
    ("auto", ProviderChoice::Auto),
    ("aws-lc", ProviderChoice::AwsLc),
    ("ring", ProviderChoice::Ring),
    ("aes-gcm", ProviderChoice::RustCrypto),
];
const ENGINES: [(&str, EngineChoice); 2] =
    [("uring", EngineChoice::Uring), ("syscalls", EngineChoice::Syscalls)];
const ZERO_COPIES: [(&str, ZeroCopy); 3] =
    [("auto", ZeroCopy::Auto), ("require", ZeroCopy::Require), ("off", ZeroCopy::Off)];
const KEYS: &str = "lanes, frame_bytes, slots_per_lane, bandwidth_bytes_per_s, provider, engine, \
    zero_copy, sqpoll, handshake_timeout_ms, peer_timeout_ms, socket_buffer_bytes, congestion, \
    migration_name";

/// New settings with their defaults.
///
/// Returns 0 or a negative error.
///
/// # Safety
///
/// `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_new(out: *mut *mut sealane_config) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, Mutex::new(Config::default())) };
        Ok(0)
    }))
}

/// Destroys settings and nulls the pointer. NULL, and a pointer to NULL, are no error.
///
/// # Safety
///
/// `config` is null, or points to null or to settings that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_destroy(config: *mut *mut sealane_config) {
    // SAFETY: as this function's.
    unsafe { destroy(config) }
}

/// Sets one setting by its name: the setters' names after `sealane_config_set_`, with their units;
/// words for provider (`auto`, `aws-lc`, `ring`, `aes-gcm`), engine (`uring`, `syscalls`),
/// zero_copy (`auto`, `require`, `off`) and sqpoll (`on`, `off`), decimal numbers for the rest.
///
/// Returns 0; -SEALANE_E_CONFIG for an unknown key or a value that is none of it.
///
/// # Safety
///
/// `config` is alive; `key` and `value` are strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set(
    config: *mut sealane_config,
    key: *const c_char,
    value: *const c_char,
) -> c_int {
    // SAFETY: `config` as this function's, and so the strings.
    int(unsafe {
        with(config, |config| {
            let (key, value) = (text("a key", key)?, text("a value", value)?);
            let mut new = lock(config).clone();
            set(&mut new, key, value)?;
            keep(config, new)
        })
    })
}

fn set(config: &mut Config, key: &str, value: &str) -> Outcome<()> {
    match key {
        "lanes" => config.lanes = number(key, value)?,
        "frame_bytes" => config.frame_bytes = number(key, value)?,
        "slots_per_lane" => config.slots_per_lane = number(key, value)?,
        "bandwidth_bytes_per_s" => config.bandwidth_bytes_per_s = number(key, value)?,
        "provider" => config.provider = word(key, value, &PROVIDERS)?,
        "engine" => config.engine = word(key, value, &ENGINES)?,
        "zero_copy" => config.zero_copy = word(key, value, &ZERO_COPIES)?,
        "sqpoll" => config.sqpoll = word(key, value, &[("on", true), ("off", false)])?,
        "handshake_timeout_ms" => {
            config.handshake_timeout = Duration::from_millis(number(key, value)?);
        }
        "peer_timeout_ms" => config.peer_timeout = Duration::from_millis(number(key, value)?),
        "socket_buffer_bytes" => config.socket_buffer_bytes = number(key, value)?,
        "congestion" => config.congestion = (!value.is_empty()).then(|| value.to_owned()),
        "migration_name" => value.clone_into(&mut config.migration_name),
        _ => return Err(wrong(key, "an unknown key", KEYS)),
    }
    Ok(())
}

/// Keeps settings that are in their ranges. What one setting makes of another (the engine of
/// zero_copy) shows when they are used, so that their order does not matter.
fn keep(config: &Mutex<Config>, new: Config) -> Outcome<i64> {
    let mut ranges = new.clone();
    ranges.engine = EngineChoice::Uring;
    ranges.check()?;
    *lock(config) = new;
    Ok(0)
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Outcome<T> {
    value.parse().map_err(|_| wrong(key, value, "a decimal number in its range"))
}

fn word<T: Copy>(key: &str, value: &str, words: &[(&str, T)]) -> Outcome<T> {
    let found = words.iter().find(|(word, _)| *word == value);
    let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    found.map(|(_, choice)| *choice).ok_or_else(|| wrong(key, value, &names.join(", ")))
}

fn choice<T: Copy>(key: &str, value: c_int, words: &[(&str, T)]) -> Outcome<T> {
    let found = usize::try_from(value).ok().and_then(|index| words.get(index));
    let wanted = format!("0 to {}", words.len() - 1);
    found.map(|(_, choice)| *choice).ok_or_else(|| wrong(key, &value.to_string(), &wanted))
}

fn wrong(key: &str, found: &str, wanted: &str) -> Failure {
    Failure(SEALANE_E_CONFIG, format!("{key}: found {found}, wanted {wanted}"))
}

/// A copy of the settings, or the defaults for NULL.
///
/// # Safety
///
/// As for [`with`].
pub(crate) unsafe fn settings(config: *const sealane_config) -> Outcome<Config> {
    if config.is_null() {
        return Ok(Config::default());
    }
    // SAFETY: as this function's.
    let config = unsafe { crate::fence::argument(config) }?;
    Ok(lock(config).clone())
}

/// Changes one setting.
///
/// # Safety
///
/// As for [`with`].
unsafe fn change(
    config: *mut sealane_config,
    set: impl FnOnce(&mut Config) -> Outcome<()>,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(config, |config| {
            let mut new = lock(config).clone();
            set(&mut new)?;
            keep(config, new)
        })
    })
}

/// Connections of a migration, 1 to 64. Default 1; the source decides. Streams do not use it.
///
/// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
///
/// # Safety
///
/// `config` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_lanes(
    config: *mut sealane_config,
    lanes: u16,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        change(config, |config| {
            config.lanes = lanes;
            Ok(())
        })
    }
}

/// Payload bytes of a full frame, a multiple of 4096 from 65536 to 1048576. Default 262144; the
/// source decides.
///
/// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
///
/// # Safety
///
/// `config` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_frame_bytes(
    config: *mut sealane_config,
    bytes: usize,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        change(config, |config| {
            config.frame_bytes = bytes;
            Ok(())
        })
    }
}

/// Frames that one lane's pool holds, 2 to 64. Default 3.
///
/// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
///
/// # Safety
///
/// `config` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_slots_per_lane(
    config: *mut sealane_config,
    slots: usize,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        change(config, |config| {
            config.slots_per_lane = slots;
            Ok(())
        })
    }
}

/// Bytes per second that all lanes of a migration may send together, 0 for no limit. Default 0.
///
/// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
///
/// # Safety
///
/// `config` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_bandwidth_bytes_per_s(
    config: *mut sealane_config,
    bytes: u64,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        change(config, |config| {
            config.bandwidth_bytes_per_s = bytes;
            Ok(())
        })
    }
}

/// Who does the AES-GCM: SEALANE_PROVIDER_*. Default SEALANE_PROVIDER_AUTO.
///
/// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
///
/// # Safety
///
/// `config` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_provider(
    config: *mut sealane_config,
    provider: c_int,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        change(config, |config| {
            config.provider = choice("provider", provider, &PROVIDERS)?;
            Ok(())
        })
    }
}

/// How bytes are moved: SEALANE_ENGINE_*. Default SEALANE_ENGINE_URING.
///
/// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
///
/// # Safety
///
/// `config` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_engine(
    config: *mut sealane_config,
    engine: c_int,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        change(config, |config| {
            config.engine = choice("engine", engine, &ENGINES)?;
            Ok(())
        })
    }
}

/// Zero-copy send: SEALANE_ZERO_COPY_*. Default SEALANE_ZERO_COPY_AUTO.
///
/// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
///
/// # Safety
///
/// `config` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_zero_copy(
    config: *mut sealane_config,
    zero_copy: c_int,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        change(config, |config| {
            config.zero_copy = choice("zero_copy", zero_copy, &ZERO_COPIES)?;
            Ok(())
        })
    }
}

/// Whether a kernel thread polls each lane's ring. Default false.
///
/// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
///
/// # Safety
///
/// `config` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_sqpoll(
    config: *mut sealane_config,
    sqpoll: bool,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        change(config, |config| {
            config.sqpoll = sqpoll;
            Ok(())
        })
    }
}

/// How long a handshake may take, in milliseconds. Default 10000.
///
/// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
///
/// # Safety
///
/// `config` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_handshake_timeout_ms(
    config: *mut sealane_config,
    ms: u64,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        change(config, |config| {
            config.handshake_timeout = Duration::from_millis(ms);
            Ok(())
        })
    }
}

/// How long the other end of a migration may be silent, in milliseconds, at least 1000. Default
/// 30000. Streams do not use it.
///
/// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
///
/// # Safety
///
/// `config` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_peer_timeout_ms(
    config: *mut sealane_config,
    ms: u64,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        change(config, |config| {
            config.peer_timeout = Duration::from_millis(ms);
            Ok(())
        })
    }
}

/// Bytes of the kernel's send and receive buffer of each TCP connection, 0 for autotuning.
/// Default 0.
///
/// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
///
/// # Safety
///
/// `config` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_socket_buffer_bytes(
    config: *mut sealane_config,
    bytes: usize,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        change(config, |config| {
            config.socket_buffer_bytes = bytes;
            Ok(())
        })
    }
}

/// TCP congestion control of the connections at this end, as tcp(7) names it; NULL or "" for the
/// system's. Default the system's.
///
/// Returns 0 or -EINVAL.
///
/// # Safety
///
/// `config` is alive; `name` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_congestion(
    config: *mut sealane_config,
    name: *const c_char,
) -> c_int {
    // SAFETY: `config` as this function's, and so `name`.
    int(unsafe {
        with(config, |config| {
            let name = if name.is_null() { "" } else { text("a name", name)? };
            lock(config).congestion = (!name.is_empty()).then(|| name.to_owned());
            Ok(0)
        })
    })
}

/// Name of the migration, the same at both ends: any text, for example the guest's UUID. Several
/// may wait at one listener, each for a migration of another name. NULL or "" for none. Default
/// none.
///
/// Returns 0 or -EINVAL.
///
/// # Safety
///
/// `config` is alive; `name` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_config_set_migration_name(
    config: *mut sealane_config,
    name: *const c_char,
) -> c_int {
    // SAFETY: `config` as this function's, and so `name`.
    int(unsafe {
        with(config, |config| {
            let name = if name.is_null() { "" } else { text("a name", name)? };
            name.clone_into(&mut lock(config).migration_name);
            Ok(0)
        })
    })
}

#[cfg(test)]
mod tests;
