//! Ending what goes on from another thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::error::{CancelledBy, Error, Result};

/// Ends a migration from any thread, at any time. Clones are the same handle.
#[derive(Clone, Debug, Default)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// Asks for the end: the call that is going on returns [`Error::Cancelled`] soon, and the
    /// other end learns of it. A connect that is under way is interrupted, a name lookup is not.
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

/// A thread of this crate, which takes no signals: the program's handlers run on its own threads.
/// It begins with them blocked, as this thread has them meanwhile.
///
/// # Errors
///
/// What the system says.
#[doc(hidden)]
pub fn spawn<T: Send + 'static>(
    name: String,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    // Neither can fail: the sets are whole, or were there before.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let thread = std::thread::Builder::new().name(name).spawn(run);
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
    thread
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn a_thread_begins_without_signals_and_its_maker_keeps_them() {
        let mut own = SigSet::empty();
        own.add(Signal::SIGUSR2);
        own.thread_set_mask().unwrap();
        let thread = spawn("a thread".to_owned(), || SigSet::thread_get_mask().unwrap()).unwrap();
        let taken = |set: &SigSet| Signal::iterator().filter(|s| !set.contains(*s)).count();
        let theirs = thread.join().unwrap();
        assert_eq!(taken(&theirs), 2, "SIGKILL and SIGSTOP alone");
        assert_eq!(SigSet::thread_get_mask().unwrap(), own);
    }
}
