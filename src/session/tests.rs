//! Both ends' order, without bytes.

use super::*;
use crate::wire::{Control, Opened, PageRun, RegionEntry, RegionTable, encode_pages, parse_header};

fn offered(lanes: u16) -> Target {
    let mut target = Target::new(lanes);
    let entry = RegionEntry { name: "ram".to_owned(), bytes: 8 << 20 };
    let table = RegionTable::new(vec![entry]).unwrap().encode();
    let offer = Control::Offer { payload_bytes: table.len() };
    assert!(matches!(target.on_control(0, &offer, &table, 1).unwrap(), TargetEvent::Offered(_)));
    target.accept().unwrap();
    target
}

fn pages(
    target: &mut Target,
    lane: u16,
    round: u32,
    first_page: u64,
    count: u32,
) -> crate::Result<()> {
    let mut header = [0; 64];
    let run = PageRun { first_page, pages: count, zero: true };
    let bytes = encode_pages(&mut header, 0, round, &[run]);
    match parse_header(&header[..bytes], 0, &[2048]).unwrap() {
        Opened::Pages(pages) => target.on_pages(lane, &pages),
        Opened::Control(_) => unreachable!(),
    }
}

#[test]
fn a_whole_migration_in_order() {
    let mut target = offered(2);
    let mut source = Source::default();
    assert!(source.begin_round().is_err(), "before ACCEPT");
    assert_eq!(source.on_control(&Control::Accept).unwrap(), SourceEvent::Accepted);
    for round in 0..2 {
        assert_eq!(source.begin_round().unwrap(), round);
        pages(&mut target, 0, round, 0, 3).unwrap();
        pages(&mut target, 1, round, 512, 512).unwrap();
        let end = |pages| Control::RoundEnd { round, pages };
        assert_eq!(target.on_control(1, &end(512), b"", 0).unwrap(), TargetEvent::Nothing);
        assert_eq!(target.on_control(0, &end(3), b"", 0).unwrap(), TargetEvent::RoundOver(round));
        source.on_control(&Control::RoundDone { round }).unwrap();
    }
    source.commit().unwrap();
    let state = Control::State { offset: 0, total_bytes: 3, payload_bytes: 3 };
    target.on_control(0, &state, b"dev", 0).unwrap();
    let end = |frames, pages| Control::End { frames, pages };
    target.on_control(0, &end(9, 6), b"", 9).unwrap();
    let commit = Control::Commit { lanes: 2, frames: 10 + 6, pages: 6 + 1024 };
    assert_eq!(target.on_control(0, &commit, b"", 10).unwrap(), TargetEvent::Nothing);
    let last = target.on_control(1, &end(5, 1024), b"", 5).unwrap();
    assert_eq!(last, TargetEvent::Committed);
    assert_eq!(target.take_state(), b"dev");
    assert!(source.hand_over().is_err(), "before READY two guests could run");
    target.ready().unwrap();
    source.on_control(&Control::Ready).unwrap();
    source.hand_over().unwrap();
    assert!(source.is_in_doubt());
    assert_eq!(target.on_control(0, &Control::Handover, b"", 11).unwrap(), TargetEvent::HandedOver);
    assert_eq!(source.on_control(&Control::Done).unwrap(), SourceEvent::Done);
    assert!(!source.is_in_doubt());
}

#[test]
fn what_is_out_of_turn_is_refused() {
    // W-29, W-31
    let mut target = offered(2);
    assert!(pages(&mut target, 0, 1, 0, 1).is_err(), "a round too early");
    assert!(pages(&mut target, 1, 0, 0, 1).is_err(), "W-30: another lane's page");
    assert!(pages(&mut target, 0, 0, 511, 2).is_err(), "W-30: across two lanes' stripes");
    let mut target = offered(2);
    pages(&mut target, 0, 0, 0, 1).unwrap();
    let early = target.on_control(0, &Control::RoundEnd { round: 0, pages: 2 }, b"", 0);
    assert!(early.is_err(), "W-31: a page is missing");
    let mut target = offered(2);
    target.on_control(0, &Control::RoundEnd { round: 0, pages: 0 }, b"", 0).unwrap();
    assert!(pages(&mut target, 0, 0, 0, 1).is_err(), "after the lane's round end");
    for control in [Control::Handover, Control::Accept, Control::Done, Control::Confirm] {
        assert!(offered(1).on_control(0, &control, b"", 0).is_err(), "{}", control.name());
    }
    assert!(offered(2).on_control(1, &Control::Heartbeat, b"", 0).is_err());
    let cut = Control::End { frames: 3, pages: 0 };
    assert!(offered(1).on_control(0, &cut, b"", 2).is_err(), "W-32: a frame is missing");
    let mut target = offered(2);
    pages(&mut target, 0, 0, 0, 1).unwrap();
    let end = Control::End { frames: 2, pages: 0 };
    assert!(target.on_control(0, &end, b"", 2).is_err(), "W-32: within a round");
    let mut target = offered(2);
    target.on_control(0, &Control::RoundEnd { round: 0, pages: 0 }, b"", 1).unwrap();
    assert!(target.on_control(0, &end, b"", 2).is_err(), "W-32: other lanes are in the round");
    let ended = || {
        let mut target = offered(2);
        target.on_control(0, &end, b"", 2).unwrap();
        target
    };
    assert!(pages(&mut ended(), 0, 0, 0, 1).is_err(), "W-32: pages after END");
    let state = Control::State { offset: 0, total_bytes: 3, payload_bytes: 3 };
    for late in [Control::RoundEnd { round: 0, pages: 0 }, state, end] {
        assert!(ended().on_control(0, &late, b"dev", 3).is_err(), "W-32: {}", late.name());
    }
    let mut target = offered(1);
    target.on_control(0, &Control::End { frames: 2, pages: 0 }, b"", 2).unwrap();
    let wrong = Control::Commit { lanes: 1, frames: 4, pages: 0 };
    assert!(target.on_control(0, &wrong, b"", 3).is_err(), "W-33");
    let mut source = Source::default();
    for control in [Control::Ready, Control::Done, Control::RoundDone { round: 0 }] {
        assert!(source.on_control(&control).is_err(), "{}", control.name());
    }
}

mod stale_pages {
    //! A page that is sent again never ends with its older content, whatever the lanes' delays.

    use super::super::lane_of;
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const PAGES: u64 = 8 << 20 >> 12;

    /// A frame on its way: its header as bytes, and the version that its pages carry.
    enum Frame {
        Pages(Vec<u8>, u64),
        Control(Control),
    }

    /// The source sends as fast as it can, lanes deliver in the order that `delays` says: each
    /// step takes the next frame of one lane.
    fn run(lanes: u16, rounds: &[Vec<(u64, u64)>], delays: &[u8]) -> (Vec<u64>, Vec<u64>) {
        let (mut target, mut source) = (offered(lanes), Source::default());
        source.on_control(&Control::Accept).unwrap();
        let mut delays = delays.iter().cycle();
        let (mut memory, mut wanted) = (vec![0; PAGES as usize], vec![0; PAGES as usize]);
        for (version, dirty) in (1..).zip(rounds) {
            let round = source.begin_round().unwrap();
            let mut wires: Vec<VecDeque<Frame>> = (0..lanes).map(|_| VecDeque::new()).collect();
            let mut sums = vec![0; lanes.into()];
            let mut dirty = dirty.clone();
            dirty.sort_unstable();
            dirty.dedup_by_key(|run| run.0);
            for (first_page, pages) in dirty {
                // As the source cuts runs: never across a stripe.
                let pages = pages.min(512 - first_page % 512);
                let lane = usize::from(lane_of(0, first_page, lanes));
                let mut header = [0; 64];
                let run = PageRun { first_page, pages: pages as u32, zero: true };
                let bytes = encode_pages(&mut header, 0, round, &[run]);
                wires[lane].push_back(Frame::Pages(header[..bytes].to_vec(), version));
                sums[lane] += pages;
                wanted[first_page as usize..][..pages as usize].fill(version);
            }
            for (wire, pages) in wires.iter_mut().zip(sums) {
                wire.push_back(Frame::Control(Control::RoundEnd { round, pages }));
            }
            let mut over = false;
            while !over {
                let start = usize::from(*delays.next().unwrap());
                let lane = (0..wires.len()).map(|n| (start + n) % wires.len());
                let lane = lane.into_iter().find(|&n| !wires[n].is_empty()).unwrap();
                over = deliver(&mut target, lane, wires[lane].pop_front().unwrap(), &mut memory);
            }
            assert!(wires.iter().all(VecDeque::is_empty), "the barrier waits for every lane");
            source.on_control(&Control::RoundDone { round }).unwrap();
        }
        (memory, wanted)
    }

    fn deliver(target: &mut Target, lane: usize, frame: Frame, memory: &mut [u64]) -> bool {
        match frame {
            Frame::Pages(header, version) => {
                let Opened::Pages(pages) = parse_header(&header, 0, &[PAGES]).unwrap() else {
                    unreachable!()
                };
                target.on_pages(lane as u16, &pages).unwrap();
                for run in pages.runs() {
                    memory[run.first_page as usize..][..run.pages as usize].fill(version);
                }
                false
            }
            Frame::Control(control) => {
                let event = target.on_control(lane as u16, &control, b"", 0).unwrap();
                matches!(event, TargetEvent::RoundOver(_))
            }
        }
    }

    proptest! {
        #[test]
        fn the_newest_content_stays(
            lanes in 1u16..9,
            rounds in prop::collection::vec(
                prop::collection::vec((0..PAGES, 1u64..600), 1..40), 1..6),
            delays in prop::collection::vec(any::<u8>(), 1..200),
        ) {
            let (memory, wanted) = run(lanes, &rounds, &delays);
            prop_assert_eq!(memory, wanted);
        }
    }
}
