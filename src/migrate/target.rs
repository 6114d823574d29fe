//! The target of a migration.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};

use super::source::engine_setup;
use super::target_lane::{Regions, TargetLane, Work};
use super::{EVENTS, GRACE, HEARTBEAT, LaneStatistics, Lanes, Progress, Shared, TICK, Threads};
use crate::buffer::Pool;
use crate::cancel::Canceller;
use crate::config::{Config, PAGE_BYTES};
use crate::engine;
use crate::error::{Error, PeerError, Result};
use crate::lane::{Lane, Receiver as LaneReceiver, Sender as LaneSender};
use crate::memory::Region;
use crate::session::{self, TargetEvent};
use crate::trust::Spent;
use crate::wire::{Control, RegionTable, Role, reason_bytes};

/// Receives a guest.
pub struct Target {
    session: Arc<Mutex<session::Target>>,
    shared: Arc<Shared>,
    spent: Spent,
    orders: Sender<(Control, Vec<u8>)>,
    events: Receiver<TargetEvent>,
    threads: Threads,
    regions: Arc<OnceLock<Regions>>,
    offer: RegionTable,
    /// The source has let go.
    is_ours: bool,
}

/// What a target did.
#[derive(Clone, Debug)]
pub struct TargetReport {
    /// By lane.
    pub lanes: Vec<LaneStatistics>,
}

impl Target {
    /// Waits over authenticated lanes for the source's offer.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where an engine cannot be made, with what it would take; else what ended
    /// the session.
    pub fn start(lanes: Lanes, config: &Config, cancel: &Canceller) -> Result<Self> {
        config.check()?;
        lanes.check_role(Role::Target)?;
        let shared = Shared::new(&lanes.lanes, cancel);
        let session = Arc::new(Mutex::new(session::Target::new(lanes.count())));
        let regions = Arc::new(OnceLock::new());
        let frame_bytes = lanes.frame_bytes;
        let (events_in, events) = channel::bounded(EVENTS);
        let (orders, order_out) = channel::unbounded();
        let mut threads = Threads::new(&shared);
        for Lane { index, socket, sealer, opener } in lanes.lanes {
            let (shared_, session, regions) =
                (Arc::clone(&shared), Arc::clone(&session), Arc::clone(&regions));
            let (own, events, ours) = (config.clone(), events_in.clone(), Arc::clone(&socket));
            threads.spawn(format!("sealane-t{index}"), move || {
                let made = Pool::new(own.slots_per_lane, frame_bytes).and_then(|pool| {
                    let engine = engine::open(&engine_setup(&own, &pool, ours, index))?;
                    Ok(LaneReceiver::new(engine, pool, opener, index, frame_bytes))
                });
                let (lane, shared, work) = (index, shared_, Work::default());
                let peer_timeout = own.peer_timeout;
                match made {
                    Ok(receiver) => TargetLane {
                        lane,
                        receiver,
                        session,
                        regions,
                        shared,
                        events,
                        peer_timeout,
                        work,
                    }
                    .run(),
                    Err(error) => {
                        shared.fail(error);
                        LaneStatistics::default()
                    }
                }
            })?;
            if index == 0 {
                let (shared, own, orders) =
                    (Arc::clone(&shared), config.clone(), order_out.clone());
                threads.spawn("sealane-control".to_owned(), move || {
                    let pool = Pool::new(2, PAGE_BYTES);
                    let made = pool.and_then(|pool| {
                        let engine = engine::open(&engine_setup(&own, &pool, socket, 0))?;
                        Ok(LaneSender::new(engine, pool, sealer, 0))
                    });
                    match made {
                        Ok(mut sender) => speak(&mut sender, &shared, &orders),
                        Err(error) => shared.fail(error),
                    }
                    LaneStatistics::default()
                })?;
            }
        }
        let offer = RegionTable::default();
        let (spent, is_ours) = (lanes.spent, false);
        let mut target =
            Self { session, shared, spent, orders, events, threads, regions, offer, is_ours };
        target.guarded(|target| {
            let event = target.event()?;
            let TargetEvent::Offered(offer) = event else { return unexpected(&event) };
            target.offer = offer;
            Ok(())
        })?;
        Ok(target)
    }

    /// The regions that the source offers: names and bytes.
    pub fn offer(&self) -> impl Iterator<Item = (&str, u64)> {
        self.offer.entries().iter().map(|entry| (entry.name.as_str(), entry.bytes))
    }

    /// Takes the offer; pages go into `regions`, which are the offered ones in any order.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] where a region is missing, of another size or read-only; the source is
    /// told so and the session ends.
    pub fn accept(&mut self, regions: Vec<Region>) -> Result<()> {
        let by_name = |name: &str| regions.iter().find(|region| region.name() == name);
        let mut ordered = Vec::new();
        for (name, bytes) in self.offer.clone().entries().iter().map(|e| (e.name.as_str(), e.bytes))
        {
            let wrong = match by_name(name) {
                None => format!("region {name:?} of {bytes} bytes is not there"),
                Some(region) if region.bytes() != bytes => {
                    format!("region {name:?} has {} bytes, the source's {bytes}", region.bytes())
                }
                Some(region) if !region.is_writable() => format!("region {name:?} is read-only"),
                Some(region) => {
                    ordered.push(region.clone());
                    continue;
                }
            };
            return Err(self.refuse(&wrong));
        }
        let pages = ordered.iter().map(Region::pages).collect();
        let _ = self.regions.set(Regions { regions: ordered, pages });
        self.guarded(|target| {
            target.session.lock().expect("no panic while held").accept()?;
            target.say(Control::Accept);
            Ok(())
        })
    }

    /// Refuses the offer: the source gets the reason and the session ends. Returns the error for
    /// this end's caller.
    pub fn refuse(&mut self, reason: &str) -> Error {
        // First, so that the source's going away is not what is reported.
        self.shared.note(Error::Misuse(reason.to_owned()));
        let payload = reason_bytes(reason).to_vec();
        let _ = self.orders.send((Control::Refuse { payload_bytes: payload.len() }, payload));
        self.linger();
        self.abort()
    }

    /// Receives rounds until the source has sent everything. Returns the device state.
    ///
    /// # Errors
    ///
    /// What ended the session.
    pub fn receive(&mut self) -> Result<Vec<u8>> {
        self.guarded(|target| {
            loop {
                match target.event()? {
                    TargetEvent::RoundOver(round) => {
                        tracing::debug!(round, "round placed");
                        target.shared.progress.round_placed();
                        target.say(Control::RoundDone { round });
                    }
                    TargetEvent::Committed => {
                        let mut session = target.session.lock().expect("no panic while held");
                        return Ok(session.take_state());
                    }
                    event => return unexpected(&event),
                }
            }
        })
    }

    /// Says that everything is placed and safe, and waits until the source has let go. Only after
    /// this the guest may run here.
    ///
    /// # Errors
    ///
    /// What ended the session; the guest is the source's then.
    pub fn ready(&mut self) -> Result<()> {
        self.guarded(|target| {
            target.shared.check()?; // after READY the source may let go at any time
            target.session.lock().expect("no panic while held").ready()?;
            target.say(Control::Ready);
            match target.event()? {
                TargetEvent::HandedOver => Ok(()),
                event => unexpected(&event),
            }
        })?;
        self.is_ours = true;
        tracing::info!("the source has let go");
        Ok(())
    }

    /// Tells the source that the guest is taken.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] where [`Self::ready`] has not returned well: the guest is the source's,
    /// and the session ends. Else none: the guest is this end's.
    pub fn done(mut self) -> Result<TargetReport> {
        if !self.is_ours {
            let error = Error::Misuse("done before the source has let go: ready first".to_owned());
            return Err(self.fail(error));
        }
        self.spent.set();
        self.shared.over.store(true, std::sync::atomic::Ordering::Release);
        self.say(Control::Done);
        self.linger();
        drop(self.orders); // wakes the control sender at once
        let mut lanes = self.threads.end();
        lanes.remove(1); // the control sender has no figures
        Ok(TargetReport { lanes })
    }

    /// Ends the session; the source gets the reason. For a caller that cannot go on.
    pub fn fail(&mut self, error: Error) -> Error {
        self.shared.fail(error);
        self.abort()
    }

    /// How far it is, to look at from another thread.
    pub fn progress(&self) -> Progress {
        self.shared.progress.clone()
    }

    fn say(&self, control: Control) {
        // A control sender that ended has left its error in `shared`.
        let _ = self.orders.send((control, Vec::new()));
    }

    fn event(&mut self) -> Result<TargetEvent> {
        self.threads.hear(&self.events)
    }

    /// What was said last must arrive: a close with unread bytes would reset the connection. The
    /// other end closes when it has it.
    fn linger(&self) {
        let deadline = Instant::now() + 4 * GRACE;
        while Instant::now() < deadline && !self.threads.first_is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    fn guarded<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        step(self).map_err(|error| {
            self.shared.fail(error);
            self.abort()
        })
    }

    fn abort(&mut self) -> Error {
        self.threads.end();
        self.shared.take_error()
    }
}

fn unexpected<T>(event: &TargetEvent) -> Result<T> {
    Err(PeerError::Protocol(format!("{event:?} was not due")).into())
}

/// The control sender of lane 0: what the target says, and that it is alive.
fn speak(sender: &mut LaneSender, shared: &Shared, orders: &Receiver<(Control, Vec<u8>)>) {
    let mut last = Instant::now();
    loop {
        let order = match orders.recv_timeout(TICK) {
            Ok(order) => order,
            Err(_) if shared.stopped() && shared.is_over() => return,
            Err(_) if shared.stopped() => {
                let reason = shared.reason();
                let payload = reason_bytes(&reason).to_vec();
                let _ = say(sender, Control::Cancel { payload_bytes: payload.len() }, &payload);
                return;
            }
            Err(RecvTimeoutError::Timeout) if last.elapsed() < HEARTBEAT => continue,
            Err(RecvTimeoutError::Timeout) => (Control::Heartbeat, Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        last = Instant::now();
        if let Err(error) = say(sender, order.0, &order.1) {
            if !shared.is_over() {
                shared.fail(error);
            }
            return;
        }
    }
}

fn say(sender: &mut LaneSender, control: Control, payload: &[u8]) -> Result<()> {
    let deadline = Instant::now() + 4 * GRACE;
    loop {
        if sender.can_send()
            && let Some(slot) = sender.take_slot()
        {
            sender.send_control(slot, control, payload)?;
            while !sender.can_send() && Instant::now() < deadline {
                sender.wait(Some(deadline))?;
            }
            return Ok(());
        }
        if Instant::now() >= deadline {
            let (phase, waited_s) = ("while it was to take a control frame", 2);
            return Err(PeerError::Silent { lane: 0, phase, waited_s }.into());
        }
        sender.wait(Some(deadline))?;
    }
}
