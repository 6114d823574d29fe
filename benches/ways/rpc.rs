//! Memory as messages of a remote procedure call, the proposal of 2009, and as a stream of them.
//!
//! Written from the public description of libvirt's protocol
//! (<https://libvirt.org/kbase/internals/rpc.html>), not from its code: a packet is its length
//! with the length's own four bytes, six words of header (program, version, procedure, type,
//! serial, status), then a payload; words are XDR's (RFC 4506), big-endian.
//!
//! ```text
//! call    LEN | prog vers proc CALL   serial OK       | opaque data<>: length, bytes, pad to 4
//! reply   LEN | prog vers proc REPLY  serial OK       |
//! stream  LEN | prog vers proc STREAM serial CONTINUE | bytes
//!         LEN | prog vers proc STREAM serial OK       |                 the end, and its answer
//! ```

use std::io::{self, Read, Write};

/// Bytes of a message's data.
pub const DATA_BYTES: usize = 64 << 10;
const WORD: usize = 4;
const HEADER_BYTES: usize = 7 * WORD;
/// A program, a version and a procedure of our own.
const PROGRAM: u32 = 0x2009_0001;
const VERSION: u32 = 1;
const PROCEDURE: u32 = 1;
const CALL: u32 = 0;
const REPLY: u32 = 1;
const STREAM: u32 = 3;
const OK: u32 = 0;
const CONTINUE: u32 = 2;

/// What a packet's header says, its length included.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Header {
    packet_bytes: usize,
    kind: u32,
    serial: u32,
    status: u32,
}

impl Header {
    fn of(payload_bytes: usize, kind: u32, serial: u32, status: u32) -> Self {
        Self { packet_bytes: HEADER_BYTES + payload_bytes, kind, serial, status }
    }

    fn encode(self) -> [u8; HEADER_BYTES] {
        let Self { packet_bytes, kind, serial, status } = self;
        let words = [packet_bytes as u32, PROGRAM, VERSION, PROCEDURE, kind, serial, status];
        let mut bytes = [0; HEADER_BYTES];
        for (room, word) in bytes.chunks_exact_mut(WORD).zip(words) {
            room.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    fn parse(bytes: &[u8; HEADER_BYTES]) -> io::Result<Self> {
        let word = |n: usize| {
            let word = bytes[n * WORD..][..WORD].try_into().expect("four bytes");
            u32::from_be_bytes(word)
        };
        let packet_bytes = word(0) as usize;
        let most = HEADER_BYTES + WORD + DATA_BYTES;
        if [word(1), word(2), word(3)] != [PROGRAM, VERSION, PROCEDURE]
            || !(HEADER_BYTES..=most).contains(&packet_bytes)
        {
            return Err(wrong("a header of another program or length"));
        }
        Ok(Self { packet_bytes, kind: word(4), serial: word(5), status: word(6) })
    }

    fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; HEADER_BYTES];
        from.read_exact(&mut bytes)?;
        Self::parse(&bytes)
    }

    fn expect(self, wanted: Self) -> io::Result<()> {
        if self == wanted { Ok(()) } else { Err(wrong(&format!("{self:?}, not {wanted:?}"))) }
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Zeros that fill an opaque up to whole words.
fn pad_bytes(data_bytes: usize) -> usize {
    data_bytes.next_multiple_of(WORD) - data_bytes
}

/// One call with `data<>` as a packet.
fn call(packet: &mut Vec<u8>, serial: u32, data: &[u8]) {
    let pad = pad_bytes(data.len());
    packet.clear();
    packet.extend(Header::of(WORD + data.len() + pad, CALL, serial, OK).encode());
    packet.extend((data.len() as u32).to_be_bytes());
    packet.extend(data);
    packet.resize(packet.len() + pad, 0);
}

/// Each message waits for its reply.
pub fn send_calls(pipe: &mut (impl Read + Write), memory: &[u8]) -> io::Result<()> {
    let mut packet = Vec::new();
    for (serial, data) in (0..).zip(memory.chunks(DATA_BYTES)) {
        call(&mut packet, serial, data);
        pipe.write_all(&packet)?;
        pipe.flush()?;
        Header::read(pipe)?.expect(Header::of(0, REPLY, serial, OK))?;
    }
    Ok(())
}

/// The other end of [`send_calls`].
pub fn receive_calls(pipe: &mut (impl Read + Write), memory: &mut [u8]) -> io::Result<()> {
    for (serial, room) in (0..).zip(memory.chunks_mut(DATA_BYTES)) {
        let payload_bytes = WORD + room.len() + pad_bytes(room.len());
        Header::read(pipe)?.expect(Header::of(payload_bytes, CALL, serial, OK))?;
        let mut length = [0; WORD];
        pipe.read_exact(&mut length)?;
        if u32::from_be_bytes(length) as usize != room.len() {
            return Err(wrong("an opaque of another length"));
        }
        pipe.read_exact(room)?;
        pipe.read_exact(&mut [0; WORD][..pad_bytes(room.len())])?;
        pipe.write_all(&Header::of(0, REPLY, serial, OK).encode())?;
        pipe.flush()?;
    }
    Ok(())
}

/// Messages without replies but for the last.
pub fn send_stream(pipe: &mut (impl Read + Write), memory: &[u8]) -> io::Result<()> {
    let mut packet = Vec::new();
    for data in memory.chunks(DATA_BYTES) {
        packet.clear();
        packet.extend(Header::of(data.len(), STREAM, 0, CONTINUE).encode());
        packet.extend(data);
        pipe.write_all(&packet)?;
    }
    let end = Header::of(0, STREAM, 0, OK);
    pipe.write_all(&end.encode())?;
    pipe.flush()?;
    Header::read(pipe)?.expect(end)
}

/// The other end of [`send_stream`].
pub fn receive_stream(pipe: &mut (impl Read + Write), memory: &mut [u8]) -> io::Result<()> {
    for room in memory.chunks_mut(DATA_BYTES) {
        Header::read(pipe)?.expect(Header::of(room.len(), STREAM, 0, CONTINUE))?;
        pipe.read_exact(room)?;
    }
    let end = Header::of(0, STREAM, 0, OK);
    Header::read(pipe)?.expect(end)?;
    pipe.write_all(&end.encode())?;
    pipe.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_call_is_the_bytes_of_the_description() {
        let mut packet = Vec::new();
        call(&mut packet, 7, b"abcde");
        let words: [&[u8]; 10] = [
            &[0, 0, 0, 40], // 28 of length and header, 4 of the opaque's length, 5, and 3 of pad
            &[0x20, 0x09, 0, 1],
            &[0, 0, 0, 1],
            &[0, 0, 0, 1],
            &[0, 0, 0, 0],
            &[0, 0, 0, 7],
            &[0, 0, 0, 0],
            &[0, 0, 0, 5],
            b"abcd",
            b"e\0\0\0",
        ];
        assert_eq!(packet, words.concat());
        let header = Header::parse(packet[..HEADER_BYTES].try_into().unwrap()).unwrap();
        assert_eq!(header, Header::of(12, CALL, 7, OK));
    }

    #[test]
    fn headers_of_others_and_of_no_length_are_errors() {
        let good = Header::of(8, STREAM, 0, CONTINUE).encode();
        for (at, byte) in [(0, 1), (3, 27), (4, 0), (11, 2), (15, 9)] {
            let mut bad = good;
            bad[at] = byte;
            assert!(Header::parse(&bad).is_err(), "byte {at}");
        }
        let other = Header::parse(&good).unwrap();
        assert!(other.expect(Header::of(8, STREAM, 1, CONTINUE)).is_err());
    }

    #[test]
    fn memory_of_any_length_arrives() {
        for bytes in [0, 1, DATA_BYTES, 3 * DATA_BYTES + 5] {
            let memory: Vec<u8> = (0..bytes).map(|n| (n * 7 + n / 256) as u8).collect();
            for calls in [true, false] {
                let (mut near, mut far) = UnixStream::pair().unwrap();
                let mut into = vec![0; bytes];
                std::thread::scope(|scope| {
                    scope.spawn(|| match calls {
                        true => send_calls(&mut near, &memory).unwrap(),
                        false => send_stream(&mut near, &memory).unwrap(),
                    });
                    match calls {
                        true => receive_calls(&mut far, &mut into).unwrap(),
                        false => receive_stream(&mut far, &mut into).unwrap(),
                    }
                });
                assert!(into == memory);
            }
        }
    }
}
