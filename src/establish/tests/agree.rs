//! What is agreed on, and what is refused in words.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::cancel::Canceller;
use crate::config::{Config, EngineChoice};
use crate::error::{Error, PeerError, Result};
use crate::establish::{Shake, Use};
use crate::trust::{OneTimeSecret, Opening, Trust};
use crate::wire::{
    DIALLER_HELLO_BYTES, Features, OPEN_REPLY_BYTES, OpenHello, OpenReply, Refusal, Role,
    TrustKind, VERSION,
};

fn config() -> Config {
    Config { engine: EngineChoice::Syscalls, ..Config::default() }
}

fn hello() -> OpenHello {
    OpenHello {
        version: VERSION,
        role: Role::Source,
        trust: TrustKind::Secret,
        required: Features::default(),
        optional: Features::default(),
        lanes: 2,
        frame_bytes: 65536,
        migration_id: [0; 16],
    }
}

/// What a target's listener answers to a hello, and how its own wait for that peer ends.
fn answered(hello: &OpenHello, purpose: Use) -> (OpenReply, Result<bool>) {
    let secret = OneTimeSecret::generate().unwrap();
    let trust = Trust::from(&secret);
    let (Opening::Secret(dialler), message) = Opening::new(&trust, hello).unwrap() else {
        panic!("a secret opens without TLS")
    };
    let (mut near, far) = pair();
    near.write_all(&message).unwrap();
    let end = std::thread::spawn(move || {
        let (config, cancel) = (config(), Canceller::default());
        let shake = Shake::begin(Role::Target, purpose, &config, &cancel);
        let mut far = far;
        let caller = shake.greet(&mut far, &trust)?;
        shake.answer(far, caller, None).map(|opened| opened.is_some())
    });
    let mut reply = [0; OPEN_REPLY_BYTES];
    near.read_exact(&mut reply).unwrap();
    let (reply, _) = dialler.finish(&reply).unwrap();
    drop(near);
    (reply, end.join().unwrap())
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

#[test]
fn a_feature_that_one_end_lacks_is_refused_with_both_lists() {
    // W-37: what is optional and not known is left out, what is required is not.
    let later = Features(1 << 9);
    let (reply, _) = answered(&OpenHello { optional: later, ..hello() }, Use::Migration);
    assert_eq!(reply.refusal, None);
    let (reply, end) = answered(&OpenHello { required: later, ..hello() }, Use::Migration);
    assert_eq!(reply.refusal, Some(Refusal::Features));
    assert_eq!(reply.supported, Features::KNOWN);
    let text = end.unwrap_err().to_string();
    assert!(text.contains("requires number 9") && text.contains("has streams, check"), "{text}");

    let (reply, end) = answered(&hello(), Use::Streams);
    assert_eq!((reply.refusal, reply.required), (Some(Refusal::Use), Features::STREAMS));
    assert!(end.unwrap_err().to_string().contains("tunnel"));
    for required in [Features::STREAMS, Features::STREAMS.with(Features::CHECK)] {
        let (reply, _) = answered(&OpenHello { required, ..hello() }, Use::Migration);
        assert_eq!(reply.refusal, Some(Refusal::Use));
    }
}

#[test]
fn a_later_version_is_heard_and_refused_with_both_versions() {
    // W-39: whatever it means by the rest.
    let (reply, end) = answered(&OpenHello { version: VERSION + 1, ..hello() }, Use::Migration);
    assert_eq!((reply.refusal, reply.version), (Some(Refusal::Version), VERSION));
    let text = end.unwrap_err().to_string();
    assert!(text.contains("dials speaks version 2") && text.contains("version 1"), "{text}");
}

#[test]
fn limits_are_told_with_both_figures() {
    let wide = OpenHello { lanes: 65, frame_bytes: 2 << 20, ..hello() };
    let (reply, end) = answered(&wide, Use::Migration);
    assert_eq!((reply.lanes, reply.frame_bytes), (64, 1 << 20));
    let text = end.unwrap_err().to_string();
    for figure in ["65 lanes", "2097152", "at most 64", "1048576"] {
        assert!(text.contains(figure), "{figure}: {text}");
    }
}

/// The first message of this version as it left a dialler, its answer, and what a dialler makes of
/// it: a hello that was recorded when the version was new must mean the same for ever.
#[test]
fn an_old_hello_is_served_as_ever() {
    let begin = *b"SEALANE\n\x01\x01\x01\x01\0\0\0\0\x02\0\0\0\0\0\x01\0";
    let mut clear = [0; 64];
    clear[..begin.len()].copy_from_slice(&begin);
    assert_eq!(hello().encode(), clear);
    let (reply, _) = answered(&hello(), Use::Migration);
    let mut golden = [0; 32];
    // Version 1, 2 lanes, 64 KiB, nothing required, streams and check supported.
    (golden[1], golden[4], golden[10], golden[16]) = (1, 2, 1, 3);
    assert_eq!(reply.encode(), golden);
}

#[test]
fn an_answer_of_a_later_version_is_told_in_words() {
    let secret = OneTimeSecret::generate().unwrap();
    for (refusal, words) in [
        (Refusal::Unknown(77), "reason 77"),
        (Refusal::Version, "listens version 9"),
        (Refusal::Features, "requires number 4"),
    ] {
        let (near, mut far) = pair();
        far.set_nonblocking(false).unwrap();
        let theirs = secret.clone();
        let end = std::thread::spawn(move || {
            let mut message = [0; DIALLER_HELLO_BYTES];
            far.read_exact(&mut message).unwrap();
            let (clear, noise) = message.split_first_chunk::<64>().unwrap();
            let listener =
                crate::trust::noise_listener(&theirs, clear, noise.try_into().unwrap()).unwrap();
            let (required, supported) = (Features(1 << 4), Features::default());
            let (refusal, version) = (Some(refusal), 9);
            let (lanes, frame_bytes) = (0, 0);
            let reply = OpenReply { refusal, version, lanes, frame_bytes, required, supported };
            far.write_all(&listener.reply(&reply).unwrap().0).unwrap();
        });
        near.set_nonblocking(true).unwrap();
        let (config, cancel) = (config(), Canceller::default());
        let shake = Shake::begin(Role::Source, Use::Migration, &config, &cancel);
        let error = shake.open(near, &Trust::from(&secret)).err().unwrap();
        assert!(matches!(error, Error::Peer(PeerError::Refused(_))), "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
        end.join().unwrap();
    }
}
