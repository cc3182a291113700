//! "Log out everywhere" while one session rotates twice, another is logged out, and a third one becomes the
//! user's. The list of the user's sessions comes in two pages.

use crate::bfs::{Model, every_rule_is_needed};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// A listed tombstone leads to its successor.
    TombstonesAreFollowed,
    /// And stays listed, for what moves to a page that was read already.
    TombstonesStayListed,
    /// A rotation may come between the look and the delete: what was removed is followed, or there is another
    /// round. (Either is enough; the code does both.)
    ARemovedTombstoneIsNotTheEnd,
    /// The index is written before the record.
    IndexBeforeRecord,
}

const RULES: [Rule; 4] = [
    Rule::TombstonesAreFollowed,
    Rule::TombstonesStayListed,
    Rule::ARemovedTombstoneIsNotTheEnd,
    Rule::IndexBeforeRecord,
];

/// Keys of the index in its order, half of them to a page.
const KEYS: usize = 6;
/// One that is logged out meanwhile.
const OTHER: usize = 0;
/// One that becomes the user's by a login without a rotation.
const LOGIN: usize = 2;
/// One that is rotated, and rotated again.
const WAY: [usize; 3] = [4, 1, 5];

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Record {
    Live { of_the_user: bool },
    Tombstone { to: usize },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Revocation {
    NotYet,
    Listing { page: usize, keys: Vec<usize> },
    Working { keys: Vec<usize>, at: Option<(usize, bool)>, seen: [bool; KEYS], removed: bool },
    Done,
}

/// A rotation, call by call.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Rotating {
    Loading,
    Copying,
    Replacing,
    Withdrawing,
    Over,
}

/// A login, in the driver's two steps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Login {
    Begins,
    Half,
    Over,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    records: [Option<Record>; KEYS],
    listed: [bool; KEYS],
    revocation: Revocation,
    /// How many rotations were acknowledged, and where the next one is.
    rotated: usize,
    rotating: Rotating,
    login: Login,
    /// It was the user's before the revocation began.
    logged_in_before: bool,
}

/// Takes what can happen next.
type Add<'a> = dyn FnMut(&str, &dyn Fn(&mut State)) + 'a;

struct Revoking {
    without: Option<Rule>,
}

impl Revoking {
    fn with(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn rotate(&self, state: &State, add: &mut Add<'_>) {
        let Some((old, new)) = WAY.get(state.rotated).zip(WAY.get(state.rotated + 1)) else { return };
        match state.rotating {
            Rotating::Loading => add("the rotation loads", &|after| {
                let live = matches!(state.records[*old], Some(Record::Live { .. }));
                after.rotating = if live { Rotating::Copying } else { Rotating::Over };
            }),
            Rotating::Copying => add("the rotation stores its copy", &|after| {
                (after.records[*new], after.listed[*new]) = (Some(Record::Live { of_the_user: true }), true);
                after.rotating = Rotating::Replacing;
            }),
            Rotating::Replacing => add("the rotation replaces the old record", &|after| {
                after.rotating = Rotating::Withdrawing;
                if state.records[*old].is_some() {
                    after.records[*old] = Some(Record::Tombstone { to: *new });
                    after.listed[*old] = self.with(Rule::TombstonesStayListed);
                    (after.rotated, after.rotating) = (state.rotated + 1, Rotating::Loading);
                }
            }),
            Rotating::Withdrawing => add("the rotation takes its copy back", &|after| {
                (after.records[*new], after.listed[*new]) = (None, false);
                after.rotating = Rotating::Over;
            }),
            Rotating::Over => {}
        }
    }

    fn revoke(&self, state: &State, add: &mut Add<'_>) {
        match &state.revocation {
            Revocation::NotYet => add("the revocation begins", &|after| {
                after.revocation = Revocation::Listing { page: 0, keys: vec![] };
                after.logged_in_before = state.records[LOGIN] == Some(Record::Live { of_the_user: true });
            }),
            Revocation::Listing { page, keys } => add("a page is listed", &|after| {
                let here = (page * KEYS / 2..(page + 1) * KEYS / 2).filter(|key| state.listed[*key]);
                let keys: Vec<_> = keys.iter().copied().chain(here).collect();
                after.revocation = match page {
                    0 => Revocation::Listing { page: 1, keys },
                    _ => Revocation::Working { keys, at: None, seen: [false; KEYS], removed: false },
                };
            }),
            Revocation::Working { keys, at: None, seen, removed } => add("the next key", &|after| {
                after.revocation = match keys.split_first() {
                    Some((key, keys)) => Revocation::Working {
                        keys: keys.to_vec(),
                        at: (!seen[*key]).then_some((*key, false)),
                        seen: *seen,
                        removed: *removed,
                    },
                    None if *removed && self.with(Rule::ARemovedTombstoneIsNotTheEnd) => {
                        Revocation::Listing { page: 0, keys: vec![] }
                    }
                    None => Revocation::Done,
                };
            }),
            Revocation::Working { keys, at: Some((key, live)), seen, removed } => {
                let working = |at: Option<(usize, bool)>, seen: [bool; KEYS], removed: bool| {
                    Revocation::Working { keys: keys.clone(), at, seen, removed }
                };
                let found = state.records[*key];
                if *live {
                    return add("the revocation deletes", &|after| {
                        (after.records[*key], after.listed[*key]) = (None, false);
                        after.revocation = match found {
                            Some(Record::Tombstone { to })
                                if self.with(Rule::ARemovedTombstoneIsNotTheEnd) =>
                            {
                                working(Some((to, false)), *seen, *removed)
                            }
                            _ => working(None, *seen, *removed || found.is_some()),
                        };
                    });
                }
                add("the revocation looks", &|after| {
                    let mut seen = *seen;
                    seen[*key] = true;
                    after.revocation = match found {
                        Some(Record::Live { of_the_user: true }) => {
                            working(Some((*key, true)), seen, *removed)
                        }
                        Some(Record::Tombstone { to })
                            if self.with(Rule::TombstonesAreFollowed) && !seen[to] =>
                        {
                            working(Some((to, false)), seen, *removed)
                        }
                        _ => working(None, seen, *removed),
                    };
                });
            }
            Revocation::Done => {}
        }
    }
}

impl Model for Revoking {
    type State = State;

    fn first(&self) -> State {
        let mut records = [None; KEYS];
        let mut listed = [false; KEYS];
        for key in [OTHER, WAY[0]] {
            (records[key], listed[key]) = (Some(Record::Live { of_the_user: true }), true);
        }
        records[LOGIN] = Some(Record::Live { of_the_user: false });
        State {
            records,
            listed,
            revocation: Revocation::NotYet,
            rotated: 0,
            rotating: Rotating::Loading,
            login: Login::Begins,
            logged_in_before: false,
        }
    }

    fn next(&self, state: &State, next: &mut Vec<(String, State)>) {
        let mut add = |what: &str, change: &dyn Fn(&mut State)| {
            let mut after = state.clone();
            change(&mut after);
            next.push((what.to_owned(), after));
        };
        self.rotate(state, &mut add);
        self.revoke(state, &mut add);
        if state.records[OTHER].is_some() {
            add("another session is logged out", &|after| {
                (after.records[OTHER], after.listed[OTHER]) = (None, false);
            });
        }
        // The process may die after the first half: then the second one never comes.
        let first_half = self.with(Rule::IndexBeforeRecord) == (state.login == Login::Begins);
        if state.login != Login::Over && state.records[LOGIN].is_some() {
            add(if first_half { "the login is listed" } else { "the login is stored" }, &|after| {
                after.login = if state.login == Login::Begins { Login::Half } else { Login::Over };
                if first_half {
                    after.listed[LOGIN] = true;
                } else {
                    after.records[LOGIN] = Some(Record::Live { of_the_user: true });
                }
            });
        }
    }

    fn wrong(&self, state: &State, _: bool) -> Option<String> {
        if state.revocation != Revocation::Done {
            return None;
        }
        let users = Some(Record::Live { of_the_user: true });
        // The ids that a client has.
        if WAY[..=state.rotated].iter().chain([&OTHER]).any(|key| state.records[*key] == users) {
            return Some("a session is alive after the revocation".into());
        }
        let login = state.logged_in_before && state.records[LOGIN] == users;
        login.then(|| "a login from before the revocation is alive".into())
    }
}

#[test]
fn revocation() {
    every_rule_is_needed("revocation", &RULES, 1_000_000, |without| Revoking { without });
}
