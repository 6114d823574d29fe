//! A migration, as a management program drives it.

use serde_json::{Value, json};

use crate::{Guest, Options, Qemu};

/// What query-migrate says.
#[derive(Clone, Debug)]
pub struct Info {
    /// `setup`, `active`, `postcopy-active`, `completed`, `failed`, `cancelled`..; empty before.
    pub status: String,
    /// Bytes of memory sent so far.
    pub transferred_bytes: u64,
    /// Bytes of memory yet to send.
    pub remaining_bytes: u64,
    /// Since the start, or how long it took.
    pub total_ms: u64,
    /// How long the guest stood, once completed.
    pub downtime_ms: u64,
    /// Everything, as QEMU said it.
    pub all: Value,
}

/// States that a migration does not leave by itself.
const FINAL: [&str; 4] = ["completed", "failed", "cancelled", "postcopy-paused"];

/// No limit of bandwidth that matters, and a downtime within which a live guest of this crate
/// converges, however busy the machine is.
pub fn ordinary_parameters() -> Value {
    json!({"max-bandwidth": 100u64 << 30, "downtime-limit": 20_000})
}

impl Qemu {
    /// Why there can be no postcopy here: userfaultfd is missing, or not for this user.
    pub fn refuses_postcopy(&self) -> Option<String> {
        let probe = Guest::start(self, "probe", &Options::default().target());
        probe.try_set_capabilities(&["postcopy-ram"]).err()
    }

    /// The capabilities of the ways of postcopy that it knows.
    pub fn postcopy_ways(&self) -> Vec<&'static [&'static str]> {
        let preempt: &[_] = &["postcopy-ram", "postcopy-preempt"];
        let ways = [&["postcopy-ram"][..], preempt];
        ways[..if self.has_preempt() { 2 } else { 1 }].to_vec()
    }
}

impl Guest {
    /// Turns these capabilities on.
    ///
    /// # Panics
    ///
    /// Where QEMU refuses.
    pub fn set_capabilities(&self, names: &[&str]) {
        self.try_set_capabilities(names).unwrap_or_else(|error| self.fail(&error));
    }

    /// Turns these capabilities off.
    pub fn clear_capabilities(&self, names: &[&str]) {
        let off = |name: &&str| json!({"capability": name, "state": false});
        let list: Vec<_> = names.iter().map(off).collect();
        self.execute("migrate-set-capabilities", json!({"capabilities": list}));
    }

    /// Turns these capabilities on.
    ///
    /// # Errors
    ///
    /// What QEMU says: that it does not know one, or has no userfaultfd for postcopy.
    pub fn try_set_capabilities(&self, names: &[&str]) -> Result<(), String> {
        let on = |name: &&str| json!({"capability": name, "state": true});
        let list: Vec<_> = names.iter().map(on).collect();
        let arguments = json!({"capabilities": list});
        self.try_execute("migrate-set-capabilities", arguments).map(drop)
    }

    /// Sets parameters: an object with `multifd-channels`, `max-bandwidth`, `downtime-limit`..
    pub fn set_parameters(&self, parameters: Value) {
        self.execute("migrate-set-parameters", parameters);
    }

    /// Capabilities with what each needs at both ends: `multifd` these channels.
    pub fn prepare(&self, capabilities: &[&str], channels: u8) {
        self.set_capabilities(capabilities);
        self.set_parameters(ordinary_parameters());
        if capabilities.contains(&"multifd") {
            self.set_parameters(json!({"multifd-channels": channels}));
        }
    }

    /// Makes Sealane's credentials of an [`fitted`](crate::fitted) QEMU and lets migrations use
    /// them; `end` is `client` at a source and `server` at a target.
    ///
    /// # Errors
    ///
    /// What QEMU says.
    pub fn try_use_sealane(&self, end: &str, properties: &Value) -> Result<(), String> {
        let mut object = json!({"qom-type": "sealane-creds", "id": "s0", "endpoint": end});
        let properties = properties.as_object().expect("properties").clone();
        object.as_object_mut().expect("an object").extend(properties);
        self.try_execute("object-add", object)?;
        self.try_execute("migrate-set-parameters", json!({"tls-creds": "s0"})).map(drop)
    }

    /// So slow that there is time to disturb it, and that no live guest converges.
    pub fn slow_down(&self, bytes_per_s: u64) {
        self.set_parameters(json!({"max-bandwidth": bytes_per_s, "downtime-limit": 1}));
    }

    /// A target begins to listen: `unix:PATH`, `tcp:127.0.0.1:0`.
    pub fn listen(&self, uri: &str) {
        self.execute("migrate-incoming", json!({"uri": uri}));
    }

    /// The port where a target got to listen by `tcp:127.0.0.1:0`.
    pub fn port(&self) -> u64 {
        let info = self.execute("query-migrate", json!({}));
        let port = info["socket-address"][0]["port"].as_str().and_then(|port| port.parse().ok());
        port.unwrap_or_else(|| self.fail("no port"))
    }

    /// A source begins to migrate.
    pub fn migrate(&self, uri: &str) {
        self.execute("migrate", json!({"uri": uri}));
    }

    /// Cancels at the source.
    pub fn cancel(&self) {
        self.execute("migrate_cancel", json!({}));
    }

    /// From here on the target's guest runs, and fetches what it misses.
    pub fn start_postcopy(&self) {
        self.execute("migrate-start-postcopy", json!({}));
    }

    /// How the migration stands.
    pub fn info(&self) -> Info {
        self.try_info().unwrap_or_else(|error| self.fail(&error))
    }

    fn try_info(&self) -> Result<Info, String> {
        let all = self.try_execute("query-migrate", json!({}))?;
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        Ok(Info {
            status: all["status"].as_str().unwrap_or_default().to_owned(),
            transferred_bytes: number(&all["ram"]["transferred"]),
            remaining_bytes: number(&all["ram"]["remaining"]),
            total_ms: number(&all["total-time"]),
            downtime_ms: number(&all["downtime"]),
            all,
        })
    }

    /// Waits for this status.
    ///
    /// # Panics
    ///
    /// Where it ends in another one.
    pub fn wait_status(&self, wanted: &str) -> Info {
        self.wait_for(&format!("the migration to be {wanted}"), |guest| {
            let info = guest.info();
            if info.status == wanted {
                return Some(info);
            }
            if FINAL.contains(&&info.status[..]) {
                guest.fail(&format!("the migration is {}, not {wanted}", info.status));
            }
            None
        })
    }

    /// Waits for the event that says this status, as soon as it comes; it needs the capability
    /// `events`.
    ///
    /// # Panics
    ///
    /// Where another final status comes first.
    pub fn wait_event_status(&self, wanted: &str) {
        self.wait_event("MIGRATION", |event| {
            let status = event["data"]["status"].as_str().unwrap_or_default();
            if status != wanted && FINAL.contains(&status) {
                self.fail(&format!("the migration is {status}, not {wanted}"));
            }
            status == wanted
        });
    }

    /// Waits until the source has sent so much memory and is not done.
    pub fn wait_transferred(&self, bytes: u64) -> Info {
        self.wait_for(&format!("{bytes} bytes to be transferred"), |guest| {
            let info = guest.info();
            if FINAL.contains(&&info.status[..]) {
                guest.fail(&format!("the migration is {} already", info.status));
            }
            (info.transferred_bytes >= bytes).then_some(info)
        })
    }

    /// Waits until a target has given up: its process ended with an error, or it says `failed`.
    /// What it said is the answer.
    ///
    /// # Panics
    ///
    /// Where the migration completes.
    pub fn wait_target_failed(&self) -> String {
        self.wait_for("the target to fail", |guest| {
            if let Some(status) = guest.ended() {
                assert!(!status.success(), "{}: {status}", guest.name());
                return Some(format!("{status}: {}", guest.stderr()));
            }
            match guest.try_info() {
                Ok(info) if info.status == "failed" => Some(format!("failed: {}", guest.stderr())),
                Ok(info) if info.status == "completed" => guest.fail("the migration completed"),
                _ => None,
            }
        })
    }

    /// The guest runs here and no more at the source, and has lost nothing.
    ///
    /// # Panics
    ///
    /// Where it has not, or does not count on.
    pub fn assert_took_over_from(&self, source: &Guest) {
        let handover = source.memory().counters();
        assert!(!source.is_running() && self.is_running());
        self.memory().assert_no_page_older_than(&handover);
        self.wait_counting_on(&handover);
        self.stop();
        self.memory().assert_no_page_missed_a_sweep();
    }

    /// The guest runs here as if there had been no migration.
    ///
    /// # Panics
    ///
    /// Where it does not.
    pub fn assert_runs_on(&self) {
        assert!(self.is_running());
        self.wait_counting_on(&self.memory().counters());
    }
}
