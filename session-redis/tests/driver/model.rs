//! The queue's protocol as a model, all of whose states are visited: four clients, two faults of any kind,
//! time in ticks.
//!
//! What the scripts do in one step is one step here, written after them line by line. With all rules, no
//! state breaks a promise. Each rule is then taken away, and a state that breaks a promise is found: so the
//! rule is needed, and the model would have noticed.

use std::collections::{HashMap, VecDeque};

const CLIENTS: usize = 4;
const FAULTS: u8 = 2;
/// How long a lease lasts, and how long a holder works at most.
const LEASE: u8 = 6;
const WORK: u8 = 1;

/// The rules, each of which can be taken away.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// Who polls and has a ticket does not take another.
    one_ticket: bool,
    /// A free lock goes to the first living ticket, whoever finds it free.
    queue_before_new: bool,
    /// Who is told that the lock was handed over asks, and enters only if granted.
    ask_on_message: bool,
    /// Who gives up passes on what it was given.
    cancel_passes_on: bool,
    /// A ticket counts only as long as its waiter was heard of.
    heartbeat: bool,
    /// What was handed over and not claimed passes on.
    claim_ends: bool,
    /// In ticks.
    poll: u8,
    claim: u8,
    alive: u8,
}

/// As they are: poll twice within a claim, and a heartbeat no longer than the claim.
const ALL: Rules = Rules {
    one_ticket: true,
    queue_before_new: true,
    ask_on_message: true,
    cancel_passes_on: true,
    heartbeat: true,
    claim_ends: true,
    poll: 1,
    claim: 2,
    alive: 2,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// Asleep until the next poll; if it stands still (a fault), for so long.
    Waiting {
        poll: u8,
        still: u8,
    },
    /// Inside, for so long at most.
    Holding {
        work: u8,
    },
    /// Inside past its lease: it will try to release late.
    Late,
    /// Killed.
    Dead,
    /// Served, or gone.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Word {
    HandedOver,
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// Who, for how long, and whether it was claimed.
    lock: Option<(u8, u8, bool)>,
    queue: Vec<u8>,
    /// For how long each ticket still counts as alive.
    tickets: [Option<u8>; CLIENTS],
    clients: [Phase; CLIENTS],
    /// Messages under way.
    messages: [Option<Word>; CLIENTS],
    /// Those who wait, in the order in which they came, and whether they stood still: then no place is
    /// promised.
    order: Vec<(u8, bool)>,
    record: bool,
    faults: u8,
    /// For how long nobody was inside though somebody waits, since the last fault and the last lease.
    idle: u8,
}

#[derive(Debug)]
struct Broken(&'static str);

type Next = Result<State, Broken>;

impl State {
    fn new() -> Self {
        Self {
            lock: None,
            queue: Vec::new(),
            tickets: [None; CLIENTS],
            clients: [Phase::Idle; CLIENTS],
            messages: [None; CLIENTS],
            order: Vec::new(),
            record: true,
            faults: FAULTS,
            idle: 0,
        }
    }

    // The scripts.

    fn drop_ticket(&mut self, c: u8) {
        self.queue.retain(|ticket| *ticket != c);
        self.tickets[usize::from(c)] = None;
    }

    fn alive(&self, c: u8, rules: &Rules) -> bool {
        self.tickets[usize::from(c)].is_some_and(|left| left > 0 || !rules.heartbeat)
    }

    fn pass(&mut self, rules: &Rules) {
        while !self.queue.is_empty() {
            let ticket = self.queue.remove(0);
            let alive = self.alive(ticket, rules);
            self.tickets[usize::from(ticket)] = None;
            if alive {
                self.lock = Some((ticket, if rules.claim_ends { rules.claim } else { LEASE * 2 }, false));
                self.messages[usize::from(ticket)] = Some(Word::HandedOver);
                return;
            }
        }
        self.lock = None;
        self.tickets = [None; CLIENTS];
    }

    fn acquire(mut self, c: u8, rules: &Rules) -> Next {
        let me = usize::from(c);
        if !self.record {
            self.drop_ticket(c);
            if self.lock.is_some_and(|(owner, ..)| owner == c) {
                self.pass(rules);
            }
            return Ok(self.leave(c));
        }
        let mut granted = self.lock.is_some_and(|(owner, ..)| owner == c);
        if self.lock.is_none() {
            while let Some(head) = self.queue.first().copied().filter(|head| *head != c) {
                if self.alive(head, rules) {
                    break;
                }
                self.queue.remove(0);
                self.tickets[usize::from(head)] = None;
            }
            let head = self.queue.first().copied();
            if head == Some(c) {
                self.drop_ticket(c);
            }
            if head.is_none_or(|head| head == c) || !rules.queue_before_new {
                granted = true;
            } else {
                self.pass(rules);
            }
        }
        if granted {
            self.lock = Some((c, LEASE, true));
            return self.enter(c);
        }
        let known = self.tickets[me].is_some();
        let place = self.order.iter().position(|(waiter, _)| *waiter == c);
        match place {
            None => self.order.push((c, false)),
            Some(place) if !known && self.order[place].1 => {
                let last = self.order.remove(place);
                self.order.push(last);
            }
            Some(_) => {}
        }
        if !known || !rules.one_ticket {
            if rules.one_ticket {
                self.queue.retain(|ticket| *ticket != c);
            }
            self.queue.push(c);
        }
        self.tickets[me] = Some(rules.alive);
        self.clients[me] = Phase::Waiting { poll: rules.poll, still: 0 };
        Ok(self)
    }

    /// By its owner; by others it changes nothing.
    fn release(mut self, c: u8, rules: &Rules, pass_on: bool) -> Self {
        self.drop_ticket(c);
        if pass_on && self.lock.is_some_and(|(owner, ..)| owner == c) {
            self.pass(rules);
        }
        self.leave(c)
    }

    // The clients.

    fn enter(mut self, c: u8) -> Next {
        let mut before = self.order.iter().take_while(|(waiter, _)| *waiter != c);
        if before.any(|(_, stood_still)| !stood_still) {
            return Err(Broken("overtaken"));
        }
        self.no_longer_waits(c);
        self.clients[usize::from(c)] = Phase::Holding { work: WORK };
        self.idle = 0;
        Ok(self)
    }

    fn leave(mut self, c: u8) -> Self {
        self.clients[usize::from(c)] = Phase::Done;
        self.no_longer_waits(c);
        self
    }

    fn no_longer_waits(&mut self, c: u8) {
        self.order.retain(|(waiter, _)| *waiter != c);
    }

    fn fault(&self) -> Option<Self> {
        let mut next = self.clone();
        next.faults = next.faults.checked_sub(1)?;
        next.idle = 0;
        Some(next)
    }

    /// Time goes on; not before everybody has done what is due.
    fn tick(&self, rules: &Rules) -> Option<Next> {
        let due = self.clients.iter().any(|client| {
            matches!(client, Phase::Waiting { poll: 0, still: 0 } | Phase::Holding { work: 0 })
        });
        if due {
            return None;
        }
        let mut next = self.clone();
        for client in &mut next.clients {
            match client {
                Phase::Waiting { still: still @ 1.., .. } => *still -= 1,
                Phase::Waiting { poll, .. } => *poll = poll.saturating_sub(1),
                Phase::Holding { work } => *work = work.saturating_sub(1),
                _ => {}
            }
        }
        for left in next.tickets.iter_mut().flatten() {
            *left = left.saturating_sub(1);
        }
        // A lock that a dead or late holder had is nobody's fault until its lease ends.
        let unavoidable = self.lock.is_some_and(|(owner, _, claimed)| {
            matches!(self.clients[usize::from(owner)], Phase::Dead | Phase::Late) && claimed
        });
        if let Some((owner, left, _)) = &mut next.lock {
            *left -= 1;
            if *left == 0 {
                if let Phase::Holding { .. } = next.clients[usize::from(*owner)] {
                    next.clients[usize::from(*owner)] = Phase::Late;
                }
                next.lock = None;
                next.idle = if unavoidable { 0 } else { next.idle };
            }
        }
        let inside = next.clients.iter().any(|client| matches!(client, Phase::Holding { .. }));
        let somebody = next.order.iter().any(|(_, stood_still)| !stood_still);
        next.idle = if inside || unavoidable || !somebody { 0 } else { next.idle + 1 };
        if next.idle > rules.claim + rules.poll {
            return Some(Err(Broken("kept waiting")));
        }
        Some(Ok(next))
    }

    fn check(self) -> Next {
        let holders =
            self.clients.iter().enumerate().filter(|(_, client)| matches!(client, Phase::Holding { .. }));
        for (c, _) in holders {
            if self.lock.is_none_or(|(owner, ..)| usize::from(owner) != c) {
                return Err(Broken("two holders"));
            }
        }
        for c in 0..CLIENTS as u8 {
            if self.queue.iter().filter(|ticket| **ticket == c).count() > 1 {
                return Err(Broken("ghosts in the queue"));
            }
        }
        let over = self.clients.iter().all(|client| matches!(client, Phase::Done));
        if over && !self.queue.is_empty() {
            return Err(Broken("a ticket left behind")); // a lock ends with its lease
        }
        Ok(self)
    }

    /// Everything that can happen next.
    fn next(&self, rules: &Rules) -> Vec<(String, Next)> {
        let mut all: Vec<(String, Next)> = Vec::new();
        let mut add = |what: String, next: Next| all.push((what, next.and_then(State::check)));
        for c in 0..CLIENTS as u8 {
            let me = usize::from(c);
            match self.clients[me] {
                // They differ in nothing but their numbers: the first to come is 0.
                Phase::Idle if self.clients[..me].contains(&Phase::Idle) => {}
                Phase::Idle => add(format!("{c} asks"), self.clone().acquire(c, rules)),
                Phase::Waiting { poll, still: 0 } => {
                    if poll == 0 {
                        add(format!("{c} polls"), self.clone().acquire(c, rules));
                    }
                    if let Some(word) = self.messages[me] {
                        let mut told = self.clone();
                        told.messages[me] = None;
                        let next = if rules.ask_on_message || word == Word::Gone {
                            told.acquire(c, rules)
                        } else {
                            told.drop_ticket(c);
                            told.enter(c)
                        };
                        add(format!("{c} is told"), next);
                    }
                }
                Phase::Holding { .. } | Phase::Late => {
                    add(format!("{c} releases"), Ok(self.clone().release(c, rules, true)));
                }
                _ => {}
            }
            if let Some(fault) = self.fault() {
                self.faults_of(c, fault, rules, &mut add);
            }
        }
        if let Some(mut fault) = self.fault().filter(|fault| fault.record) {
            fault.record = false;
            fault.order.clear(); // nobody waits for anything any more
            for c in 0..CLIENTS {
                if fault.tickets[c].is_some() {
                    fault.messages[c] = Some(Word::Gone);
                }
            }
            add("destroy".to_owned(), Ok(fault));
        }
        if let Some(next) = self.tick(rules) {
            add("tick".to_owned(), next);
        }
        all
    }

    fn faults_of(&self, c: u8, fault: Self, rules: &Rules, add: &mut impl FnMut(String, Next)) {
        let me = usize::from(c);
        let waiting = matches!(self.clients[me], Phase::Waiting { .. });
        if waiting || matches!(self.clients[me], Phase::Holding { .. }) {
            let mut dead = fault.clone();
            dead.clients[me] = Phase::Dead;
            dead.no_longer_waits(c);
            add(format!("{c} dies"), Ok(dead));
            add(format!("{c} gives up"), Ok(fault.clone().release(c, rules, rules.cancel_passes_on)));
        }
        if waiting && self.messages[me].is_some() {
            let mut lost = fault.clone();
            lost.messages[me] = None;
            add(format!("the message to {c} is lost"), Ok(lost));
        }
        match self.clients[me] {
            Phase::Waiting { poll, still: 0 } => {
                let mut still = fault.clone();
                // Long enough to lose both its claim and its heartbeat; its place is then no longer promised.
                let long = rules.claim.max(rules.alive) + 1;
                still.clients[me] = Phase::Waiting { poll, still: long };
                for (waiter, stood_still) in &mut still.order {
                    *stood_still |= *waiter == c;
                }
                add(format!("{c} stands still"), Ok(still));
            }
            Phase::Holding { .. } => {
                let mut late = fault;
                late.clients[me] = Phase::Late;
                add(format!("{c} works past its lease"), Ok(late));
            }
            _ => {}
        }
    }
}

/// Visits all states; how many there are, or the shortest way to one that breaks a promise.
fn explore(rules: &Rules) -> Result<usize, (&'static str, Vec<String>)> {
    let mut seen: HashMap<State, Option<(State, String)>> = HashMap::from([(State::new(), None)]);
    let mut open = VecDeque::from([State::new()]);
    while let Some(state) = open.pop_front() {
        for (what, next) in state.next(rules) {
            match next {
                Ok(next) if !seen.contains_key(&next) => {
                    seen.insert(next.clone(), Some((state.clone(), what)));
                    open.push_back(next);
                }
                Ok(_) => {}
                Err(Broken(promise)) => {
                    let mut way = vec![what];
                    let mut at = &state;
                    while let Some(Some((before, what))) = seen.get(at) {
                        way.push(what.clone());
                        at = before;
                    }
                    way.reverse();
                    return Err((promise, way));
                }
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn with_all_rules_every_promise_is_kept() {
    let states = explore(&ALL).unwrap_or_else(|(promise, way)| panic!("{promise}: {way:#?}"));
    println!("{states} states");
    assert!(states > 10_000, "too few to mean anything: {states}");
}

#[test]
fn without_a_rule_a_promise_is_broken() {
    for (rule, rules, promise) in [
        ("one ticket", Rules { one_ticket: false, ..ALL }, "ghosts in the queue"),
        ("the queue before who is new", Rules { queue_before_new: false, ..ALL }, "overtaken"),
        ("ask on a message", Rules { ask_on_message: false, ..ALL }, "two holders"),
        ("pass on when giving up", Rules { cancel_passes_on: false, ..ALL }, "kept waiting"),
        ("heartbeat", Rules { heartbeat: false, ..ALL }, "kept waiting"),
        ("heartbeat no longer than the claim", Rules { alive: 4, ..ALL }, "kept waiting"),
        ("a claim ends", Rules { claim_ends: false, ..ALL }, "kept waiting"),
        ("poll within the claim", Rules { poll: 3, alive: 4, ..ALL }, "overtaken"),
    ] {
        let (broken, way) = explore(&rules).expect_err(rule);
        println!("without {rule:?}, {broken}: {}", way.join("; "));
        assert_eq!(broken, promise, "{rule}: {way:?}");
    }
}
