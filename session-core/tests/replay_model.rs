//! The replay rules, exhausted: every commit is equivalent to having run alone at its commit, or at its load
//! if it wrote nothing.
//!
//! A history is a record as it was loaded, a program of up to three operations, and the record as another
//! request left it before the commit. All of them run through the public API. Beside that stands a small
//! model of the rules in which each rule can be taken away: every one of them is needed, and the first
//! history that shows it is printed.
//!
//! The two keys are interchangeable, so only programs that name `x` first run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use session_core::{
    Access, ErrorKind, Inserted, Key, MemoryStore, Put, Replaced, Result, Session, SessionId,
    SessionStore as _, Sessions, SystemRandom,
};
use std::{collections::BTreeMap, fmt, time::Duration};

const NAMES: [&str; 2] = ["x", "y"];
const KEYS: [Key<u8>; 2] = [Key::new(NAMES[0]), Key::new(NAMES[1])];

/// Two values, each absent, 1 or 2 when a history begins.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Values([Option<u8>; 2]);

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let present = NAMES.iter().zip(self.0).filter_map(|(name, value)| Some((name, value?)));
        f.debug_map().entries(present).finish()
    }
}

fn all_values() -> Vec<Values> {
    const EACH: [Option<u8>; 3] = [None, Some(1), Some(2)];
    EACH.iter().flat_map(|x| EACH.map(|y| Values([*x, y]))).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Get(usize),
    Contains(usize),
    Len,
    IsEmpty,
    Names,
    Insert(usize),
    Remove(usize),
    Take(usize),
    /// Adds one, to nothing: makes it 1.
    Update(usize),
    /// Takes one away if there is one and tells whether there was; nothing is left of the last.
    UpdateWith(usize),
    Clear,
}

impl Op {
    const ALL: [Self; 18] = [
        Self::Get(0),
        Self::Contains(0),
        Self::Len,
        Self::IsEmpty,
        Self::Names,
        Self::Insert(0),
        Self::Remove(0),
        Self::Take(0),
        Self::Update(0),
        Self::UpdateWith(0),
        Self::Clear,
        Self::Get(1),
        Self::Contains(1),
        Self::Insert(1),
        Self::Remove(1),
        Self::Take(1),
        Self::Update(1),
        Self::UpdateWith(1),
    ];

    fn key(self) -> Option<usize> {
        match self {
            Self::Get(key)
            | Self::Contains(key)
            | Self::Insert(key)
            | Self::Remove(key)
            | Self::Take(key)
            | Self::Update(key)
            | Self::UpdateWith(key) => Some(key),
            Self::Len | Self::IsEmpty | Self::Names | Self::Clear => None,
        }
    }
}

/// What an operation showed to its request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    Nothing,
    Value(Option<u8>),
    Flag(bool),
    Number(usize),
    Names([bool; 2]),
}

/// Takes one away; whether there was one.
fn spend(value: &mut Option<u8>) -> bool {
    let had = value.is_some();
    *value = value.and_then(|left| left.checked_sub(1)).filter(|left| *left > 0);
    had
}

/// The specification: what one operation does when its request is alone.
fn alone(op: Op, values: &mut Values) -> Shown {
    let Values(all) = values;
    match op {
        Op::Get(key) => Shown::Value(all[key]),
        Op::Contains(key) => Shown::Flag(all[key].is_some()),
        Op::Len => Shown::Number(all.iter().flatten().count()),
        Op::IsEmpty => Shown::Flag(all.iter().flatten().next().is_none()),
        Op::Names => Shown::Names(all.map(|value| value.is_some())),
        Op::Insert(key) => {
            all[key] = Some(1);
            Shown::Nothing
        }
        Op::Remove(key) => {
            all[key] = None;
            Shown::Nothing
        }
        Op::Take(key) => Shown::Value(all[key].take()),
        Op::Update(key) => {
            *all[key].get_or_insert_default() += 1;
            Shown::Nothing
        }
        Op::UpdateWith(key) => Shown::Flag(spend(&mut all[key])),
        Op::Clear => {
            *all = [None; 2];
            Shown::Nothing
        }
    }
}

fn run_alone(program: &[Op], mut values: Values) -> (Vec<Shown>, Values) {
    let shown = program.iter().map(|op| alone(*op, &mut values)).collect();
    (shown, values)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Acknowledged; this is what is stored then.
    Stored(Values),
    Conflict,
}

/// What must come out: the program ran alone at its commit, with the same to be seen; or it wrote nothing and
/// ran at its load.
fn specified(program: &[Op], loaded: Values, fresh: Values) -> Outcome {
    let (shown, left) = run_alone(program, loaded);
    if left == loaded {
        return Outcome::Stored(fresh);
    }
    let (again, stored) = run_alone(program, fresh);
    if again == shown { Outcome::Stored(stored) } else { Outcome::Conflict }
}

/// All programs of up to three operations that name `x` before `y`, shortest first.
fn programs() -> Vec<Vec<Op>> {
    let mut all = vec![vec![]];
    let mut from = 0;
    for _ in 0..3 {
        let until = all.len();
        for shorter in from..until {
            for op in Op::ALL {
                let mut program: Vec<Op> = all[shorter].clone();
                let first = program.iter().chain([&op]).find_map(|op| op.key());
                if first != Some(1) {
                    program.push(op);
                    all.push(program);
                }
            }
        }
        from = until;
    }
    all
}

// The product.

fn run(op: Op, session: &Session) -> Result<Shown> {
    Ok(match op {
        Op::Get(key) => Shown::Value(session.get(KEYS[key])?),
        Op::Contains(key) => Shown::Flag(session.contains(KEYS[key])?),
        Op::Len => Shown::Number(session.len()?),
        Op::IsEmpty => Shown::Flag(session.is_empty()?),
        Op::Names => {
            let names = session.names()?;
            Shown::Names(NAMES.map(|name| names.iter().any(|there| there == name)))
        }
        Op::Insert(key) => session.insert(KEYS[key], &1).map(|()| Shown::Nothing)?,
        Op::Remove(key) => session.remove(KEYS[key]).map(|()| Shown::Nothing)?,
        Op::Take(key) => Shown::Value(session.take(KEYS[key])?),
        Op::Update(key) => session.update(KEYS[key], |value| *value += 1).map(|()| Shown::Nothing)?,
        Op::UpdateWith(key) => Shown::Flag(session.update_with(KEYS[key], spend)?),
        Op::Clear => session.clear().map(|()| Shown::Nothing)?,
    })
}

fn values_of(snapshot: &session_core::Snapshot) -> Values {
    Values(KEYS.map(|key| snapshot.get(key).unwrap()))
}

/// Each record as the framework itself stores it, in the order of [`all_values`].
async fn stored_forms() -> Vec<Put> {
    let store = MemoryStore::default();
    let sessions = Sessions::builder(store.clone()).build().unwrap();
    let mut forms = Vec::new();
    for values in all_values() {
        let new = sessions.create();
        new.insert(Key::<u8>::new("z"), &0).unwrap(); // an empty session would not be stored
        new.commit().await.unwrap();
        let id = new.id().unwrap();
        let session = sessions.open(&id, Access::Write).await.unwrap().unwrap();
        session.clear().unwrap();
        for (key, value) in KEYS.into_iter().zip(values.0) {
            if let Some(value) = value {
                session.insert(key, &value).unwrap();
            }
        }
        session.commit().await.unwrap();
        let stored = store.load(&id.storage_key()).await.unwrap().unwrap();
        forms.push(Put::new(stored.data, Duration::from_mins(30)));
    }
    forms
}

struct Bench {
    store: MemoryStore,
    sessions: Sessions,
    values: Vec<Values>,
    forms: Vec<Put>,
}

impl Bench {
    async fn new() -> Self {
        let store = MemoryStore::default();
        let sessions = Sessions::builder(store.clone()).build().unwrap();
        Self { store, sessions, values: all_values(), forms: stored_forms().await }
    }

    /// One history; without a fresh record nobody else has written.
    async fn check(&self, program: &[Op], loaded: usize, fresh: Option<usize>) {
        let id = SessionId::random(&SystemRandom).unwrap();
        let key = id.storage_key();
        let Inserted::Created(mut version) = self.store.insert(&key, &self.forms[loaded]).await.unwrap()
        else {
            panic!("a new id")
        };
        let session = self.sessions.open(&id, Access::Write).await.unwrap().unwrap();
        let shown: Vec<_> = program.iter().map(|op| run(*op, &session).unwrap()).collect();
        let history = || format!("{program:?} on {:?}, committed on {fresh:?}", self.values[loaded]);
        assert_eq!(shown, run_alone(program, self.values[loaded]).0, "what was shown by {}", history());
        if let Some(fresh) = fresh {
            let Replaced::Done(now) = self.store.replace(&key, version, &self.forms[fresh]).await.unwrap()
            else {
                panic!("nobody else")
            };
            version = now;
        }
        let there = self.values[fresh.unwrap_or(loaded)];
        let committed = session.commit().await;
        let left = values_of(&self.sessions.read(&id).await.unwrap().unwrap());
        let outcome = match committed {
            Ok(()) => Outcome::Stored(left),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{}", history());
                assert_eq!(left, there, "a conflict wrote: {}", history());
                Outcome::Conflict
            }
        };
        assert_eq!(outcome, specified(program, self.values[loaded], there), "{}", history());
        let written = self.store.load(&key).await.unwrap().unwrap().version != version;
        assert_eq!(written, left != there, "written without a change: {}", history());
        let _removed = self.store.delete(&key).await.unwrap();
    }
}

/// Every program, every loaded and every fresh record, through the public API; in two halves, for two cores.
fn run_half(half: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let histories = runtime.block_on(async {
        let bench = Bench::new().await;
        let mut histories = 0_u64;
        for program in programs().iter().skip(half).step_by(2) {
            for loaded in 0..bench.values.len() {
                for fresh in (0..bench.values.len()).map(Some).chain([None]) {
                    bench.check(program, loaded, fresh).await;
                    histories += 1;
                }
            }
        }
        histories
    });
    println!("{histories} histories through the public API");
    assert!(histories > 100_000, "{histories} are not all of them");
}

#[test]
fn every_commit_ran_alone_even_programs() {
    run_half(0);
}

#[test]
fn every_commit_ran_alone_odd_programs() {
    run_half(1);
}

// The rules, each of which can be taken away.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    GetSeesAValue,
    GetSeesAbsence,
    GetSeesWhatAnOwnUpdateLeft,
    GetOfAnOwnInsertSeesNobodyElses,
    ContainsSees,
    LenSees,
    IsEmptySees,
    NamesSeeEveryKey,
    NamesSeeThatThereIsNoOther,
    TakeSees,
    ResultsOfClosuresComeOutTheSame,
    UpdatesRunAgain,
    ClearIsOneOperation,
    UnchangedIsJudgedForTheWholeRequest,
    ReplayedInOrder,
    SeenInOrder,
    ConflictsAreRefused,
    NothingChangedWritesNothing,
}

impl Rule {
    const ALL: [Self; 18] = [
        Self::GetSeesAValue,
        Self::GetSeesAbsence,
        Self::GetSeesWhatAnOwnUpdateLeft,
        Self::GetOfAnOwnInsertSeesNobodyElses,
        Self::ContainsSees,
        Self::LenSees,
        Self::IsEmptySees,
        Self::NamesSeeEveryKey,
        Self::NamesSeeThatThereIsNoOther,
        Self::TakeSees,
        Self::ResultsOfClosuresComeOutTheSame,
        Self::UpdatesRunAgain,
        Self::ClearIsOneOperation,
        Self::UnchangedIsJudgedForTheWholeRequest,
        Self::ReplayedInOrder,
        Self::SeenInOrder,
        Self::ConflictsAreRefused,
        Self::NothingChangedWritesNothing,
    ];
}

/// What the model remembers of a request.
#[derive(Clone, Debug)]
enum Entry {
    Seen(usize, Option<u8>),
    /// Compared with the record as it was before the replay: what must not be done for a value of one's own.
    SeenAtFirst(usize, Option<u8>),
    SeenPresence(usize, bool),
    SeenLen(usize),
    SeenEmpty(bool),
    /// These are there; whether others are is not looked at.
    SeenAmong([bool; 2]),
    SeenNames([bool; 2]),
    Put(usize, Option<u8>),
    Update(usize),
    Spend(usize, Option<bool>),
    Clear,
}

/// The rules as a program, apart from the code under test, without the one that is taken away.
fn model(program: &[Op], loaded: Values, fresh: Values, without: Option<Rule>) -> Outcome {
    let with = |rule| without != Some(rule);
    let mut values = loaded;
    let mut log = Vec::new();
    // Who wrote a key last in this request: nobody, a plain write, an update.
    let mut own: BTreeMap<usize, bool> = BTreeMap::new();
    for op in program {
        let before = values;
        let shown = alone(*op, &mut values);
        let updated = op.key().and_then(|key| own.get(&key).copied());
        let entries = match (*op, &shown) {
            (Op::Get(key), Shown::Value(value)) => match updated {
                Some(false) if !with(Rule::GetOfAnOwnInsertSeesNobodyElses) => {
                    vec![Entry::SeenAtFirst(key, loaded.0[key])]
                }
                Some(true) if !with(Rule::GetSeesWhatAnOwnUpdateLeft) => vec![],
                _ if value.is_some() && !with(Rule::GetSeesAValue) => vec![],
                _ if value.is_none() && !with(Rule::GetSeesAbsence) => vec![],
                _ => vec![Entry::Seen(key, *value)],
            },
            (Op::Contains(key), Shown::Flag(there)) if with(Rule::ContainsSees) => {
                vec![Entry::SeenPresence(key, *there)]
            }
            (Op::Len, Shown::Number(len)) if with(Rule::LenSees) => vec![Entry::SeenLen(*len)],
            (Op::IsEmpty, Shown::Flag(empty)) if with(Rule::IsEmptySees) => vec![Entry::SeenEmpty(*empty)],
            (Op::Names, Shown::Names(names)) => match without {
                Some(Rule::NamesSeeEveryKey) => {
                    vec![Entry::SeenLen(names.iter().filter(|there| **there).count())]
                }
                Some(Rule::NamesSeeThatThereIsNoOther) => vec![Entry::SeenAmong(*names)],
                _ => vec![Entry::SeenNames(*names)],
            },
            (Op::Take(key), Shown::Value(value)) => {
                let seen = with(Rule::TakeSees).then_some(Entry::Seen(key, *value));
                seen.into_iter().chain([Entry::Put(key, None)]).collect()
            }
            (Op::Insert(key), _) => vec![Entry::Put(key, Some(1))],
            (Op::Remove(key), _) => vec![Entry::Put(key, None)],
            (Op::Update(key), _) if with(Rule::UpdatesRunAgain) => vec![Entry::Update(key)],
            (Op::Update(key), _) => vec![Entry::Put(key, values.0[key])],
            (Op::UpdateWith(key), Shown::Flag(had)) => {
                vec![Entry::Spend(key, with(Rule::ResultsOfClosuresComeOutTheSame).then_some(*had))]
            }
            (Op::Clear, _) if with(Rule::ClearIsOneOperation) => vec![Entry::Clear],
            (Op::Clear, _) => {
                (0..2).filter(|key| before.0[*key].is_some()).map(|key| Entry::Put(key, None)).collect()
            }
            _ => vec![],
        };
        match op {
            Op::Update(key) | Op::UpdateWith(key) => drop(own.insert(*key, true)),
            Op::Insert(key) | Op::Remove(key) | Op::Take(key) => drop(own.insert(*key, false)),
            Op::Clear => own = (0..2).map(|key| (key, false)).collect(),
            _ => {}
        }
        // Per operation: what changed nothing when it ran is forgotten.
        let is_write = matches!(shown, Shown::Nothing);
        if with(Rule::UnchangedIsJudgedForTheWholeRequest) || before != values || !is_write {
            log.extend(entries);
        }
    }
    if values == loaded && with(Rule::NothingChangedWritesNothing) {
        return Outcome::Stored(fresh);
    }
    if !with(Rule::ReplayedInOrder) {
        log.reverse();
    }
    let mut record = fresh;
    let mut same = true;
    for entry in &log {
        let seen = if with(Rule::SeenInOrder) { record } else { fresh };
        same &= match entry {
            Entry::Seen(key, value) => seen.0[*key] == *value,
            Entry::SeenAtFirst(key, value) => fresh.0[*key] == *value,
            Entry::SeenPresence(key, there) => seen.0[*key].is_some() == *there,
            Entry::SeenLen(len) => seen.0.iter().flatten().count() == *len,
            Entry::SeenEmpty(empty) => (seen.0 == [None; 2]) == *empty,
            Entry::SeenAmong(names) => (0..2).all(|key| !names[key] || seen.0[key].is_some()),
            Entry::SeenNames(names) => seen.0.map(|value| value.is_some()) == *names,
            Entry::Put(key, value) => {
                record.0[*key] = *value;
                true
            }
            Entry::Update(key) => {
                *record.0[*key].get_or_insert_default() += 1;
                true
            }
            Entry::Spend(key, had) => {
                let again = spend(&mut record.0[*key]);
                had.is_none_or(|had| had == again)
            }
            Entry::Clear => {
                record = Values([None; 2]);
                true
            }
        };
    }
    if same || !with(Rule::ConflictsAreRefused) { Outcome::Stored(record) } else { Outcome::Conflict }
}

/// The first history that comes out wrong, and how many were looked at.
fn first_wrong(without: Option<Rule>) -> (Option<String>, u64) {
    let values = all_values();
    let mut histories = 0;
    for program in programs() {
        for loaded in &values {
            for fresh in &values {
                histories += 1;
                let must = specified(&program, *loaded, *fresh);
                let is = model(&program, *loaded, *fresh, without);
                if is != must {
                    let history = format!(
                        "{program:?} loaded {loaded:?}, committed on {fresh:?}: {is:?}, not {must:?}"
                    );
                    return (Some(history), histories);
                }
            }
        }
    }
    (None, histories)
}

#[test]
fn the_rules_are_enough() {
    let (wrong, histories) = first_wrong(None);
    assert_eq!(wrong, None);
    println!("{histories} histories of the model");
    assert!(histories > 200_000);
}

#[test]
fn every_rule_is_needed() {
    for rule in Rule::ALL {
        let (wrong, _) = first_wrong(Some(rule));
        let wrong = wrong.unwrap_or_else(|| panic!("{rule:?} can be left out"));
        println!("without {rule:?}: {wrong}");
    }
}
