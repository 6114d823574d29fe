//! One door for several who wait: a connection goes to whom its first message names.
//!
//! Whoever waits does the work for all, one at a time; there is no thread. Those who wait for a
//! session to be opened are told apart by the migration's name (W-38), those who wait for further
//! lanes by the session.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::board::{Arrival, Board, Caller, Waiting, Wants};
use super::door::{Door, PeerAddress};
use super::half_open::{Greeting, Heard, Stranger};
use super::{TICK, Until, tune_if_tcp, wait};
use crate::cancel::Canceller;
use crate::config::Config;
use crate::error::{Error, PeerError, Result, SystemError};
use crate::trust::{self, Greeted, Proven, Trust};

/// Connections that a door hears out at a time.
const HALF_OPEN_MAX: usize = 64;
/// First messages that were answered and are remembered.
const ANSWERED_MAX: usize = 1024;
/// Connections that are accepted before those that are there are heard.
const ACCEPTS: usize = 16;

/// A door and those who wait at it.
pub struct Hub {
    porter: Mutex<Porter>,
    board: Mutex<Board>,
    changed: Condvar,
    /// Wakes who does the work, to hear somebody else's guest.
    wake: EventFd,
}

struct Porter {
    door: Door,
    strangers: Vec<Stranger>,
    /// It was said that there are too few descriptors.
    told: bool,
}

/// That somebody will wait for a migration of a name: see [`super::Listener::expect`].
pub struct Expected {
    hub: Arc<Hub>,
    migration_id: [u8; 16],
}

/// A place among those who wait, until it is dropped.
pub struct Ticket {
    hub: Arc<Hub>,
    key: u64,
}

impl Hub {
    /// # Errors
    ///
    /// [`Error::System`] where the system gives no descriptor.
    pub fn new(door: Door) -> Result<Arc<Self>> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags)
            .map_err(|e| SystemError::from_errno("eventfd", "listener", e as i32))?;
        let porter = Mutex::new(Porter { door, strangers: Vec::new(), told: false });
        let (board, changed) = (Mutex::new(Board::default()), Condvar::new());
        Ok(Arc::new(Self { porter, board, changed, wake }))
    }

    /// Looks at the door. Who waits there lets go of it: a mutex alone would be taken again at
    /// once, and again.
    pub fn door<T>(&self, look: impl FnOnce(&mut Door) -> T) -> T {
        let _look = Look::begin(self);
        look(&mut self.porter().door)
    }

    /// # Errors
    ///
    /// [`Error::Misuse`] where somebody waits for the same migration.
    pub fn register(self: &Arc<Self>, wants: Wants, trust: &Trust) -> Result<Ticket> {
        let mut board = self.board();
        let same = |other: &Waiting| match (wants, other.wants) {
            (Wants::Open { migration_id: ours }, Wants::Open { migration_id: theirs }) => {
                ours == theirs
            }
            _ => false,
        };
        if board.waiting.iter().any(same) {
            let text = "two wait at one listener for migrations of the same name, or of none: \
                        migration_name tells them apart";
            return Err(Error::Misuse(text.to_owned()));
        }
        let key = board.next_key;
        board.next_key += 1;
        let queue = match wants {
            Wants::Open { migration_id } => board.take_early(&migration_id),
            Wants::Session { .. } => VecDeque::new(),
        };
        // Nobody without the one-time secret gets a byte.
        let answers_tls = trust.secret().is_none();
        board.waiting.push(Waiting { key, wants, answers_tls, queue });
        Ok(Ticket { hub: Arc::clone(self), key })
    }

    /// Where one who held it panicked, strangers may be lost.
    fn porter(&self) -> MutexGuard<'_, Porter> {
        self.porter.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// See [`super::Listener::expect`].
    pub fn expect(self: &Arc<Self>, migration_id: [u8; 16]) -> Expected {
        self.board().expected.push(migration_id);
        Expected { hub: Arc::clone(self), migration_id }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().expect("no panic while it is held")
    }

    /// Accepts, hears and hands out for a moment. Where somebody `must_come`, to open a session or
    /// `further`, and nobody can, that is an error.
    fn work(
        &self,
        config: &Config,
        deadline: Option<Instant>,
        must_come: Option<bool>,
    ) -> Result<()> {
        let mut porter = self.porter();
        let answers_tls = {
            let mut board = self.board();
            porter.strangers.append(&mut board.greeted);
            board.waiting.iter().any(|waiting| waiting.answers_tls)
        };
        let more = porter.accept(config)?;
        if let Some(further) = must_come
            && porter.strangers.is_empty()
        {
            porter.door.none_left(further).map_or(Ok(()), Err)?;
        }
        let ready = porter.ready(&self.wake, if more { Some(Instant::now()) } else { deadline });
        let _ = self.wake.read(); // it does not block
        for (stranger, ready) in std::mem::take(&mut porter.strangers).into_iter().zip(ready) {
            if !ready && !stranger.is_late() {
                porter.strangers.push(stranger);
                continue;
            }
            match stranger.hear(answers_tls) {
                Heard::Stranger(stranger) => porter.strangers.push(stranger),
                Heard::Message(socket, address, message) => {
                    self.board().sort(socket, address, message);
                }
                Heard::Proven(socket, Greeting { owner, hello, tls, .. }) => {
                    let (trust, proven) = (tls.trust(), Proven::Tls(tls));
                    let caller = Box::new(Caller { hello, proven, trust });
                    self.board().give_proven(owner, socket, caller);
                }
                Heard::Nobody => {}
            }
        }
        Ok(())
    }
}

impl Porter {
    /// Lets in who is at the door; whether more may be there.
    fn accept(&mut self, config: &Config) -> Result<bool> {
        for _ in 0..ACCEPTS {
            match self.door.accept() {
                Ok(Some((socket, address))) => {
                    if tune_if_tcp(&socket, config).is_ok() {
                        self.make_room();
                        let deadline = Instant::now() + config.handshake_timeout;
                        self.strangers.push(Stranger::new(socket, address, deadline));
                    }
                }
                Ok(None) => return Ok(false),
                // Strangers may have taken them all: one gives way.
                Err(Error::System(e))
                    if matches!(e.errno, libc::EMFILE | libc::ENFILE)
                        && !self.strangers.is_empty() =>
                {
                    if !std::mem::replace(&mut self.told, true) {
                        let remedy = "somebody who connected was turned away for it";
                        tracing::warn!("{}", e.clone().remedy(format!("{remedy}: {}", e.remedy)));
                    }
                    self.turn_one_away();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Waits until somebody is there or has something to say: which of the strangers.
    fn ready(&self, wake: &EventFd, deadline: Option<Instant>) -> Vec<bool> {
        let deadline = [deadline, self.door.retry_at()].into_iter().flatten().min();
        let mut fds = self.door.poll_fds();
        fds.push((wake.as_fd(), PollFlags::POLLIN));
        let others = fds.len();
        fds.extend(self.strangers.iter().map(Stranger::poll_fd));
        wait(&fds, deadline).split_off(others)
    }

    fn make_room(&mut self) {
        while self.strangers.len() >= HALF_OPEN_MAX {
            self.turn_one_away();
        }
    }

    /// Of the network that has the most here one who is not in TLS, where there is one: it goes
    /// before the stage, or a flood in TLS would turn away whoever begins.
    fn turn_one_away(&mut self) {
        let all = &self.strangers;
        let count = |of: PeerAddress| all.iter().filter(|s| s.address.network() == of).count();
        let crowd = |s: &Stranger| (count(s.address.network()), s.is_idle());
        // Of several that are the most the first, which is the oldest.
        let most = all.iter().enumerate().rev().max_by_key(|(_, stranger)| crowd(stranger));
        if let Some((at, _)) = most {
            self.strangers.remove(at);
        }
    }
}

impl Ticket {
    /// Waits for a connection of this place; none once it is over.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`]; [`Error::System`] where the door is no more.
    pub fn next(
        &self,
        config: &Config,
        cancel: &Canceller,
        until: Until<'_>,
    ) -> Result<Option<Arrival>> {
        let hub = &self.hub;
        let mut board = hub.board();
        loop {
            cancel.check()?;
            let own = board.waiting.iter_mut().find(|waiting| waiting.key == self.key);
            let own = own.expect("it waits until it is dropped");
            let further = matches!(own.wants, Wants::Session { .. });
            if let Some((_, arrival)) = own.queue.pop_front() {
                return Ok(Some(arrival));
            }
            if until.is_over() {
                return Ok(None);
            }
            if board.led || board.looks > 0 {
                let waited = hub.changed.wait_timeout(board, TICK);
                board = waited.expect("no panic while it is held").0;
                continue;
            }
            board.led = true;
            drop(board);
            let led = Led(hub);
            let worked = hub.work(config, until.deadline, until.must_come.then_some(further));
            drop(led);
            worked?;
            board = hub.board();
        }
    }

    /// Whether a connection that asks for a session has shown who it is; none where it has not, or
    /// has yet to: it comes again then as one that has.
    ///
    /// # Errors
    ///
    /// What `trust` says; [`Error::Config`] where the certificates do not serve here.
    pub fn greet(
        &self,
        arrival: Arrival,
        trust: &dyn Fn() -> Result<Trust>,
        config: &Config,
    ) -> Result<Option<(TcpStream, Caller)>> {
        let (socket, address, message, hello) = match arrival {
            Arrival::Open(socket, address, message, hello) => (socket, address, message, hello),
            Arrival::Proven(socket, caller) => return Ok(Some((socket, *caller))),
            Arrival::Join(..) => return Ok(None),
        };
        if self.hub.board().answered.contains(&*message) {
            tracing::debug!("dropped a first message that was answered before");
            return Ok(None);
        }
        let trust = trust()?;
        let greeted = match trust::greet(&trust, &message, &hello) {
            Ok(greeted) => greeted,
            Err(error @ Error::Peer(PeerError::NotAuthenticated { .. })) => {
                tracing::debug!(%error, "dropped a stranger");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if trust.secret().is_some() {
            let answered = &mut self.hub.board().answered;
            answered.truncate(ANSWERED_MAX - 1);
            answered.push_front(*message);
        }
        let tls = match greeted {
            Greeted::Proven(proven) => return Ok(Some((socket, Caller { hello, proven, trust }))),
            Greeted::Tls(tls) => tls,
        };
        let deadline = Instant::now() + config.handshake_timeout;
        let greeting = Greeting::new(self.key, hello, tls);
        let stranger = Stranger::greeted(socket, address, greeting, deadline);
        self.hub.board().greeted.push(stranger);
        let _ = self.hub.wake.write(1);
        Ok(None)
    }

    /// Why nobody will come any more, where that is so.
    pub fn none_left(&self) -> Option<Error> {
        self.hub.door(|door| door.none_left(true))
    }

    /// Whether it is of this hub.
    pub fn is_of(&self, hub: &Arc<Hub>) -> bool {
        Arc::ptr_eq(&self.hub, hub)
    }
}

/// Who does the work; the next one who waits does it then, also where this one panicked.
struct Led<'a>(&'a Hub);

impl Drop for Led<'_> {
    fn drop(&mut self) {
        self.0.board().led = false;
        self.0.changed.notify_all();
    }
}

/// Somebody who wants to look at the door; until then nobody begins to work there.
struct Look<'a>(&'a Hub);

impl<'a> Look<'a> {
    fn begin(hub: &'a Hub) -> Self {
        hub.board().looks += 1;
        let _ = hub.wake.write(1);
        Self(hub)
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.0.board().looks -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.hub.board().leave(self.key);
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut board = self.hub.board();
        let at = board.expected.iter().position(|id| *id == self.migration_id);
        at.map(|at| board.expected.swap_remove(at));
        if !board.expected.contains(&self.migration_id) {
            board.take_early(&self.migration_id);
        }
    }
}

impl std::fmt::Debug for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expected").finish_non_exhaustive()
    }
}
