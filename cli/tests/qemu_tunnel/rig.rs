//! Two QEMUs with two tunnels between them.

use sealane_qemu::{Guest, Info, Options, Proxy, Qemu};
use serde_json::json;

use crate::tunnel::{Ended, Place, Trust, Tunnel};

/// So slow that a migration of these guests takes seconds: there is time to disturb it.
const SLOW_BYTES_PER_S: u64 = 16 << 20;
const DISTURB_AFTER_BYTES: u64 = 4 << 20;

/// What to move, and how.
#[derive(Clone)]
pub struct Case<'a> {
    pub qemu: &'a Qemu,
    /// Another version at the target.
    pub target_qemu: Option<&'a Qemu>,
    pub options: Options,
    pub capabilities: &'a [&'a str],
    pub channels: u8,
    /// Options of both tunnels.
    pub tunnels: Vec<&'a str>,
    pub proxy: Between,
    pub trust: Trust,
    /// The target's tunnel connects to the source's.
    pub target_dials: bool,
}

/// What stands between the tunnels.
#[derive(Clone, Copy)]
pub enum Between {
    Nothing,
    Recorder,
    Flip { at: u64 },
}

impl<'a> Case<'a> {
    /// A stopped guest with 128 MiB of content.
    pub fn memory(qemu: &'a Qemu) -> Self {
        Self {
            qemu,
            target_qemu: None,
            options: Options::default(),
            capabilities: &[],
            channels: 0,
            tunnels: Vec::new(),
            proxy: Between::Nothing,
            trust: Trust::Secret,
            target_dials: false,
        }
    }

    /// A guest that counts in its memory.
    pub fn live(qemu: &'a Qemu) -> Self {
        Self { options: Options::live(), ..Self::memory(qemu) }
    }

    /// A live guest, and tunnels that do not count a silent end as dead while a test waits.
    pub fn disturbed(qemu: &'a Qemu) -> Self {
        Self { tunnels: vec!["--peer-timeout", "600"], ..Self::live(qemu) }
    }
}

/// A source, a near tunnel, perhaps a proxy, a far tunnel, a target: ready to migrate.
pub struct Rig {
    pub place: Place,
    pub source: Guest,
    pub target: Guest,
    pub near: Tunnel,
    pub far: Tunnel,
    pub proxy: Option<Proxy>,
}

impl Rig {
    pub fn new(case: &Case) -> Self {
        Self::with_source(case, start_source(case))
    }

    /// Tunnels and a target for a source that is there.
    pub fn with_source(case: &Case, source: Guest) -> Self {
        let place = Place::new();
        let target = start_target(case, &place);
        source.prepare(case.capabilities, case.channels);
        let (mut near, far, proxy) = connect(case, &place);
        assert_eq!(near.address(), place.source_uri());
        Self { place, source, target, near, far, proxy }
    }

    /// New guests at the ends of the same tunnels.
    pub fn replace_guests(&mut self, case: &Case) {
        self.source = start_source(case);
        self.source.prepare(case.capabilities, case.channels);
        self.target = start_target(case, &self.place);
    }

    pub fn start(&self) {
        self.source.migrate(&self.place.source_uri());
    }

    /// Starts it slowly and waits until it is under way.
    pub fn start_slowly(&self) {
        self.source.slow_down(SLOW_BYTES_PER_S);
        self.start();
        self.source.wait_transferred(DISTURB_AFTER_BYTES);
    }

    /// Switches to postcopy with most of the memory yet to come, and little of it each second.
    pub fn start_postcopy_slowly(&self) {
        self.source.set_parameters(json!({"max-postcopy-bandwidth": SLOW_BYTES_PER_S}));
        self.start_slowly();
        self.source.start_postcopy();
        // Until the target says so too, it may take a cut for one in precopy.
        for guest in [&self.source, &self.target] {
            guest.wait_status("postcopy-active");
        }
    }

    /// New tunnels between the same guests, with the same secrets.
    pub fn renew_tunnels(&mut self, case: &Case) {
        for socket in ["source", "target"] {
            let _ = std::fs::remove_file(self.place.file(socket)); // of what was killed
        }
        let (far, address) = self.place.far(&case.tunnels);
        self.far = far;
        self.near = self.place.near(&address, "key", &case.tunnels);
        self.near.address();
    }

    /// Waits until both QEMUs say that the migration is complete.
    pub fn wait_completed(&self) -> Info {
        let info = self.source.wait_status("completed");
        self.target.wait_status("completed");
        info
    }

    /// Waits until all is well everywhere.
    pub fn finish(&mut self) -> Info {
        let info = self.wait_completed();
        let (near, far) = self.ends();
        assert_eq!((near.code, far.code), (Some(0), Some(0)), "{near:#?}\n{far:#?}");
        info
    }

    /// Waits until both tunnels end by themselves.
    pub fn ends(&mut self) -> (Ended, Ended) {
        (self.near.end(), self.far.end())
    }

    pub fn assert_both_tunnels_fail(&mut self) -> (Ended, Ended) {
        let (near, far) = self.ends();
        assert_eq!((near.code, far.code), (Some(1), Some(1)), "{near:#?}\n{far:#?}");
        (near, far)
    }

    pub fn assert_memory_arrived(&self) {
        self.source.memory().assert_equal(self.target.memory());
    }

    /// The guest runs at the target, and lost nothing.
    pub fn assert_lives_at_target(&self) {
        self.target.assert_took_over_from(&self.source);
    }

    /// The guest runs at the source, as if there had been no migration.
    pub fn assert_lives_at_source(&self) {
        self.source.assert_runs_on();
    }
}

/// The two tunnels, and what stands between them.
fn connect(case: &Case, place: &Place) -> (Tunnel, Tunnel, Option<Proxy>) {
    if case.trust != Trust::Secret {
        place.new_certificates();
    }
    let trust = place.trust(case.trust);
    let [source, target] = trust.each_ref().map(|options| {
        options.iter().map(String::as_str).chain(case.tunnels.iter().copied()).collect::<Vec<_>>()
    });
    let (from, to) = (place.source_uri(), place.target_uri());
    let source = [&["tunnel", "source", "--from", &from][..], &source].concat();
    let target = [&["tunnel", "target", "--to", &to][..], &target].concat();
    let (listens, dials) = if case.target_dials { (source, target) } else { (target, source) };
    let mut listens = Tunnel::start(&[&listens[..], &["--listen", "127.0.0.1:0"]].concat());
    let address = listens.address();
    let proxy = match case.proxy {
        Between::Nothing => None,
        Between::Recorder => Some(Proxy::recording(&address)),
        Between::Flip { at } => Some(Proxy::flipping(&address, at)),
    };
    let address = proxy.as_ref().map_or(&address, |proxy| &proxy.address);
    let dials = Tunnel::start(&[&dials[..], &["--connect", address]].concat());
    if case.target_dials { (listens, dials, proxy) } else { (dials, listens, proxy) }
}

fn start_source(case: &Case) -> Guest {
    let source = Guest::start(case.qemu, "source", &case.options);
    if case.options.live {
        source.wait_counting();
    } else {
        source.memory().fill(1);
    }
    source
}

/// A target that listens.
fn start_target(case: &Case, place: &Place) -> Guest {
    let qemu = case.target_qemu.unwrap_or(case.qemu);
    let target = Guest::start(qemu, "target", &case.options.target());
    target.prepare(case.capabilities, case.channels);
    target.listen(&place.target_uri());
    target
}
