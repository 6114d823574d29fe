//! Ending what goes on from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{CancelledBy, Error, Result};

/// Ends a migration from any thread, at any time. Clones are the same handle.
#[derive(Clone, Debug, Default)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// Asks for the end: the call that is going on returns [`Error::Cancelled`] soon, and the
    /// other end learns of it. A name lookup or a connect that is under way is not interrupted.
    /// Once [`crate::Source::hand_over`] has let go, or [`crate::Target::ready`] has returned, it
    /// comes too late and does nothing.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled { by: CancelledBy::Us }) } else { Ok(()) }
    }
}

/// In a thread of this crate: the program's signal handlers run on its own threads.
pub(crate) fn block_signals() {
    // It cannot fail with a whole set.
    let _ = nix::sys::signal::SigSet::all().thread_block();
}
