//! Strangers at a door: a few bytes each are heard, and nobody waits for one of them.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::door::PeerAddress;
use crate::error::Error;
use crate::trust::{RECORD_HEADER_BYTES, Step, TlsListener, record_bytes};
use crate::wire::{DIALLER_HELLO_BYTES, FirstBytes, OpenHello};

/// How long somebody who was turned away may take to read why: a close with unread bytes resets
/// the connection, and what was said last is lost.
pub(super) const PARTING: Duration = Duration::from_secs(1);

/// What a TLS client gets that did not say Sealane's first message: no_application_protocol, fatal
/// (RFC 8446, 6). It tells nothing of this end.
const NO_APPLICATION_PROTOCOL: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 120];

/// A connection whose other end has not shown who it is.
pub(super) struct Stranger {
    pub(super) socket: TcpStream,
    pub(super) address: PeerAddress,
    deadline: Instant,
    stage: Stage,
}

enum Stage {
    /// Its first message.
    Hello { bytes: [u8; DIALLER_HELLO_BYTES], filled: usize },
    /// TLS, for who greeted it.
    Tls(Greeting),
    /// It was turned away; what it sends is thrown away.
    Parting(Vec<u8>),
}

/// A TLS handshake that goes on.
pub(super) struct Greeting {
    /// Whose guest it may become.
    pub(super) owner: u64,
    pub(super) hello: OpenHello,
    pub(super) tls: Box<TlsListener>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Greeting {
    pub(super) fn new(owner: u64, hello: OpenHello, tls: Box<TlsListener>) -> Self {
        Self { owner, hello, tls, incoming: Vec::new(), outgoing: Vec::new() }
    }
}

/// What a stranger has become.
pub(super) enum Heard {
    /// What it was.
    Stranger(Stranger),
    /// Its first message is whole.
    Message(TcpStream, PeerAddress, Box<[u8; DIALLER_HELLO_BYTES]>),
    /// It has shown who it is.
    Proven(TcpStream, Greeting),
    /// Gone.
    Nobody,
}

impl Stranger {
    /// Somebody new, heard out until then.
    pub(super) fn new(socket: TcpStream, address: PeerAddress, deadline: Instant) -> Self {
        let stage = Stage::Hello { bytes: [0; DIALLER_HELLO_BYTES], filled: 0 };
        Self { socket, address, deadline, stage }
    }

    /// Somebody whose TLS begins.
    pub(super) fn greeted(
        socket: TcpStream,
        address: PeerAddress,
        greeting: Greeting,
        deadline: Instant,
    ) -> Self {
        Self { socket, address, deadline, stage: Stage::Tls(greeting) }
    }

    /// Whether it has had its time.
    pub(super) fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Whether it has yet to begin, or is on its way out.
    pub(super) fn is_idle(&self) -> bool {
        !matches!(self.stage, Stage::Tls(_))
    }

    pub(super) fn poll_fd(&self) -> (BorrowedFd<'_>, PollFlags) {
        let writes = match &self.stage {
            Stage::Hello { .. } => false,
            Stage::Tls(greeting) => !greeting.outgoing.is_empty(),
            Stage::Parting(outgoing) => !outgoing.is_empty(),
        };
        let out = if writes { PollFlags::POLLOUT } else { PollFlags::empty() };
        (self.socket.as_fd(), PollFlags::POLLIN | out)
    }

    /// Hears what came. `answers_tls` says whether a client of TLS, which speaks no Sealane, is
    /// told so; else nobody without the secret gets a byte.
    pub(super) fn hear(mut self, answers_tls: bool) -> Heard {
        if self.is_late() {
            return Heard::Nobody;
        }
        match self.step(answers_tls) {
            Ok(None) => Heard::Stranger(self),
            Ok(Some(Next::Part(bytes))) => {
                self.deadline = self.deadline.min(Instant::now() + PARTING);
                self.stage = Stage::Parting(bytes);
                Heard::Stranger(self)
            }
            Ok(Some(Next::Become)) => match self.stage {
                Stage::Hello { bytes, .. } => {
                    Heard::Message(self.socket, self.address, Box::new(bytes))
                }
                Stage::Tls(greeting) => Heard::Proven(self.socket, greeting),
                Stage::Parting(_) => Heard::Nobody,
            },
            Err(_) => Heard::Nobody,
        }
    }

    fn step(&mut self, answers_tls: bool) -> std::io::Result<Option<Next>> {
        let Self { socket, stage, .. } = self;
        match stage {
            Stage::Hello { bytes, filled } => {
                while read_some(socket, bytes, filled)? {
                    if matches!(bytes[..*filled], [0x16, 0x03, ..]) && answers_tls {
                        return Ok(Some(Next::Part(NO_APPLICATION_PROTOCOL.to_vec())));
                    }
                    let may_be_tls = answers_tls && bytes[..*filled] == [0x16];
                    if let FirstBytes::Foreign(_) = FirstBytes::parse(&bytes[..*filled])
                        && !may_be_tls
                    {
                        return Err(ErrorKind::InvalidData.into());
                    }
                    if *filled == bytes.len() {
                        return Ok(Some(Next::Become));
                    }
                }
                Ok(None)
            }
            Stage::Tls(greeting) => greeting.step(socket),
            Stage::Parting(outgoing) => {
                if write_some(socket, outgoing)? {
                    socket.shutdown(std::net::Shutdown::Write)?;
                }
                // A piece at a time, so that who never stops holds nobody up.
                read_some(socket, &mut [0; 4096], &mut 0)?;
                Ok(None)
            }
        }
    }
}

enum Next {
    /// The stage is complete.
    Become,
    /// It is turned away with these bytes.
    Part(Vec<u8>),
}

impl Greeting {
    fn step(&mut self, socket: &mut TcpStream) -> std::io::Result<Option<Next>> {
        loop {
            write_some(socket, &mut self.outgoing)?;
            let Some(record) = self.next_record(socket)? else { return Ok(None) };
            let step = self.tls.record(&record);
            self.outgoing.extend(self.tls.output());
            match step {
                Ok(Step::More) => {}
                Ok(Step::Done(())) => {
                    // What the dialler would still read is nothing: it has sent its last.
                    write_some(socket, &mut self.outgoing)?;
                    return Ok(Some(Next::Become));
                }
                Err(error) => {
                    self.tell(&error);
                    return Ok(Some(Next::Part(std::mem::take(&mut self.outgoing))));
                }
            }
        }
    }

    /// A host of the same CA that was refused is for the administrator to know; strangers are not.
    fn tell(&self, error: &Error) {
        match self.tls.refused_one_of_ours() {
            true => tracing::warn!(%error, "listening on"),
            false => tracing::debug!(%error, "dropped a stranger in TLS"),
        }
    }

    /// The next whole record, no byte more.
    fn next_record(&mut self, socket: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            let wanted = match self.incoming.first_chunk::<RECORD_HEADER_BYTES>() {
                None => RECORD_HEADER_BYTES,
                Some(header) => record_bytes(header).ok_or(ErrorKind::InvalidData)?,
            };
            let mut filled = self.incoming.len();
            if filled == wanted && wanted > RECORD_HEADER_BYTES {
                return Ok(Some(std::mem::take(&mut self.incoming)));
            }
            self.incoming.resize(wanted, 0);
            let read = read_some(socket, &mut self.incoming, &mut filled);
            self.incoming.truncate(filled);
            if !read? {
                return Ok(None);
            }
        }
    }
}

/// Reads what is there; false where that is nothing now.
fn read_some(
    socket: &mut TcpStream,
    bytes: &mut [u8],
    filled: &mut usize,
) -> std::io::Result<bool> {
    loop {
        match socket.read(&mut bytes[*filled..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                *filled += read;
                return Ok(true);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Writes what fits; whether nothing is left, which it is not where there was nothing.
fn write_some(socket: &mut TcpStream, bytes: &mut Vec<u8>) -> std::io::Result<bool> {
    let had = !bytes.is_empty();
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(written) => drop(bytes.drain(..written)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(had)
}
