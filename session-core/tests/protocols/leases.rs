//! Exclusive requests with leases that run out, beside a writer without a lock; on a store that fences, and
//! on one that does not.
//!
//! Each exclusive request does what must happen once (a payment): if nobody has paid, it pays and notes it.

use crate::bfs::{Model, every_rule_is_needed};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// A write names the version that it replaces.
    VersionsAreNamed,
    /// A write without the lock is refused while a lease is alive.
    PlainWritesAreFenced,
    /// A holder whose lease has run out is refused.
    StaleHoldersAreFenced,
    /// A release frees the lock of its own token.
    ReleaseComparesTokens,
    /// An exclusive request is never replayed.
    ExclusiveIsNotReplayed,
    /// A lock whose reply was lost is asked for again with the same token.
    AskedAgainWithTheSameToken,
    /// Who gives up asking releases what it may have been given.
    GivenUpIsReleased,
    /// The write comes before the release.
    WrittenBeforeReleased,
}

const FENCED: [Rule; 7] = [
    Rule::VersionsAreNamed,
    Rule::PlainWritesAreFenced,
    Rule::StaleHoldersAreFenced,
    Rule::ReleaseComparesTokens,
    Rule::AskedAgainWithTheSameToken,
    Rule::GivenUpIsReleased,
    Rule::WrittenBeforeReleased,
];

/// Where the version alone decides. (The lock itself is the same.)
const UNFENCED: [Rule; 2] = [Rule::VersionsAreNamed, Rule::ExclusiveIsNotReplayed];

/// The first two are exclusive, the last one only writes.
const CLIENTS: usize = 3;
const WRITER: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Record {
    version: u8,
    paid: bool,
    /// Whose changes are in it.
    from: [bool; CLIENTS],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Client {
    Asking {
        token: u8,
    },
    Holding {
        token: u8,
        base: Record,
        pays: bool,
    },
    /// The lock is released already; only without the rule.
    Unlocked {
        base: Record,
        pays: bool,
    },
    /// Gave up asking.
    GivingUp {
        token: u8,
    },
    /// Its write was refused, or it has nothing to write: the lock is to be released.
    Leaving {
        token: u8,
        acknowledged: bool,
    },
    Loading,
    Writing {
        base: Record,
    },
    Acknowledged,
    Refused,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    record: Record,
    next_version: u8,
    holder: Option<u8>,
    /// Whose leases have run out while they held the lock.
    late: [bool; CLIENTS],
    clients: [Client; CLIENTS],
    payments: [u8; CLIENTS],
    next_token: u8,
    lost_replies: u8,
    expiries: u8,
    give_ups: u8,
    /// An exclusive commit was refused though its lease was alive.
    crossed: bool,
}

struct Leases {
    fencing: bool,
    without: Option<Rule>,
}

impl Leases {
    fn with(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn write(&self, state: &mut State, client: usize, base: &Record, pays: bool) -> bool {
        if state.record.version != base.version && self.with(Rule::VersionsAreNamed) {
            return false;
        }
        let mut from = base.from;
        from[client] = true;
        state.record = Record { version: state.next_version, paid: base.paid || pays, from };
        state.next_version += 1;
        true
    }

    fn release(&self, state: &mut State, token: u8) {
        if state.holder == Some(token) || !self.with(Rule::ReleaseComparesTokens) {
            state.holder = None;
        }
    }

    /// `acquire_and_load`, and then the handler runs: it looks, and pays if nobody has.
    fn grant(state: &mut State, client: usize, token: u8) {
        state.holder = Some(token);
        state.late[client] = false;
        let base = state.record;
        let pays = client != WRITER && !base.paid;
        state.payments[client] += u8::from(pays);
        state.clients[client] = Client::Holding { token, base, pays };
    }

    fn commit(&self, state: &mut State, client: usize, token: u8, base: &Record, pays: bool) {
        let holds = state.holder == Some(token);
        if !holds && self.fencing && self.with(Rule::StaleHoldersAreFenced) {
            state.clients[client] = if client == WRITER { Client::Asking { token } } else { Client::Refused };
        } else if self.write(state, client, base, pays) {
            if holds {
                state.holder = None;
            }
            state.clients[client] = Client::Acknowledged;
        } else if client == WRITER || !self.with(Rule::ExclusiveIsNotReplayed) {
            // The effect has happened, and is told to have happened once more.
            state.clients[client] = Client::Holding { token, base: state.record, pays };
        } else {
            state.crossed |= !state.late[client];
            state.clients[client] = Client::Leaving { token, acknowledged: false };
        }
    }
}

impl Model for Leases {
    type State = State;

    fn first(&self) -> State {
        State {
            record: Record { version: 0, paid: false, from: [false; CLIENTS] },
            next_version: 1,
            holder: None,
            late: [false; CLIENTS],
            clients: [Client::Asking { token: 0 }, Client::Asking { token: 1 }, Client::Loading],
            payments: [0; CLIENTS],
            next_token: 3,
            lost_replies: 1,
            expiries: 2,
            give_ups: 1,
            crossed: false,
        }
    }

    fn next(&self, state: &State, next: &mut Vec<(String, State)>) {
        for client in 0..CLIENTS {
            let mut add = |what: &str, change: &dyn Fn(&mut State)| {
                let mut after = state.clone();
                change(&mut after);
                next.push((format!("{client} {what}"), after));
            };
            match state.clients[client] {
                Client::Asking { token } => {
                    let free = state.holder.is_none_or(|holder| holder == token);
                    if free {
                        add("is granted the lock", &|after| Self::grant(after, client, token));
                    }
                    if free && state.lost_replies > 0 {
                        add("is granted the lock, the reply is lost", &|after| {
                            after.lost_replies -= 1;
                            after.holder = Some(token);
                            if !self.with(Rule::AskedAgainWithTheSameToken) {
                                after.clients[client] = Client::Asking { token: after.next_token };
                                after.next_token += 1;
                            }
                        });
                    }
                    if state.give_ups > 0 {
                        add("gives up asking", &|after| {
                            after.give_ups -= 1;
                            after.clients[client] = match self.with(Rule::GivenUpIsReleased) {
                                true => Client::GivingUp { token },
                                false => Client::Refused,
                            };
                        });
                    }
                }
                Client::GivingUp { token } => add("releases what it may have", &|after| {
                    self.release(after, token);
                    after.clients[client] = Client::Refused;
                }),
                Client::Holding { token, base, pays } => {
                    if client != WRITER && !pays {
                        add("has nothing to write", &|after| {
                            after.clients[client] = Client::Leaving { token, acknowledged: true };
                        });
                    } else if self.with(Rule::WrittenBeforeReleased) {
                        add("writes and releases", &|after| self.commit(after, client, token, &base, pays));
                    } else {
                        add("releases", &|after| {
                            self.release(after, token);
                            after.clients[client] = Client::Unlocked { base, pays };
                        });
                    }
                }
                Client::Unlocked { base, pays } => add("writes after the release", &|after| {
                    let written = self.write(after, client, &base, pays);
                    after.crossed |= !written && !after.late[client];
                    after.clients[client] = if written { Client::Acknowledged } else { Client::Refused };
                }),
                Client::Leaving { token, acknowledged } => add("releases", &|after| {
                    self.release(after, token);
                    after.clients[client] = if acknowledged { Client::Acknowledged } else { Client::Refused };
                }),
                Client::Loading => add("loads", &|after| {
                    after.clients[client] = Client::Writing { base: after.record };
                }),
                Client::Writing { base } => add("writes", &|after| {
                    let fences = self.fencing && self.with(Rule::PlainWritesAreFenced);
                    let fenced = fences && after.holder.is_some();
                    after.clients[client] = if fenced {
                        Client::Asking { token: 2 }
                    } else if self.write(after, client, &base, false) {
                        Client::Acknowledged
                    } else {
                        Client::Loading // replayed on what it was refused with
                    };
                }),
                Client::Acknowledged | Client::Refused => {}
            }
        }
        if let Some(token) = state.holder.filter(|_| state.expiries > 0) {
            let mut after = state.clone();
            (after.holder, after.expiries) = (None, after.expiries - 1);
            for (client, late) in after.late.iter_mut().enumerate() {
                *late |=
                    matches!(state.clients[client], Client::Holding { token: held, .. } if held == token);
            }
            next.push((format!("the lease of token {token} runs out"), after));
        }
    }

    fn wrong(&self, state: &State, last: bool) -> Option<String> {
        for (client, told) in state.clients.iter().enumerate() {
            let changed = client == WRITER || state.payments[client] > 0;
            if *told == Client::Acknowledged && changed && !state.record.from[client] {
                return Some(format!("what {client} was acknowledged is lost"));
            }
        }
        let acknowledged = |client: &usize| state.clients[*client] == Client::Acknowledged;
        let paid: u8 = (0..WRITER).filter(acknowledged).map(|client| state.payments[client]).sum();
        if paid > 1 {
            return Some("paid twice, both reported committed".into());
        }
        let inside = |client: &&usize| matches!(state.clients[**client], Client::Holding { .. });
        if [0, 1].iter().filter(inside).filter(|client| !state.late[**client]).count() > 1 {
            return Some("two holders whose leases are alive".into());
        }
        if state.crossed && self.fencing {
            return Some("an exclusive commit was refused though its lease was alive".into());
        }
        if last && state.clients.iter().any(|client| matches!(client, Client::Asking { .. })) {
            return Some("somebody waits for a lock that nobody releases".into());
        }
        if last && state.holder.is_some() {
            return Some("a lock is left to its lease".into());
        }
        None
    }
}

#[test]
fn leases() {
    every_rule_is_needed("leases", &FENCED, 3_000_000, |without| Leases { fencing: true, without });
    every_rule_is_needed("unfenced leases", &UNFENCED, 3_000_000, |without| Leases {
        fencing: false,
        without,
    });
}

/// What no lock can give: a lease may run out between the effect and its commit. What is claimed by a commit
/// first happens once.
mod claims {
    use super::{Model, every_rule_is_needed};

    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Rule {
        /// The effect is claimed by a commit before it is performed.
        ClaimedFirst,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    enum Client {
        Asking,
        Holding { base: u8 },
        Performed { base: u8 },
        Claimed,
        Done,
    }

    #[derive(Clone, PartialEq, Eq, Hash, Debug)]
    struct State {
        version: u8,
        claimed: bool,
        holder: Option<usize>,
        clients: [Client; 2],
        effects: u8,
        expiries: u8,
    }

    struct Claims {
        without: Option<Rule>,
    }

    impl Model for Claims {
        type State = State;

        fn first(&self) -> State {
            State {
                version: 0,
                claimed: false,
                holder: None,
                clients: [Client::Asking; 2],
                effects: 0,
                expiries: 2,
            }
        }

        fn next(&self, state: &State, next: &mut Vec<(String, State)>) {
            for (client, at) in state.clients.iter().enumerate() {
                let mut after = state.clone();
                let what = match *at {
                    Client::Asking if state.holder.is_none() => {
                        after.holder = Some(client);
                        after.clients[client] = Client::Holding { base: state.version };
                        "is granted the lock"
                    }
                    Client::Holding { .. } if state.claimed => {
                        after.holder = state.holder.filter(|holder| *holder != client);
                        after.clients[client] = Client::Done;
                        "sees that it is done"
                    }
                    Client::Holding { base } if self.without == Some(Rule::ClaimedFirst) => {
                        after.effects += 1;
                        after.clients[client] = Client::Performed { base };
                        "pays"
                    }
                    Client::Holding { base } | Client::Performed { base } => {
                        let stored = state.holder == Some(client) && state.version == base;
                        if stored {
                            (after.version, after.claimed, after.holder) = (base + 1, true, None);
                        }
                        let claims = stored && matches!(at, Client::Holding { .. });
                        after.clients[client] = if claims { Client::Claimed } else { Client::Done };
                        if stored { "commits" } else { "is told that its lock is lost" }
                    }
                    Client::Claimed => {
                        after.effects += 1;
                        after.clients[client] = Client::Done;
                        "pays"
                    }
                    Client::Asking | Client::Done => continue,
                };
                next.push((format!("{client} {what}"), after));
            }
            if state.holder.is_some() && state.expiries > 0 {
                let after = State { holder: None, expiries: state.expiries - 1, ..state.clone() };
                next.push(("the lease runs out".into(), after));
            }
        }

        fn wrong(&self, state: &State, _: bool) -> Option<String> {
            (state.effects > 1).then(|| "paid twice".into())
        }
    }

    #[test]
    fn claims() {
        every_rule_is_needed("claims", &[Rule::ClaimedFirst], 100_000, |without| Claims { without });
    }
}
