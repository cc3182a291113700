//! A login whose insert gets no reply, and the logout after it.

use crate::bfs::{Model, every_rule_is_needed};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// An insert without a reply gives up its id.
    AnIdIsInsertedOnce,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Login {
    Inserting { id: usize, drawn: usize },
    Done(usize),
    Failed,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    /// Whose session is stored under each id.
    ids: [Option<u8>; IDS],
    destroyed: [bool; IDS],
    logins: [Login; 2],
    network: Vec<(usize, u8)>,
    lost: u8,
}

/// The ids that each draws.
const EACH: usize = 3;
const IDS: usize = 2 * EACH;

struct Inserts {
    without: Option<Rule>,
}

impl Model for Inserts {
    type State = State;

    fn first(&self) -> State {
        State {
            ids: [None; IDS],
            destroyed: [false; IDS],
            logins: [0, 1].map(|who| Login::Inserting { id: who * EACH, drawn: 1 }),
            network: vec![],
            lost: 2,
        }
    }

    fn next(&self, state: &State, next: &mut Vec<(String, State)>) {
        for (who, login) in state.logins.iter().enumerate() {
            let user = who as u8;
            let draw = |drawn: usize| match drawn {
                0..EACH => Login::Inserting { id: who * EACH + drawn, drawn: drawn + 1 },
                _ => Login::Failed,
            };
            match login {
                Login::Inserting { id, drawn } => {
                    let mut done = state.clone();
                    done.logins[who] = match done.ids[*id] {
                        None => {
                            done.ids[*id] = Some(user);
                            Login::Done(*id)
                        }
                        // Only without the rule: it takes what it finds for its own first copy, as it is.
                        Some(own) if own == user => Login::Done(*id),
                        Some(_) => draw(*drawn),
                    };
                    next.push((format!("{who} inserts"), done));
                    if state.lost > 0 {
                        let abandon = self.without != Some(Rule::AnIdIsInsertedOnce);
                        let again = if abandon { draw(*drawn) } else { login.clone() };
                        for late in [false, true] {
                            let mut lost = state.clone();
                            lost.lost -= 1;
                            lost.logins[who] = again.clone();
                            if late {
                                lost.network.push((*id, user));
                                lost.network.sort_unstable();
                            } else if lost.ids[*id].is_none() {
                                lost.ids[*id] = Some(user);
                            }
                            next.push((format!("{who} inserts without a reply"), lost));
                        }
                    }
                }
                Login::Done(id) if !state.destroyed[*id] => {
                    let mut after = state.clone();
                    (after.ids[*id], after.destroyed[*id]) = (None, true);
                    next.push((format!("{who} logs out"), after));
                }
                Login::Done(_) | Login::Failed => {}
            }
        }
        for at in 0..state.network.len() {
            let mut after = state.clone();
            let (id, user) = after.network.remove(at);
            after.ids[id].get_or_insert(user);
            next.push(("a late insert arrives".into(), after));
        }
    }

    fn wrong(&self, state: &State, _: bool) -> Option<String> {
        for (who, login) in state.logins.iter().enumerate() {
            let Login::Done(id) = login else { continue };
            match state.ids[*id] {
                Some(_) if state.destroyed[*id] => return Some("a session is back after its logout".into()),
                Some(user) if usize::from(user) != who => {
                    return Some(format!("{who} has the session of {user}"));
                }
                _ => {}
            }
        }
        None
    }
}

#[test]
fn inserts() {
    every_rule_is_needed("inserts", &[Rule::AnIdIsInsertedOnce], 100_000, |without| Inserts { without });
}
