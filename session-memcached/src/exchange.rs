//! What is asked of a server, in whichever protocol its connection speaks.
//!
//! Each of these is one exchange, to be run under a deadline and never used again when it did not end well:
//! that is the [lease](crate::server)'s part.

use crate::{
    connection::Connection,
    fault::Fault,
    item::{Item, Swapped},
    meta::{self, Request},
    plain,
};

/// What to find out about the record when a lock is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing.
    Away,
    /// Whether it is there.
    Probe,
    /// The whole of it.
    Read,
}

/// What was found of it.
#[derive(Debug)]
pub(crate) enum Sight {
    Nothing,
    /// It is there, or nobody looked.
    Something,
    Record(Item),
}

impl From<Option<Item>> for Sight {
    fn from(item: Option<Item>) -> Self {
        item.map_or(Self::Nothing, Self::Record)
    }
}

/// The reply to a request for a lock.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The lock was free and is taken.
    pub(crate) added: bool,
    /// The lock as it is now. Not read in the plain protocol when it was added.
    pub(crate) lock: Option<Item>,
    /// The record, as it was after the lock was asked for.
    pub(crate) record: Sight,
}

/// The reply to a write that is followed by a read.
#[derive(Debug)]
pub(crate) struct WrittenAndRead {
    /// The write. A refusal was read whole, like any other reply.
    pub(crate) written: Result<Swapped, Fault>,
    /// A refusal says nothing of the write.
    pub(crate) item: Result<Option<Item>, Fault>,
}

/// The reply to a write that is followed by a release.
#[derive(Debug)]
pub(crate) struct WrittenAndFreed {
    /// The write. A refusal was read whole, like any other reply.
    pub(crate) written: Result<Swapped, Fault>,
    /// The release, which comes whatever became of the write. A refusal is as good as a number that is not
    /// right: the lock is still there.
    pub(crate) freed: Swapped,
}

impl Connection {
    pub(crate) async fn get(&mut self, key: &str) -> Result<Option<Item>, Fault> {
        if !self.facts.meta {
            return plain::get(&mut self.wire, key).await;
        }
        let opaque = self.next_opaque();
        Request::default().get(key, opaque).send(&mut self.wire).await?;
        meta::item(&mut self.wire, self.facts.max_item, opaque).await
    }

    /// Whether it was added.
    pub(crate) async fn add(&mut self, key: &str, value: &[u8], exptime: u32) -> Result<bool, Fault> {
        plain::add(&mut self.wire, key, value, exptime).await
    }

    pub(crate) async fn swap(
        &mut self,
        key: &str,
        value: &[u8],
        exptime: u32,
        cas: u64,
    ) -> Result<Swapped, Fault> {
        plain::swap(&mut self.wire, key, value, exptime, cas).await
    }

    /// Compare-and-delete.
    pub(crate) async fn remove(&mut self, key: &str, cas: u64) -> Result<Swapped, Fault> {
        if !self.facts.meta {
            return plain::remove(&mut self.wire, key, cas).await;
        }
        let opaque = self.next_opaque();
        Request::default().remove(key, cas, opaque).send(&mut self.wire).await?;
        meta::changed(&mut self.wire, opaque).await
    }

    /// Compare-and-touch. The record has another number afterwards; so has its lock, if there is one, whose
    /// holder frees nothing by accident then: see [`unlock`](crate::unlock). The plain protocol needs the
    /// record for it.
    pub(crate) async fn touch(
        &mut self,
        record: &str,
        (value, exptime, cas): (Option<&[u8]>, u32, u64),
        lock: &str,
    ) -> Result<Swapped, Fault> {
        let opaque = self.next_opaque();
        let request = Request::default().renumber(lock);
        let request = match value {
            None => request.touch(record, exptime, cas, opaque),
            Some(value) => request.swap(record, value, exptime, cas),
        };
        request.renumber(lock).send(&mut self.wire).await?;
        // A lock is refused a number only for want of memory, which evicts locks, too: it is as good as
        // evicted then.
        or_refused(meta::added(&mut self.wire).await)?.ok();
        let touched = or_refused(match value {
            None => meta::changed(&mut self.wire, opaque).await,
            Some(_) => meta::swapped(&mut self.wire).await,
        })?;
        or_refused(meta::added(&mut self.wire).await)?.ok();
        touched
    }

    /// Asks for a lock, and looks at the record. One round trip in the meta protocol, up to three in the
    /// plain one.
    pub(crate) async fn ask(
        &mut self,
        lock: &str,
        value: &[u8],
        exptime: u32,
        record: &str,
        look: Look,
    ) -> Result<Asked, Fault> {
        if !self.facts.meta {
            let added = self.add(lock, value, exptime).await?;
            let lock = if added { None } else { self.get(lock).await? };
            let record = match look {
                Look::Away => Sight::Something,
                Look::Probe | Look::Read => {
                    self.get(record).await.map_err(|fault| fault.beside(added))?.into()
                }
            };
            return Ok(Asked { added, lock, record });
        }
        let (first, second) = (self.next_opaque(), self.next_opaque());
        let request = Request::default().add(lock, value, exptime).get(lock, first);
        let request = match look {
            Look::Away => request,
            Look::Probe => request.probe(record, second),
            Look::Read => request.get(record, second),
        };
        request.send(&mut self.wire).await?;
        let (wire, limit) = (&mut self.wire, self.facts.max_item);
        let added = meta::added(wire).await?;
        let beside = |fault: Fault| fault.beside(added);
        let lock = meta::item(wire, limit, first).await.map_err(beside)?;
        let record = match look {
            Look::Away => Sight::Something,
            Look::Probe if meta::exists(wire, second).await.map_err(beside)? => Sight::Something,
            Look::Probe => Sight::Nothing,
            Look::Read => meta::item(wire, limit, second).await.map_err(beside)?.into(),
        };
        Ok(Asked { added, lock, record })
    }

    /// Writes one item iff its number is this one, then reads another. One round trip in the meta protocol,
    /// two in the plain one.
    pub(crate) async fn swap_and_get(
        &mut self,
        (key, value, exptime, cas): (&str, &[u8], u32, u64),
        other: &str,
    ) -> Result<WrittenAndRead, Fault> {
        let (written, item) = if self.facts.meta {
            let opaque = self.next_opaque();
            let request = Request::default().swap(key, value, exptime, cas).get(other, opaque);
            request.send(&mut self.wire).await?;
            let written = or_refused(meta::swapped(&mut self.wire).await)?;
            (written, meta::item(&mut self.wire, self.facts.max_item, opaque).await)
        } else {
            (Ok(self.swap(key, value, exptime, cas).await?), self.get(other).await)
        };
        let done = matches!(written, Ok(Swapped::Done));
        let item = or_refused(item)?.map_err(|refusal| refusal.beside(done));
        Ok(WrittenAndRead { written, item })
    }

    /// Writes the record, then deletes the lock, each iff its number is this one. One round trip; the meta
    /// protocol only.
    pub(crate) async fn swap_and_remove(
        &mut self,
        (record, value, exptime, cas): (&str, &[u8], u32, u64),
        (lock, lock_cas): (&str, u64),
    ) -> Result<WrittenAndFreed, Fault> {
        let opaque = self.next_opaque();
        let request = Request::default().swap(record, value, exptime, cas).remove(lock, lock_cas, opaque);
        request.send(&mut self.wire).await?;
        let written = or_refused(meta::swapped(&mut self.wire).await)?;
        let freed = or_refused(meta::changed(&mut self.wire, opaque).await)?.unwrap_or(Swapped::Changed);
        Ok(WrittenAndFreed { written, freed })
    }
}

/// After a refusal the next reply comes as it would have; after anything else nothing is certain.
fn or_refused<T>(reply: Result<T, Fault>) -> Result<Result<T, Fault>, Fault> {
    match reply {
        Err(broken @ (Fault::Io(_) | Fault::Garbled(_))) => Err(broken),
        reply => Ok(reply),
    }
}
