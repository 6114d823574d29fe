//! The target's side of the order.

use super::{lane_of, protocol};
use crate::error::{Error, Result};
use crate::wire::{Control, Pages, RegionTable};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Offered,
    Rounds,
    Committed,
    Ready,
    Over,
}

/// What a frame from the source means for the target.
#[derive(Debug, PartialEq, Eq)]
pub enum TargetEvent {
    /// Nothing to do.
    Nothing,
    /// The source's regions: accept or refuse.
    Offered(RegionTable),
    /// Every lane ended the round and placed it: say so.
    RoundOver(u32),
    /// Everything has arrived: say READY.
    Committed,
    /// The source has let go: activate, then say DONE.
    HandedOver,
    /// The source gives up; the payload says why.
    Cancelled,
}

/// Where the target stands.
#[derive(Debug)]
pub struct Target {
    phase: Phase,
    round: u32,
    lanes: Vec<Lane>,
    state: Vec<u8>,
    state_bytes: u64,
    commit: Option<(u16, u64, u64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    pages: u64,
    pages_in_round: u64,
    round_ended: bool,
    end: Option<(u64, u64)>,
}

impl Target {
    /// A target that waits for the offer.
    pub fn new(lanes: u16) -> Self {
        Self {
            phase: Phase::Waiting,
            round: 0,
            lanes: vec![Lane::default(); lanes.into()],
            state: Vec::new(),
            state_bytes: 0,
            commit: None,
        }
    }

    /// The regions fit: rounds begin.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] before an offer.
    pub fn accept(&mut self) -> Result<()> {
        self.step(Phase::Offered, Phase::Rounds, "ACCEPT")
    }

    /// Everything is placed and safe.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] before the commit.
    pub fn ready(&mut self) -> Result<()> {
        self.step(Phase::Committed, Phase::Ready, "READY")
    }

    /// The device state that came.
    pub fn take_state(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.state)
    }

    /// Checks a PAGES header before its payload is opened.
    ///
    /// # Errors
    ///
    /// [`crate::error::PeerError::Protocol`] where it is another round or another lane's page.
    pub fn on_pages(&mut self, lane: u16, pages: &Pages<'_>) -> Result<()> {
        let lanes = self.lanes.len() as u16;
        let state = &mut self.lanes[usize::from(lane)];
        let over = state.round_ended || state.end.is_some();
        if self.phase != Phase::Rounds || pages.round != self.round || over {
            return protocol(format!(
                "lane {lane}: pages of round {} in round {} ({:?})",
                pages.round, self.round, self.phase
            ));
        }
        for run in pages.runs() {
            let last = run.first_page + u64::from(run.pages) - 1;
            let stripes = [run.first_page, last].map(|page| lane_of(pages.region, page, lanes));
            // W-30. A run within one lane's stripes is within one stripe, or there is one lane.
            let crosses = lanes > 1 && run.first_page / 512 != last / 512;
            if stripes[0] != lane || crosses {
                return protocol(format!(
                    "lane {lane}: page {} belongs on lane {}",
                    run.first_page, stripes[0]
                ));
            }
            state.pages_in_round += u64::from(run.pages);
        }
        Ok(())
    }

    /// A control frame; for ROUND_END and END the lane has placed everything before it.
    /// `frames` is how many came on the lane before this one.
    ///
    /// # Errors
    ///
    /// [`crate::error::PeerError::Protocol`] where it is not its turn or its totals are wrong.
    pub fn on_control(
        &mut self,
        lane: u16,
        control: &Control,
        payload: &[u8],
        frames: u64,
    ) -> Result<TargetEvent> {
        let everywhere = matches!(control, Control::RoundEnd { .. } | Control::End { .. });
        if lane != 0 && !everywhere {
            return protocol(format!("{} on lane {lane}", control.name()));
        }
        match (control, self.phase) {
            (Control::Heartbeat, _) => Ok(TargetEvent::Nothing),
            (Control::Cancel { .. }, phase) if phase != Phase::Over => Ok(TargetEvent::Cancelled),
            (Control::Offer { .. }, Phase::Waiting) => {
                let table = RegionTable::parse(payload)?;
                self.phase = Phase::Offered;
                Ok(TargetEvent::Offered(table))
            }
            (Control::RoundEnd { round, pages }, Phase::Rounds) => {
                self.round_end(lane, *round, *pages)
            }
            (Control::State { offset, total_bytes, .. }, Phase::Rounds) => {
                self.piece_of_state(*offset, *total_bytes, payload)
            }
            (Control::End { frames: said, pages }, Phase::Rounds) => {
                let state = &mut self.lanes[usize::from(lane)];
                // W-32
                let in_round = state.round_ended || state.pages_in_round > 0;
                if in_round || state.end.is_some() || (*said, *pages) != (frames, state.pages) {
                    return protocol(format!(
                        "lane {lane}: END after {said} frames and {pages} pages, {frames} and {} \
                         came",
                        state.pages
                    ));
                }
                state.end = Some((frames + 1, state.pages));
                self.check_commit()
            }
            (Control::Commit { lanes, frames, pages }, Phase::Rounds) => {
                self.commit = Some((*lanes, *frames, *pages));
                self.check_commit()
            }
            (Control::Handover, Phase::Ready) => {
                self.phase = Phase::Over;
                Ok(TargetEvent::HandedOver)
            }
            (control, phase) => {
                protocol(format!("{} while the target is {phase:?}", control.name()))
            }
        }
    }
    fn round_end(&mut self, lane: u16, round: u32, pages: u64) -> Result<TargetEvent> {
        let state = &mut self.lanes[usize::from(lane)];
        // W-31
        let over = state.round_ended || state.end.is_some();
        if round != self.round || over || pages != state.pages_in_round {
            return protocol(format!(
                "lane {lane}: end of round {round} after {pages} pages, in round {} after {}",
                self.round, state.pages_in_round
            ));
        }
        state.pages += std::mem::take(&mut state.pages_in_round);
        state.round_ended = true;
        if !self.lanes.iter().all(|lane| lane.round_ended) {
            return Ok(TargetEvent::Nothing);
        }
        self.lanes.iter_mut().for_each(|lane| lane.round_ended = false);
        self.round += 1;
        Ok(TargetEvent::RoundOver(round))
    }

    fn piece_of_state(&mut self, offset: u64, total: u64, payload: &[u8]) -> Result<TargetEvent> {
        let so_far = self.state.len() as u64;
        let over = self.lanes[0].end.is_some();
        if over || offset != so_far || (so_far > 0 && total != self.state_bytes) {
            return protocol(format!("device state at {offset} of {total} after {so_far} bytes"));
        }
        self.state_bytes = total;
        self.state.extend_from_slice(payload);
        Ok(TargetEvent::Nothing)
    }

    /// W-33: COMMIT counts once every lane ended, whichever comes first.
    fn check_commit(&mut self) -> Result<TargetEvent> {
        let ends: Option<Vec<_>> = self.lanes.iter().map(|lane| lane.end).collect();
        let (Some(ends), Some(said)) = (ends, self.commit) else {
            return Ok(TargetEvent::Nothing);
        };
        let frames = ends.iter().map(|end| end.0).sum();
        let pages = ends.iter().map(|end| end.1).sum();
        let came = (ends.len() as u16, frames, pages);
        if said != came || self.state.len() as u64 != self.state_bytes {
            return protocol(format!("COMMIT of {said:?} (lanes, frames, pages), {came:?} came"));
        }
        self.phase = Phase::Committed;
        Ok(TargetEvent::Committed)
    }

    fn step(&mut self, from: Phase, to: Phase, what: &str) -> Result<()> {
        if self.phase != from {
            return Err(Error::Misuse(format!("{what} while the target is {:?}", self.phase)));
        }
        self.phase = to;
        Ok(())
    }
}
