//! The command line.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::record::Series;

/// Guest memory of a whole and of a quick run: the first is what the benchmarks with QEMU have.
const FULL_MIB: u64 = 3482;
const QUICK_MIB: u64 = 1024;
const FULL_TURNS: u32 = 7;
const QUICK_TURNS: u32 = 5;

/// What the arguments `name=value` say.
#[derive(Clone, Debug)]
pub struct Settings {
    pub mib: u64,
    pub turns: u32,
    /// Every way, and what takes its time.
    pub full: bool,
    /// Ways by name; none for all.
    pub only: Vec<String>,
    /// A second series with fresh target memory.
    pub cold: bool,
    /// A run of some ways whose system calls strace counts.
    pub trace: bool,
    /// Lanes and guest sizes.
    pub scaling: bool,
    /// TCP's congestion control, for all ways: in a network of this run's own. Else the system's.
    pub congestion: Option<String>,
    pub json: Option<PathBuf>,
    pub docs: Option<PathBuf>,
    /// Records of the benchmarks with QEMU.
    pub qemu: Vec<PathBuf>,
    /// Makes every run wrong: to see that a wrong one is an error.
    pub corrupt: bool,
}

impl Settings {
    /// # Errors
    ///
    /// What is not understood.
    pub fn parse(arguments: &[String]) -> Result<Self, String> {
        let full = arguments.iter().any(|argument| argument == "full=on");
        let mut settings = Self {
            mib: if full { FULL_MIB } else { QUICK_MIB },
            turns: if full { FULL_TURNS } else { QUICK_TURNS },
            full,
            only: Vec::new(),
            cold: true,
            trace: true,
            scaling: full,
            congestion: None,
            json: None,
            docs: None,
            qemu: Vec::new(),
            corrupt: false,
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=').ok_or("name=value")?;
            let number = || value.parse::<u64>().map_err(|e| format!("{argument}: {e}"));
            match name {
                "mib" => settings.mib = number()?.max(1),
                "turns" => settings.turns = number()?.max(1) as u32,
                "only" => settings.only = value.split(',').map(str::to_owned).collect(),
                "full" => {}
                "cold" => settings.cold = value == "on",
                "trace" => settings.trace = value == "on",
                "scaling" => settings.scaling = value == "on",
                "congestion" => settings.congestion = Some(value.to_owned()),
                "json" => settings.json = Some(value.into()),
                "docs" => settings.docs = Some(value.into()),
                "qemu" => settings.qemu = value.split(',').map(PathBuf::from).collect(),
                "corrupt" => settings.corrupt = value == "on",
                _ => return Err(format!("see the head of benches/ways/main.rs; not {argument}")),
            }
        }
        let known = crate::contestants::of_the_table();
        match settings.only.iter().find(|name| known.iter().all(|way| way.name != **name)) {
            Some(name) => Err(format!("no way is called {name}; `list` names them")),
            None => Ok(settings),
        }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "mib": self.mib, "turns": self.turns, "full": self.full, "only": self.only,
            "cold": self.cold, "scaling": self.scaling, "congestion": self.congestion,
        })
    }

    /// What was done where, before the tables.
    pub fn sentence(&self, resident: &Series, facts: &Value) -> String {
        format!(
            "`cargo xtask bench{}`: {} MiB without a zero page, {} turns, {} system load before, \
             {}.",
            if self.full { " --full" } else { "" },
            resident.bytes >> 20,
            self.turns,
            facts["load_before"].as_str().and_then(|load| load.split(' ').next()).unwrap_or("?"),
            crate::system::line(facts)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Settings, String> {
        Settings::parse(&arguments.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_change_the_defaults_and_others_are_errors() {
        let quick = parse(&[]).unwrap();
        assert_eq!((quick.mib, quick.turns, quick.scaling), (QUICK_MIB, QUICK_TURNS, false));
        let full = parse(&["turns=2", "full=on", "only=plain,ssh"]).unwrap();
        assert_eq!((full.mib, full.turns, full.scaling), (FULL_MIB, 2, true));
        assert_eq!(full.only, ["plain", "ssh"]);
        for wrong in ["mib=many", "what=ever", "quick", "only=carrier-pigeon"] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
    }
}
