//! Data and names that have been mistaken for something else: for the end of a string, of a line, of a reply,
//! for nothing.

use super::LONG;
use crate::{
    Judgement, Strategy,
    scenario::{Check, Lab},
    system::{Change, Values},
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use serde_json::json;
use session_core::{
    Deleted, Inserted, Loaded, LockingStore, Put, Replaced, StorageKey, Stored, SystemRandom, Token,
};
use std::{sync::Arc, time::Duration};

/// The largest value that is tried: a store without a limit of its own would be asked for all memory.
const LARGEST: usize = 64 << 20;

pub(super) struct AnyBytesAnyKey;

impl Check for AnyBytesAnyKey {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        if lab.strategy() == Strategy::Driver { by_the_driver(lab).await } else { by_the_product(lab).await }
    }
}

fn awkward() -> Vec<(&'static str, Bytes)> {
    vec![
        ("nothing", Bytes::new()),
        ("a NUL", Bytes::from_static(b"\0")),
        ("a NUL in the middle", Bytes::from_static(b"before\0after")),
        ("every byte", (0..=u8::MAX).collect()),
        ("what is not UTF-8", Bytes::from_static(b"\xff\xfe\x80\xc0\xed\xa0\x80")),
        ("Unicode", Bytes::from_static("ключ 🗝 𝔘\u{202e}\u{301}\u{feff}".as_bytes())),
        ("the end of a reply", Bytes::from_static(b"x\r\nEND\r\nVALUE k 0 1\r\n$-1\r\n")),
        ("quotes", Bytes::from_static(b"'\"\\x00\\'`; DROP TABLE sessions; --")),
        ("space around", Bytes::from_static(b" \t padded \r\n")),
        ("a number", Bytes::from_static(b"-00012e3")),
        ("64 KiB and a byte", Bytes::from(vec![0xa5; (64 << 10) + 1])),
    ]
}

/// A pattern that is nowhere the same for long.
fn of_length(length: usize) -> Bytes {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

/// Keys are hashes: any 32 bytes can come.
fn keys() -> Vec<(&'static str, StorageKey)> {
    let of = |pattern: &[u8]| StorageKey::from_bytes(std::array::from_fn(|at| pattern[at % pattern.len()]));
    vec![
        ("zeros", of(&[0])),
        ("ones", of(&[0xff])),
        ("spaces", of(b" ")),
        ("ends of lines", of(b"\r\n")),
        ("ways up", of(b"../")),
        ("a pattern", of(b"*?[a-z]{}:")),
        ("what is not UTF-8", of(&[0xc0, 0x80])),
        ("case, lower", of(b"k")),
        ("case, upper", of(b"K")),
    ]
}

async fn by_the_driver(lab: &Lab) -> Trial<Judgement> {
    let mut judgement = Judgement::default();
    let largest = lab.capabilities().max_value;
    let longest = [("the largest value", of_length(largest.min(LARGEST)))];
    for (what, data) in awkward().into_iter().chain(longest).filter(|(_, data)| data.len() <= largest) {
        let came_back = every_way(lab.store(), lab.fresh_id()?.key()?, &data).await?;
        judgement = judgement.acknowledged(1);
        for (way, found) in came_back {
            judgement = judgement.require(found == data, || {
                format!("{what}, {} bytes: by {way} {} bytes came back", data.len(), found.len())
            });
        }
    }
    if largest > LARGEST {
        judgement = judgement.note(format!("it takes {largest} bytes; {LARGEST} were tried"));
    }
    for (what, key) in keys() {
        let Inserted::Created(_) = lab.store().insert(&key, &put(&data_of(&key))).await? else {
            return Ok(judgement.fault(format!("a key of {what}: there is a record already, of another key")));
        };
    }
    for (what, key) in keys() {
        let found = lab.store().load(&key).await?.map(|stored| stored.data);
        judgement = judgement.acknowledged(1).require(found.as_ref() == Some(&data_of(&key)), || {
            format!("a key of {what}: it holds {found:?}")
        });
        let _removed = lab.store().delete(&key).await?;
    }
    Ok(judgement)
}

fn put(data: &Bytes) -> Put {
    Put::new(data.clone(), LONG)
}

fn data_of(key: &StorageKey) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

/// Puts it and gets it back by each verb that gives it.
async fn every_way(
    store: &Arc<dyn LockingStore>,
    key: StorageKey,
    data: &Bytes,
) -> Trial<Vec<(&'static str, Bytes)>> {
    let unexpected = |what: &str, answer: String| Trouble::wrong(format!("{what} answered {answer}"));
    let mut found = Vec::new();
    let first = match store.insert(&key, &put(data)).await? {
        Inserted::Created(version) => version,
        other @ Inserted::Exists => return Err(unexpected("insert", format!("{other:?}"))),
    };
    found.push(("insert and load", loaded(store, &key).await?));
    let second = match store.replace(&key, first, &put(data)).await? {
        Replaced::Done(version) => version,
        other => return Err(unexpected("replace", format!("{other:?}"))),
    };
    found.push(("replace and load", loaded(store, &key).await?));
    match store.replace(&key, first, &put(data)).await? {
        Replaced::Conflict(Stored { data, .. }) => found.push(("a conflict", data)),
        other => return Err(unexpected("a stale replace", format!("{other:?}"))),
    }
    let token = Token::random(&SystemRandom)?;
    match store.acquire_and_load(&key, token, LONG, Duration::ZERO).await? {
        Loaded::Granted(grant, stored) => {
            found.push(("acquire_and_load", stored.data));
            match store.replace_and_release(&grant, second, &put(data)).await? {
                Replaced::Done(_) => found.push(("replace_and_release", loaded(store, &key).await?)),
                other => return Err(unexpected("replace_and_release", format!("{other:?}"))),
            }
        }
        other => return Err(unexpected("acquire_and_load", format!("{other:?}"))),
    }
    match store.delete(&key).await? {
        Deleted::Removed(stored) => found.push(("delete", stored.data)),
        other @ Deleted::Missing => return Err(unexpected("delete", format!("{other:?}"))),
    }
    Ok(found)
}

async fn loaded(store: &Arc<dyn LockingStore>, key: &StorageKey) -> Trial<Bytes> {
    let stored = store.load(key).await?;
    stored.map(|stored| stored.data).ok_or_else(|| Trouble::wrong("what was just stored is not there"))
}

/// Values by awkward names, and awkward values.
fn values() -> Values {
    let names = ["\0", " ", "ключ 🗝", "a\r\nb", "..", "__proto__", "\u{feff}", "\"", &"n".repeat(128)];
    let mut values: Values =
        names.into_iter().enumerate().map(|(at, name)| (name.to_owned(), at.into())).collect();
    let awkward = [
        ("empty", json!("")),
        ("NUL", json!("before\0after")),
        ("Unicode", json!("ключ 🗝 𝔘\u{202e}\u{301}\u{feff}\u{10ffff}")),
        ("controls", json!("\u{1}\u{1f}\u{7f}\r\n\t")),
        ("nothing", json!(null)),
        ("numbers", json!([0, -1, u64::MAX, i64::MIN, 1.5e300, -0.0])),
        ("nested", json!({ "": [{}, [], [[[]]], { "a": { "b": null } }] })),
        ("long", json!("x".repeat(64 << 10))),
        ("bytes", json!((0..=u8::MAX).collect::<Vec<_>>())),
    ];
    values.extend(awkward.map(|(name, value)| (name.to_owned(), value)));
    values
}

async fn by_the_product(lab: &Lab) -> Trial<Judgement> {
    let (system, all) = (lab.system(), values());
    let created = system.create(&all).await?;
    // The same again, value by value into a session that is there.
    let changed = system.create(&Values::from([("first".to_owned(), true.into())])).await?;
    let mut request = system.request(&changed).await?;
    for (name, value) in &all {
        request.change(name, Change::Insert(value.clone())).await?;
    }
    request.change("first", Change::Remove).await?;
    request.commit().await?;

    let mut judgement = Judgement::default().acknowledged(2);
    for (what, id) in [("made with them", &created), ("changed", &changed)] {
        let stored = system.read(id).await?.unwrap_or_default();
        let mut request = system.request(id).await?;
        for (name, value) in &all {
            let got = request.get(name).await?;
            judgement = judgement
                .require(stored.get(name) == Some(value) && got.as_ref() == Some(value), || {
                    format!("{what}: {name:?} is not as it was put")
                });
        }
        judgement = judgement.require(stored.len() == all.len(), || {
            format!("{what}: {} values of {}", stored.len(), all.len())
        });
    }
    Ok(judgement)
}
