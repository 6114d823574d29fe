//! The thread of one lane at the source: gathers, seals, sends.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender as ChannelSender};

use super::{Bandwidth, GRACE, HEARTBEAT, LaneStatistics, Shared, TICK};
use crate::buffer::{HEAD_BYTES, Slot};
use crate::config::PAGE_BYTES;
use crate::engine::{Extent, FileId};
use crate::error::Result;
use crate::lane::Sender;
use crate::memory::{Region, Residency, Run, compact_zero_pages, push_run};
use crate::wire::{Control, PageRun, RUNS_MAX, reason_bytes};

/// What the caller's thread asks of a lane.
pub(super) enum Order {
    /// Pages of one stripe.
    Pages {
        round: u32,
        region: u16,
        run: Run,
    },
    RoundEnd {
        round: u32,
    },
    Control(Control, Vec<u8>),
    /// END; the totals come back.
    End,
}

/// Frames, END too, and pages of a lane that has ended.
pub(super) struct Ended {
    pub(super) frames: u64,
    pub(super) pages: u64,
}

pub(super) struct SourceLane {
    lane: u16,
    sender: Sender,
    regions: Arc<Vec<Region>>,
    files: Vec<Option<FileId>>,
    frame_bytes: usize,
    shared: Arc<Shared>,
    bandwidth: Arc<Bandwidth>,
    work: Work,
}

/// What is under way on a lane.
struct Work {
    filling: Option<Filling>,
    to_read: Option<Read>,
    reading: HashMap<u64, Read>,
    ready: VecDeque<Filling>,
    reads: u64,
    pages_in_round: u64,
    pages: u64,
    last_sent: Instant,
    statistics: LaneStatistics,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            filling: None,
            to_read: None,
            reading: HashMap::new(),
            ready: VecDeque::new(),
            reads: 0,
            pages_in_round: 0,
            pages: 0,
            last_sent: Instant::now(),
            statistics: LaneStatistics::default(),
        }
    }
}

/// A frame that is being filled, or waits for its turn.
struct Filling {
    slot: Slot,
    region: u16,
    round: u32,
    runs: Vec<PageRun>,
    used: usize,
}

/// Pages that are to be read, or are being read, into one slot.
struct Read {
    region: u16,
    round: u32,
    runs: Vec<Run>,
    pages: u64,
}

impl SourceLane {
    /// A lane that is ready for orders: the regions' files are registered with its engine.
    pub(super) fn new(
        mut sender: Sender,
        lane: u16,
        regions: Arc<Vec<Region>>,
        shared: Arc<Shared>,
        bandwidth: Arc<Bandwidth>,
    ) -> Result<Self> {
        let files =
            super::source::register(&regions, |file, name| sender.register_file(file, name))?;
        let frame_bytes = sender.frame_bytes();
        let work = Work::default();
        Ok(Self { lane, sender, regions, files, frame_bytes, shared, bandwidth, work })
    }

    pub(super) fn run(
        mut self,
        orders: &Receiver<Order>,
        ended: &ChannelSender<Ended>,
    ) -> LaneStatistics {
        if let Err(error) = self.work(orders, ended) {
            self.shared.fail(error);
        }
        if self.lane == 0 && !self.shared.is_over() {
            self.say_cancel();
        }
        let (bytes, epoch, stalls, engine) = self.sender.statistics();
        let frames = self.sender.frames();
        LaneStatistics { frames, wire_bytes: bytes, stalls, epoch, engine, ..self.work.statistics }
    }

    fn work(&mut self, orders: &Receiver<Order>, ended: &ChannelSender<Ended>) -> Result<()> {
        while !self.shared.stopped() {
            let order = match orders.try_recv() {
                Ok(order) => order,
                Err(_) => {
                    // Nothing moves while this thread waits elsewhere: finish first.
                    self.drain()?;
                    match orders.recv_timeout(TICK) {
                        Ok(order) => order,
                        Err(RecvTimeoutError::Timeout) => {
                            self.heartbeat()?;
                            continue;
                        }
                        Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    }
                }
            };
            match order {
                Order::Pages { round, region, run } => self.pages(round, region, run)?,
                Order::RoundEnd { round } => {
                    self.flush_all()?;
                    let pages = std::mem::take(&mut self.work.pages_in_round);
                    self.work.pages += pages;
                    self.control(Control::RoundEnd { round, pages }, &[])?;
                }
                Order::Control(control, payload) => self.control(control, &payload)?,
                Order::End => {
                    let (frames, pages) = (self.sender.frames(), self.work.pages);
                    self.control(Control::End { frames, pages }, &[])?;
                    let _ = ended.send(Ended { frames: frames + 1, pages });
                }
            }
        }
        Ok(())
    }

    fn pages(&mut self, round: u32, region: u16, run: Run) -> Result<()> {
        self.work.pages_in_round += run.pages;
        let regions = Arc::clone(&self.regions);
        let memory = &regions[usize::from(region)];
        let mut plan = Vec::new();
        memory.plan_gather(run, &mut plan);
        for (mut part, residency) in plan {
            match residency {
                Residency::File => self.plan_read(round, region, part)?,
                Residency::Hole => loop {
                    let filling = self.filling(round, region)?;
                    let pages = part.pages as u32;
                    if push_run(&mut filling.runs, part.first_page, pages, true, RUNS_MAX) {
                        break;
                    }
                    self.flush()?;
                },
                Residency::Mapped => loop {
                    let frame_bytes = self.frame_bytes;
                    let filling = self.filling(round, region)?;
                    let Filling { slot, runs, used, .. } = filling;
                    let room = &mut slot.payload_mut()[*used..frame_bytes];
                    let (taken, bytes) = memory.gather_mapped(part, room, runs, RUNS_MAX);
                    *used += bytes;
                    part = Run { first_page: part.first_page + taken, pages: part.pages - taken };
                    if part.pages == 0 {
                        break;
                    }
                    self.flush()?;
                },
            }
        }
        self.pump()
    }

    /// The frame that is being filled, of this round and region.
    fn filling(&mut self, round: u32, region: u16) -> Result<&mut Filling> {
        if self.work.filling.as_ref().is_some_and(|f| (f.round, f.region) != (round, region)) {
            self.flush()?;
        }
        if self.work.filling.is_none() {
            let slot = self.slot()?;
            let runs = Vec::with_capacity(RUNS_MAX);
            self.work.filling = Some(Filling { slot, region, round, runs, used: 0 });
        }
        Ok(self.work.filling.as_mut().expect("just made"))
    }

    fn flush(&mut self) -> Result<()> {
        if let Some(filling) = self.work.filling.take()
            && !filling.runs.is_empty()
        {
            self.work.ready.push_back(filling);
        }
        self.pump()
    }

    fn plan_read(&mut self, round: u32, region: u16, mut run: Run) -> Result<()> {
        // As many runs as pages can come out of it.
        let pages_max = ((self.frame_bytes / PAGE_BYTES).min(RUNS_MAX)) as u64;
        if self.work.to_read.as_ref().is_some_and(|r| (r.round, r.region) != (round, region)) {
            self.start_read()?;
        }
        while run.pages > 0 {
            let empty = || Read { region, round, runs: Vec::new(), pages: 0 };
            let read = self.work.to_read.get_or_insert_with(empty);
            let pages = run.pages.min(pages_max - read.pages);
            read.runs.push(Run { first_page: run.first_page, pages });
            read.pages += pages;
            run = Run { first_page: run.first_page + pages, pages: run.pages - pages };
            if read.pages == pages_max {
                self.start_read()?;
            }
        }
        Ok(())
    }

    fn start_read(&mut self) -> Result<()> {
        let Some(read) = self.work.to_read.take() else { return Ok(()) };
        let mut slot = self.slot()?;
        let memory = &self.regions[usize::from(read.region)];
        let mut at = 0;
        let mut extents = Vec::with_capacity(read.runs.len());
        for run in &read.runs {
            let (file_offset, bytes) = memory.file_range(*run);
            extents.push(Extent { file_offset, slot_offset: HEAD_BYTES + at, bytes });
            let whole = run.pages as usize * PAGE_BYTES;
            // Past the end of a short last page there are zeros.
            slot.payload_mut()[at + bytes..at + whole].fill(0);
            at += whole;
        }
        let file = self.files[usize::from(read.region)].expect("a region with a file");
        self.work.reads += 1;
        let token = self.work.reads;
        self.work.reading.insert(token, read);
        self.sender.read(slot, file, &extents, token)
    }

    /// A free slot, as soon as there is one.
    fn slot(&mut self) -> Result<Slot> {
        loop {
            if let Some(slot) = self.sender.take_slot() {
                return Ok(slot);
            }
            self.step()?;
        }
    }

    /// Sends what is ready, as far as the network takes it now.
    fn pump(&mut self) -> Result<()> {
        while self.sender.can_send() {
            let Some(frame) = self.work.ready.pop_front() else { break };
            let Filling { slot, region, round, runs, used } = frame;
            self.keep_bandwidth(used + HEAD_BYTES)?;
            let pages: u64 = runs.iter().map(|run| u64::from(run.pages)).sum();
            let data = (used / PAGE_BYTES) as u64;
            self.work.statistics.data_pages += data;
            self.work.statistics.zero_pages += pages - data;
            self.sender.send_pages(slot, region, round, &runs, used)?;
            self.shared.progress.add(data, pages - data);
            self.work.last_sent = Instant::now();
        }
        Ok(())
    }

    /// One wait for whatever ends next.
    fn step(&mut self) -> Result<()> {
        self.shared.check()?;
        self.pump()?;
        self.wait()?;
        self.pump()
    }

    /// Waits for the next operation to end; what was read is ready then.
    fn wait(&mut self) -> Result<()> {
        if let Some((mut slot, token)) = self.sender.wait(Some(Instant::now() + TICK))? {
            let read = self.work.reading.remove(&token).expect("started here");
            let payload = &mut slot.payload_mut()[..read.pages as usize * PAGE_BYTES];
            let mut runs = Vec::with_capacity(RUNS_MAX);
            let used = compact_zero_pages(payload, &read.runs, &mut runs);
            let (region, round) = (read.region, read.round);
            self.work.ready.push_back(Filling { slot, region, round, runs, used });
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        while !(self.work.ready.is_empty()
            && self.work.reading.is_empty()
            && self.sender.can_send())
        {
            self.step()?;
        }
        Ok(())
    }

    fn flush_all(&mut self) -> Result<()> {
        self.start_read()?;
        self.flush()?;
        self.drain()
    }

    fn control(&mut self, control: Control, payload: &[u8]) -> Result<()> {
        self.flush_all()?;
        let slot = self.slot()?;
        self.sender.send_control(slot, control, payload)?;
        self.work.last_sent = Instant::now();
        Ok(())
    }

    /// Says that this end is alive, where nothing else was said for a while.
    fn heartbeat(&mut self) -> Result<()> {
        let due = self.lane == 0 && self.work.last_sent.elapsed() >= HEARTBEAT;
        if due
            && self.sender.can_send()
            && let Some(slot) = self.sender.take_slot()
        {
            self.sender.send_control(slot, Control::Heartbeat, &[])?;
            self.work.last_sent = Instant::now();
        }
        Ok(())
    }

    /// Waits until the bytes may leave.
    fn keep_bandwidth(&mut self, bytes: usize) -> Result<()> {
        let Some(at) = self.bandwidth.reserve(bytes) else { return Ok(()) };
        loop {
            self.shared.check()?;
            match at.saturating_duration_since(Instant::now()) {
                Duration::ZERO if self.sender.can_send() => return Ok(()),
                // The heartbeat that was sent meanwhile.
                Duration::ZERO => self.wait()?,
                left => std::thread::sleep(left.min(TICK)),
            }
            self.heartbeat()?;
        }
    }

    /// Tells the target that it is over, if that can be said in time.
    fn say_cancel(&mut self) {
        let reason = self.shared.reason();
        let deadline = Instant::now() + GRACE;
        self.work.filling = None;
        while Instant::now() < deadline {
            if self.sender.can_send()
                && let Some(slot) = self.sender.take_slot()
            {
                let payload = reason_bytes(&reason);
                let control = Control::Cancel { payload_bytes: payload.len() };
                if self.sender.send_control(slot, control, payload).is_err() {
                    return;
                }
                break;
            }
            self.work.ready.clear();
            if self.sender.wait(Some(deadline)).is_err() {
                return;
            }
        }
        while !self.sender.can_send() && Instant::now() < deadline {
            if self.sender.wait(Some(deadline)).is_err() {
                return;
            }
        }
    }
}
