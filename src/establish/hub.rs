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

use super::door::{Door, PeerAddress};
use super::half_open::{Greeting, Heard, Stranger};
use super::{TICK, Until, tune_if_tcp, wait};
use crate::cancel::Canceller;
use crate::config::Config;
use crate::error::{Error, PeerError, Result, SystemError};
use crate::trust::{self, Greeted, Proven, Trust};
use crate::wire::{DIALLER_HELLO_BYTES, DiallerHello, JoinHello, OpenHello};

/// Connections that a door hears out at a time; the oldest of the address with the most gives way.
const HALF_OPEN_MAX: usize = 64;
/// First messages that were answered and are remembered.
const ANSWERED_MAX: usize = 1024;
/// Connections that may wait for one who waits.
const QUEUE_MAX: usize = 16;
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
}

#[derive(Default)]
struct Board {
    next_key: u64,
    waiting: Vec<Waiting>,
    /// Migrations that somebody will wait for, and who came for one of them meanwhile.
    expected: Vec<[u8; 16]>,
    early: VecDeque<Arrival>,
    /// Somebody does the work.
    led: bool,
    /// TLS handshakes that have begun since the work was looked at last.
    greeted: Vec<Stranger>,
    /// Authentic first messages that were answered: recorded and sent again they would keep who
    /// waits waiting for a CONFIRM. Only who holds the secret can add to it.
    answered: VecDeque<[u8; DIALLER_HELLO_BYTES]>,
}

struct Waiting {
    key: u64,
    wants: Wants,
    queue: VecDeque<Arrival>,
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// That a session is opened.
    Open {
        /// For this migration.
        migration_id: [u8; 16],
        /// A client of TLS that does not speak Sealane is told so.
        answers_tls: bool,
    },
    /// Further lanes of a session.
    Session {
        /// The session.
        session_id: [u8; 16],
        /// Its migration: who would open it again is told that it is going on.
        migration_id: [u8; 16],
    },
}

/// A connection for somebody who waits.
pub enum Arrival {
    /// It asks for a session, and may be anybody.
    Open(TcpStream, PeerAddress, Box<[u8; DIALLER_HELLO_BYTES]>, OpenHello),
    /// It has shown who it is by certificates.
    Proven(TcpStream, Box<Caller>),
    /// It asks to join, and may be anybody.
    Join(TcpStream, JoinHello),
}

/// That somebody will wait for a migration of a name: see [`super::Listener::expect`].
pub struct Expected {
    hub: Arc<Hub>,
    migration_id: [u8; 16],
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

/// Who has shown who it is and wants a session.
pub struct Caller {
    /// What it asks for.
    pub hello: OpenHello,
    /// The handshake, before its answer.
    pub proven: Proven,
    /// What it is trusted by.
    pub trust: Trust,
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
        let porter = Mutex::new(Porter { door, strangers: Vec::new() });
        let (board, changed) = (Mutex::new(Board::default()), Condvar::new());
        Ok(Arc::new(Self { porter, board, changed, wake }))
    }

    /// Looks at the door.
    pub fn door<T>(&self, look: impl FnOnce(&mut Door) -> T) -> T {
        look(&mut self.porter.lock().expect("no panic while it is held").door)
    }

    /// # Errors
    ///
    /// [`Error::Misuse`] where somebody waits for the same migration.
    pub fn register(self: &Arc<Self>, wants: Wants) -> Result<Ticket> {
        let mut board = self.board();
        let same = |other: &Waiting| match (wants, other.wants) {
            (Wants::Open { migration_id: ours, .. }, Wants::Open { migration_id: theirs, .. }) => {
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
            Wants::Open { migration_id, .. } => board.take_early(&migration_id),
            Wants::Session { .. } => VecDeque::new(),
        };
        board.waiting.push(Waiting { key, wants, queue });
        Ok(Ticket { hub: Arc::clone(self), key })
    }

    /// See [`super::Listener::expect`].
    pub fn expect(self: &Arc<Self>, migration_id: [u8; 16]) -> Expected {
        self.board().expected.push(migration_id);
        Expected { hub: Arc::clone(self), migration_id }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().expect("no panic while it is held")
    }

    /// Accepts, hears and hands out for a moment.
    fn work(&self, config: &Config, deadline: Option<Instant>, must_come: bool) -> Result<()> {
        let mut porter = self.porter.lock().expect("no panic while it is held");
        let answers_tls = {
            let mut board = self.board();
            porter.strangers.append(&mut board.greeted);
            board.waiting.iter().any(|w| matches!(w.wants, Wants::Open { answers_tls: true, .. }))
        };
        if must_come && porter.strangers.is_empty() {
            porter.door.none_left().map_or(Ok(()), Err)?;
        }
        if !porter.accept(config)? {
            let retry_at = porter.door.retry_at();
            let deadline = [deadline, retry_at].into_iter().flatten().min();
            let fds: Vec<_> = porter
                .door
                .poll_fds()
                .into_iter()
                .chain([(self.wake.as_fd(), PollFlags::POLLIN)])
                .chain(porter.strangers.iter().map(Stranger::poll_fd))
                .collect();
            wait(&fds, deadline);
        }
        let _ = self.wake.read(); // it does not block
        for stranger in std::mem::take(&mut porter.strangers) {
            match stranger.hear(answers_tls) {
                Heard::Stranger(stranger) => porter.strangers.push(stranger),
                Heard::Message(socket, address, message) => self.sort(socket, address, message),
                Heard::Proven(socket, Greeting { owner, hello, tls, .. }) => {
                    let (trust, proven) = (tls.trust(), Proven::Tls(tls));
                    let caller = Box::new(Caller { hello, proven, trust });
                    let mut board = self.board();
                    let waiting = board.waiting.iter_mut().find(|waiting| waiting.key == owner);
                    give(waiting, Arrival::Proven(socket, caller));
                }
                Heard::Nobody => {}
            }
        }
        Ok(())
    }

    /// Gives a connection to whom its first message names.
    fn sort(&self, socket: TcpStream, address: PeerAddress, message: Box<[u8; DIALLER_HELLO_BYTES]>) {
        let mut board = self.board();
        let Board { waiting, expected, early, .. } = &mut *board;
        // Of a stranger nothing is logged but that there was one.
        match DiallerHello::parse(&message) {
            Ok(DiallerHello::Join(join)) => {
                let theirs = |w: &&mut Waiting| match w.wants {
                    Wants::Session { session_id, .. } => session_id == join.session_id,
                    Wants::Open { .. } => false,
                };
                give(waiting.iter_mut().find(theirs), Arrival::Join(socket, join));
            }
            Ok(DiallerHello::Open(hello, ..)) => {
                let fit = |w: &Waiting| match w.wants {
                    Wants::Open { migration_id, .. } if migration_id == hello.migration_id => 0,
                    // It will say that the migration is going on.
                    Wants::Session { migration_id, .. } if migration_id == hello.migration_id => 1,
                    // It will say that it waits for another.
                    Wants::Open { .. } => 2,
                    Wants::Session { .. } => 3,
                };
                let is_known = waiting.iter().any(|w| fit(w) < 2);
                if !is_known && expected.contains(&hello.migration_id) {
                    if early.len() < QUEUE_MAX {
                        early.push_back(Arrival::Open(socket, address, message, hello));
                    }
                    return;
                }
                let best = waiting.iter_mut().min_by_key(|w| fit(w));
                give(best, Arrival::Open(socket, address, message, hello));
            }
            Err(_) => tracing::debug!("dropped a stranger: no first message of this protocol"),
        }
    }
}

fn give(waiting: Option<&mut Waiting>, arrival: Arrival) {
    match waiting {
        Some(waiting) if waiting.queue.len() < QUEUE_MAX => waiting.queue.push_back(arrival),
        _ => tracing::debug!("dropped a stranger: nobody waits for it"),
    }
}

impl Board {
    fn take_early(&mut self, migration_id: &[u8; 16]) -> VecDeque<Arrival> {
        let is_own = |early: &Arrival| match early {
            Arrival::Open(.., hello) => hello.migration_id == *migration_id,
            _ => false,
        };
        let (own, others) = self.early.drain(..).partition(is_own);
        self.early = others;
        own
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
                    self.turn_one_away();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn make_room(&mut self) {
        while self.strangers.len() >= HALF_OPEN_MAX {
            self.turn_one_away();
        }
    }

    /// The oldest of those from the address that has the most here: a flood from some addresses
    /// costs nobody else his turn.
    fn turn_one_away(&mut self) {
        let count = |of: &PeerAddress| self.strangers.iter().filter(|s| s.address == *of).count();
        let oldest = self.strangers.iter().enumerate();
        // Of several that are the most the first, which is the oldest.
        let most = oldest.rev().max_by_key(|(_, stranger)| count(&stranger.address));
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
            let own_wants_open = matches!(own.wants, Wants::Open { .. });
            if let Some(arrival) = own.queue.pop_front() {
                return Ok(Some(arrival));
            }
            if until.is_over() {
                return Ok(None);
            }
            if board.led {
                let waited = hub.changed.wait_timeout(board, TICK);
                board = waited.expect("no panic while it is held").0;
                continue;
            }
            // Who has a limit waits for somebody who must come; a tunnel may have all it will have.
            let must_come = until.deadline.is_some() || own_wants_open;
            board.led = true;
            drop(board);
            let led = Led(hub);
            let worked = hub.work(config, until.deadline, must_come);
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

impl Drop for Ticket {
    fn drop(&mut self) {
        self.hub.board().waiting.retain(|waiting| waiting.key != self.key);
    }
}
