//! What the library has to say, to a callback.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt::Write;
use std::sync::{Arc, Once, RwLock};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::Failure;
use crate::fence::{call, int};

/// Errors alone.
pub const SEALANE_LOG_ERROR: c_int = 1;
/// And warnings.
pub const SEALANE_LOG_WARNING: c_int = 2;
/// And what happens once in a session.
pub const SEALANE_LOG_INFO: c_int = 3;
/// And what happens in each round, with strangers, and to connections.
pub const SEALANE_LOG_DEBUG: c_int = 4;

/// Gets a line of UTF-8, which lives as long as the call. Called by any thread that is in the
/// library or of it, several at a time. It does not throw, does not leave by longjmp, and calls no
/// function of this library but sealane_last_error.
pub type sealane_log_callback =
    Option<unsafe extern "C" fn(data: *mut c_void, level: c_int, text: *const c_char)>;

struct Sink {
    level: c_int,
    callback: unsafe extern "C" fn(*mut c_void, c_int, *const c_char),
    data: *mut c_void,
}

// SAFETY: the caller says that the callback may be called from any thread with its data.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

static SINK: RwLock<Option<Arc<Sink>>> = RwLock::new(None);
static ONCE: Once = Once::new();

/// Lets the library tell what it does to a callback, up to SEALANE_LOG_*; NULL for silence, which
/// is the default. One callback for the process; a call of the one before may still be going on
/// when this returns, so its data outlives it.
///
/// Returns 0; -EINVAL for no level.
///
/// # Safety
///
/// `callback` may be called from any thread with `data` until it was replaced.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_set_log(
    level: c_int,
    callback: sealane_log_callback,
    data: *mut c_void,
) -> c_int {
    int(call(|| {
        if callback.is_some() && !(SEALANE_LOG_ERROR..=SEALANE_LOG_DEBUG).contains(&level) {
            return Err(Failure::invalid(format!("level {level}: SEALANE_LOG_* is wanted")));
        }
        // In a Rust program that has a subscriber of its own, that one stays.
        ONCE.call_once(|| drop(tracing::subscriber::set_global_default(Forward)));
        let sink = callback.map(|callback| Arc::new(Sink { level, callback, data }));
        *SINK.write().unwrap_or_else(std::sync::PoisonError::into_inner) = sink;
        tracing::callsite::rebuild_interest_cache();
        Ok(0)
    }))
}

fn level_of(level: &Level) -> c_int {
    match *level {
        Level::ERROR => SEALANE_LOG_ERROR,
        Level::WARN => SEALANE_LOG_WARNING,
        Level::INFO => SEALANE_LOG_INFO,
        _ => SEALANE_LOG_DEBUG,
    }
}

/// Gives events to the callback. The library has no spans.
struct Forward;

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with("sealane");
        let sink = SINK.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        ours && metadata.is_event()
            && sink.as_ref().is_some_and(|sink| level_of(metadata.level()) <= sink.level)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("{}:", event.metadata().target()));
        event.record(&mut line);
        let text = CString::new(line.0.replace('\0', " ")).expect("no zero is left");
        // Not while it runs: it may wait for a lock of the caller's.
        let sink = SINK.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(sink) = sink {
            let level = level_of(event.metadata().level());
            // SAFETY: the caller's word in `sealane_set_log`.
            unsafe { (sink.callback)(sink.data, level, text.as_ptr()) }
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// `target: message key=value ..`
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        written.expect("a String takes all");
    }
}
