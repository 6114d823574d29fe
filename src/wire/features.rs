//! What the ends of a connection can do and must be able to do.

/// Features of the protocol, a bit each (W-37).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u32);

impl Features {
    /// The session carries streams and not a migration of ours.
    pub const STREAMS: Self = Self(1);
    /// The session measures and carries no guest: `sealane check`.
    pub const CHECK: Self = Self(2);
    /// All that this version knows.
    pub const KNOWN: Self = Self(3);

    const NAMES: [(u32, &str); 2] = [(1, "streams"), (2, "check")];

    /// These and those.
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that `other` lacks.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether it has all of `other`.
    pub fn has(self, other: Self) -> bool {
        other.without(self).0 == 0
    }
}

impl std::fmt::Display for Features {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 0 {
            return f.write_str("none");
        }
        let name = |bit: u32| match Self::NAMES.iter().find(|(known, _)| *known == 1 << bit) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("number {bit}"),
        };
        let names: Vec<_> = (0..32).filter(|bit| self.0 & (1 << bit) != 0).map(name).collect();
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_named_and_compared() {
        // W-37
        let later = Features(1 << 9).with(Features::STREAMS);
        assert_eq!(later.to_string(), "streams, number 9");
        assert_eq!(Features::default().to_string(), "none");
        assert!(!Features::KNOWN.has(later) && later.has(Features::STREAMS));
        assert_eq!(later.without(Features::KNOWN).to_string(), "number 9");
    }
}
