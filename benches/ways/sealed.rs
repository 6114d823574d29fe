//! Both ends of Sealane: the guest's memory by mapping, as a hypervisor has it; a cold target's by
//! descriptor, because pages that nobody touched are best written and never mapped.

use std::path::Path;
use std::ptr::NonNull;

use sealane::memory::{DirtyBitmap, Region};
use sealane::{Canceller, Config, LaneStatistics, Listener, OneTimeSecret, Role, Source, Target};
use serde_json::Value;

use crate::end::{Clock, Order, hear, tell};
use crate::memory::Memory;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The secret of all runs.
pub fn secret_at(place: &Path) -> std::path::PathBuf {
    place.join("secret")
}

pub fn source(order: &Order, config: &Config, memory: &mut Memory) -> Result<Value> {
    let secret = OneTimeSecret::read(&secret_at(&order.place))?;
    let (cancel, address) = (Canceller::default(), format!("127.0.0.1:{}", order.port));
    let lanes = sealane::dial(&address.parse()?, Role::Source, &secret, config, &cancel)?;
    let region = mapped(memory)?;
    let everything = [DirtyBitmap::all(region.pages())];
    let mut source = Source::start(lanes, vec![region], config, &cancel)?;
    tell("ready");
    hear("go")?;
    let clock = Clock::begin();
    source.send_round(&everything)?;
    let mut figures = clock.figures();
    source.commit(b"")?;
    add(&mut figures, &source.hand_over()?.lanes);
    Ok(figures)
}

pub fn target(
    order: &Order,
    config: &Config,
    memory: &mut Memory,
    by_descriptor: bool,
) -> Result<Value> {
    let secret = OneTimeSecret::read(&secret_at(&order.place))?;
    let cancel = Canceller::default();
    let listener = Listener::bind("127.0.0.1:0")?;
    tell(&format!("port {}", listener.local_address()?.port()));
    let lanes = listener.accept(Role::Target, &secret, config, &cancel)?;
    let mut target = Target::start(lanes, config, &cancel)?;
    let region = match by_descriptor {
        true => Region::from_file("ram", memory.file.try_clone()?, 0, memory.map.len() as u64)?,
        false => mapped(memory)?,
    };
    target.accept(vec![region])?;
    tell("ready");
    let clock = Clock::begin();
    target.receive()?;
    let mut figures = clock.figures();
    target.ready()?;
    add(&mut figures, &target.done()?.lanes);
    Ok(figures)
}

fn mapped(memory: &mut Memory) -> Result<Region> {
    let (address, bytes) = (memory.map.as_mut_ptr(), memory.map.len());
    let address = NonNull::new(address).expect("mapped");
    // SAFETY:
    // - the mapping outlives the end, whose threads are gone when it returns;
    // - nobody truncates the memfd;
    // - no reference to it is used until then.
    Ok(unsafe { Region::from_mapping("ram", address, bytes) }?)
}

fn add(figures: &mut Value, lanes: &[LaneStatistics]) {
    let sum = |of: fn(&LaneStatistics) -> u64| lanes.iter().map(of).sum::<u64>();
    figures["system_calls"] = sum(|lane| lane.engine.system_calls).into();
    figures["zero_copy_kept"] = sum(|lane| lane.engine.zero_copy_kept).into();
    figures["zero_copy_copied"] = sum(|lane| lane.engine.zero_copy_copied).into();
    figures["frames"] = sum(|lane| lane.frames).into();
    figures["wire_bytes"] = sum(|lane| lane.wire_bytes).into();
    figures["stalls"] = sum(|lane| lane.stalls).into();
}
