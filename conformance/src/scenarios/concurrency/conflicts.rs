//! What a request was shown must still be so when it is stored.

use crate::{
    Judgement,
    scenario::{Check, Lab},
    system::{Change, values},
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use session_core::{ErrorKind, Inserted, Put, Replaced};
use std::time::Duration;

pub(super) struct ReadKeyChangedIsAConflict;

impl Check for ReadKeyChangedIsAConflict {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let judgement = Self::session(lab).await?;
        if lab.strategy().is_control() { Ok(judgement) } else { Self::driver(lab, judgement).await }
    }
}

impl ReadKeyChangedIsAConflict {
    /// One request reads and writes something else on the strength of it; another one changes what was read
    /// in between.
    async fn session(lab: &Lab) -> Trial<Judgement> {
        let system = lab.system();
        let id = system.create(&values([("stock", 1.into())])).await?;
        let mut slow = system.request(&id).await?;
        let stock = slow.get("stock").await?;
        let mut fast = system.request(&id).await?;
        fast.change("stock", Change::Insert(0.into())).await?;
        fast.commit().await?;
        slow.change("order", Change::Insert(stock.unwrap_or_default())).await?;
        let committed = slow.commit().await;
        let stored = system.read(&id).await?.unwrap_or_default();
        let refused = matches!(&committed, Err(error) if error.kind() == ErrorKind::Conflict);
        let (stock, order) = (stored.get("stock"), stored.get("order"));
        Ok(Judgement::default()
            .acknowledged(1 + u64::from(committed.is_ok()))
            .require(refused, || format!("a write based on a read that has changed ended with {committed:?}"))
            .require(stock == Some(&0.into()), || {
                format!("the other request's write is gone: stock {stock:?}")
            })
            .require(order.is_none(), || format!("the refused write is there: order {order:?}")))
    }

    /// The driver refuses a stale version, and tells what is there.
    async fn driver(lab: &Lab, judgement: Judgement) -> Trial<Judgement> {
        let (store, key) = (lab.store(), lab.fresh_id()?.key()?);
        let put = |data: &'static str| Put::new(Bytes::from_static(data.as_bytes()), Duration::from_secs(60));
        let Inserted::Created(first) = store.insert(&key, &put("one")).await? else {
            return Err(Trouble::wrong("a new id exists"));
        };
        let Replaced::Done(second) = store.replace(&key, first, &put("two")).await? else {
            return Err(Trouble::wrong("the version that is there was refused"));
        };
        let refused = match store.replace(&key, first, &put("three")).await? {
            Replaced::Conflict(fresh) if fresh.data == "two" && fresh.version == second => Ok(()),
            other => Err(format!("a replace of a stale version answered {other:?}")),
        };
        let stored = store.load(&key).await?;
        let kept = stored.as_ref().is_some_and(|stored| stored.data == "two" && stored.version == second);
        Ok(judgement
            .require(first != second, || "a write left the version as it was".to_owned())
            .require(refused.is_ok(), || refused.clone().err().unwrap_or_default())
            .require(kept, || format!("a refused write has changed the record: {stored:?}")))
    }
}
