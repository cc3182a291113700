//! The readers of bytes: damaged, torn, foreign and hostile records and ids end in errors of their own kind,
//! and the record stays.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/inputs.rs"]
mod inputs;

use bytes::Bytes;
use flate2::{Compression, write::DeflateEncoder};
use inputs::{MAX_INFLATED, Stored, at_once, with_checksum};
use proptest::prelude::*;
use session_core::{
    Access, Deleted, Effect, ErrorKind, Inserted, Key, MemoryStore, PrincipalKey, Put, SessionId,
    SessionStore as _, Sessions, SystemRandom,
};
use std::{collections::BTreeMap, io::Write as _, time::Duration};

const TEXT: Key<String> = Key::new("a");

/// Records as the framework stores them: plain, compressed, empty, a tombstone without grace and one with it.
async fn genuine() -> Vec<(&'static str, Bytes)> {
    let store = MemoryStore::default();
    let build = |grace| Sessions::builder(store.clone()).rotation_grace(grace).build().unwrap();
    let (sessions, graceful) = (build(Duration::ZERO), build(Duration::from_mins(10)));
    let mut records = Vec::new();
    for (name, text, rotate_with) in [
        ("plain", "short".to_owned(), None),
        ("compressed", "long ".repeat(500), None),
        ("tombstone", String::new(), Some(&sessions)),
        ("tombstone with grace", String::new(), Some(&graceful)),
    ] {
        let new = sessions.create();
        new.insert(TEXT, &text).unwrap();
        new.commit().await.unwrap();
        let id = new.id().unwrap();
        if let Some(sessions) = rotate_with {
            sessions.update(&id, session_core::Session::rotate).await.unwrap();
        }
        records.push((name, store.load(&id.storage_key()).await.unwrap().unwrap().data));
    }
    let emptied = sessions.create();
    emptied.insert(TEXT, "").unwrap();
    emptied.commit().await.unwrap();
    let id = emptied.id().unwrap();
    sessions.update(&id, session_core::Session::clear).await.unwrap();
    records.push(("empty", store.load(&id.storage_key()).await.unwrap().unwrap().data));
    records
}

#[test]
fn what_is_genuine_is_read() {
    for (name, bytes) in at_once(genuine()) {
        let opened = Stored::new(bytes).open();
        match name {
            "tombstone" => assert!(opened.unwrap().is_none()),
            // Sealed with another id than the one it is stored under here.
            "tombstone with grace" => assert_eq!(opened.unwrap_err().kind(), ErrorKind::Damaged),
            _ => assert!(opened.unwrap().is_some(), "{name}"),
        }
    }
}

#[test]
fn each_damaged_byte_is_found() {
    let mut damages = 0;
    for (_, bytes) in at_once(genuine()) {
        for at in 0..bytes.len() {
            for damage in [0x01, 0x80, 0xff, 0x20] {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= damage;
                Stored::new(damaged.into()).assert_refused(ErrorKind::Damaged);
                damages += 1;
            }
        }
    }
    println!("{damages} damages");
    assert!(damages > 1_000);
}

#[test]
fn each_torn_end_is_found() {
    for (_, bytes) in at_once(genuine()) {
        for length in 0..bytes.len() {
            Stored::new(bytes.slice(..length)).assert_refused(ErrorKind::Damaged);
        }
        for more in [1, 2, 7, 100] {
            Stored::new([&bytes, &vec![0; more][..]].concat().into()).assert_refused(ErrorKind::Damaged);
        }
    }
}

/// The body of a session without commits, which ends in the year 5138, with these values.
fn body(values: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend(100_000_000_000_000_u64.to_le_bytes());
    body.extend(u32::try_from(values.len()).unwrap().to_le_bytes());
    for (name, value) in values {
        body.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        body.extend(*name);
        body.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
        body.extend(*value);
    }
    body
}

fn deflated(claim: usize, body: &[u8]) -> Bytes {
    let claim = u32::try_from(claim).unwrap().to_le_bytes();
    let mut encoder = DeflateEncoder::new(claim.to_vec(), Compression::best());
    encoder.write_all(body).unwrap();
    with_checksum([1, 1, 0, 0], &encoder.finish().unwrap())
}

#[test]
fn what_another_program_wrote_is_refused_by_name() {
    let good = body(&[(b"a", b"1"), (b"b", b"2")]);
    assert!(Stored::new(with_checksum([1, 0, 0, 0], &good)).open().unwrap().is_some());
    for head in
        [[0, 0, 0, 0], [2, 0, 0, 0], [1, 2, 0, 0], [1, 4, 0, 0], [1, 0, 2, 0], [1, 0, 0, 3], [1, 0, 1, 1]]
    {
        Stored::new(with_checksum(head, &good)).assert_refused(ErrorKind::Damaged);
    }
    let foreign: [(&str, Vec<u8>); 7] = [
        ("descending names", body(&[(b"b", b"1"), (b"a", b"2")])),
        ("a name twice", body(&[(b"a", b"1"), (b"a", b"2")])),
        ("a name that is not UTF-8", body(&[(&[0xff, 0xfe], b"1")])),
        ("bytes left over", [&good[..], b"x"].concat()),
        ("more values than there are", {
            let mut body = good.clone();
            body[9..13].copy_from_slice(&u32::MAX.to_le_bytes());
            body
        }),
        ("a value longer than the record", {
            let mut body = good.clone();
            let at = body.len() - 5;
            body[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            body
        }),
        ("more commits than are kept", [&[17], &[0; 17 * 8][..], &good[1..]].concat()),
    ];
    for (what, body) in foreign {
        println!("{what}");
        Stored::new(with_checksum([1, 0, 0, 0], &body)).assert_refused(ErrorKind::Damaged);
    }
}

#[cfg(not(all(feature = "bincode", feature = "msgpack")))]
#[test]
fn a_codec_that_is_not_compiled_in_is_named() {
    for (codec, missing) in [(1, cfg!(not(feature = "bincode"))), (2, cfg!(not(feature = "msgpack")))] {
        if missing {
            Stored::new(with_checksum([1, 0, 0, codec], &body(&[]))).assert_refused(ErrorKind::Unsupported);
        }
    }
}

#[test]
fn a_bomb_is_refused() {
    let zeros = vec![0; 64 * MAX_INFLATED];
    // By its claim; or by what comes out, when the claim is a lie.
    Stored::new(deflated(zeros.len(), &zeros)).assert_refused(ErrorKind::TooLarge);
    Stored::new(deflated(usize::try_from(u32::MAX).unwrap(), &zeros)).assert_refused(ErrorKind::TooLarge);
    for claim in [0, 1, MAX_INFLATED / 2, MAX_INFLATED] {
        Stored::new(deflated(claim, &zeros)).assert_refused(ErrorKind::Damaged);
    }
    // Plain, and longer than the limit.
    let long = body(&[(b"a", &zeros)]);
    Stored::new(with_checksum([1, 0, 0, 0], &long)).assert_refused(ErrorKind::TooLarge);
    // What follows the end of the stream is not ours.
    let good = body(&[(b"a", b"1")]);
    let honest = deflated(good.len(), &good);
    assert!(Stored::new(honest.clone()).open().unwrap().is_some());
    Stored::new(with_checksum([1, 1, 0, 0], &[&honest[8..], &[0; 9]].concat()))
        .assert_refused(ErrorKind::Damaged);
    Stored::new(with_checksum([1, 1, 0, 0], &honest[8..honest.len() - 1])).assert_refused(ErrorKind::Damaged);
}

#[test]
fn what_is_damaged_is_never_rotated_renewed_or_taken_for_nothing() {
    let stored = Stored::new(Bytes::from_static(b"not one of ours"));
    for access in [Access::Read, Access::Write, Access::Exclusive] {
        let error = at_once(stored.sessions.open(&stored.id, access)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{access:?}");
    }
    let error = at_once(stored.sessions.exclusive(&stored.id, async |_| Ok(()))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    // Whose session that is, nobody can tell; it is not removed as if it were known.
    assert_eq!(at_once(stored.sessions.destroy(&stored.id)).unwrap_err().kind(), ErrorKind::Damaged);
    stored.assert_refused(ErrorKind::Damaged);
    assert!(matches!(at_once(stored.store.delete(&stored.id.storage_key())), Ok(Deleted::Removed(_))));
}

/// Between the look and the delete something took its place that may have named a successor.
#[test]
fn what_was_removed_and_cannot_be_read_is_unknown() {
    let stored = Stored::new(with_checksum([1, 0, 0, 0], &body(&[])));
    let session = stored.open().unwrap().unwrap();
    session.destroy().unwrap();
    let key = stored.id.storage_key();
    assert!(matches!(at_once(stored.store.delete(&key)), Ok(Deleted::Removed(_))));
    let put = Put::new(Bytes::from_static(b"not one of ours"), Duration::from_mins(5));
    assert!(matches!(at_once(stored.store.insert(&key, &put)), Ok(Inserted::Created(_))));
    let error = at_once(session.commit()).unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Damaged, Effect::Unknown));
    assert!(at_once(stored.store.load(&key)).unwrap().is_none());
}

/// Tombstones that lead in a circle: nobody wrote them, and nobody walks for ever.
#[test]
fn a_circle_of_tombstones_has_an_end() {
    let stored = Stored::new(Bytes::from_static(b"not one of ours"));
    let ids = [1, 2].map(|_| SessionId::random(&SystemRandom).unwrap());
    for (id, to) in [(&ids[0], &ids[1]), (&ids[1], &ids[0])] {
        let body = [&[0], &to.storage_key().as_bytes()[..], &[0]].concat();
        let put = Put::new(with_checksum([1, 0, 1, 0], &body), Duration::from_mins(5));
        let put = put.principal(Some(PrincipalKey::of("user")));
        assert!(matches!(at_once(stored.store.insert(&id.storage_key(), &put)), Ok(Inserted::Created(_))));
    }
    assert!(at_once(stored.sessions.for_principal("user")).unwrap().is_empty());
    assert_eq!(at_once(stored.sessions.revoke_all("user")).unwrap(), 0);
    assert_eq!(at_once(stored.sessions.destroy(&ids[0])).unwrap_err().kind(), ErrorKind::TooLarge);
    assert!(at_once(stored.sessions.open(&ids[0], Access::Write)).unwrap().is_none());
}

/// One record of this length and below: what may come in from outside and be allocated for.
fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..600)
}

/// Names and values that are right, so that what follows them is reached.
fn some_body() -> impl Strategy<Value = Vec<u8>> {
    let values =
        prop::collection::btree_map("[abk]{1,3}|key", prop::collection::vec(any::<u8>(), 0..40), 0..6);
    values.prop_map(|values| {
        body(&values.iter().map(|(name, value)| (name.as_bytes(), &value[..])).collect::<Vec<_>>())
    })
}

type Value = (i64, Option<String>, Vec<u8>);

proptest! {
    // 256 cases each; PROPTEST_CASES for more.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_an_envelope_or_an_error(input in some_bytes()) {
        inputs::envelope(&input);
    }

    #[test]
    fn any_values_are_read_and_written_again(body in some_body()) {
        inputs::record(with_checksum([1, 0, 0, 0], &body));
        inputs::record(deflated(body.len(), &body));
    }

    #[test]
    fn any_damage_to_a_body_is_survived(body in some_body(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut damaged = body;
        let at = at.index(damaged.len());
        damaged[at] = byte;
        inputs::record(with_checksum([1, 0, 0, 0], &damaged));
        inputs::record(with_checksum([1, 0, 1, 0], &damaged));
    }

    #[test]
    fn any_stream_is_inflated_or_an_error(input in some_bytes()) {
        inputs::inflater(&input);
    }

    #[test]
    fn any_damage_to_a_stream_is_survived(body in some_body(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut stream = deflated(body.len(), &body)[8..].to_vec();
        let at = at.index(stream.len());
        stream[at] = byte;
        inputs::inflater(&stream);
    }

    #[test]
    fn any_text_is_an_id_or_none(input in some_bytes(), text in ".{0,60}", nearly in "[A-Za-z0-9_+/=.-]{42,44}") {
        inputs::session_id(&input);
        inputs::session_id(text.as_bytes());
        inputs::session_id(nearly.as_bytes());
    }

    #[test]
    fn an_id_is_what_it_shows(damage in any::<prop::sample::Index>(), by in "[A-Za-z0-9_ +/=\\-\u{e9}]") {
        let id = SessionId::random(&SystemRandom).unwrap();
        let text = id.expose();
        prop_assert_eq!(SessionId::parse(&text), Some(id.clone()));
        let mut other: Vec<_> = text.chars().collect();
        let at = damage.index(other.len());
        other[at] = by.chars().next().unwrap();
        let other: String = other.into_iter().collect();
        prop_assert_eq!(SessionId::parse(&other).is_some_and(|parsed| parsed == id), other == text);
    }

    #[test]
    fn values_come_back(values in prop::collection::btree_map(".{0,20}", any::<Value>(), 0..8)) {
        const VALUES: Key<BTreeMap<String, Value>> = Key::new("values");
        for codec in codecs() {
            let store = MemoryStore::default();
            let sessions = Sessions::builder(store).codec(codec).compress_from(64).build().unwrap();
            let new = sessions.create();
            new.insert(VALUES, &values).unwrap();
            at_once(new.commit()).unwrap();
            let back = at_once(sessions.read(&new.id().unwrap())).unwrap().unwrap();
            prop_assert_eq!(back.get(VALUES).unwrap(), Some(values.clone()));
        }
    }
}

fn codecs() -> Vec<session_core::Codec> {
    vec![
        session_core::Codec::Json,
        #[cfg(feature = "bincode")]
        session_core::Codec::Bincode,
        #[cfg(feature = "msgpack")]
        session_core::Codec::MessagePack,
    ]
}

/// Ids from outside that have been used against others.
#[test]
fn bad_ids_are_none() {
    let long = "A".repeat(1 << 20);
    let id = SessionId::random(&SystemRandom).unwrap().expose();
    for bad in [
        "",
        " ",
        ".",
        "..",
        "../../etc/passwd",
        "\0",
        "%00",
        "null",
        &long,
        &long[..42],
        &long[..44],
        &format!("{id}="),
        &format!(" {}", &id[1..]),
        &format!("{}\0", &id[1..]),
        &format!("{}\n", &id[1..]),
        &format!("{}+", &id[1..]),
        &format!("{}/", &id[1..]),
        &format!("{}B", "A".repeat(42)),
    ] {
        assert_eq!(SessionId::parse(bad), None, "{:?}", &bad[..bad.len().min(50)]);
    }
    assert!(SessionId::parse(&long[..43]).is_some());
}
