//! This driver with one rule taken out of one script, and with the flaws of other handlers: the suite
//! convicts each of them, or it would not notice them here either.

use async_trait::async_trait;
use session_conformance::{
    Strategy, Suite, Verdict, mutants,
    servers::redis::{Connection, RedisServer, Reply},
    wrapper::{Wrapper, wrap},
};
use session_core::{
    Error, Grant, Held, Inserted, LockingStore, Put, Released, Renewed, Replaced, Result, StorageKey,
    SystemRandom, Touched, Version,
};
use session_redis::{RedisConfig, RedisStore, Topology};
use std::{sync::Arc, time::Duration};

/// The verb whose script is altered, and the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Insert,
    Replace,
    Touch,
    Renew,
    Release,
    Commit,
}

impl Verb {
    fn script(self) -> [&'static str; 3] {
        const LIB: &str = include_str!("../../src/scripts/lib.lua");
        const INDEX: &str = include_str!("../../src/scripts/index.lua");
        match self {
            Self::Insert => [INDEX, "", include_str!("../../src/scripts/insert.lua")],
            Self::Replace => [INDEX, "", include_str!("../../src/scripts/replace.lua")],
            Self::Touch => [INDEX, "", include_str!("../../src/scripts/touch.lua")],
            Self::Renew => ["", "", include_str!("../../src/scripts/renew.lua")],
            Self::Release => [LIB, "", include_str!("../../src/scripts/release.lua")],
            Self::Commit => [LIB, INDEX, include_str!("../../src/scripts/commit.lua")],
        }
    }
}

/// One rule of a script, what stands there instead, and the scenario that is to notice.
#[derive(Clone, Copy, Debug)]
struct Flaw {
    verb: Verb,
    rule: &'static str,
    instead: &'static str,
    convicted_by: &'static str,
}

const FLAWS: &[Flaw] = &[
    Flaw {
        verb: Verb::Insert,
        rule: "if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end",
        instead: "",
        convicted_by: "lifecycle/an_id_is_inserted_once",
    },
    Flaw {
        verb: Verb::Replace,
        rule: "if version ~= ARGV[1] then",
        instead: "if false then",
        convicted_by: "concurrency/increments_are_all_kept",
    },
    Flaw {
        verb: Verb::Replace,
        rule: "if redis.call('EXISTS', KEYS[2]) == 1 then",
        instead: "if false then",
        convicted_by: "concurrency/exclusive_excludes_writers",
    },
    Flaw {
        verb: Verb::Replace,
        // Nothing is there, hence not the version that was expected: both rules stand in the way.
        rule: "if version == '' and redis.call('EXISTS', KEYS[1]) == 0 then return {'missing'} end",
        instead: "if version == '' then version = ARGV[1] end",
        convicted_by: "lifecycle/destroyed_is_not_revived",
    },
    Flaw {
        verb: Verb::Touch,
        rule: "if string.sub(head, 3, 18) ~= ARGV[1] then",
        instead: "if false then",
        convicted_by: "expiry/touch_keeps_data_and_version",
    },
    Flaw {
        verb: Verb::Renew,
        rule: "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end",
        instead: "",
        convicted_by: "lock/stale_holder_cannot_release",
    },
    Flaw {
        verb: Verb::Release,
        rule: "if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end",
        instead: "",
        convicted_by: "lock/stale_holder_cannot_release",
    },
    Flaw {
        verb: Verb::Commit,
        // The lock alone keeps versions apart as long as it is held: both rules stand in the way.
        rule: "if not held then return {'not_holder', redis.call('PTTL', KEYS[2])} end\nif version ~= ARGV[2] then",
        instead: "if false then",
        convicted_by: "lock/stale_holder_cannot_write",
    },
    Flaw {
        verb: Verb::Commit,
        rule: "if not held then return {'not_holder', redis.call('PTTL', KEYS[2])} end",
        instead: "",
        convicted_by: "lock/stale_holder_cannot_write",
    },
];

impl Flaw {
    fn code(&self) -> String {
        let right = self.verb.script().concat();
        assert_eq!(right.matches(self.rule).count(), 1, "{:?} has no such rule: {}", self.verb, self.rule);
        right.replace(self.rule, self.instead)
    }
}

#[derive(Debug)]
struct Mutant {
    flaw: Flaw,
    inner: Arc<dyn LockingStore>,
    address: String,
    prefix: String,
}

impl Mutant {
    /// As the driver calls it, but for the code.
    async fn call(&self, key: &StorageKey, suffixes: &[&str], arguments: &[&[u8]]) -> Result<Reply> {
        let code = self.flaw.code();
        let names: Vec<_> =
            suffixes.iter().map(|suffix| format!("{}{{{key}}}{suffix}", self.prefix)).collect();
        let count = names.len().to_string();
        let mut command = vec![&b"EVAL"[..], code.as_bytes(), count.as_bytes()];
        command.extend(names.iter().map(String::as_bytes));
        command.extend(arguments);
        let failed = |error| Error::backend("mutant", error);
        let mut connection = Connection::open(self.address.parse().unwrap()).await.map_err(failed)?;
        connection.command(command).await.map_err(failed)
    }

    async fn replaced(
        &self,
        key: &StorageKey,
        token: Option<&str>,
        expected: Version,
        put: &Put,
    ) -> Result<Replaced> {
        let (version, ttl) = (Version::random(&SystemRandom)?, milliseconds(put.ttl));
        let (record, expected) = (record(version, put), expected.to_bytes());
        let write = [&expected[..], &record, ttl.as_bytes()];
        let reply = match token {
            None => self.call(key, &["", ":lock"], &write).await?,
            Some(token) => {
                let [expected, record, ttl] = write;
                let write = [token.as_bytes(), expected, record, ttl, b"1000"];
                self.call(key, &["", ":lock", ":q1", ":t1"], &write).await?
            }
        };
        match reply.text().or_else(|| reply.list().first().and_then(Reply::text)) {
            Some("stored") => Ok(Replaced::Done(version)),
            Some("missing") => Ok(Replaced::Missing),
            Some("not_holder") => Ok(Replaced::NotHolder(Held::default())),
            Some("conflict") => Ok(match self.inner.load(key).await? {
                Some(fresh) => Replaced::Conflict(fresh),
                None => Replaced::Missing,
            }),
            _ => panic!("{reply:?}"),
        }
    }
}

fn record(version: Version, put: &Put) -> Vec<u8> {
    let user = put.principal.as_ref().map(|user| &user.as_bytes()[..]);
    [&[1, u8::from(user.is_some())], &version.to_bytes()[..], user.unwrap_or_default(), &put.data].concat()
}

fn milliseconds(duration: Duration) -> String {
    duration.as_millis().max(1).to_string()
}

#[async_trait]
impl Wrapper for Mutant {
    fn inner(&self) -> &Arc<dyn LockingStore> {
        &self.inner
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        if self.flaw.verb != Verb::Insert {
            return self.inner.insert(key, put).await;
        }
        let version = Version::random(&SystemRandom)?;
        let (record, ttl) = (record(version, put), milliseconds(put.ttl));
        let arguments = [&record[..], ttl.as_bytes()];
        let reply = self.call(key, &[""], &arguments).await?;
        Ok(if reply.number() == Some(1) { Inserted::Created(version) } else { Inserted::Exists })
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        if self.flaw.verb != Verb::Replace {
            return self.inner.replace(key, expected, put).await;
        }
        self.replaced(key, None, expected, put).await
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        if self.flaw.verb != Verb::Touch {
            return self.inner.touch(key, expected, ttl).await;
        }
        let (expected, ttl) = (expected.to_bytes(), milliseconds(ttl));
        let arguments = [&expected[..], ttl.as_bytes(), b"1"];
        let reply = self.call(key, &[""], &arguments).await?;
        Ok(match reply.list().first().and_then(Reply::text) {
            Some("extended") => Touched::Extended,
            Some("missing") => Touched::Missing,
            Some("conflict") => Touched::Conflict,
            _ => panic!("{reply:?}"),
        })
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        if self.flaw.verb != Verb::Renew {
            return self.inner.renew(grant, lease).await;
        }
        let (token, lease) = (grant.token().to_string(), milliseconds(lease));
        let reply = self.call(grant.key(), &[":lock"], &[token.as_bytes(), lease.as_bytes()]).await?;
        Ok(if reply.number() == Some(1) { Renewed::Extended } else { Renewed::Lost })
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        if self.flaw.verb != Verb::Release {
            return self.inner.release(grant).await;
        }
        let token = grant.token().to_string();
        let keys = ["", ":lock", ":q1", ":t1"];
        let reply = self.call(grant.key(), &keys, &[token.as_bytes(), b"1000"]).await?;
        Ok(if reply.number() == Some(1) { Released::Freed } else { Released::Lost })
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        if self.flaw.verb != Verb::Commit {
            return self.inner.replace_and_release(grant, expected, put).await;
        }
        self.replaced(grant.key(), Some(&grant.token().to_string()), expected, put).await
    }
}

/// `suite:name`: the suite's mutant of that name. Otherwise the number of a flaw; with `right:` before it, of
/// one that was not made.
pub(crate) async fn connect(name: &str, url: &str) -> Result<Arc<dyn LockingStore>> {
    let config = RedisConfig::from_url(url)?;
    let Topology::Server(node) = &config.topology else { panic!("one server") };
    let inner = Arc::new(RedisStore::connect(&config).await?);
    if let Some(name) = name.strip_prefix("suite:") {
        return Ok(mutants::find(name).expect("a mutant of the suite").over(inner));
    }
    let mut flaw = FLAWS[name.trim_start_matches("right:").parse::<usize>().unwrap()];
    if name.starts_with("right:") {
        flaw.instead = flaw.rule;
    }
    Ok(wrap(Mutant { flaw, inner, address: node.to_string(), prefix: config.prefix }))
}

/// What others do. Not all of the suite's mutants fit: some are wrong by what one process remembers.
const OTHERS: [&str; 5] = [
    "drops_refused_writes",
    "overwrites",
    "revives_on_save",
    "unlocks_before_it_deletes",
    "unlocks_before_it_writes",
];

pub(crate) async fn are_convicted(server: &Arc<RedisServer>) {
    for (number, flaw) in FLAWS.iter().enumerate() {
        let found = verdict(server, &number.to_string(), flaw.convicted_by).await;
        assert_eq!(found, Verdict::Fail, "{flaw:?}");
        // By the same way with its rule: it is the rule that counts, and not the way in which it was taken
        // out.
        let found = verdict(server, &format!("right:{number}"), flaw.convicted_by).await;
        assert_eq!(found, Verdict::Pass, "{flaw:?}, left as it is");
    }
    for name in OTHERS {
        let scenarios = mutants::find(name).expect("a mutant of the suite").convicted_by();
        // Those about bad days ask for servers of their own, which the suite's test of its mutants gives
        // them.
        for scenario in scenarios.iter().filter(|scenario| !scenario.starts_with("fault/")) {
            let found = verdict(server, &format!("suite:{name}"), scenario).await;
            assert_eq!(found, Verdict::Fail, "{name} by {scenario}");
        }
    }
}

/// The controls lose by themselves.
const PRODUCT: [Strategy; 3] = [Strategy::Write, Strategy::Exclusive, Strategy::Driver];

/// In four processes, where nothing that the portable part does within one of them helps.
async fn verdict(server: &Arc<RedisServer>, mutant: &str, scenario: &str) -> Verdict {
    let (server, name) = (Arc::clone(server), format!("{mutant} "));
    let make = move || {
        let (server, name) = (Arc::clone(&server), name.clone());
        async move { crate::fresh(server, &name).await }
    };
    let suite = Suite::new(make).workers(crate::workers()).processes(4).strategies(PRODUCT);
    let report = suite.scenarios([scenario]).run().await;
    assert!(!report.cells.is_empty(), "no such scenario: {scenario}");
    let convicted = report.cells.iter().find(|cell| cell.verdict == Verdict::Fail);
    let verdict = convicted.unwrap_or(&report.cells[0]).verdict;
    println!("{mutant:<30} {scenario:<50} {verdict:?}");
    verdict
}
