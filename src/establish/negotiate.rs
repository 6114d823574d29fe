//! What both ends agree on before the first lane, or why they do not.

use super::{Shake, frame_is_allowed, limits_are_allowed, migration_id};
use crate::config::{FRAME_BYTES_MAX, LANES_MAX};
use crate::wire::{Features, OpenHello, OpenReply, Refusal, Role, VERSION};

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A fixed number of lanes that carry pages.
    Migration,
    /// As many streams as the dialler opens.
    Streams,
    /// Streams that measure the way and carry no guest.
    Check,
}

impl Use {
    pub(super) fn features(self) -> Features {
        match self {
            Self::Migration => Features::default(),
            Self::Streams => Features::STREAMS,
            Self::Check => Features::STREAMS.with(Features::CHECK),
        }
    }
}

impl Shake<'_> {
    /// A refusal, with what this end allows.
    pub(super) fn refuse(&self, hello: &OpenHello, why: Refusal) -> OpenReply {
        let streams = hello.required.has(Features::STREAMS);
        OpenReply {
            refusal: Some(why),
            version: VERSION,
            lanes: if streams { 0 } else { LANES_MAX },
            frame_bytes: FRAME_BYTES_MAX as u32,
            required: self.purpose.features(),
            supported: Features::KNOWN,
        }
    }

    pub(super) fn decide(&self, hello: &OpenHello) -> OpenReply {
        let uses = Features::STREAMS.with(Features::CHECK);
        let required = self.purpose.features();
        let other_use = hello.required.without(uses.without(required)) != hello.required
            || !hello.required.has(required);
        let why = if hello.version != VERSION {
            Refusal::Version
        } else if hello.role == self.role {
            Refusal::Role
        } else if !Features::KNOWN.has(hello.required) {
            Refusal::Features
        } else if other_use {
            Refusal::Use
        } else if hello.migration_id != migration_id(&self.config.migration_name) {
            Refusal::MigrationId
        } else {
            return self.accept(hello);
        };
        self.refuse(hello, why)
    }

    fn accept(&self, hello: &OpenHello) -> OpenReply {
        let lanes = if self.purpose == Use::Migration { self.config.lanes } else { 0 };
        let (lanes, frame_bytes) = match self.role {
            Role::Source => (lanes, self.config.frame_bytes as u32),
            Role::Target => (hello.lanes, hello.frame_bytes),
        };
        if !self.allows(lanes, frame_bytes as usize) {
            return self.refuse(hello, Refusal::Limits);
        }
        let (required, supported) = (self.purpose.features(), Features::KNOWN);
        OpenReply { refusal: None, version: VERSION, lanes, frame_bytes, required, supported }
    }

    pub(super) fn allows(&self, lanes: u16, frame_bytes: usize) -> bool {
        match self.purpose {
            Use::Migration => limits_are_allowed(lanes, frame_bytes),
            Use::Streams | Use::Check => lanes == 0 && frame_is_allowed(frame_bytes),
        }
    }
}

/// A refusal in words, the same at both ends: `hello` is the dialler's, `reply` the listener's.
pub(super) fn refused(hello: &OpenHello, reply: &OpenReply, why: Refusal) -> String {
    let text = why.text();
    match why {
        Refusal::Version => format!(
            "{text}: the end that dials speaks version {}, the end that listens version {}: run \
             the same release at both ends",
            hello.version, reply.version
        ),
        Refusal::Features | Refusal::Use => format!(
            "{text}: the end that dials requires {} and would use {}; the end that listens \
             requires {} and has {}",
            hello.required, hello.optional, reply.required, reply.supported
        ),
        Refusal::Limits => format!(
            "{text}: {} lanes with frames of {} bytes were asked for, at most {} with {} are \
             allowed",
            hello.lanes, hello.frame_bytes, reply.lanes, reply.frame_bytes
        ),
        Refusal::Unknown(code) => {
            format!("{text}, {VERSION}: it speaks {} (reason {code})", reply.version)
        }
        _ => text.to_owned(),
    }
}
