//! A commit whose replies get lost, among other commits and a destroy. The window of commit ids is two here,
//! where the code keeps sixteen, so that it can be overrun.

use crate::bfs::{Model, every_rule_is_needed};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// A write names the version that it replaces.
    VersionsAreNamed,
    /// After a lost reply the record is loaded and searched for the commit's own id, and not only for another
    /// version.
    OwnIdIsLookedUp,
    /// And so is the record that comes with a conflict.
    ConflictsAreLookedUp,
    /// Own id absent, another version, and the id that was built on no longer listed: nobody knows.
    TheIdBuiltOnMustBeListed,
    /// What is sent again has the id of the first copy.
    SentAgainUnderTheSameId,
    /// Giving up while the version is unchanged is no refusal.
    UnknownWhileACopyMayLand,
    /// Missing is the end: nothing is inserted in its place.
    MissingIsTheEnd,
}

const RULES: [Rule; 7] = [
    Rule::VersionsAreNamed,
    Rule::OwnIdIsLookedUp,
    Rule::ConflictsAreLookedUp,
    Rule::TheIdBuiltOnMustBeListed,
    Rule::SentAgainUnderTheSameId,
    Rule::UnknownWhileACopyMayLand,
    Rule::MissingIsTheEnd,
];

const CLIENTS: usize = 3;
const WINDOW: usize = 2;

#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
struct Record {
    version: u8,
    /// How often each client's increment is in it.
    counts: [u8; CLIENTS],
    commits: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
struct Request {
    base: u8,
    counts: [u8; CLIENTS],
    commits: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Client {
    Idle,
    Sending {
        base: Record,
        id: u8,
        uncertain: bool,
    },
    LookingUp {
        base: Record,
        id: u8,
    },
    Acknowledged,
    /// Told that nothing was stored and nothing will be.
    Refused,
    Unknown,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    record: Option<Record>,
    next_version: u8,
    clients: [Client; CLIENTS],
    /// Copies under way.
    network: Vec<Request>,
    lost_replies: u8,
    delays: u8,
    destroys: u8,
    give_ups: u8,
}

struct Commits {
    without: Option<Rule>,
}

impl Commits {
    fn with(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// The store's replace; what it found when it refused.
    fn replace(&self, state: &mut State, request: &Request) -> Result<(), Option<Record>> {
        match &state.record {
            Some(record) if record.version == request.base || !self.with(Rule::VersionsAreNamed) => {
                let (counts, commits) = (request.counts, request.commits.clone());
                state.record = Some(Record { version: state.next_version, counts, commits });
                state.next_version += 1;
                Ok(())
            }
            found => Err(found.clone()),
        }
    }

    fn request(client: usize, base: &Record, id: u8) -> Request {
        let mut counts = base.counts;
        counts[client] += 1;
        let mut commits = base.commits.clone();
        commits.push(id);
        if commits.len() > WINDOW {
            commits.remove(0);
        }
        Request { base: base.version, counts, commits }
    }

    /// What the commit does with a record that it has loaded, or was refused with.
    fn rebase(&self, base: &Record, id: u8, uncertain: bool, found: &Record, conflict: bool) -> Client {
        let looks = self.with(if conflict { Rule::ConflictsAreLookedUp } else { Rule::OwnIdIsLookedUp });
        if looks && found.commits.contains(&id) {
            return Client::Acknowledged;
        }
        if found.version == base.version {
            let id = if self.with(Rule::SentAgainUnderTheSameId) { id } else { id + 10 };
            return Client::Sending { base: base.clone(), id, uncertain };
        }
        let listed = base.commits.last().is_some_and(|last| found.commits.contains(last));
        if uncertain && looks && !listed && self.with(Rule::TheIdBuiltOnMustBeListed) {
            return Client::Unknown;
        }
        Client::Sending { base: found.clone(), id, uncertain: false }
    }

    fn replied(&self, client: usize, from: &Client, reply: Result<(), Option<Record>>, state: &mut State) {
        let Client::Sending { base, id, uncertain } = from else { return };
        state.clients[client] = match reply {
            Ok(()) => Client::Acknowledged,
            Err(None) if self.with(Rule::MissingIsTheEnd) => Client::Refused,
            Err(None) => {
                let Request { counts, commits, .. } = Self::request(client, base, *id);
                state.record = Some(Record { version: state.next_version, counts, commits });
                state.next_version += 1;
                Client::Acknowledged
            }
            Err(Some(found)) => self.rebase(base, *id, *uncertain, &found, true),
        };
    }
}

impl Model for Commits {
    type State = State;

    fn first(&self) -> State {
        State {
            record: Some(Record { version: 0, counts: [0; CLIENTS], commits: vec![100] }),
            next_version: 1,
            clients: [Client::Idle, Client::Idle, Client::Idle],
            network: vec![],
            lost_replies: 2,
            delays: 2,
            destroys: 1,
            give_ups: 1,
        }
    }

    fn next(&self, state: &State, next: &mut Vec<(String, State)>) {
        for client in 0..CLIENTS {
            let mut add = |what: &str, change: &dyn Fn(&mut State)| {
                let mut after = state.clone();
                change(&mut after);
                next.push((format!("{client} {what}"), after));
            };
            match &state.clients[client] {
                Client::Idle => add("loads", &|after| {
                    after.clients[client] = match &state.record {
                        Some(record) => {
                            Client::Sending { base: record.clone(), id: client as u8, uncertain: false }
                        }
                        None => Client::Refused,
                    };
                }),
                sending @ Client::Sending { base, id, uncertain } => {
                    let request = Self::request(client, base, *id);
                    add("writes", &|after| {
                        let reply = self.replace(after, &request);
                        self.replied(client, sending, reply, after);
                    });
                    let lost = Client::LookingUp { base: base.clone(), id: *id };
                    if state.lost_replies > 0 {
                        add("writes, the reply is lost", &|after| {
                            after.lost_replies -= 1;
                            let _reply = self.replace(after, &request);
                            after.clients[client] = lost.clone();
                        });
                    }
                    // The request that never arrives is the delayed copy that is not delivered.
                    if state.delays > 0 {
                        add("writes, the request is late", &|after| {
                            after.delays -= 1;
                            after.network.push(request.clone());
                            after.network.sort();
                            after.clients[client] = lost.clone();
                        });
                    }
                    if *uncertain && state.give_ups > 0 {
                        add("gives up: busy", &|after| {
                            after.give_ups -= 1;
                            after.clients[client] = self.given_up();
                        });
                    }
                }
                Client::LookingUp { base, id } => {
                    add("looks", &|after| {
                        after.clients[client] = match &state.record {
                            Some(found) => self.rebase(base, *id, true, found, false),
                            None => Client::Refused,
                        };
                    });
                    if state.give_ups > 0 {
                        add("cannot look", &|after| {
                            after.give_ups -= 1;
                            after.clients[client] = self.given_up();
                        });
                    }
                }
                Client::Acknowledged | Client::Refused | Client::Unknown => {}
            }
        }
        for at in 0..state.network.len() {
            let mut after = state.clone();
            let request = after.network.remove(at);
            let _reply = self.replace(&mut after, &request);
            next.push((format!("the late copy of {:?} arrives", request.commits.last()), after));
        }
        if state.destroys > 0 && state.record.is_some() {
            let after = State { record: None, destroys: 0, ..state.clone() };
            next.push(("somebody destroys it".into(), after));
        }
    }

    fn wrong(&self, state: &State, _: bool) -> Option<String> {
        let record = state.record.as_ref()?;
        if state.destroys == 0 {
            return Some("it is back after a destroy".into());
        }
        for (client, count) in record.counts.iter().enumerate() {
            match state.clients[client] {
                _ if *count > 1 => return Some(format!("the increment of {client} is in it twice")),
                Client::Acknowledged if *count == 0 => {
                    return Some(format!("the increment of {client} is lost"));
                }
                Client::Refused if *count == 1 => {
                    return Some(format!("the refused increment of {client} is in it"));
                }
                _ => {}
            }
        }
        None
    }
}

impl Commits {
    fn given_up(&self) -> Client {
        if self.with(Rule::UnknownWhileACopyMayLand) { Client::Unknown } else { Client::Refused }
    }
}

#[test]
fn lost_replies() {
    every_rule_is_needed("lost replies", &RULES, 3_000_000, |without| Commits { without });
}
