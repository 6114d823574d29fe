//! The thread of one lane at the target: receives, opens, places.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;

use super::{LaneStatistics, Shared, TICK, tell};
use crate::buffer::{HEAD_BYTES, Slot};
use crate::config::PAGE_BYTES;
use crate::engine::{Extent, FileId};
use crate::error::{PeerError, Result, ended_by_peer};
use crate::lane::{Received, Receiver};
use crate::memory::{Placement, Region, Run};
use crate::session::{self, TargetEvent};
use crate::wire::{Control, Opened, PageRun, Prefix, parse_header};

/// The regions, once the offer was accepted, with their sizes in pages.
pub(super) struct Regions {
    pub(super) regions: Vec<Region>,
    pub(super) pages: Vec<u64>,
}

pub(super) struct TargetLane {
    pub(super) lane: u16,
    pub(super) receiver: Receiver,
    pub(super) session: Arc<Mutex<session::Target>>,
    pub(super) regions: Arc<OnceLock<Regions>>,
    pub(super) shared: Arc<Shared>,
    pub(super) events: Sender<TargetEvent>,
    pub(super) peer_timeout: Duration,
    pub(super) work: Work,
}

#[derive(Default)]
pub(super) struct Work {
    files: Vec<Option<FileId>>,
    /// Writes that the kernel has: an older copy of a page must not land after a newer one.
    writing: Vec<Writing>,
    writes: u64,
    statistics: LaneStatistics,
}

struct Writing {
    token: u64,
    region: usize,
    runs: Vec<Run>,
}

impl TargetLane {
    pub(super) fn run(mut self) -> LaneStatistics {
        if let Err(error) = self.work()
            && !self.shared.is_over()
        {
            self.shared.fail(error);
        }
        let (wire_bytes, epoch, engine) = self.receiver.statistics();
        let frames = self.receiver.frames();
        LaneStatistics { frames, wire_bytes, epoch, engine, ..self.work.statistics }
    }

    fn work(&mut self) -> Result<()> {
        let (mut heard, mut stopped_at) = (Instant::now(), None);
        while match self.lane {
            0 => self.shared.reads_on(&mut stopped_at),
            _ => !self.shared.stopped(),
        } {
            match self.receiver.next(Some(Instant::now() + TICK))? {
                Received::Frame(slot, prefix) => {
                    heard = Instant::now();
                    self.frame(slot, prefix)?;
                }
                Received::Written(slot, token) => self.written(slot, token),
                // The source speaks four times a second, on lane 0.
                Received::Nothing if self.lane == 0 && heard.elapsed() > self.peer_timeout => {
                    let (phase, waited_s) =
                        ("while the source was to speak", heard.elapsed().as_secs());
                    return Err(PeerError::Silent { lane: 0, phase, waited_s }.into());
                }
                Received::Nothing => {}
            }
        }
        Ok(())
    }

    fn frame(&mut self, mut slot: Slot, prefix: Prefix) -> Result<()> {
        let regions = Arc::clone(&self.regions);
        let known = regions.get();
        let sizes = known.map_or(&[][..], |known| &known.pages);
        let header = self.receiver.open_header(&mut slot, prefix)?;
        match parse_header(header, prefix.payload_bytes(), sizes)? {
            Opened::Control(control) => {
                let payload = self.receiver.open_payload(&mut slot, prefix)?.to_vec();
                drop(slot);
                self.control(control, payload)
            }
            Opened::Pages(pages) => {
                self.session.lock().expect("no panic while held").on_pages(self.lane, &pages)?;
                let region = usize::from(pages.region);
                let runs: Vec<PageRun> = pages.runs().collect();
                self.work.statistics.data_pages += pages.data_pages();
                self.work.statistics.zero_pages += pages.zero_pages();
                self.shared.progress.add(pages.data_pages(), pages.zero_pages());
                self.receiver.open_payload(&mut slot, prefix)?;
                let known = known.expect("pages parse only once the regions are known");
                self.place(slot, region, &known.regions, &runs)
            }
        }
    }

    fn place(
        &mut self,
        slot: Slot,
        region: usize,
        regions: &[Region],
        runs: &[PageRun],
    ) -> Result<()> {
        let memory = &regions[region];
        let span = |run: &PageRun| Run { first_page: run.first_page, pages: run.pages.into() };
        let overlaps = |w: &Writing| {
            w.region == region
                && w.runs.iter().any(|one| runs.iter().any(|two| one.overlaps(&span(two))))
        };
        if self.work.writing.iter().any(overlaps) {
            self.drain()?;
        }
        let (mut at, mut extents, mut written, mut plan) = (HEAD_BYTES, vec![], vec![], vec![]);
        for run in runs {
            if run.zero {
                memory.place_zero(span(run))?;
                continue;
            }
            plan.clear();
            memory.plan_place(span(run), &mut plan);
            for (part, placement) in &plan {
                let bytes = part.pages as usize * PAGE_BYTES;
                match placement {
                    Placement::Copy => memory.copy_in(*part, &slot.bytes()[at..at + bytes]),
                    Placement::Write => {
                        let (file_offset, bytes) = memory.file_range(*part);
                        extents.push(Extent { file_offset, slot_offset: at, bytes });
                        written.push(*part);
                    }
                }
                at += bytes;
            }
        }
        if extents.is_empty() {
            return Ok(());
        }
        if self.work.files.is_empty() {
            let receiver = &mut self.receiver;
            self.work.files =
                super::source::register(regions, |file, name| receiver.register_file(file, name))?;
        }
        let file = self.work.files[region].expect("written only where there is a file");
        self.work.writes += 1;
        let token = self.work.writes;
        self.work.writing.push(Writing { token, region, runs: written });
        self.receiver.write(slot, file, &extents, token)
    }

    fn written(&mut self, slot: Slot, token: u64) {
        drop(slot);
        let at = self.work.writing.iter().position(|w| w.token == token).expect("started here");
        let Writing { region, runs, .. } = self.work.writing.swap_remove(at);
        let regions = &self.regions.get().expect("known where pages came").regions;
        runs.iter().for_each(|run| regions[region].mark_populated(*run));
    }

    /// Waits until every write has ended.
    fn drain(&mut self) -> Result<()> {
        while !self.work.writing.is_empty() {
            self.shared.check()?;
            self.work.statistics.stalls += 1;
            if let Received::Written(slot, token) =
                self.receiver.next_written(Some(Instant::now() + TICK))?
            {
                self.written(slot, token);
            }
        }
        Ok(())
    }

    fn control(&mut self, control: Control, payload: Vec<u8>) -> Result<()> {
        if matches!(control, Control::RoundEnd { .. } | Control::End { .. }) {
            self.drain()?;
        }
        let frames = self.receiver.frames() - 1;
        let event = self
            .session
            .lock()
            .expect("no panic while held")
            .on_control(self.lane, &control, &payload, frames)?;
        match event {
            TargetEvent::Nothing => {}
            TargetEvent::Cancelled => self.shared.fail(ended_by_peer(&payload)),
            event => tell(&self.events, event)?,
        }
        Ok(())
    }
}
