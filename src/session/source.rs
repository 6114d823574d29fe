//! The source's side of the order.

use super::protocol;
use crate::error::{Error, Result};
use crate::wire::Control;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Offered,
    Rounds,
    InRound,
    Committing,
    Ready,
    HandingOver,
    Over,
}

/// What a frame from the target means for the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// It takes the regions.
    Accepted,
    /// It does not; the payload says why.
    Refused,
    /// The round is placed.
    RoundDone,
    /// Everything is there: the source may let go.
    Ready,
    /// The guest is the target's.
    Done,
    /// It gives up; the payload says why.
    Cancelled,
    /// It is alive.
    Alive,
}

/// Where the source stands.
#[derive(Debug)]
pub struct Source {
    phase: Phase,
    round: u32,
}

impl Default for Source {
    fn default() -> Self {
        Self { phase: Phase::Offered, round: 0 }
    }
}

impl Source {
    /// Begins a round and returns its number.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] before the target accepted, within a round, or after the commit.
    pub fn begin_round(&mut self) -> Result<u32> {
        self.step(Phase::Rounds, Phase::InRound, "a round")?;
        Ok(self.round)
    }

    /// Begins the commit: no pages after this.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] within a round or a second time.
    pub fn commit(&mut self) -> Result<()> {
        self.step(Phase::Rounds, Phase::Committing, "the commit")
    }

    /// The source lets go of the guest.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] before READY: two guests could run.
    pub fn hand_over(&mut self) -> Result<()> {
        self.step(Phase::Ready, Phase::HandingOver, "the handover")
    }

    /// Whether HANDOVER may have left and DONE has not come: what goes wrong now is in doubt.
    pub fn is_in_doubt(&self) -> bool {
        self.phase == Phase::HandingOver
    }

    /// A frame from the target.
    ///
    /// # Errors
    ///
    /// [`crate::error::PeerError::Protocol`] where it is not its turn.
    pub fn on_control(&mut self, control: &Control) -> Result<SourceEvent> {
        let (phase, event) = match (control, self.phase) {
            (Control::Heartbeat, phase) => (phase, SourceEvent::Alive),
            (Control::Cancel { .. }, phase) if phase != Phase::Over => {
                (phase, SourceEvent::Cancelled)
            }
            (Control::Accept, Phase::Offered) => (Phase::Rounds, SourceEvent::Accepted),
            (Control::Refuse { .. }, Phase::Offered) => (Phase::Over, SourceEvent::Refused),
            (Control::RoundDone { round }, Phase::InRound) if *round == self.round => {
                self.round += 1;
                (Phase::Rounds, SourceEvent::RoundDone)
            }
            (Control::Ready, Phase::Committing) => (Phase::Ready, SourceEvent::Ready),
            (Control::Done, Phase::HandingOver) => (Phase::Over, SourceEvent::Done),
            (control, phase) => {
                return protocol(format!("{} while the source is {phase:?}", control.name()));
            }
        };
        self.phase = phase;
        Ok(event)
    }

    fn step(&mut self, from: Phase, to: Phase, what: &str) -> Result<()> {
        if self.phase != from {
            return Err(Error::Misuse(format!("{what} while the source is {:?}", self.phase)));
        }
        self.phase = to;
        Ok(())
    }
}
