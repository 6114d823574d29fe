//! What the fuzzers assert. The corpora in fuzz/corpus replay here in `cargo test`.
#![allow(missing_docs)]

use super::{
    DIALLER_HELLO_BYTES, DiallerHello, HEADER_FIXED_BYTES, JoinReply, OpenReply, Opened, Prefix,
    RUNS_MAX, RegionTable, VERSION, encode_pages, parse_header,
};
use crate::config::{FRAME_BYTES_DEFAULT, PAGE_BYTES};

/// Arbitrary bytes as prefix and header: what parses encodes to the same bytes.
pub fn frame_parser(data: &[u8]) {
    let Some((first, header)) = data.split_first_chunk::<8>() else { return };
    let Ok(prefix) = Prefix::parse(*first, FRAME_BYTES_DEFAULT) else { return };
    assert_eq!(prefix.encode(), *first);
    assert!(prefix.rest_bytes() <= 4096 + FRAME_BYTES_DEFAULT + 16);
    if let Some(header) = header.get(..prefix.header_bytes()) {
        check_header(header, prefix.payload_bytes(), &[1 << 18, 7]);
    }
}

/// Bytes after decryption, from a peer that is authenticated and hostile. The first bytes choose
/// the region table and the payload.
pub fn opened_header(data: &[u8]) {
    let Some((choice, header)) = data.split_first_chunk::<4>() else { return };
    let regions: Vec<u64> = (0..choice[0] % 5).map(|n| u64::from(choice[1]) << (n * 13)).collect();
    let payload_bytes = usize::from(u16::from_le_bytes([choice[2], choice[3]])) * 512;
    check_header(header, payload_bytes, &regions);
    if let Ok(table) = RegionTable::parse(header) {
        assert_eq!(table.encode(), header);
    }
}

/// Arbitrary bytes as each message of the handshake.
pub fn hello(data: &[u8]) {
    if let Some(message) = data.first_chunk::<DIALLER_HELLO_BYTES>() {
        match DiallerHello::parse(message) {
            Ok(DiallerHello::Open(hello, clear, proof)) => {
                // What a later version means by the rest is not known.
                assert!(hello.version != VERSION || hello.encode() == clear);
                assert_eq!([&clear[..], &proof[..]].concat(), message);
            }
            Ok(DiallerHello::Join(join)) => assert_eq!(join.encode(), *message),
            Err(_) => {}
        }
    }
    if let Some(message) = data.first_chunk() {
        assert_eq!(JoinReply::parse(message).encode(), *message);
    }
    if let Some(message) = data.first_chunk()
        && let Ok(reply) = OpenReply::parse(message)
    {
        assert_eq!(reply.encode(), *message);
    }
}

fn check_header(header: &[u8], payload_bytes: usize, regions: &[u64]) {
    let mut again = [0; 4096];
    match parse_header(header, payload_bytes, regions) {
        Ok(Opened::Pages(pages)) => {
            let runs: Vec<_> = pages.runs().collect();
            assert!(runs.len() <= RUNS_MAX || header.len() > 4096);
            let region_pages = regions[usize::from(pages.region)];
            assert!(runs.iter().all(|r| r.first_page + u64::from(r.pages) <= region_pages));
            assert_eq!(pages.data_pages() as usize * PAGE_BYTES, payload_bytes);
            if runs.len() <= RUNS_MAX {
                let bytes = encode_pages(&mut again, pages.region, pages.round, &runs);
                assert_eq!(&again[..bytes], header);
            }
        }
        Ok(Opened::Control(control)) => {
            let prefix = control.encode(&mut again);
            assert_eq!(prefix.payload_bytes(), payload_bytes);
            assert_eq!(&again[..HEADER_FIXED_BYTES], header);
        }
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn corpora_replay() {
        let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        type Body = fn(&[u8]);
        let bodies: [(&str, Body); 3] = [
            ("frame_parser", super::frame_parser),
            ("opened_header", super::opened_header),
            ("hello", super::hello),
        ];
        for (name, body) in bodies {
            let mut replayed = 0;
            for file in std::fs::read_dir(corpora.join(name)).unwrap() {
                body(&std::fs::read(file.unwrap().path()).unwrap());
                replayed += 1;
            }
            assert!(replayed >= 3, "{name}: {replayed} files in its corpus");
        }
    }
}
