//! The network between simulated hosts: listeners, and connections that behave as TCP's do.
//!
//! Owns what is on its way and what waits in sockets. Never knows tasks or the clock: every call says what time it is, and
//! leaves in [`Network::outputs`] what is to be told to whom and what arrives when.
//!
//! What a connection promises: bytes arrive in order, once, or the connection ends. What it does not: pieces are cut
//! and joined on the way, a window bounds what is under way, a link may hold everything back ([`Network::cut_link`]), a
//! connection may be reset, and a host that lost its power says nothing at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::random::Random;
use super::request::Errno;

/// A simulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostId(pub(crate) u32);

impl HostId {
    /// The address by which other hosts reach it.
    pub(crate) fn address(self) -> Ipv4Addr {
        let [_, high, middle, low] = (self.0 + 1).to_be_bytes();
        Ipv4Addr::new(10, high, middle, low)
    }
}

/// An operation that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndpointId(u64);

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ListenerId(u64);

/// How the network behaves.
#[derive(Clone, Copy, Debug)]
pub struct NetworkTiming {
    /// Time from one host to another, drawn evenly for each packet.
    pub latency: (Duration, Duration),
    /// Time within a host.
    pub loopback: (Duration, Duration),
    /// Bytes of one direction of a connection that may be sent and not yet received.
    pub window_bytes: usize,
    /// How long `connect` tries to reach a host that says nothing.
    pub connect_timeout: Duration,
    /// Whether peers of a host that lost power hear nothing until it is up again, as in life. If not, they are told at once.
    pub silent_power_cuts: bool,
    /// Of a thousand data packets, how many reset their connection.
    pub resets_per_mille: u64,
}

impl Default for NetworkTiming {
    fn default() -> NetworkTiming {
        NetworkTiming {
            latency: (Duration::from_micros(50), Duration::from_micros(500)),
            loopback: (Duration::from_micros(5), Duration::from_micros(50)),
            window_bytes: 128 << 10,
            connect_timeout: Duration::from_secs(10),
            silent_power_cuts: false,
            resets_per_mille: 0,
        }
    }
}

/// What an operation got.
#[derive(Debug)]
pub(crate) enum NetworkReply {
    /// A connection, by `connect` or `accept`.
    Connected {
        endpoint: EndpointId,
        local: SocketAddr,
        peer: SocketAddr,
    },
    /// Bytes; none at the end of the stream.
    Received(Vec<u8>),
    Sent,
    Failed(Errno),
}

impl NetworkReply {
    /// A number for the trace.
    pub(crate) fn digest(&self) -> u64 {
        match self {
            NetworkReply::Connected { local, peer, .. } => {
                1 << 40 | u64::from(local.port()) << 16 | u64::from(peer.port())
            }
            NetworkReply::Received(bytes) => 2 << 40 | super::request::digest_of(bytes),
            NetworkReply::Sent => 3 << 40,
            NetworkReply::Failed(errno) => 4 << 40 | errno.0 as u64,
        }
    }
}

/// What has to be done in the network's name.
#[derive(Debug)]
pub(crate) enum Output {
    /// Tell whoever waits.
    Finish(Ticket, NetworkReply),
    /// Call [`Network::arrive`] with the packet at this time.
    Deliver(u64, Packet),
}

/// Something under way from one host to another.
#[derive(Debug)]
pub(crate) struct Packet {
    from: HostId,
    to: HostId,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Connect {
        client: EndpointId,
        from: SocketAddr,
        to: SocketAddr,
    },
    Accepted {
        client: EndpointId,
        server: EndpointId,
    },
    Refused {
        client: EndpointId,
    },
    /// Never travels: the client's own patience.
    Impatience {
        client: EndpointId,
    },
    Data {
        endpoint: EndpointId,
        sender: EndpointId,
        sequence: u64,
        bytes: Vec<u8>,
    },
    End {
        endpoint: EndpointId,
        sequence: u64,
    },
    Reset {
        endpoint: EndpointId,
    },
}

struct Listening {
    host: HostId,
    address: SocketAddr,
    reuse_port: bool,
    backlog_max: usize,
    backlog: VecDeque<EndpointId>,
    accepting: VecDeque<Ticket>,
}

struct Endpoint {
    host: HostId,
    local: SocketAddr,
    peer: SocketAddr,
    peer_host: HostId,
    /// `None` until the connection stands.
    other: Option<EndpointId>,
    connecting: Option<Ticket>,
    sending: VecDeque<Sending>,
    /// Packets sent, and the number of the next.
    sent: u64,
    /// Bytes sent that the peer's process has not received.
    window_used: usize,
    received: VecDeque<u8>,
    /// Number of the packet that comes next; later ones wait in `early`.
    expected: u64,
    early: BTreeMap<u64, Option<Vec<u8>>>,
    peer_ended: bool,
    receiving: VecDeque<(Ticket, usize)>,
    shut: bool,
    reset: bool,
}

struct Sending {
    ticket: Ticket,
    bytes: Vec<u8>,
    sent: usize,
}

/// All listeners and connections.
pub(crate) struct Network {
    timing: NetworkTiming,
    random: Random,
    listeners: BTreeMap<ListenerId, Listening>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    hosts_up: BTreeSet<HostId>,
    links_cut: BTreeSet<(HostId, HostId)>,
    /// What arrived at a cut link or a host without power; it is sent again when that is over.
    held: Vec<Packet>,
    id_next: u64,
    port_next: u16,
    /// What the calls so far ask for, in order; the caller takes it after each call.
    pub(crate) outputs: Vec<Output>,
}

impl Network {
    pub(crate) fn new(random: Random) -> Network {
        Network {
            timing: NetworkTiming::default(),
            random,
            listeners: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            hosts_up: BTreeSet::new(),
            links_cut: BTreeSet::new(),
            held: Vec::new(),
            id_next: 0,
            port_next: 32_768,
            outputs: Vec::new(),
        }
    }

    pub(crate) fn set_timing(&mut self, timing: NetworkTiming) {
        self.timing = timing;
    }

    /// A host has power and answers.
    pub(crate) fn host_up(&mut self, now: u64, host: HostId) {
        self.hosts_up.insert(host);
        self.send_held_again(now);
    }

    /// The process died: its kernel closes its sockets, and peers hear of it.
    pub(crate) fn process_gone(&mut self, now: u64, host: HostId) {
        self.listeners.retain(|_, listening| listening.host != host);
        for id in self.endpoints_of(host) {
            self.close_endpoint(now, id);
        }
    }

    /// Power is gone: connections are forgotten, and whether peers hear of it is a matter of
    /// [`NetworkTiming::silent_power_cuts`].
    pub(crate) fn host_down(&mut self, now: u64, host: HostId) {
        self.hosts_up.remove(&host);
        self.listeners.retain(|_, listening| listening.host != host);
        for id in self.endpoints_of(host) {
            let endpoint = self.endpoints.remove(&id).expect("just listed");
            if let (Some(other), false) = (endpoint.other, self.timing.silent_power_cuts) {
                self.send(now, host, endpoint.peer_host, Content::Reset { endpoint: other });
            }
        }
    }

    /// Packets from `from` to `to` are held back from now on.
    pub(crate) fn cut_link(&mut self, from: HostId, to: HostId) {
        self.links_cut.insert((from, to));
    }

    /// All links work again; what was held back is sent again.
    pub(crate) fn heal(&mut self, now: u64) {
        self.links_cut.clear();
        self.send_held_again(now);
    }

    /// Resets every connection between two hosts.
    pub(crate) fn reset_between(&mut self, a: HostId, b: HostId) {
        let between = |endpoint: &Endpoint| {
            (endpoint.host == a && endpoint.peer_host == b) || (endpoint.host == b && endpoint.peer_host == a)
        };
        let ids: Vec<_> = self.endpoints.iter().filter(|(_, endpoint)| between(endpoint)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.reset(id));
    }

    /// Listens on `address` of `host`; port 0 chooses one. Answers the listener and its full address.
    pub(crate) fn listen(
        &mut self,
        host: HostId,
        address: SocketAddr,
        reuse_port: bool,
        backlog_max: usize,
    ) -> Result<(ListenerId, SocketAddr), Errno> {
        let ip = address.ip();
        if !(ip.is_unspecified() || ip.is_loopback() || ip == IpAddr::V4(host.address())) {
            return Err(Errno(libc::EADDRNOTAVAIL));
        }
        let port = if address.port() == 0 { self.new_port() } else { address.port() };
        let conflicts = |other: &Listening| {
            other.host == host
                && other.address.port() == port
                && (other.address.ip() == ip || other.address.ip().is_unspecified() || ip.is_unspecified())
                && !(other.reuse_port && reuse_port)
        };
        if self.listeners.values().any(conflicts) {
            return Err(Errno(libc::EADDRINUSE));
        }
        let (id, address) = (ListenerId(self.new_id()), SocketAddr::new(ip, port));
        let (backlog, accepting) = (VecDeque::new(), VecDeque::new());
        self.listeners.insert(id, Listening { host, address, reuse_port, backlog_max, backlog, accepting });
        Ok((id, address))
    }

    /// Closes a listener; connections that nobody accepted are reset.
    pub(crate) fn close_listener(&mut self, now: u64, id: ListenerId) {
        if let Some(listening) = self.listeners.remove(&id) {
            for endpoint in listening.backlog {
                self.abort(now, endpoint);
            }
        }
    }

    pub(crate) fn accept(&mut self, id: ListenerId, ticket: Ticket) {
        let Some(listening) = self.listeners.get_mut(&id) else { return self.fail(ticket, libc::EBADF) };
        listening.accepting.push_back(ticket);
        self.match_accepts(id);
    }

    pub(crate) fn connect(&mut self, now: u64, host: HostId, to: SocketAddr, ticket: Ticket) {
        let ip = to.ip();
        let (from, peer_host) = match self.host_of(host, ip) {
            Some(peer) if ip.is_loopback() || ip.is_unspecified() => (ip, peer),
            Some(peer) => (IpAddr::V4(host.address()), peer),
            None => return self.fail(ticket, libc::ENETUNREACH),
        };
        let local = SocketAddr::new(from, self.new_port());
        let client = self.new_endpoint(host, local, to, peer_host);
        self.endpoint(client).connecting = Some(ticket);
        self.send(now, host, peer_host, Content::Connect { client, from: local, to });
        let patience = now + self.timing.connect_timeout.as_nanos() as u64;
        let impatience = Packet { from: host, to: host, content: Content::Impatience { client } };
        self.outputs.push(Output::Deliver(patience, impatience));
    }

    pub(crate) fn send_bytes(&mut self, now: u64, id: EndpointId, ticket: Ticket, bytes: Vec<u8>) {
        match self.endpoints.get_mut(&id) {
            None => self.fail(ticket, libc::ECONNRESET),
            Some(endpoint) if endpoint.reset => self.fail(ticket, libc::ECONNRESET),
            Some(endpoint) if endpoint.shut => self.fail(ticket, libc::EPIPE),
            Some(endpoint) => {
                endpoint.sending.push_back(Sending { ticket, bytes, sent: 0 });
                self.pump(now, id);
            }
        }
    }

    pub(crate) fn receive(&mut self, now: u64, id: EndpointId, ticket: Ticket, length: usize) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return self.fail(ticket, libc::ECONNRESET) };
        endpoint.receiving.push_back((ticket, length));
        self.match_receives(now, id);
    }

    /// Nobody waits for the operation any more. True if it was still waiting, and has now failed.
    pub(crate) fn cancel(&mut self, now: u64, ticket: Ticket) -> bool {
        let mut found = false;
        for listening in self.listeners.values_mut() {
            found |= take_out(&mut listening.accepting, |waiting| *waiting == ticket);
        }
        let mut hopeless = None;
        for (id, endpoint) in &mut self.endpoints {
            found |= take_out(&mut endpoint.receiving, |(waiting, _)| *waiting == ticket);
            found |= take_out(&mut endpoint.sending, |sending| sending.ticket == ticket);
            if endpoint.connecting == Some(ticket) {
                hopeless = Some(*id);
            }
        }
        if let Some(id) = hopeless {
            self.endpoint(id).connecting = None;
            self.close_endpoint(now, id);
        }
        if found || hopeless.is_some() {
            self.fail(ticket, libc::ECANCELED);
        }
        found || hopeless.is_some()
    }

    /// Ends both directions: receives give what there is no more of, sends fail, the peer hears the end.
    pub(crate) fn shutdown(&mut self, now: u64, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        if endpoint.shut || endpoint.reset {
            return;
        }
        endpoint.shut = true;
        endpoint.received.clear();
        for sending in std::mem::take(&mut endpoint.sending) {
            self.fail(sending.ticket, libc::EPIPE);
        }
        self.send_end(now, id);
        self.match_receives(now, id);
    }

    /// The last handle is gone: an orderly end, or a reset if bytes were left unread, as TCP does it.
    pub(crate) fn close_endpoint(&mut self, now: u64, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get(&id) else { return };
        if endpoint.received.is_empty() {
            if !endpoint.shut && !endpoint.reset {
                self.send_end(now, id);
            }
            self.endpoints.remove(&id);
        } else {
            self.abort(now, id);
        }
    }

    /// A packet has come.
    pub(crate) fn arrive(&mut self, now: u64, packet: Packet) {
        let Packet { from, to, content } = packet;
        if let Content::Impatience { client } = content {
            return self.give_up_connecting(client, libc::ETIMEDOUT);
        }
        if self.links_cut.contains(&(from, to)) || !self.hosts_up.contains(&to) {
            return self.held.push(Packet { from, to, content });
        }
        match content {
            Content::Connect { client, from: client_address, to: address } => {
                self.connect_arrived(now, from, to, client, client_address, address);
            }
            Content::Accepted { client, server } => self.accepted(now, to, from, client, server),
            Content::Refused { client } => self.give_up_connecting(client, libc::ECONNREFUSED),
            Content::Impatience { .. } => unreachable!("handled above"),
            Content::Data { endpoint, sender, sequence, bytes } => {
                if self.random.chance(self.timing.resets_per_mille) {
                    self.reset(endpoint);
                    self.reset(sender);
                } else if self.endpoints.contains_key(&endpoint) {
                    self.stream_arrived(now, endpoint, sequence, Some(bytes));
                } else {
                    self.send(now, to, from, Content::Reset { endpoint: sender });
                }
            }
            Content::End { endpoint, sequence } => {
                if self.endpoints.contains_key(&endpoint) {
                    self.stream_arrived(now, endpoint, sequence, None);
                }
            }
            Content::Reset { endpoint } => self.reset(endpoint),
        }
    }

    fn connect_arrived(
        &mut self,
        now: u64,
        from: HostId,
        to: HostId,
        client: EndpointId,
        client_address: SocketAddr,
        address: SocketAddr,
    ) {
        let fits = |listening: &Listening| {
            let ip = listening.address.ip();
            listening.host == to
                && listening.address.port() == address.port()
                && (ip == address.ip() || (ip.is_unspecified() && (ip.is_ipv6() || address.is_ipv4())))
                && listening.backlog.len() < listening.backlog_max.max(1)
        };
        let fitting: Vec<ListenerId> =
            self.listeners.iter().filter(|(_, listening)| fits(listening)).map(|(id, _)| *id).collect();
        if fitting.is_empty() {
            return self.send(now, to, from, Content::Refused { client });
        }
        let chosen = fitting[self.random.below(fitting.len() as u64) as usize];
        let server = self.new_endpoint(to, address, client_address, from);
        self.endpoint(server).other = Some(client);
        self.listeners.get_mut(&chosen).expect("just found").backlog.push_back(server);
        self.send(now, to, from, Content::Accepted { client, server });
        self.match_accepts(chosen);
    }

    fn accepted(&mut self, now: u64, host: HostId, server_host: HostId, client: EndpointId, server: EndpointId) {
        match self.endpoints.get_mut(&client) {
            Some(endpoint) if endpoint.connecting.is_some() => {
                let ticket = endpoint.connecting.take().expect("just seen");
                endpoint.other = Some(server);
                let (local, peer) = (endpoint.local, endpoint.peer);
                let reply = NetworkReply::Connected { endpoint: client, local, peer };
                self.outputs.push(Output::Finish(ticket, reply));
            }
            _ => self.send(now, host, server_host, Content::Reset { endpoint: server }),
        }
    }

    fn give_up_connecting(&mut self, client: EndpointId, errno: i32) {
        let Some(endpoint) = self.endpoints.get_mut(&client) else { return };
        if let Some(ticket) = endpoint.connecting.take() {
            self.endpoints.remove(&client);
            self.fail(ticket, errno);
        }
    }

    /// The packet with number `sequence` of a stream: bytes, or its end.
    fn stream_arrived(&mut self, now: u64, id: EndpointId, sequence: u64, bytes: Option<Vec<u8>>) {
        let endpoint = self.endpoint(id);
        if endpoint.reset {
            return;
        }
        endpoint.early.insert(sequence, bytes);
        while let Some(content) = endpoint.early.remove(&endpoint.expected) {
            endpoint.expected += 1;
            match content {
                Some(bytes) if !endpoint.shut => endpoint.received.extend(bytes),
                Some(_) => {}
                None => endpoint.peer_ended = true,
            }
        }
        self.match_receives(now, id);
    }

    fn match_receives(&mut self, now: u64, id: EndpointId) {
        let mut consumed = 0;
        let Network { endpoints, random, outputs, .. } = self;
        let Some(endpoint) = endpoints.get_mut(&id) else { return };
        while let Some(&(ticket, length)) = endpoint.receiving.front() {
            let reply = if endpoint.reset {
                NetworkReply::Failed(Errno(libc::ECONNRESET))
            } else if !endpoint.received.is_empty() {
                let available = endpoint.received.len().min(length);
                let count = if random.chance(100) { random.between(1, available as u64) as usize } else { available };
                consumed += count;
                NetworkReply::Received(endpoint.received.drain(..count).collect())
            } else if endpoint.peer_ended || endpoint.shut {
                NetworkReply::Received(Vec::new())
            } else {
                break;
            };
            endpoint.receiving.pop_front();
            outputs.push(Output::Finish(ticket, reply));
        }
        let other = endpoint.other.filter(|_| consumed > 0);
        if let Some(sender) = other.and_then(|other| endpoints.get_mut(&other)) {
            sender.window_used = sender.window_used.saturating_sub(consumed);
            self.pump(now, other.expect("just followed"));
        }
    }

    fn match_accepts(&mut self, id: ListenerId) {
        let Network { listeners, endpoints, outputs, .. } = self;
        let listening = listeners.get_mut(&id).expect("the caller found it");
        while !listening.accepting.is_empty()
            && let Some(endpoint) = listening.backlog.pop_front()
        {
            // A connection that was reset before it was accepted is passed over, as Linux does.
            if let Some(Endpoint { local, peer, reset: false, .. }) = endpoints.get(&endpoint) {
                let ticket = listening.accepting.pop_front().expect("just seen");
                let reply = NetworkReply::Connected { endpoint, local: *local, peer: *peer };
                outputs.push(Output::Finish(ticket, reply));
            } else {
                endpoints.remove(&endpoint);
            }
        }
    }

    /// Sends what the window allows.
    fn pump(&mut self, now: u64, id: EndpointId) {
        loop {
            let window = self.timing.window_bytes;
            let Network { endpoints, random, outputs, .. } = self;
            let Some(endpoint) = endpoints.get_mut(&id) else { return };
            let Some(other) = endpoint.other else { return };
            let Some(sending) = endpoint.sending.front_mut() else { return };
            let rest = sending.bytes.len() - sending.sent;
            let room = window.saturating_sub(endpoint.window_used).min(rest);
            if rest == 0 {
                outputs.push(Output::Finish(sending.ticket, NetworkReply::Sent));
                endpoint.sending.pop_front();
                continue;
            }
            if room == 0 {
                return;
            }
            let count = if random.chance(200) { random.between(1, room as u64) as usize } else { room };
            let bytes = sending.bytes[sending.sent..sending.sent + count].to_vec();
            sending.sent += count;
            endpoint.window_used += count;
            endpoint.sent += 1;
            let (host, peer_host, sequence) = (endpoint.host, endpoint.peer_host, endpoint.sent - 1);
            self.send(now, host, peer_host, Content::Data { endpoint: other, sender: id, sequence, bytes });
        }
    }

    fn send_end(&mut self, now: u64, id: EndpointId) {
        let endpoint = self.endpoint(id);
        let Some(other) = endpoint.other else { return };
        let (host, peer_host, sequence) = (endpoint.host, endpoint.peer_host, endpoint.sent);
        endpoint.sent += 1;
        self.send(now, host, peer_host, Content::End { endpoint: other, sequence });
    }

    /// Forgets this end and resets the other.
    fn abort(&mut self, now: u64, id: EndpointId) {
        let Some(endpoint) = self.endpoints.remove(&id) else { return };
        if let Some(other) = endpoint.other {
            self.send(now, endpoint.host, endpoint.peer_host, Content::Reset { endpoint: other });
        }
    }

    /// This end learns that the connection is gone.
    fn reset(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        endpoint.reset = true;
        endpoint.received.clear();
        let sending = std::mem::take(&mut endpoint.sending);
        let receiving = std::mem::take(&mut endpoint.receiving);
        let tickets = sending.iter().map(|sending| sending.ticket).chain(receiving.iter().map(|(ticket, _)| *ticket));
        tickets.chain(endpoint.connecting.take()).for_each(|ticket| {
            self.outputs.push(Output::Finish(ticket, NetworkReply::Failed(Errno(libc::ECONNRESET))));
        });
    }

    fn send(&mut self, now: u64, from: HostId, to: HostId, content: Content) {
        let (low, high) = if from == to { self.timing.loopback } else { self.timing.latency };
        let latency = self.random.between(low.as_nanos() as u64, high.as_nanos() as u64);
        self.outputs.push(Output::Deliver(now + latency, Packet { from, to, content }));
    }

    fn send_held_again(&mut self, now: u64) {
        for Packet { from, to, content } in std::mem::take(&mut self.held) {
            self.send(now, from, to, content);
        }
    }

    fn fail(&mut self, ticket: Ticket, errno: i32) {
        self.outputs.push(Output::Finish(ticket, NetworkReply::Failed(Errno(errno))));
    }

    fn host_of(&self, from: HostId, ip: IpAddr) -> Option<HostId> {
        match ip {
            ip if ip.is_loopback() || ip.is_unspecified() => Some(from),
            IpAddr::V4(ip) => {
                let [first, high, middle, low] = ip.octets();
                let number = u32::from_be_bytes([0, high, middle, low]);
                (first == 10 && number > 0).then(|| HostId(number - 1))
            }
            IpAddr::V6(_) => None,
        }
    }

    fn endpoints_of(&self, host: HostId) -> Vec<EndpointId> {
        self.endpoints.iter().filter(|(_, endpoint)| endpoint.host == host).map(|(id, _)| *id).collect()
    }

    fn new_endpoint(&mut self, host: HostId, local: SocketAddr, peer: SocketAddr, peer_host: HostId) -> EndpointId {
        let id = EndpointId(self.new_id());
        let endpoint = Endpoint {
            host,
            local,
            peer,
            peer_host,
            other: None,
            connecting: None,
            sending: VecDeque::new(),
            sent: 0,
            window_used: 0,
            received: VecDeque::new(),
            expected: 0,
            early: BTreeMap::new(),
            peer_ended: false,
            receiving: VecDeque::new(),
            shut: false,
            reset: false,
        };
        self.endpoints.insert(id, endpoint);
        id
    }

    /// # Panics
    /// If the endpoint is gone: only for callers that have just seen it.
    fn endpoint(&mut self, id: EndpointId) -> &mut Endpoint {
        self.endpoints.get_mut(&id).expect("the caller has just seen it")
    }

    fn new_id(&mut self) -> u64 {
        self.id_next += 1;
        self.id_next - 1
    }

    fn new_port(&mut self) -> u16 {
        self.port_next = if self.port_next == u16::MAX { 32_768 } else { self.port_next + 1 };
        self.port_next
    }
}

/// Removes the first element that `is_it` picks; true if there was one.
fn take_out<T>(queue: &mut VecDeque<T>, is_it: impl Fn(&T) -> bool) -> bool {
    match queue.iter().position(is_it) {
        Some(index) => queue.remove(index).is_some(),
        None => false,
    }
}
