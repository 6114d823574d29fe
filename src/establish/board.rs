//! Those who wait at a door, and who came for each of them.

use std::collections::VecDeque;
use std::net::TcpStream;

use super::door::PeerAddress;
use super::half_open::Stranger;
use crate::trust::{Proven, Trust};
use crate::wire::{DIALLER_HELLO_BYTES, DiallerHello, JoinHello, OpenHello};

/// Connections that may wait for one who waits.
const QUEUE_MAX: usize = 64;

pub(super) type FirstMessage = [u8; DIALLER_HELLO_BYTES];

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// That a session is opened.
    Open {
        /// For this migration.
        migration_id: [u8; 16],
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
    Open(TcpStream, PeerAddress, Box<FirstMessage>, OpenHello),
    /// It has shown who it is by certificates.
    Proven(TcpStream, Box<Caller>),
    /// It asks to join, and may be anybody.
    Join(TcpStream, JoinHello),
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

#[derive(Default)]
pub(super) struct Board {
    pub(super) next_key: u64,
    pub(super) waiting: Vec<Waiting>,
    /// Migrations that somebody will wait for, and who came for one of them meanwhile.
    pub(super) expected: Vec<[u8; 16]>,
    pub(super) early: Queue,
    /// Somebody does the work.
    pub(super) led: bool,
    /// How many want to look at the door, or do.
    pub(super) looks: usize,
    /// TLS handshakes that have begun since the work was looked at last.
    pub(super) greeted: Vec<Stranger>,
    /// Authentic first messages that were answered: recorded and sent again they would keep who
    /// waits waiting for a CONFIRM. Only who holds the secret can add to it.
    pub(super) answered: VecDeque<FirstMessage>,
}

/// Connections for one who waits, or will, and where they came from.
pub(super) type Queue = VecDeque<(PeerAddress, Arrival)>;

pub(super) struct Waiting {
    pub(super) key: u64,
    pub(super) wants: Wants,
    /// A client of TLS that does not speak Sealane is told so.
    pub(super) answers_tls: bool,
    pub(super) queue: Queue,
}

impl Board {
    /// Gives a connection to whom its first message names.
    pub(super) fn sort(
        &mut self,
        socket: TcpStream,
        address: PeerAddress,
        message: Box<FirstMessage>,
    ) {
        let Self { waiting, expected, early, .. } = self;
        // Of a stranger nothing is logged but that there was one.
        match DiallerHello::parse(&message) {
            Ok(DiallerHello::Join(join)) => {
                let theirs = |w: &&mut Waiting| match w.wants {
                    Wants::Session { session_id, .. } => session_id == join.session_id,
                    Wants::Open { .. } => false,
                };
                give(waiting.iter_mut().find(theirs), address, Arrival::Join(socket, join));
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
                    enqueue(early, address, Arrival::Open(socket, address, message, hello));
                    return;
                }
                let best = waiting.iter_mut().min_by_key(|w| fit(w));
                give(best, address, Arrival::Open(socket, address, message, hello));
            }
            Err(_) => tracing::debug!("dropped a stranger: no first message of this protocol"),
        }
    }

    /// Gives who has shown who it is to whom it showed it, or, where that one has got his session
    /// meanwhile, to the session, which will say that it is going on.
    pub(super) fn give_proven(&mut self, owner: u64, socket: TcpStream, caller: Box<Caller>) {
        let id = caller.hello.migration_id;
        let is_session = |w: &Waiting| match w.wants {
            Wants::Session { migration_id, .. } => migration_id == id,
            Wants::Open { .. } => false,
        };
        let rank = |w: &Waiting| if w.key == owner { 0 } else { 1 };
        let fit = self.waiting.iter_mut().filter(|w| w.key == owner || is_session(w));
        give(fit.min_by_key(|w| rank(w)), PeerAddress::Local, Arrival::Proven(socket, caller));
    }

    /// Somebody waits no more; who came for him is given to others.
    pub(super) fn leave(&mut self, key: u64) {
        let Some(at) = self.waiting.iter().position(|waiting| waiting.key == key) else { return };
        for (address, arrival) in self.waiting.remove(at).queue {
            match arrival {
                Arrival::Open(socket, _, message, _) => self.sort(socket, address, message),
                Arrival::Proven(socket, caller) => self.give_proven(key, socket, caller),
                Arrival::Join(..) => {} // its session is over
            }
        }
    }

    pub(super) fn take_early(&mut self, migration_id: &[u8; 16]) -> Queue {
        let is_own = |early: &(PeerAddress, Arrival)| match &early.1 {
            Arrival::Open(.., hello) => hello.migration_id == *migration_id,
            _ => false,
        };
        let (own, others) = self.early.drain(..).partition(is_own);
        self.early = others;
        own
    }
}

fn give(waiting: Option<&mut Waiting>, address: PeerAddress, arrival: Arrival) {
    let Some(waiting) = waiting else {
        tracing::debug!("dropped a stranger: nobody waits for it");
        return;
    };
    enqueue(&mut waiting.queue, address, arrival);
}

fn enqueue(queue: &mut Queue, address: PeerAddress, arrival: Arrival) {
    let may_go = |(_, arrival): &(_, Arrival)| !matches!(arrival, Arrival::Proven(..));
    if queue.len() >= QUEUE_MAX
        && let Some(at) = one_of_the_most(queue.iter().map(|entry| (entry.0, may_go(entry))))
    {
        tracing::debug!("dropped a stranger: too many wait");
        queue.remove(at);
    }
    queue.push_back((address, arrival));
}

/// Of those that may go the oldest of the network that has the most here: a flood from some
/// networks costs nobody else his turn.
fn one_of_the_most(all: impl Iterator<Item = (PeerAddress, bool)>) -> Option<usize> {
    let all: Vec<_> = all.map(|(address, may_go)| (address.network(), may_go)).collect();
    let count = |of: PeerAddress| all.iter().filter(|(address, _)| *address == of).count();
    let may_go = all.iter().enumerate().filter(|(_, (_, may_go))| *may_go);
    // Of several that are the most the first, which is the oldest.
    let most = may_go.rev().max_by_key(|(_, (address, _))| count(*address));
    most.map(|(at, _)| at)
}
