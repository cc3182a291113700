//! Ids that nobody gave out, as they come in cookies.

use super::counted::counted;
use crate::{
    Judgement,
    scenario::{Check, Lab},
    system::{Id, Systems},
    trouble::Trial,
};

pub(super) struct BadIdsAreRefused;

/// What has been tried on others, and what is nearly an id.
fn bad(id: &str) -> Vec<String> {
    let mut bad: Vec<String> = [
        "",
        " ",
        ".",
        "..",
        "/",
        "../../../../etc/passwd",
        "..\\..\\boot.ini",
        "\0",
        "%00",
        "%2e%2e%2f",
        "null",
        "*",
        "?",
        "a:b",
        "' OR 1=1 --",
        "\r\nset k 0 0 1\r\nx",
        "ключ",
        "🗝",
        "\u{feff}",
        "0",
        "session:1",
        ".lock",
        "owners",
    ]
    .map(str::to_owned)
    .into();
    bad.extend([
        "A".repeat(1 << 16),
        id[1..].to_owned(),
        format!("{id}A"),
        format!("{id}="),
        format!("{id}\0"),
        format!("{id}\n"),
        format!(" {id}"),
        format!("{}\0", &id[1..]),
        format!("{}+", &id[1..]),
        format!("{}/", &id[1..]),
        format!("{}é", &id[2..]),
        // The same bits, with some that an id has not.
        format!("{}B", "A".repeat(id.len() - 1)),
        "f".repeat(64),
    ]);
    bad
}

impl Check for BadIdsAreRefused {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let (store, calls) = counted(lab.store());
        let system = Systems::new(store, lab.systems.settings())?.of(lab.strategy());
        let unknown = lab.fresh_id()?;
        let mut judgement = Judgement::default();
        for text in bad(unknown.as_str()) {
            let shown: String = text.chars().take(40).collect();
            let id = Id::new(text);
            let before = calls.all();
            let opened = system.open(&id).await;
            let read = system.read(&id).await;
            let destroyed = system.destroy(&id).await;
            let asked = calls.all() - before;
            judgement = judgement
                .acknowledged(1)
                .require(matches!(opened, Ok(None)), || format!("{shown:?} was opened: {opened:?}"))
                .require(matches!(read, Ok(None)), || format!("{shown:?} was read: {read:?}"))
                .require(matches!(destroyed, Ok(false)), || format!("{shown:?} was destroyed: {destroyed:?}"))
                .require(asked == 0, || format!("{shown:?}: the store was asked {asked} times"));
        }
        // And one that could have been given out is looked for.
        let before = calls.all();
        let read = system.read(&unknown).await?;
        Ok(judgement.require(read.is_none() && calls.all() > before, || {
            format!("an id that is right and unknown was read without asking the store: {read:?}")
        }))
    }
}
