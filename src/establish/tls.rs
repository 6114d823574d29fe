//! TLS over a connected socket, from either side.

use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use super::Shake;
use super::board::Caller;
use super::half_open::PARTING;
use crate::error::{PeerError, Result};
use crate::seal::SessionSecret;
use crate::trust::{
    self, Greeted, Proven, RECORD_HEADER_BYTES, Step, TlsDialler, Trust, record_bytes,
};
use crate::wire::{DiallerHello, OpenReply};

impl Shake<'_> {
    /// The listener reads the first message of whoever dialled a socket that was accepted
    /// elsewhere, and waits until it has shown who it is.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn greet(&self, socket: &mut TcpStream, trust: &Trust) -> Result<Caller> {
        let message = self.first_message(socket)?;
        let Ok(DiallerHello::Open(hello, ..)) = DiallerHello::parse(&message) else {
            let reason = "its first message opens no session";
            return Err(PeerError::NotAuthenticated { reason }.into());
        };
        let trust = trust.clone();
        let mut tls = match trust::greet(&trust, &message, &hello)? {
            Greeted::Proven(proven) => return Ok(Caller { hello, proven, trust }),
            Greeted::Tls(tls) => tls,
        };
        loop {
            let record = self.read_record(socket)?;
            let step = tls.record(&record);
            let output = tls.output();
            match step {
                Ok(step) => {
                    self.write(socket, &output)?;
                    if let Step::Done(()) = step {
                        return Ok(Caller { hello, proven: Proven::Tls(tls), trust });
                    }
                }
                Err(error) => {
                    self.part(socket, &output);
                    return Err(error);
                }
            }
        }
    }

    pub(super) fn dial_tls(
        &self,
        socket: &mut TcpStream,
        mut tls: Box<TlsDialler>,
    ) -> Result<(OpenReply, SessionSecret)> {
        loop {
            self.write(socket, &tls.output())?;
            let record = self.read_record(socket)?;
            match tls.record(&record) {
                Ok(Step::More) => {}
                Ok(Step::Done(done)) => {
                    self.write(socket, &tls.output())?;
                    return Ok(done);
                }
                Err(error) => {
                    self.part(socket, &tls.output());
                    return Err(error);
                }
            }
        }
    }

    /// One record of TLS and no byte more: frames follow the last.
    pub(super) fn read_record(&self, socket: &mut TcpStream) -> Result<Vec<u8>> {
        let mut header = [0; RECORD_HEADER_BYTES];
        self.read(socket, &mut header)?;
        let Some(bytes) = record_bytes(&header) else {
            let reason = "it does not go on with TLS";
            return Err(PeerError::NotAuthenticated { reason }.into());
        };
        let mut record = vec![0; bytes];
        record[..RECORD_HEADER_BYTES].copy_from_slice(&header);
        self.read(socket, &mut record[RECORD_HEADER_BYTES..])?;
        Ok(record)
    }

    /// Says the last word, an alert, and gives the other end time to read it: a close with unread
    /// bytes would reset the connection.
    fn part(&self, socket: &mut TcpStream, last: &[u8]) {
        let deadline = self.deadline.min(Instant::now() + PARTING);
        let shake = Shake { deadline, ..*self };
        if shake.write(socket, last).is_ok() && socket.shutdown(Shutdown::Write).is_ok() {
            let mut waste = [0; 4096];
            while shake.read(socket, &mut waste).is_ok() {} // until its end, or ours
        }
    }
}
