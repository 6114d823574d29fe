//! QMP: one JSON object a line, over the socket that QEMU was told to connect to.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Nothing here takes long; what takes this long hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to QEMU's monitor.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// What came of a line that is not whole.
    partial: Vec<u8>,
    events: VecDeque<Value>,
}

impl Qmp {
    pub(crate) fn new(stream: UnixStream) -> Result<Self, String> {
        let stream = BufReader::new(stream);
        let mut qmp = Self { stream, partial: Vec::new(), events: VecDeque::new() };
        let greeting = qmp.message(Instant::now() + PATIENCE)?;
        if greeting.is_none_or(|greeting| greeting.get("QMP").is_none()) {
            return Err("no QMP greeting".to_owned());
        }
        qmp.execute("qmp_capabilities", json!({})).map(|_| qmp)
    }

    /// # Errors
    ///
    /// What QEMU says, or that it is gone or silent.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        let stream = self.stream.get_mut();
        stream.write_all(line.as_bytes()).map_err(|e| format!("{command}: QMP: {e}"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.message(deadline).map_err(|e| format!("{command}: {e}"))? {
                None => return Err(format!("{command}: no answer in {PATIENCE:?}")),
                Some(mut message) => {
                    if let Some(value) = message.get_mut("return") {
                        return Ok(value.take());
                    }
                    if let Some(error) = message.get("error") {
                        let text = error["desc"].as_str().unwrap_or_default();
                        return Err(format!("{command}: {text}"));
                    }
                    self.events.push_back(message);
                }
            }
        }
    }

    /// The events that came so far and were not taken before.
    pub fn take_events(&mut self) -> Vec<Value> {
        while let Ok(Some(message)) = self.message(Instant::now()) {
            self.events.push_back(message);
        }
        self.events.drain(..).collect()
    }

    /// The next event that was not taken before; none where it does not come until then.
    pub fn next_event(&mut self, deadline: Instant) -> Result<Option<Value>, String> {
        match self.events.pop_front() {
            Some(event) => Ok(Some(event)),
            None => self.message(deadline),
        }
    }

    /// The next line; none where it does not come until then.
    fn message(&mut self, deadline: Instant) -> Result<Option<Value>, String> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1)); // 0 would be for ever
            self.stream.get_ref().set_read_timeout(Some(left)).map_err(|e| e.to_string())?;
            match self.stream.read_until(b'\n', &mut self.partial) {
                Ok(_) if self.partial.ends_with(b"\n") => break,
                Ok(_) => return Err("QEMU closed its QMP connection".to_owned()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(format!("QMP: {error}")),
            }
        }
        let line = std::mem::take(&mut self.partial);
        serde_json::from_slice(&line).map(Some).map_err(|e| format!("QMP: {e}"))
    }
}
