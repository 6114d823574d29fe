//! The source of a migration.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam::channel::{self, Receiver, Sender};

use super::source_lane::{Ended, Order, SourceLane};
use super::{Bandwidth, EVENTS, LaneStatistics, Lanes, Progress, Shared, TICK, Threads, tell};
use crate::buffer::{HEAD_BYTES, Pool};
use crate::cancel::Canceller;
use crate::config::{Config, PAGE_BYTES, STRIPE_BYTES};
use crate::engine::{self, Callers, Endpoint, EngineSetup};
use crate::error::{Error, PeerError, Result, ended_by_peer};
use crate::lane::{Lane, Received, Receiver as LaneReceiver, Sender as LaneSender};
use crate::memory::{DirtyBitmap, Region, Run};
use crate::seal::Opener;
use crate::session::{self, SourceEvent, lane_of};
use crate::trust::Spent;
use crate::wire::{Control, Opened, RegionEntry, RegionTable, Role, STATE_BYTES_MAX, parse_header};

/// Orders that wait for a lane.
const ORDERS: usize = 64;

/// Sends a guest: rounds, then the commit, then the handover.
pub struct Source {
    session: session::Source,
    shared: Arc<Shared>,
    spent: Spent,
    orders: Vec<Sender<Order>>,
    ended: Receiver<Ended>,
    events: Receiver<(Control, Vec<u8>)>,
    threads: Threads,
    regions: Arc<Vec<Region>>,
    frame_bytes: usize,
}

/// What one round did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundReport {
    /// Its number, from 0.
    pub round: u32,
    /// Pages that it carried.
    pub pages: u64,
    /// From its first order until the target had placed it all.
    pub elapsed: std::time::Duration,
}

/// What a source did.
#[derive(Clone, Debug)]
pub struct SourceReport {
    /// By lane.
    pub lanes: Vec<LaneStatistics>,
}

impl Source {
    /// Offers the regions over authenticated lanes and waits until the target takes them.
    ///
    /// # Errors
    ///
    /// [`PeerError::Refused`] with the target's reason; [`Error::System`] where an engine cannot
    /// be made, with what it would take.
    pub fn start(
        lanes: Lanes,
        regions: Vec<Region>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<Self> {
        config.check()?;
        lanes.check_role(Role::Source)?;
        let table = region_table(&regions)?;
        let shared = Shared::new(&lanes.lanes, cancel);
        let frame_bytes = lanes.frame_bytes;
        let regions = Arc::new(regions);
        let bandwidth = Arc::new(Bandwidth::new(config.bandwidth_bytes_per_s));
        let (ended_in, ended) = channel::unbounded();
        let (events_in, events) = channel::bounded(EVENTS);
        let (mut orders, mut threads) = (Vec::new(), Threads::new(&shared));
        for Lane { index, socket, sealer, opener } in lanes.lanes {
            let (order_in, order_out) = channel::bounded(ORDERS);
            orders.push(order_in);
            let (own, ours, ended) = (config.clone(), Arc::clone(&socket), ended_in.clone());
            let (shared_, regions, bandwidth) =
                (Arc::clone(&shared), Arc::clone(&regions), Arc::clone(&bandwidth));
            threads.spawn(format!("sealane-s{index}"), move || {
                let shared = Arc::clone(&shared_);
                sending_half(&own, frame_bytes, ours, sealer, index)
                    .and_then(|sender| SourceLane::new(sender, index, regions, shared, bandwidth))
                    .map(|lane| lane.run(&order_out, &ended))
                    .unwrap_or_else(|error| {
                        shared_.fail(error);
                        LaneStatistics::default()
                    })
            })?;
            if index == 0 {
                let (shared, own, events) =
                    (Arc::clone(&shared), config.clone(), events_in.clone());
                threads.spawn("sealane-control".to_owned(), move || {
                    if let Err(error) = listen(&own, socket, opener, &shared, &events)
                        && !shared.is_over()
                    {
                        shared.fail(error);
                    }
                    LaneStatistics::default()
                })?;
            }
        }
        let mut source = Self {
            session: session::Source::default(),
            shared,
            spent: lanes.spent,
            orders,
            ended,
            events,
            threads,
            regions,
            frame_bytes,
        };
        let offer = Control::Offer { payload_bytes: table.len() };
        source.guarded(|source| {
            source.order(0, Order::Control(offer, table))?;
            source.expect(SourceEvent::Accepted)
        })?;
        Ok(source)
    }

    /// Sends the dirty pages, one bitmap a region, and waits until the target has placed them.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] where a bitmap is not as long as its region; else what ended the session.
    pub fn send_round(&mut self, dirty: &[DirtyBitmap]) -> Result<RoundReport> {
        if dirty.len() != self.regions.len()
            || dirty.iter().zip(self.regions.iter()).any(|(d, r)| d.pages() != r.pages())
        {
            return Err(Error::Misuse(
                "one dirty bitmap for each region, as long as it".to_owned(),
            ));
        }
        let begin = Instant::now();
        self.guarded(|source| {
            let round = source.session.begin_round()?;
            let mut pages = 0;
            for (region, bitmap) in dirty.iter().enumerate() {
                for run in bitmap.runs() {
                    pages += run.pages;
                    source.order_run(round, region as u16, run)?;
                }
            }
            for lane in 0..source.orders.len() {
                source.order(lane, Order::RoundEnd { round })?;
            }
            source.expect(SourceEvent::RoundDone)?;
            source.shared.progress.round_placed();
            let elapsed = begin.elapsed();
            tracing::debug!(round, pages, ?elapsed, "round placed");
            Ok(RoundReport { round, pages, elapsed })
        })
    }

    /// Sends the device state, says that this was all, and waits until the target has it.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] where the state is longer than 64 MiB; else what ended the session.
    pub fn commit(&mut self, state: &[u8]) -> Result<()> {
        if state.len() as u64 > STATE_BYTES_MAX {
            return Err(Error::Misuse(format!(
                "device state of {} bytes, at most {STATE_BYTES_MAX}",
                state.len()
            )));
        }
        self.guarded(|source| {
            source.session.commit()?;
            for (index, piece) in state.chunks(source.frame_bytes).enumerate() {
                let offset = (index * source.frame_bytes) as u64;
                let (total_bytes, payload_bytes) = (state.len() as u64, piece.len());
                let control = Control::State { offset, total_bytes, payload_bytes };
                source.order(0, Order::Control(control, piece.to_vec()))?;
            }
            let (mut frames, mut pages) = (0, 0);
            for lane in 0..source.orders.len() {
                source.order(lane, Order::End)?;
            }
            for _ in 0..source.orders.len() {
                let ended = loop {
                    source.shared.check()?;
                    if let Ok(ended) = source.ended.recv_timeout(TICK) {
                        break ended;
                    }
                };
                frames += ended.frames;
                pages += ended.pages;
            }
            let lanes = source.orders.len() as u16;
            source.order(0, Order::Control(Control::Commit { lanes, frames, pages }, vec![]))?;
            source.expect(SourceEvent::Ready)?;
            tracing::info!(frames, pages, state_bytes = state.len(), "committed");
            Ok(())
        })
    }

    /// Lets go of the guest: after this call it must not run here any more, whatever is returned,
    /// unless the error is one from before the handover.
    ///
    /// # Errors
    ///
    /// [`Error::InDoubt`] where the target does not confirm.
    pub fn hand_over(mut self) -> Result<SourceReport> {
        self.shared.check().map_err(|_| self.abort())?;
        self.guarded(|source| {
            source.session.hand_over()?;
            source.shared.let_go.store(true, Ordering::Release);
            source.order(0, Order::Control(Control::Handover, vec![]))?;
            source.expect(SourceEvent::Done)
        })?;
        self.spent.set();
        self.shared.over.store(true, Ordering::Release);
        self.orders.clear(); // wakes the lanes at once
        let mut lanes = self.threads.end();
        lanes.remove(1); // the control reader has no figures
        tracing::info!("handed over");
        Ok(SourceReport { lanes })
    }

    /// How far it is, to look at from another thread.
    pub fn progress(&self) -> Progress {
        self.shared.progress.clone()
    }

    fn order_run(&self, round: u32, region: u16, mut run: Run) -> Result<()> {
        let stripe = (STRIPE_BYTES / PAGE_BYTES) as u64;
        while run.pages > 0 {
            let pages = run.pages.min(stripe - run.first_page % stripe);
            let lane = lane_of(region, run.first_page, self.orders.len() as u16);
            let part = Run { first_page: run.first_page, pages };
            self.order(lane.into(), Order::Pages { round, region, run: part })?;
            run = Run { first_page: run.first_page + pages, pages: run.pages - pages };
        }
        Ok(())
    }

    fn order(&self, lane: usize, mut order: Order) -> Result<()> {
        loop {
            self.shared.check()?;
            match self.orders[lane].send_timeout(order, TICK) {
                Ok(()) => return Ok(()),
                Err(unsent) => {
                    if unsent.is_disconnected() {
                        std::thread::sleep(TICK); // the lane ended: its error is on its way
                    }
                    order = unsent.into_inner();
                }
            }
        }
    }

    fn expect(&mut self, wanted: SourceEvent) -> Result<()> {
        loop {
            let (control, payload) = self.threads.hear(&self.events)?;
            match self.session.on_control(&control)? {
                SourceEvent::Alive => {}
                SourceEvent::Refused | SourceEvent::Cancelled => {
                    return Err(ended_by_peer(&payload));
                }
                event if event == wanted => return Ok(()),
                event => {
                    return Err(
                        PeerError::Protocol(format!("{event:?} while {wanted:?} was due")).into()
                    );
                }
            }
        }
    }

    /// Runs a step; where it fails the session ends, and the first error is returned.
    fn guarded<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        step(self).map_err(|error| {
            self.shared.fail(error);
            self.abort()
        })
    }

    fn abort(&mut self) -> Error {
        self.threads.end();
        for (control, payload) in self.events.try_iter() {
            if matches!(control, Control::Refuse { .. }) {
                self.shared.note(ended_by_peer(&payload));
            }
        }
        let error = self.shared.take_error();
        if self.session.is_in_doubt() { Error::InDoubt(Box::new(error)) } else { error }
    }
}

fn region_table(regions: &[Region]) -> Result<Vec<u8>> {
    let entry = |r: &Region| RegionEntry { name: r.name().to_owned(), bytes: r.bytes() };
    let table = RegionTable::new(regions.iter().map(entry).collect()).map_err(Error::Misuse)?;
    Ok(table.encode())
}

pub(super) fn sending_half(
    config: &Config,
    frame_bytes: usize,
    socket: Arc<OwnedFd>,
    sealer: crate::seal::Sealer,
    lane: u16,
) -> Result<LaneSender> {
    let pool = Pool::new(config.slots_per_lane, frame_bytes)?;
    let engine = engine::open(&engine_setup(config, &pool, socket, lane))?;
    Ok(LaneSender::new(engine, pool, sealer, lane))
}

pub(super) fn engine_setup<'a>(
    config: &Config,
    pool: &'a Pool,
    socket: Arc<OwnedFd>,
    lane: u16,
) -> EngineSetup<'a> {
    let Config { engine: choice, zero_copy, sqpoll, .. } = *config;
    let (register, callers) = (true, Callers::One);
    let to = Endpoint::of_lane(socket, lane);
    EngineSetup { choice, zero_copy, sqpoll, pool, register, callers, from: to.clone(), to }
}

pub(super) fn register(
    regions: &[Region],
    mut register: impl FnMut(Arc<OwnedFd>, &str) -> Result<engine::FileId>,
) -> Result<Vec<Option<engine::FileId>>> {
    let files = regions.iter().map(|region| {
        region.file().map(|file| register(Arc::clone(file), region.name())).transpose()
    });
    files.collect()
}

/// The control reader of lane 0: what the target says.
fn listen(
    config: &Config,
    socket: Arc<OwnedFd>,
    opener: Opener,
    shared: &Shared,
    events: &Sender<(Control, Vec<u8>)>,
) -> Result<()> {
    let pool = Pool::new(1, PAGE_BYTES)?;
    let engine = engine::open(&engine_setup(config, &pool, socket, 0))?;
    let mut receiver = LaneReceiver::new(engine, pool, opener, 0, PAGE_BYTES);
    let (mut heard, mut stopped_at) = (Instant::now(), None);
    while shared.reads_on(&mut stopped_at) {
        let (mut slot, prefix) = match receiver.next(Some(Instant::now() + TICK))? {
            Received::Frame(slot, prefix) => (slot, prefix),
            _ if heard.elapsed() > config.peer_timeout => {
                let (phase, waited_s) =
                    ("while the target was to speak", heard.elapsed().as_secs());
                return Err(PeerError::Silent { lane: 0, phase, waited_s }.into());
            }
            _ => continue,
        };
        heard = Instant::now();
        let header = receiver.open_header(&mut slot, prefix)?;
        let Opened::Control(control) = parse_header(header, prefix.payload_bytes(), &[])? else {
            return Err(PeerError::Protocol("pages from the target".to_owned()).into());
        };
        let payload = receiver.open_payload(&mut slot, prefix)?.to_vec();
        debug_assert!(slot.bytes().len() > HEAD_BYTES);
        match control {
            Control::Heartbeat => {}
            Control::Cancel { .. } => {
                shared.fail(ended_by_peer(&payload));
                return Ok(());
            }
            control => tell(events, (control, payload))?,
        }
    }
    Ok(())
}
