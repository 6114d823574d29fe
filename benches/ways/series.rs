//! Turns: each goes all ways, one after the other, so that what the machine does meanwhile meets
//! all of them.

use std::path::Path;

use crate::contestants::Way;
use crate::memory::{Memory, hash};
use crate::record::{Row, Series};
use crate::referee::{self, Course, Failure};
use crate::settings::Settings;
use crate::{system, traced};

/// Memory of a size, at both ends, and what runs have in common.
pub struct Arena<'a> {
    settings: &'a Settings,
    place: &'a Path,
    bytes: u64,
    source: Memory,
    source_hash: u64,
}

impl<'a> Arena<'a> {
    pub fn new(settings: &'a Settings, place: &'a Path, mib: u64) -> Self {
        let bytes = mib << 20;
        let source = Memory::new(bytes);
        sealane_benches::fill(&source.file, bytes, 1);
        let source_hash = hash(&source.map);
        Self { settings, place, bytes, source, source_hash }
    }

    fn course(&self) -> Course<'_> {
        Course {
            source: &self.source,
            source_hash: self.source_hash,
            place: self.place,
            corrupt: self.settings.corrupt,
            tracer: None,
        }
    }

    /// A table of system calls; none where this machine cannot count them.
    ///
    /// # Errors
    ///
    /// A run that is wrong.
    pub fn system_calls(&self) -> Result<Option<String>, String> {
        let mut target = Memory::new(self.bytes);
        traced::table(&self.course(), &mut target)
    }

    /// All turns of some ways. A way that this machine cannot go is left out from then on.
    ///
    /// # Errors
    ///
    /// A run that is wrong.
    pub fn series(&self, name: &str, cold: bool, ways: &[Way]) -> Result<Series, String> {
        let mut rows: Vec<Row> = ways.iter().cloned().map(Row::of).collect();
        let (mut resident, mut bare) = (None, Vec::new());
        if !cold {
            let memory = Memory::new(self.bytes);
            memory.make_resident();
            resident = Some(memory);
        }
        let course = self.course();
        // A run into fresh memory takes longer, and fewer of them show what they have to show.
        let turns = if cold { self.settings.turns.div_ceil(2) } else { self.settings.turns };
        for turn in 0..turns {
            if let Some(provider) = system::provider() {
                bare.push((turn, provider.measure(sealane::config::FRAME_BYTES_DEFAULT)));
            }
            for row in rows.iter_mut().filter(|row| row.missing.is_none()) {
                let mut fresh = None;
                let target = match &mut resident {
                    Some(memory) => memory,
                    None => fresh.insert(Memory::new(self.bytes)),
                };
                match referee::run(&course, &row.way, target, cold) {
                    Ok(run) => {
                        eprintln!("{name} {turn} {:24} {:.3} s", row.way.name, run.seconds);
                        row.runs.push((turn, run));
                    }
                    Err(Failure::Missing(why)) => {
                        println!("SKIP: ways: {}: {why}", row.way.name);
                        row.missing = Some(why);
                    }
                    Err(Failure::Wrong(why)) => return Err(format!("{name}: {why}")),
                }
            }
        }
        Ok(Series { name: name.to_owned(), bytes: self.bytes, rows, bare })
    }
}
