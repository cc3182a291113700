//! Two rotations, a writer and a logout with the old id; crashes, and replies of the replacement that get
//! lost.
//!
//! The rotations and the writer each add something of their own, so that a lost update is seen.

use crate::bfs::{Model, every_rule_is_needed};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// The copy is there before the old record goes.
    CopyFirst,
    /// The tombstone names the version that it replaces.
    TombstonesNameTheirVersion,
    /// Who lost takes its copy back.
    LosersWithdraw,
    /// But not while its tombstone may still land.
    CopiesStayWhileUncertain,
    /// A tombstone keeps the ids of the commits, so that a lost reply is found.
    TombstonesListTheirCommit,
    /// A logout follows tombstones.
    DestroyFollows,
    /// It deletes a tombstone after what it leads to.
    DestroyedFromTheEnd,
    /// And it looks at what it has really deleted.
    DeleteTellsWhatItRemoved,
    /// One that was cut behind a rotation that won by a moment is unknown, and another try says nothing.
    CutBehindARotationIsUnknown,
    /// A touch names the version that it saw: it never prolongs a tombstone.
    TouchNamesItsVersion,
}

const RULES: [Rule; 10] = [
    Rule::CopyFirst,
    Rule::TombstonesNameTheirVersion,
    Rule::LosersWithdraw,
    Rule::CopiesStayWhileUncertain,
    Rule::TombstonesListTheirCommit,
    Rule::DestroyFollows,
    Rule::DestroyedFromTheEnd,
    Rule::DeleteTellsWhatItRemoved,
    Rule::CutBehindARotationIsUnknown,
    Rule::TouchNamesItsVersion,
];

/// The old id, and one copy for each rotation and each of its replays.
const KEYS: usize = 7;
const REPLAYS: usize = 3;
const ROTATIONS: usize = 2;
const WRITER: usize = 2;

/// What each has added.
type Data = [bool; 3];

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum Record {
    Live { version: u8, data: Data },
    Tombstone { version: u8, to: usize, by: Option<usize> },
}

impl Record {
    fn version(&self) -> u8 {
        match self {
            Self::Live { version, .. } | Self::Tombstone { version, .. } => *version,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Client {
    Loading,
    /// On what it builds.
    Copying {
        version: u8,
        data: Data,
    },
    Replacing {
        version: u8,
        data: Data,
        copy: usize,
        uncertain: bool,
    },
    LookingUp {
        version: u8,
        data: Data,
        copy: usize,
    },
    Withdrawing {
        copy: usize,
        again: Option<(u8, Data)>,
    },
    Writing {
        version: u8,
        data: Data,
    },
    /// Nothing of it is stored, and nothing will be.
    Refused,
    Unknown,
    Crashed,
    /// Acknowledged; the new id, of a rotation.
    Done(Option<usize>),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Logout {
    NotYet,
    At {
        key: usize,
        live: bool,
        passed: Vec<usize>,
        cut: bool,
    },
    /// Removing the tombstones behind.
    CleaningUp(Vec<usize>),
    /// Told that there is no session any more.
    Done,
    Unknown,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    records: [Option<Record>; KEYS],
    next_version: u8,
    copies: [usize; ROTATIONS],
    clients: [Client; 3],
    logout: Logout,
    /// Tombstones under way: from whom, over which version, to where.
    network: Vec<(usize, u8, usize)>,
    /// A reader saw this version, and will move its expiry.
    touch: Option<u8>,
    prolonged: bool,
    crashes: u8,
    lost: u8,
    cuts: u8,
}

/// Takes what can happen next.
type Add<'a> = dyn FnMut(&str, &dyn Fn(&mut State)) + 'a;

/// Or what stands there instead of what was expected.
type Entombed = Result<(), Option<Record>>;

struct Rotation {
    without: Option<Rule>,
    logout: bool,
}

impl Rotation {
    fn with(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn put(state: &mut State, key: usize, record: impl Fn(u8) -> Record) {
        state.records[key] = Some(record(state.next_version));
        state.next_version += 1;
    }

    /// The replacement of the old record by a tombstone.
    fn entomb(&self, state: &mut State, by: usize, expected: u8, to: usize) -> Entombed {
        match state.records[0] {
            None => Err(None),
            Some(found) if found.version() != expected && self.with(Rule::TombstonesNameTheirVersion) => {
                Err(Some(found))
            }
            Some(_) => {
                let by = self.with(Rule::TombstonesListTheirCommit).then_some(by);
                Self::put(state, 0, |version| Record::Tombstone { version, to, by });
                Ok(())
            }
        }
    }

    /// What a rotation does with what it found instead of what it had seen. (The commits of the others never
    /// fill the window here.)
    fn rebase(
        &self,
        who: usize,
        found: Option<Record>,
        copy: usize,
        uncertain: bool,
        base: (u8, Data),
    ) -> Client {
        match found {
            Some(Record::Tombstone { by: Some(by), .. }) if by == who => Client::Done(Some(copy)),
            Some(found) if found.version() == base.0 => {
                Client::Replacing { version: base.0, data: base.1, copy, uncertain }
            }
            Some(Record::Live { version, data }) => {
                Client::Withdrawing { copy, again: Some((version, data)) }
            }
            Some(Record::Tombstone { .. }) | None => Client::Withdrawing { copy, again: None },
        }
    }

    fn rotate(&self, who: usize, state: &State, add: &mut Add<'_>) {
        match state.clients[who] {
            Client::Copying { version, mut data } => {
                data[who] = true;
                if state.copies[who] == REPLAYS {
                    return add("gives up", &|after| after.clients[who] = Client::Refused);
                }
                let copy = 1 + who * REPLAYS + state.copies[who];
                add("stores its copy", &|after| {
                    if !self.with(Rule::CopyFirst) {
                        after.records[0] = None;
                    }
                    after.copies[who] += 1;
                    if self.with(Rule::CopyFirst) {
                        Self::put(after, copy, |version| Record::Live { version, data });
                    }
                    after.clients[who] = Client::Replacing { version, data, copy, uncertain: false };
                });
            }
            Client::Replacing { copy, data, .. } if !self.with(Rule::CopyFirst) => {
                add("stores its copy at last", &|after| {
                    Self::put(after, copy, |version| Record::Live { version, data });
                    after.clients[who] = Client::Done(Some(copy));
                });
            }
            Client::Replacing { version, data, copy, uncertain } => {
                add("replaces the old record", &|after| {
                    after.clients[who] = match self.entomb(after, who, version, copy) {
                        Ok(()) => Client::Done(Some(copy)),
                        Err(found) => self.rebase(who, found, copy, uncertain, (version, data)),
                    };
                });
                if state.lost > 0 {
                    add("replaces the old record, the reply is lost", &|after| {
                        after.lost -= 1;
                        let _reply = self.entomb(after, who, version, copy);
                        after.clients[who] = Client::LookingUp { version, data, copy };
                    });
                    add("replaces the old record, the request is late", &|after| {
                        after.lost -= 1;
                        after.network.push((who, version, copy));
                        after.network.sort_unstable();
                        after.clients[who] = Client::LookingUp { version, data, copy };
                    });
                }
            }
            Client::LookingUp { version, data, copy } => {
                add("looks", &|after| {
                    after.clients[who] = self.rebase(who, state.records[0], copy, true, (version, data));
                });
                add("cannot look", &|after| {
                    after.clients[who] = match self.with(Rule::CopiesStayWhileUncertain) {
                        true => Client::Unknown,
                        false => Client::Withdrawing { copy, again: None },
                    };
                });
            }
            Client::Withdrawing { copy, again } => add("takes its copy back", &|after| {
                if self.with(Rule::LosersWithdraw) {
                    after.records[copy] = None;
                }
                after.clients[who] = match again {
                    Some((version, data)) => Client::Copying { version, data },
                    None => Client::Refused,
                };
            }),
            _ => {}
        }
    }

    fn log_out(&self, state: &State, add: &mut Add<'_>) {
        match &state.logout {
            Logout::NotYet if self.logout => add("the logout begins", &|after| {
                after.logout = Logout::At { key: 0, live: false, passed: vec![], cut: false };
            }),
            Logout::At { key, live, passed, cut } => {
                let found = state.records[*key];
                if *live {
                    add("the logout deletes", &|after| {
                        after.records[*key] = None;
                        after.logout = match found {
                            Some(Record::Tombstone { to, .. })
                                if self.with(Rule::DeleteTellsWhatItRemoved) =>
                            {
                                Logout::At { key: to, live: false, passed: passed.clone(), cut: true }
                            }
                            _ => Logout::CleaningUp(passed.clone()),
                        };
                    });
                } else {
                    add("the logout looks", &|after| {
                        after.logout = match found {
                            None => Logout::Done,
                            Some(Record::Live { .. }) => {
                                Logout::At { key: *key, live: true, passed: passed.clone(), cut: *cut }
                            }
                            Some(Record::Tombstone { .. }) if !self.with(Rule::DestroyFollows) => {
                                Logout::Done
                            }
                            Some(Record::Tombstone { to, .. }) => {
                                let mut passed = passed.clone();
                                if self.with(Rule::DestroyedFromTheEnd) {
                                    passed.push(*key);
                                } else {
                                    after.records[*key] = None;
                                }
                                Logout::At { key: to, live: false, passed, cut: *cut }
                            }
                        };
                    });
                }
                if state.cuts > 0 {
                    add("the logout is cut", &|after| {
                        after.cuts -= 1;
                        after.logout = match cut {
                            true if self.with(Rule::CutBehindARotationIsUnknown) => Logout::Unknown,
                            _ => Logout::NotYet,
                        };
                    });
                }
            }
            Logout::CleaningUp(passed) => add("the logout deletes a tombstone", &|after| {
                let mut passed = passed.clone();
                if let Some(key) = passed.pop() {
                    after.records[key] = None;
                }
                after.logout = if passed.is_empty() { Logout::Done } else { Logout::CleaningUp(passed) };
            }),
            _ => {}
        }
    }

    /// What the old id leads to.
    fn found(state: &State) -> Option<(usize, Data)> {
        let mut key = 0;
        loop {
            match state.records[key]? {
                Record::Live { data, .. } => return Some((key, data)),
                Record::Tombstone { to, .. } => key = to,
            }
        }
    }
}

impl Model for Rotation {
    type State = State;

    fn first(&self) -> State {
        State {
            records: std::array::from_fn(|key| {
                (key == 0).then_some(Record::Live { version: 0, data: [false; 3] })
            }),
            next_version: 1,
            copies: [0; ROTATIONS],
            clients: [Client::Loading; 3],
            logout: Logout::NotYet,
            network: vec![],
            touch: Some(0),
            prolonged: false,
            crashes: 1,
            lost: 1,
            cuts: 1,
        }
    }

    fn next(&self, state: &State, next: &mut Vec<(String, State)>) {
        let mut add = |what: &str, change: &dyn Fn(&mut State)| {
            let mut after = state.clone();
            change(&mut after);
            next.push((what.to_owned(), after));
        };
        for who in 0..3 {
            let mut add = |what: &str, change: &dyn Fn(&mut State)| add(&format!("{who} {what}"), change);
            match state.clients[who] {
                Client::Loading => add("loads", &|after| {
                    after.clients[who] = match state.records[0] {
                        Some(Record::Live { version, data }) if who == WRITER => {
                            Client::Writing { version, data }
                        }
                        Some(Record::Live { version, data }) => Client::Copying { version, data },
                        _ => Client::Refused,
                    };
                }),
                Client::Writing { version, mut data } => {
                    data[WRITER] = true;
                    add("writes", &|after| {
                        after.clients[who] = match state.records[0] {
                            Some(Record::Live { version: now, .. }) if now == version => {
                                Self::put(after, 0, |version| Record::Live { version, data });
                                Client::Done(None)
                            }
                            Some(Record::Live { version, data }) => Client::Writing { version, data },
                            _ => Client::Refused,
                        };
                    });
                }
                _ => self.rotate(who, state, &mut add),
            }
            let busy = !matches!(
                state.clients[who],
                Client::Loading | Client::Done(_) | Client::Refused | Client::Unknown | Client::Crashed
            );
            if busy && who < ROTATIONS && state.crashes > 0 {
                add("crashes", &|after| {
                    after.crashes -= 1;
                    after.clients[who] = Client::Crashed;
                });
            }
        }
        self.log_out(state, &mut add);
        if let (Some(seen), Some(record)) = (state.touch, state.records[0]) {
            add("a reader touches", &|after| {
                after.touch = None;
                let touches = !self.with(Rule::TouchNamesItsVersion) || record.version() == seen;
                after.prolonged |= touches && matches!(record, Record::Tombstone { .. });
            });
        }
        for at in 0..state.network.len() {
            add("a late tombstone arrives", &|after| {
                let (by, version, copy) = after.network.remove(at);
                let _reply = self.entomb(after, by, version, copy);
            });
        }
    }

    fn wrong(&self, state: &State, last: bool) -> Option<String> {
        let found = Self::found(state);
        let logged_out = matches!(state.logout, Logout::Done);
        let destroying = !matches!(state.logout, Logout::NotYet) || state.cuts == 0;
        if state.prolonged {
            return Some("a tombstone lives on as if it were a session".into());
        }
        let mut known: Vec<usize> = state
            .clients
            .iter()
            .filter_map(|client| match client {
                Client::Done(copy) => *copy,
                _ => None,
            })
            .collect();
        known.push(0);
        let living = |key: &&usize| matches!(state.records[**key], Some(Record::Live { .. }));
        if known.iter().filter(living).count() > 1 {
            return Some("two living sessions".into());
        }
        if logged_out && (found.is_some() || known.iter().any(|key| living(&key))) {
            return Some("alive after the logout".into());
        }
        if !destroying && found.is_none() {
            return Some("the session is lost".into());
        }
        for (who, client) in state.clients.iter().enumerate() {
            let there = found.map(|(_, data)| data[who]);
            match client {
                Client::Done(_) if there == Some(false) => {
                    return Some(format!("what {who} was acknowledged is lost"));
                }
                Client::Refused if there == Some(true) => {
                    return Some(format!("the refused change of {who} is in it"));
                }
                _ => {}
            }
        }
        let unknown = |key: &usize| !known.contains(key) && found.is_none_or(|(at, _)| at != *key);
        let left = (0..KEYS).filter(unknown).any(|key| living(&&key));
        let excused = state.clients.iter().any(|client| matches!(client, Client::Crashed | Client::Unknown));
        if last && !excused && left {
            return Some("a copy was left that nobody knows".into());
        }
        None
    }
}

#[test]
fn rotation() {
    every_rule_is_needed("rotation", &RULES, 5_000_000, |without| Rotation { without, logout: true });
}
