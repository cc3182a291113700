//! What holders write, and the release of their locks with it.

use super::{
    Owner,
    batch::{Commit, Trouble},
};
use crate::{line::Written, record};
use session_core::{Effect, Result, Stored};
use sqlx::{Row as _, postgres::PgRow};
use std::{sync::Arc, time::Duration};

impl Owner {
    pub(super) async fn commit(&mut self, mut commits: Vec<Commit>) {
        // So that two of these, of whatever process, never wait for each other's rows.
        commits.sort_by_key(|commit| commit.write.key);
        if let [one] = commits.as_slice() {
            match self.send_replace(one).await {
                Ok(true) => return self.committed(commits, vec![Ok(Written::Done)]),
                Ok(false) => {} // refused, or a deletion
                Err(trouble) => return self.not_committed(commits, &trouble),
            }
        }
        match self.send_commits(&commits).await {
            Ok(written) => self.committed(commits, written),
            Err(trouble) if trouble.effect == Effect::None && !trouble.lost && commits.len() > 1 => {
                // One of them is refused, and was refused for all: each for itself.
                for commit in commits {
                    match self.send_commits(std::slice::from_ref(&commit)).await {
                        Ok(written) => self.committed(vec![commit], written),
                        Err(trouble) => self.not_committed(vec![commit], &trouble),
                    }
                }
            }
            Err(trouble) => self.not_committed(commits, &trouble),
        }
    }

    fn not_committed(&mut self, commits: Vec<Commit>, trouble: &Trouble) {
        // Perhaps committed, perhaps unlocked: what this connection still holds is not known.
        if trouble.effect == Effect::Unknown && self.link.is_some() {
            self.poison(&trouble.why);
        }
        for commit in commits {
            drop(commit.reply.send(Err(trouble.error("commit"))));
        }
    }

    /// The common case in one plain statement: whether it was done.
    async fn send_replace(&mut self, commit: &Commit) -> Result<bool, Trouble> {
        let Some(put) = &commit.write.put else { return Ok(false) };
        let sql = Arc::clone(&self.linker.sql.replace);
        let key = commit.write.key.as_bytes().as_slice();
        let (expected, version) = (put.expected.to_bytes(), put.version.to_bytes());
        let row: Option<PgRow> = self
            .send(&sql, Duration::ZERO, put.data.len() + 128, |query| {
                let query =
                    query.bind(commit.lock).bind(key).bind(expected.as_slice()).bind(version.as_slice());
                let principal = put.principal.as_ref().map(|principal| principal.as_bytes().as_slice());
                query.bind(put.data.as_ref()).bind(put.ttl_us).bind(principal).bind(commit.until_us)
            })
            .await?;
        let Some(row) = row else { return Ok(false) };
        if !row.try_get("freed").unwrap_or(false) {
            // It is written. That the server did not know of the lock cannot be; if it is, none of the others
            // is certain.
            self.poison("a lock was not held");
        }
        Ok(true)
    }

    async fn send_commits(&mut self, commits: &[Commit]) -> Result<Vec<Result<Written>>, Trouble> {
        let locks: Vec<_> = commits.iter().map(|commit| commit.lock).collect();
        let keys: Vec<_> = commits.iter().map(|commit| commit.write.key.as_bytes().to_vec()).collect();
        let untils: Vec<_> = commits.iter().map(|commit| commit.until_us).collect();
        let puts: Vec<_> = commits.iter().map(|commit| commit.write.put.as_ref()).collect();
        let deletes: Vec<_> = puts.iter().map(Option::is_none).collect();
        let olds: Vec<_> = puts.iter().map(|put| put.map(|put| put.expected.to_bytes().to_vec())).collect();
        let news: Vec<_> = puts.iter().map(|put| put.map(|put| put.version.to_bytes().to_vec())).collect();
        let datas: Vec<_> = puts.iter().map(|put| put.map(|put| put.data.to_vec())).collect();
        let ttls: Vec<_> = puts.iter().map(|put| put.map(|put| put.ttl_us)).collect();
        let principals: Vec<_> = puts
            .iter()
            .map(|put| put.and_then(|put| put.principal).map(|key| key.as_bytes().to_vec()))
            .collect();
        let sql = Arc::clone(&self.linker.sql.commit);
        let row: Option<PgRow> = self
            .send(&sql, Duration::ZERO, 0, |query| {
                let query = query.bind(locks).bind(keys).bind(untils).bind(deletes);
                query.bind(olds).bind(news).bind(datas).bind(ttls).bind(principals)
            })
            .await?;
        let decoded = row.ok_or(sqlx::Error::RowNotFound).and_then(|row| outcomes(&row, commits));
        decoded.map_err(|error| {
            let trouble = Trouble { effect: Effect::Unknown, lost: true, ..Trouble::of(error) };
            self.poison(&trouble.why);
            trouble
        })
    }

    fn committed(&mut self, commits: Vec<Commit>, written: Vec<Result<Written>>) {
        for (commit, written) in commits.into_iter().zip(written) {
            let kept = matches!(written, Ok(Written::Conflict(_))) || written.is_err();
            if !kept && self.held.remove(&commit.lock).is_some() {
                self.turns.free(commit.lock, commit.token);
            }
            drop(commit.reply.send(written));
        }
    }
}

/// Reads the arrays that the procedure gives back.
fn outcomes(row: &PgRow, commits: &[Commit]) -> sqlx::Result<Vec<Result<Written>>> {
    type Blobs = Vec<Option<Vec<u8>>>;
    let outcomes: Vec<i32> = row.try_get("outcome")?;
    let versions: Blobs = row.try_get("version")?;
    let datas: Blobs = row.try_get("data")?;
    let lefts: Vec<Option<i64>> = row.try_get("left_us")?;
    let principals: Blobs = row.try_get("principal")?;
    if outcomes.len() != commits.len() {
        return Err(sqlx::Error::RowNotFound);
    }
    let records = versions.into_iter().zip(datas).zip(lefts.into_iter().zip(principals));
    type Record = ((Option<Vec<u8>>, Option<Vec<u8>>), (Option<i64>, Option<Vec<u8>>));
    let read = |((version, data), (left, principal)): Record| -> Result<Stored> {
        record::assemble(
            "commit",
            version.unwrap_or_default(),
            data.unwrap_or_default(),
            left.unwrap_or(0),
            principal,
        )
    };
    let written = outcomes.into_iter().zip(records).zip(commits).map(|((outcome, record), commit)| {
        Ok(match (outcome, commit.write.put.is_some()) {
            (0, true) => Written::Done,
            (0, false) => Written::Removed(read(record)?),
            (1, _) => Written::Missing,
            (3, _) => Written::Conflict(read(record)?),
            _ => Written::NotHolder,
        })
    });
    Ok(written.collect())
}
