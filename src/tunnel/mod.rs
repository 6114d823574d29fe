//! Tunnels: a stock hypervisor migrates by a unix socket, and what it sends goes sealed.
//!
//! ```text
//!  source's QEMU ==unix==> TunnelSource ==sealed lanes==> TunnelTarget ==unix==> target's QEMU
//! ```
//!
//! All lanes are of one session, whichever end dialled it. Lane 0 is the tunnel's own: the ends
//! say there that they are alive, that all is over, or why they give up. Each connection that the
//! source's hypervisor opens becomes the next lane, and the far end connects to the target's
//! hypervisor for it, in the same order: the main channel, multifd channels, postcopy-preempt.
//! Where the target's end dials, the source's says on lane 0 how many lanes it wants.
//!
//! # Ends
//!
//! What one hypervisor ends, in one direction or both, ends for the other. What goes wrong on
//! one channel ends all of them at once, at both ends: a migration survives no lost channel.
//!
//! A tunnel is over when channels were opened and all of them have ended in both directions.
//! Bytes do not say whether the migration was a success, but processes do. A channel that ends
//! because the process behind it ends is a failure at once. And a hypervisor that could not load
//! what came ends its process: so the target's end watches it for half a second after all channels
//! have ended. [`TunnelReport::watched`] says whether it could.
#![forbid(unsafe_code)]

mod channel;
mod control;
mod local;
mod shared;

pub use local::{LocalListener, check_socket_path};

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, unbounded};
use nix::poll::{PollFd, PollFlags, poll};

use crate::cancel::Canceller;
use crate::config::Config;
use crate::engine::EngineStatistics;
use crate::error::{PeerError, Result, SystemError};
use crate::establish::{Dial, Listener, Use};
use crate::lane::Lane;
use crate::stream::Streams;
use crate::trust::Trust;
use crate::wire::Role;

use channel::Channel;
use control::Voice;
use local::{FirstByte, connect_local, tick};
use shared::Shared;

/// How long a last word may take to be said, and to be heard where a lane was closed.
const GRACE: Duration = Duration::from_millis(500);

/// How often a wait looks whether it is over.
const TICK: Duration = Duration::from_millis(50);

/// What a channel did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelStatistics {
    /// Its number, from 1, in the order in which the source's hypervisor connected.
    pub number: u16,
    /// Whether a direction has not ended.
    pub is_open: bool,
    /// Bytes of the hypervisor here that were sealed.
    pub sent_bytes: u64,
    /// Bytes for the hypervisor here that were opened.
    pub received_bytes: u64,
    /// Frames that left, known once that direction has ended.
    pub sent_frames: u64,
    /// Frames that came, known once that direction has ended.
    pub received_frames: u64,
    /// Figures of both directions' engines, once they have ended.
    pub engine: EngineStatistics,
}

/// How a tunnel ended that did not fail.
#[derive(Clone, Debug)]
pub struct TunnelReport {
    /// Its channels.
    pub channels: Vec<ChannelStatistics>,
    /// The process of the target's hypervisor, which lives on; known at the target's end, where
    /// it can be told (not from another PID namespace).
    pub watched: Option<i32>,
}

/// Looks at a tunnel's channels from any thread.
#[derive(Clone)]
pub struct TunnelProgress(Arc<Shared>);

impl TunnelProgress {
    /// All channels that were opened until now.
    pub fn channels(&self) -> Vec<ChannelStatistics> {
        self.0.channels().iter().map(|channel| channel.statistics()).collect()
    }
}

/// The end at the source's host. It dials, or listens for the other end.
pub struct TunnelSource {
    end: End,
    /// Lanes that joined, where it listens.
    joined: Option<Receiver<Lane>>,
}

/// The end at the target's host. It listens, or dials the other end.
pub struct TunnelTarget {
    end: End,
}

struct End {
    streams: Streams,
    shared: Arc<Shared>,
}

impl TunnelSource {
    /// Connects to the other end and opens the session.
    ///
    /// # Errors
    ///
    /// [`crate::error::PeerError::NotAuthenticated`] where it does not hold the secret,
    /// [`crate::error::PeerError::Refused`] where it serves another migration;
    /// [`crate::Error::System`] where nothing listens there.
    pub fn dial(
        dial: &Dial,
        trust: impl Into<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<Self> {
        let end = End::dial(dial, Role::Source, trust.into(), config, cancel)?;
        Ok(Self { end, joined: None })
    }

    /// Waits for the other end to dial, as [`TunnelTarget::accept`] does.
    ///
    /// # Errors
    ///
    /// As [`Listener::accept`], and what `trust` says.
    pub fn accept(
        listener: &Listener,
        trust: &dyn Fn() -> Result<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<Self> {
        let end = End::accept(listener, Role::Source, trust, config, cancel)?;
        let joined = Some(end.keep_door()?);
        Ok(Self { end, joined })
    }

    /// Its channels.
    pub fn progress(&self) -> TunnelProgress {
        TunnelProgress(Arc::clone(&self.end.shared))
    }

    /// Who seals.
    pub fn provider(&self) -> &'static str {
        self.end.streams.provider()
    }

    /// Serves the hypervisor that connects to `from`, until its migration is over.
    ///
    /// # Errors
    ///
    /// What ended it, whichever end or hypervisor it was; [`crate::Error::Cancelled`].
    pub fn serve(self, from: &LocalListener) -> Result<TunnelReport> {
        let Self { end, .. } = &self;
        let shared = &end.shared;
        let mut first = First::Awaited;
        while shared.check() && !shared.all_channels_ended() {
            let door = match &first {
                First::Silent(socket) => socket.as_fd(),
                _ => from.as_fd(),
            };
            let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let _ = poll(&mut [readable(door), readable(shared.changed())], tick());
            shared.heed();
            let next = first.next(from);
            let opened = next.and_then(|next| match next {
                Some(local) => self.open(local, from),
                None => Ok(()),
            });
            if let Err(error) = opened {
                shared.fail(error);
            }
        }
        // The other end has the last word: it knows whether its hypervisor took the guest.
        if !shared.is_stopped()
            && let Err(error) = shared.voice.end()
        {
            shared.fail(error);
        }
        end.wait_peer_ended();
        end.finish(None)
    }

    fn open(&self, local: OwnedFd, from: &LocalListener) -> Result<()> {
        let lane = match &self.joined {
            None => self.end.streams.dial_next_lane(&self.end.shared.cancel)?,
            Some(joined) => self.ask_for_lane(joined)?,
        };
        let place = format!("unix:{}", from.path().display());
        self.end.open(Role::Source, lane, local, &place)
    }

    /// The other end dials where it is told to.
    fn ask_for_lane(&self, joined: &Receiver<Lane>) -> Result<Lane> {
        let End { streams, shared } = &self.end;
        let channels = shared.channels().len() + 1;
        shared.voice.want(u16::try_from(channels).unwrap_or(u16::MAX))?;
        let patience = streams.config().handshake_timeout;
        let deadline = Instant::now() + patience;
        while shared.check() && Instant::now() < deadline {
            if let Ok(lane) = joined.recv_timeout(TICK) {
                return Ok(lane);
            }
        }
        streams.none_left().map_or(Ok(()), Err)?;
        let (phase, waited_s) = ("while a further lane was to join", patience.as_secs());
        Err(PeerError::Silent { lane: 0, phase, waited_s }.into())
    }
}

/// The first connection is let in with its first byte, which a hypervisor's main channel sends by
/// itself; so whoever only looks whether somebody listens is no migration. Others may be silent:
/// postcopy-preempt is until the target's guest runs.
enum First {
    Awaited,
    Silent(OwnedFd),
    Came,
}

impl First {
    /// The next connection that is a channel.
    fn next(&mut self, from: &LocalListener) -> Result<Option<OwnedFd>> {
        let socket = match std::mem::replace(self, Self::Awaited) {
            Self::Came => {
                *self = Self::Came;
                return from.accept();
            }
            Self::Silent(socket) => socket,
            Self::Awaited => match from.accept()? {
                Some(socket) => socket,
                None => return Ok(None),
            },
        };
        match local::first_byte(&socket) {
            FirstByte::Here => {
                *self = Self::Came;
                Ok(Some(socket))
            }
            FirstByte::NotYet => {
                *self = Self::Silent(socket);
                Ok(None)
            }
            FirstByte::Never => {
                tracing::info!("a connection was closed without a byte: no migration");
                Ok(None)
            }
        }
    }
}

impl TunnelTarget {
    /// Waits for the other end to open the session. Strangers get no answer and do not end the
    /// wait; only `cancel` does. `trust` is asked whenever somebody connects who may be the other
    /// end, so that one who waits long has the secret of the day.
    ///
    /// # Errors
    ///
    /// As [`Listener::accept`], and what `trust` says.
    pub fn accept(
        listener: &Listener,
        trust: &dyn Fn() -> Result<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<Self> {
        End::accept(listener, Role::Target, trust, config, cancel).map(|end| Self { end })
    }

    /// Connects to the other end, which listens, and opens the session.
    ///
    /// # Errors
    ///
    /// As [`TunnelSource::dial`].
    pub fn dial(
        dial: &Dial,
        trust: impl Into<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<Self> {
        End::dial(dial, Role::Target, trust.into(), config, cancel).map(|end| Self { end })
    }

    /// Its channels.
    pub fn progress(&self) -> TunnelProgress {
        TunnelProgress(Arc::clone(&self.end.shared))
    }

    /// Who seals.
    pub fn provider(&self) -> &'static str {
        self.end.streams.provider()
    }

    /// Serves the hypervisor that listens at the path `to`, until its migration is over.
    ///
    /// # Errors
    ///
    /// What ended it, whichever end or hypervisor it was; [`crate::Error::Cancelled`].
    pub fn serve(self, to: &Path) -> Result<TunnelReport> {
        let Self { end } = &self;
        let shared = &end.shared;
        // The other end has opened all channels when it says its last word.
        while shared.check() && !(shared.peer_ended() && shared.all_channels_ended()) {
            if shared.peer_ended() && shared.channels().is_empty() {
                shared.fail(control::protocol("the end of a tunnel that had no channel"));
            }
            if let Err(error) = self.next_channel(to) {
                shared.fail(error);
            }
        }
        let channels = shared.channels();
        let process = channels.iter().find_map(|channel| channel.process());
        if !shared.is_stopped() {
            match process.filter(|process| process.ends()) {
                Some(process) => shared.fail(loading_failed(process.id())),
                None => {
                    if let Err(error) = shared.voice.end() {
                        shared.fail(error);
                    }
                }
            }
        }
        end.finish(process.map(|process| process.id()))
    }

    /// Waits for one more channel, or until there is something else to look at.
    fn next_channel(&self, to: &Path) -> Result<()> {
        let End { streams, shared } = &self.end;
        let over = || shared.is_stopped() || shared.peer_ended();
        let lane = match streams.dials() {
            true if shared.channels().len() < shared.wanted() => {
                Some(streams.dial_next_lane(&shared.cancel)?)
            }
            true => None,
            false => streams.any_lane_until(&shared.cancel, over)?,
        };
        let Some(lane) = lane else {
            // Channels may be ending still.
            let _ = poll(&mut [PollFd::new(shared.changed(), PollFlags::POLLIN)], tick());
            shared.heed();
            return Ok(());
        };
        let patience = streams.config().handshake_timeout;
        let local = connect_local(to, patience, &shared.cancel)?;
        self.end.open(Role::Target, lane, local, &format!("unix:{}", to.display()))
    }
}

impl End {
    fn dial(
        dial: &Dial,
        role: Role,
        trust: Trust,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<Self> {
        let (streams, lane) = Streams::dial_lane(dial, role, Use::Streams, trust, config, cancel)?;
        Self::new(streams, lane, cancel)
    }

    fn accept(
        listener: &Listener,
        role: Role,
        trust: &dyn Fn() -> Result<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<Self> {
        let (streams, lane) = listener.accept_lane(role, Use::Streams, trust, config, cancel)?;
        Self::new(streams, lane, cancel)
    }

    fn new(streams: Streams, lane: Lane, cancel: &Canceller) -> Result<Self> {
        let Lane { socket, sealer, opener, .. } = lane;
        let voice = Voice::new(streams.config(), Arc::clone(&socket), sealer)?;
        let shared = Shared::new(voice, Arc::clone(&socket), cancel)?;
        let (config, dials) = (streams.config().clone(), streams.dials());
        shared.spawn("tunnel".to_owned(), move |shared| {
            control::hear(shared, &config, dials, socket, opener)
        })?;
        Ok(Self { streams, shared })
    }

    /// Lets in at any time who joins, and tells others that the migration is going on.
    fn keep_door(&self) -> Result<Receiver<Lane>> {
        let (streams, (lanes, joined)) = (self.streams.clone(), unbounded());
        self.shared.spawn("sealane-door".to_owned(), move |shared| {
            let over = || shared.is_stopped() || shared.is_agreed();
            while let Some(lane) = streams.any_lane_until(&shared.cancel, over)? {
                let _ = lanes.send(lane); // nobody asks for one any more
            }
            Ok(())
        })?;
        Ok(joined)
    }

    fn open(&self, role: Role, lane: Lane, local: OwnedFd, place: &str) -> Result<()> {
        let number = lane.index;
        let with = (role, self.streams.frame_bytes());
        Channel::open(&self.shared, self.streams.config(), with, lane, local, place)?;
        tracing::info!(number, place, "channel open");
        Ok(())
    }

    fn wait_peer_ended(&self) {
        let shared = &self.shared;
        while shared.check() && !shared.peer_ended() {
            let _ = poll(&mut [PollFd::new(shared.changed(), PollFlags::POLLIN)], tick());
            shared.heed();
        }
    }

    fn finish(&self, watched: Option<i32>) -> Result<TunnelReport> {
        self.shared.end()?;
        self.streams.complete();
        let channels = TunnelProgress(Arc::clone(&self.shared)).channels();
        Ok(TunnelReport { channels, watched })
    }
}

impl fmt::Debug for TunnelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelSource").finish_non_exhaustive()
    }
}

impl fmt::Debug for TunnelTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelTarget").finish_non_exhaustive()
    }
}

impl Drop for End {
    /// No thread outlives it, whichever way it ends.
    fn drop(&mut self) {
        if !self.shared.is_agreed() {
            self.shared.fail(crate::Error::Cancelled { by: crate::error::CancelledBy::Us });
        }
        let _ = self.shared.end();
    }
}

fn loading_failed(process: i32) -> crate::Error {
    SystemError::from_errno("migrate", format!("the target's hypervisor, process {process}"), 0)
        .remedy(
            "it ended with its channels: the guest did not arrive, or was cancelled: see its log",
        )
        .into()
}

#[cfg(test)]
mod tests;
