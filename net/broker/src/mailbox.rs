//! How cores talk: typed letters over the rings of `heddle_io`.
//!
//! Owns the credits, the tickets that match a reply to its question, and the batching of wake-ups. Never handles a
//! request: [`crate::core`] does, with the [`Request`] that a [`Inbox`] hands it. Bytes cross as leases, never copied.
//!
//! ```text
//!   core A                                              core B
//!   ask(B, request) ── takes a credit ──▶ ring A→B ──▶  Inbox::next ── serve ──┐
//!   Ticket ◀── gives the credit back ◀──  ring B→A ◀── reply ◀────────────────┘
//! ```
//!
//! **No letter is ever refused by a full ring.** A question costs a credit, which comes back with its reply; a ring
//! has room for every question its sender may have open and for every reply its sender may owe. So replies never
//! wait, and a core that waits for a credit waits only for the other core's work.
//!
//! **No circle of waiting.** Only [`Request::Control`], which the first core alone serves, and nothing that it asks in
//! turn, may ask another core before it replies.
//!
//! **Questions of one core to another are served in the order in which they were asked**: the receiver polls each
//! once before it takes the next, and an append takes its place in the log at its first poll.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use heddle_io::Io;
use heddle_io::ring::{self, RingReceiver, RingSender};
use heddle_io::sync::{Notify, OneshotReceiver, OneshotSender, Semaphore, oneshot};

use crate::message::{Reply, Request, WakeRequest};

/// A core's number: 0 is the first, which also owns the metadata log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CoreIndex(pub(crate) usize);

/// The core that serves [`Request::Control`] and counts connections.
pub(crate) const FIRST_CORE: CoreIndex = CoreIndex(0);

/// What travels on a ring.
pub(crate) enum Letter {
    Ask { ticket: TicketIndex, request: Request },
    Reply { ticket: TicketIndex, reply: Reply },
}

/// A ring holds two thousand letters, and each pair of cores has two rings.
const _: () = assert!(size_of::<Letter>() <= 128);

/// Which open question of its asker a letter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TicketIndex(usize);

/// One core's ends of the rings, before the core exists: made on one thread, moved to another.
pub(crate) struct Wiring {
    own: CoreIndex,
    credits: usize,
    /// One for each core, in order; none for its own.
    ends: Vec<Option<(RingSender<Letter>, RingReceiver<Letter>)>>,
}

/// Rings from each of `cores` cores to each other, with `credits` questions open at a time.
pub(crate) fn wire(cores: usize, credits: usize) -> Vec<Wiring> {
    let mut senders: Vec<Vec<Option<RingSender<Letter>>>> = Vec::new();
    let mut receivers: Vec<Vec<Option<RingReceiver<Letter>>>> =
        (0..cores).map(|_| (0..cores).map(|_| None).collect()).collect();
    for from in 0..cores {
        senders.push(Vec::with_capacity(cores));
        for (to, receivers_of_to) in receivers.iter_mut().enumerate() {
            let sender = (from != to).then(|| {
                // Room for the questions of its sender, and for the replies that its sender owes.
                let (sender, receiver) = ring::channel(2 * credits);
                receivers_of_to[from] = Some(receiver);
                sender
            });
            senders[from].push(sender);
        }
    }
    let pairs = senders.into_iter().zip(receivers);
    pairs
        .enumerate()
        .map(|(own, (senders, receivers))| Wiring {
            own: CoreIndex(own),
            credits,
            ends: senders.into_iter().zip(receivers).map(|(sender, receiver)| sender.zip(receiver)).collect(),
        })
        .collect()
}

/// One core's way to all the others.
pub(crate) struct Mailbox {
    own: CoreIndex,
    peers: Vec<Option<Peer>>,
    /// Woken by the first letter of a turn; the courier then kicks every core that got one.
    to_deliver: Notify,
}

struct Peer {
    ring: RefCell<RingSender<Letter>>,
    credits: Semaphore,
    open: RefCell<Open>,
    /// Whether a letter was put into the ring since its reader was last kicked.
    unannounced: Cell<bool>,
    wakes: RefCell<Vec<Wake>>,
}

/// A long poll of another core that this core's partition has news for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wake {
    /// The number that the waiting core gave its poll.
    pub(crate) poll: u64,
    /// Which of the poll's partitions changed.
    pub(crate) slot: usize,
}

/// Open questions by ticket; a ticket is used again once it is answered.
#[derive(Default)]
struct Open {
    waiting: Vec<Option<OneshotSender<Reply>>>,
    free: Vec<usize>,
}

impl Open {
    fn insert(&mut self, asker: OneshotSender<Reply>) -> TicketIndex {
        if let Some(index) = self.free.pop() {
            self.waiting[index] = Some(asker);
            return TicketIndex(index);
        }
        self.waiting.push(Some(asker));
        TicketIndex(self.waiting.len() - 1)
    }

    fn remove(&mut self, TicketIndex(index): TicketIndex) -> OneshotSender<Reply> {
        let asker = self.waiting[index].take().expect("each question is answered once");
        self.free.push(index);
        asker
    }
}

/// An answer that will come.
pub(crate) struct Ticket {
    reply: OneshotReceiver<Reply>,
}

impl Ticket {
    /// The answer.
    pub(crate) async fn reply(self) -> Reply {
        self.reply.await.expect("a core answers every question before it stops")
    }
}

/// One core's end of the ring from one other core.
pub(crate) struct Inbox {
    pub(crate) from: CoreIndex,
    ring: RingReceiver<Letter>,
}

impl Inbox {
    /// The next question of the other core; nothing when that core is gone. Its replies to our own questions are handed
    /// to their askers on the way.
    pub(crate) async fn next(&mut self, mailbox: &Mailbox) -> Option<(TicketIndex, Request)> {
        loop {
            match self.ring.recv().await? {
                Letter::Ask { ticket, request } => return Some((ticket, request)),
                Letter::Reply { ticket, reply } => mailbox.complete(self.from, ticket, reply),
            }
        }
    }
}

impl Mailbox {
    /// The mailbox and inboxes of the core that `wiring` belongs to.
    pub(crate) fn new(wiring: Wiring) -> (Rc<Self>, Vec<Inbox>) {
        let mut inboxes = Vec::new();
        let mut peers = Vec::new();
        for (index, ends) in wiring.ends.into_iter().enumerate() {
            peers.push(ends.map(|(sender, ring)| {
                inboxes.push(Inbox { from: CoreIndex(index), ring });
                Peer::new(sender, wiring.credits)
            }));
        }
        (Rc::new(Self { own: wiring.own, peers, to_deliver: Notify::new() }), inboxes)
    }

    /// The core this mailbox belongs to.
    pub(crate) fn own(&self) -> CoreIndex {
        self.own
    }

    /// How many cores there are, this one included.
    pub(crate) fn cores(&self) -> usize {
        self.peers.len()
    }

    /// Asks another core, as soon as a credit is free. Returns when the question is in the ring, so that two questions
    /// put one after the other are served in that order.
    ///
    /// # Panics
    /// When `to` is the mailbox' own core.
    pub(crate) async fn post(&self, to: CoreIndex, request: Request) -> Ticket {
        let peer = self.peer(to);
        peer.credits.acquire(1).await.forget();
        let (asker, reply) = oneshot();
        let ticket = peer.open.borrow_mut().insert(asker);
        self.put(peer, Letter::Ask { ticket, request });
        Ticket { reply }
    }

    /// Answers a question of another core.
    pub(crate) fn reply(&self, to: CoreIndex, ticket: TicketIndex, reply: Reply) {
        self.put(self.peer(to), Letter::Reply { ticket, reply });
    }

    /// Notes that a long poll of another core has news. What gathers while no credit is free goes in one letter.
    pub(crate) fn wake(self: &Rc<Self>, io: &Io, to: CoreIndex, wake: Wake) {
        let mut wakes = self.peer(to).wakes.borrow_mut();
        wakes.push(wake);
        if wakes.len() == 1 {
            let mailbox = Rc::clone(self);
            drop(io.spawn(async move { mailbox.send_wakes(to).await }));
        }
    }

    async fn send_wakes(&self, to: CoreIndex) {
        let peer = self.peer(to);
        peer.credits.acquire(1).await.forget();
        let (asker, reply) = oneshot();
        let ticket = peer.open.borrow_mut().insert(asker);
        let wakes = peer.wakes.take();
        self.put(peer, Letter::Ask { ticket, request: Request::Wake(WakeRequest(wakes)) });
        Ticket { reply }.reply().await;
    }

    fn complete(&self, from: CoreIndex, ticket: TicketIndex, reply: Reply) {
        let peer = self.peer(from);
        let asker = peer.open.borrow_mut().remove(ticket);
        peer.credits.add(1);
        // Nobody waits any more when the connection that asked is gone.
        let _ = asker.send(reply);
    }

    fn put(&self, peer: &Peer, letter: Letter) {
        let mut ring = peer.ring.borrow_mut();
        let refused = ring.try_send(letter).is_err();
        assert!(!refused || ring.is_closed(), "credits keep the ring from filling up");
        drop(ring);
        if !peer.unannounced.replace(true) {
            self.to_deliver.notify_one();
        }
    }

    /// Kicks, once a turn, the cores that got letters in that turn. Runs for as long as the core does.
    pub(crate) async fn deliver(&self, io: &Io) {
        loop {
            while !self.peers.iter().flatten().any(|peer| peer.unannounced.get()) {
                self.to_deliver.wait().await;
            }
            // What else is ready in this turn may write letters, too.
            io.yield_now().await;
            for peer in self.peers.iter().flatten() {
                if peer.unannounced.replace(false) {
                    peer.ring.borrow_mut().flush_wakeups();
                }
            }
        }
    }

    fn peer(&self, to: CoreIndex) -> &Peer {
        self.peers[to.0].as_ref().expect("a core does not write letters to itself")
    }
}

impl Peer {
    fn new(ring: RingSender<Letter>, credits: usize) -> Self {
        Self {
            ring: RefCell::new(ring),
            credits: Semaphore::new(credits),
            open: RefCell::default(),
            unannounced: Cell::new(false),
            wakes: RefCell::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use heddle_io::sim::Simulator;
    use heddle_protocol::ErrorCode;
    use heddle_record::{LeaderEpoch, LogId, Offset, PartitionIndex, TopicId};

    use super::*;
    use crate::message::{Ask as _, EpochEnd, EpochEndsRequest, EpochQuestion, WakeRequest};

    const CORES: usize = 3;
    const CREDITS: usize = 16;
    const QUESTIONS: i64 = 400;

    fn question(number: i64) -> Request {
        let log = LogId { topic: TopicId::new([7; 16]), partition: PartitionIndex::new(0) };
        let epoch = LeaderEpoch::new(i32::try_from(number).expect("a small number"));
        EpochEndsRequest { entries: vec![EpochQuestion { log, current_leader_epoch: None, epoch }] }.into_request()
    }

    fn number_of(request: &Request) -> i64 {
        match request {
            Request::EpochEnds(EpochEndsRequest { entries }) => i64::from(entries[0].epoch.get()),
            _ => panic!("only these questions are asked here"),
        }
    }

    fn answer(number: i64) -> Vec<Result<EpochEnd, ErrorCode>> {
        vec![Ok(EpochEnd { epoch: None, end: Some(Offset::new(number)) })]
    }

    /// Serves questions: each at its own pace, and notes the order in which they came.
    async fn serve(io: Io, mailbox: Rc<Mailbox>, mut inbox: Inbox, woken: Rc<RefCell<Vec<Wake>>>) {
        let mut expected = 0;
        while let Some((ticket, request)) = inbox.next(&mailbox).await {
            if let Request::Wake(WakeRequest(wakes)) = request {
                woken.borrow_mut().extend(wakes);
                mailbox.reply(inbox.from, ticket, Reply::Wake(()));
                continue;
            }
            let number = number_of(&request);
            assert_eq!(number, expected, "questions come in the order in which they were asked");
            expected += 1;
            let (io_of_task, mailbox, from) = (io.clone(), Rc::clone(&mailbox), inbox.from);
            drop(io.spawn(async move {
                io_of_task.sleep(Duration::from_micros(io_of_task.random_u64() % 50)).await;
                mailbox.reply(from, ticket, Reply::EpochEnds(answer(number)));
            }));
        }
    }

    /// Asks every other core, more at a time than there are credits, and drops some of the tickets.
    async fn ask(io: Io, mailbox: Rc<Mailbox>) {
        let mut asked = Vec::new();
        for number in 0..QUESTIONS {
            for to in (0..CORES).map(CoreIndex).filter(|to| *to != mailbox.own()) {
                let ticket = mailbox.post(to, question(number)).await;
                if io.random_u64().is_multiple_of(8) {
                    drop(ticket);
                } else {
                    asked.push((number, ticket));
                }
                mailbox.wake(&io, to, Wake { poll: number.unsigned_abs(), slot: 0 });
            }
        }
        for (number, ticket) in asked {
            let answered = EpochEndsRequest::answer(ticket.reply().await);
            assert_eq!(answered, Some(answer(number)), "each gets its own answer");
        }
    }

    /// The protocol of credits and tickets, on many schedules: no ring fills up, nothing waits for ever, questions keep
    /// their order, answers find their askers. The ring itself is loom's subject, in `heddle_io`.
    #[test]
    fn every_question_is_answered_in_its_turn() {
        for seed in 0..20 {
            let simulator = Simulator::new(seed);
            let host = simulator.host("broker");
            let mut asking = Vec::new();
            let mut wakes = Vec::new();
            let first = host.start_core();
            for (index, wiring) in wire(CORES, CREDITS).into_iter().enumerate() {
                let io = if index == 0 { first.clone() } else { host.start_core() };
                let (mailbox, inboxes) = Mailbox::new(wiring);
                for inbox in inboxes {
                    let woken = Rc::new(RefCell::new(Vec::new()));
                    wakes.push(Rc::clone(&woken));
                    drop(io.spawn(serve(io.clone(), Rc::clone(&mailbox), inbox, woken)));
                }
                let (delivering, io_of_task) = (Rc::clone(&mailbox), io.clone());
                drop(io.spawn(async move { delivering.deliver(&io_of_task).await }));
                asking.push(io.spawn(ask(io.clone(), mailbox)));
            }
            let all_asked = async move {
                for task in asking {
                    task.await;
                }
            };
            assert_eq!(simulator.run(&first, all_asked), Ok(()), "seed {seed}");
            simulator.run_for(Duration::from_secs(1));
            for woken in wakes {
                assert_eq!(woken.borrow().len(), QUESTIONS as usize, "every wake arrives, seed {seed}");
            }
        }
    }
}
