//! What all simulated cores share: the clock, the agenda, the hosts with their disks, the network.
//!
//! Owns the order of events. Never runs a task: `sim.rs` does, between two events.
//!
//! An operation that a core starts becomes a [`Waiting`] entry under a [`Ticket`]; the disk or the network says when it is
//! over, and then the core's slot is finished. When a core is gone its entries are removed, and what comes later for them is
//! ignored.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::disk::{Disk, FaultModel};
use super::handles::{
    Letter, Mail, SimFile, SimListener, SimSocket, check_alignment, is_aligned, is_aligned_read, joined, kind,
    os_error, sim_file, sim_listener, sim_socket,
};
use super::network::{EndpointId, HostId, Network, NetworkReply, Output, Packet, Ticket};
use super::random::{Random, mix};
use super::request::{Errno, OpenMode, OperationId, Reply, Request};
use super::tree::Inode;
use crate::buffer::Buffer;
use crate::file::{Access, DirEntry, EntryKind, File, FileKind, Metadata};
use crate::op::{Op, OpKey, Outcome, Slots, Value};
use crate::socket::{ListenOptions, Listener, ListenerKind, Socket, SocketKind};

/// 2026-01-01T00:00:00Z, in milliseconds: when every simulated wall clock starts.
const WALL_CLOCK_START_MS: i64 = 1_767_225_600_000;

/// Bytes of zeros that are written at once.
const ZEROS_AT_ONCE_MAX: u64 = 64 << 10;

/// A core of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CoreId(pub(crate) u64);

/// A simulated machine.
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) disk: Disk,
    /// The disk before the last planned power cut.
    pub(crate) disk_at_cut: Option<Disk>,
    pub(crate) is_up: bool,
    /// When the disk has moved all bytes that it was asked to move, on the world's clock.
    disk_busy_until: u64,
    /// Counts the processes that ran here: what an earlier one left open is closed.
    process: u64,
    /// Monotonic time when the world's clock was zero, in nanoseconds; another after each power cut.
    clock_start: u64,
    pub(crate) wall_clock_offset_ms: i64,
    /// The process is stopped until then.
    pub(crate) paused_until: u64,
    random: Random,
}

enum Due {
    Disk { host: HostId, process: u64, operation: OperationId, ticket: Ticket },
    Packet(Packet),
}

/// An operation that a core waits for.
struct Waiting {
    core: CoreId,
    host: HostId,
    slots: Slots,
    key: OpKey,
    stage: Stage,
    /// What the operation keeps open.
    _held: Held,
}

#[expect(dead_code, reason = "held only to be dropped with the operation")]
enum Held {
    Nothing,
    File(File),
    Socket(Socket),
    SocketAndFile(Socket, File),
    Listener(Listener),
}

/// What to do with the next answer.
enum Stage {
    Open {
        path: PathBuf,
        writable: bool,
        direct: bool,
    },
    Read {
        buffer: Buffer,
    },
    Write {
        file: Inode,
        position: u64,
        rest: Rc<[u8]>,
        access: Access,
    },
    Zeros {
        file: Inode,
        position: u64,
        left: u64,
        access: Access,
    },
    SendFile {
        endpoint: EndpointId,
        length: usize,
    },
    Receive {
        buffer: Buffer,
    },
    Accept,
    Connect,
    Unit,
    Entries,
    Metadata,
    /// Nothing ever answers; only a cancellation ends it.
    Forever,
}

/// The world.
pub(crate) struct World {
    now: u64,
    pub(crate) random: Random,
    trace: u64,
    agenda: BTreeMap<(u64, u64), Due>,
    agenda_next: u64,
    machines: Vec<Machine>,
    pub(crate) network: Network,
    waiting: BTreeMap<Ticket, Waiting>,
    tickets: BTreeMap<(CoreId, OpKey), Ticket>,
    ticket_next: u64,
    mail: Arc<Mail>,
    /// Hosts whose process is gone and whose cores are not yet closed.
    gone: Vec<HostId>,
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        World {
            now: 0,
            trace: 0,
            agenda: BTreeMap::new(),
            agenda_next: 0,
            machines: Vec::new(),
            network: Network::new(random.fork()),
            random,
            waiting: BTreeMap::new(),
            tickets: BTreeMap::new(),
            ticket_next: 0,
            mail: Arc::default(),
            gone: Vec::new(),
        }
    }

    /// Adds a machine with an empty disk.
    pub(crate) fn add_machine(&mut self, name: &str) -> HostId {
        let host = HostId(u32::try_from(self.machines.len()).expect("a simulation of few hosts"));
        self.machines.push(Machine {
            name: name.to_owned(),
            disk: Disk::new(FaultModel::default(), self.random.fork()),
            disk_at_cut: None,
            is_up: true,
            disk_busy_until: 0,
            process: 0,
            clock_start: self.random.below(1 << 50),
            wall_clock_offset_ms: 0,
            paused_until: 0,
            random: self.random.fork(),
        });
        self.network.host_up(self.now, host);
        host
    }

    pub(crate) fn machine(&mut self, host: HostId) -> &mut Machine {
        &mut self.machines[host.0 as usize]
    }

    /// Nanoseconds since the simulation began.
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    /// A machine's monotonic clock at the time `now` of the world.
    pub(crate) fn monotonic(&self, host: HostId) -> u64 {
        self.now + self.machines[host.0 as usize].clock_start
    }

    /// The world's time when a machine's monotonic clock shows `monotonic`.
    pub(crate) fn time_of(&self, host: HostId, monotonic: u64) -> u64 {
        monotonic.saturating_sub(self.machines[host.0 as usize].clock_start)
    }

    /// A machine's wall clock, in milliseconds since 1970.
    pub(crate) fn wall_clock(&self, host: HostId) -> i64 {
        let elapsed = i64::try_from(self.now / 1_000_000).expect("a simulation shorter than an age of the universe");
        WALL_CLOCK_START_MS + elapsed + self.machines[host.0 as usize].wall_clock_offset_ms
    }

    pub(crate) fn fill_random(&mut self, host: HostId, bytes: &mut [u8]) {
        let random = &mut self.machine(host).random;
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&random.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }

    /// A number that depends on everything that has happened.
    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }

    /// Makes what happened part of the trace.
    pub(crate) fn note(&mut self, what: u64, detail: u64) {
        self.trace = mix(self.trace ^ mix(self.now) ^ mix(what << 56 | detail).rotate_left(17));
    }

    /// Lets time pass while a core computes.
    pub(crate) fn spend(&mut self, nanos: u64) {
        self.now += nanos;
    }

    /// When the next thing happens by itself.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.agenda.first_key_value().map(|((time, _), _)| *time)
    }

    /// Moves the clock forward; never past what is due.
    pub(crate) fn advance_to(&mut self, time: u64) {
        assert!(self.next_due().is_none_or(|due| due >= time), "time never passes over an event");
        self.now = self.now.max(time);
    }

    /// Does the next thing that is due by now. False if nothing is.
    pub(crate) fn do_next_due(&mut self) -> bool {
        let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= self.now) else { return false };
        match entry.remove() {
            Due::Packet(packet) => {
                self.network.arrive(self.now, packet);
                self.deliver_outputs();
            }
            Due::Disk { host, process, operation, ticket } => self.disk_answers(host, process, operation, ticket),
        }
        true
    }

    /// Does what dropped and shut handles ask for.
    pub(crate) fn read_mail(&mut self) {
        let letters = self.mail.take();
        for letter in letters {
            match letter {
                Letter::Shutdown(endpoint) => self.network.shutdown(self.now, endpoint),
                Letter::Close(endpoint) => self.network.close_endpoint(self.now, endpoint),
                Letter::CloseListener(listener) => self.network.close_listener(self.now, listener),
            }
        }
        self.deliver_outputs();
    }

    /// Whether a machine runs a process that is not stopped.
    pub(crate) fn can_run(&self, host: HostId) -> bool {
        let machine = &self.machines[host.0 as usize];
        machine.is_up && machine.paused_until <= self.now
    }

    /// When a core of the machine that has work at `time` can do it; never, without power.
    pub(crate) fn runs_at(&self, host: HostId, time: u64) -> Option<u64> {
        let machine = &self.machines[host.0 as usize];
        machine.is_up.then_some(time.max(machine.paused_until))
    }

    fn planned_cut(&mut self, host: HostId) {
        let machine = self.machine(host);
        machine.disk_at_cut = Some(machine.disk.clone());
        self.power_cut(host);
    }

    /// Power is lost. The machine's cores are for the caller to close.
    pub(crate) fn power_cut(&mut self, host: HostId) {
        self.note(b'P'.into(), host.0.into());
        let machine = self.machine(host);
        machine.is_up = false;
        machine.disk.power_cut();
        self.network.host_down(self.now, host);
        self.forget(host);
    }

    /// The process dies, the machine runs on.
    pub(crate) fn kill(&mut self, host: HostId) {
        self.note(b'K'.into(), host.0.into());
        self.machine(host).disk.kill();
        self.network.process_gone(self.now, host);
        self.forget(host);
    }

    /// Power is back.
    pub(crate) fn power_on(&mut self, host: HostId) {
        self.note(b'U'.into(), host.0.into());
        let clock_start = self.random.below(1 << 50);
        let machine = self.machine(host);
        machine.is_up = true;
        machine.clock_start = clock_start;
        self.network.host_up(self.now, host);
        self.deliver_outputs();
    }

    /// The hosts whose process went since the last call: their cores are to be closed.
    pub(crate) fn take_gone(&mut self) -> Vec<HostId> {
        std::mem::take(&mut self.gone)
    }

    fn forget(&mut self, host: HostId) {
        let machine = self.machine(host);
        machine.process += 1;
        machine.paused_until = 0;
        self.gone.push(host);
        let gone = |waiting: &Waiting| waiting.host == host;
        self.tickets.retain(|_, ticket| !self.waiting.get(ticket).is_some_and(gone));
        self.waiting.retain(|_, waiting| !gone(waiting));
        self.deliver_outputs();
    }

    /// Listens in the name of a machine.
    pub(crate) fn listen(
        &mut self,
        host: HostId,
        address: SocketAddr,
        options: ListenOptions,
    ) -> std::io::Result<Listener> {
        self.read_mail();
        let (listener, address) =
            self.network.listen(host, address, options.reuse_port, options.backlog as usize).map_err(os_error)?;
        self.note(b'L'.into(), address.port().into());
        let kind = ListenerKind::Sim(SimListener { listener, mail: Arc::clone(&self.mail) });
        Ok(Listener::new(address, kind))
    }

    /// Starts an operation of a core.
    pub(crate) fn start(&mut self, core: CoreId, host: HostId, slots: &Slots, key: OpKey, op: Op) {
        self.read_mail();
        if !self.machine(host).is_up {
            return;
        }
        let begin = Begin { core, host, slots: slots.clone(), key };
        match op {
            Op::Accept { listener } => {
                let id = sim_listener(&listener).listener;
                let ticket = self.wait(begin, Stage::Accept, Held::Listener(listener));
                self.network.accept(id, ticket);
            }
            Op::Connect { address } => {
                let ticket = self.wait(begin, Stage::Connect, Held::Nothing);
                self.network.connect(self.now, host, address, ticket);
            }
            Op::Recv { socket, buffer } => {
                let (endpoint, room) = (sim_socket(&socket).endpoint, buffer.spare());
                let ticket = self.wait(begin, Stage::Receive { buffer }, Held::Socket(socket));
                self.network.receive(self.now, endpoint, ticket, room);
            }
            Op::Send { socket, pieces } => {
                let (endpoint, bytes) = (sim_socket(&socket).endpoint, joined(&pieces));
                let ticket = self.wait(begin, Stage::Unit, Held::Socket(socket));
                self.network.send_bytes(self.now, endpoint, ticket, bytes);
            }
            Op::Readable { .. } => {
                self.wait(begin, Stage::Forever, Held::Nothing);
            }
            Op::Arrival { .. } => unreachable!("nobody waits for bytes that a simulated socket holds"),
            Op::Run { .. } => unreachable!("the backend runs functions itself, outside of the world"),
            op => self.start_file(begin, op),
        }
        self.deliver_outputs();
    }

    fn start_file(&mut self, begin: Begin, op: Op) {
        let host = begin.host;
        match op {
            Op::Lock { file } => {
                let outcome = self.lock(host, &file);
                begin.slots.finish(begin.key, outcome);
            }
            Op::FileMetadata { file } => {
                let metadata = self.open_file(host, &file).and_then(|inode| {
                    let disk = &self.machine(host).disk;
                    Ok(Metadata { len: disk.len(inode)?, kind: EntryKind::File, modified_ms: disk.modified_ms(inode) })
                });
                begin.slots.finish(begin.key, Outcome::of(metadata.map(Value::Metadata).map_err(os_error)));
            }
            op => match self.request(host, op) {
                Ok(Prepared { request, stage, held }) => self.ask_disk(begin, request, stage, held),
                Err(Refused { op_buffer, errno }) => {
                    let outcome = Outcome { result: Err(os_error(errno)), buffer: op_buffer };
                    begin.slots.finish(begin.key, outcome);
                }
            },
        }
    }

    fn lock(&mut self, host: HostId, file: &File) -> Outcome {
        let pid = u32::try_from(self.machine(host).process + 1000).ok();
        Outcome::of(match self.open_file(host, file) {
            Ok(inode) if self.machine(host).disk.lock(inode, &sim_file(file).handle) => Ok(Value::Unit),
            Ok(_) => Ok(Value::LockedBy(pid)),
            Err(errno) => Err(os_error(errno)),
        })
    }

    /// The disk's form of an operation on files.
    fn request(&mut self, host: HostId, op: Op) -> Result<Prepared, Refused> {
        let plain = |request| Ok(Prepared { request, stage: Stage::Unit, held: Held::Nothing });
        match op {
            Op::Open { path, options } => {
                let mode = OpenMode {
                    create: options.create,
                    create_new: options.create_new,
                    truncate: options.truncate,
                    direct: options.direct,
                    write: options.write,
                };
                let stage = Stage::Open { path: path.clone(), writable: options.write, direct: options.direct };
                Ok(Prepared { request: Request::Open { path, mode }, stage, held: Held::Nothing })
            }
            Op::Read { file, position, buffer, len } => match self.open_file(host, &file) {
                Ok(_) if !is_aligned_read(sim_file(&file), position, &buffer, len) => {
                    Err(Refused { op_buffer: Some(buffer), errno: Errno(libc::EINVAL) })
                }
                Ok(inode) => {
                    let request = Request::Read { file: inode, position, length: len };
                    Ok(Prepared { request, stage: Stage::Read { buffer }, held: Held::File(file) })
                }
                Err(errno) => Err(Refused { op_buffer: Some(buffer), errno }),
            },
            Op::Write { file, position, pieces } => {
                let inode = self.writable_file(host, &file)?;
                check_alignment(sim_file(&file), position, &pieces)?;
                let rest: Rc<[u8]> = joined(&pieces).into();
                let access = sim_file(&file).access();
                let request = Request::Write { file: inode, position, bytes: Rc::clone(&rest), access };
                let stage = Stage::Write { file: inode, position, rest, access };
                Ok(Prepared { request, stage, held: Held::File(file) })
            }
            Op::Sync { file, kind: _ } => {
                let request = Request::Flush { file: self.open_file(host, &file)? };
                Ok(Prepared { request, stage: Stage::Unit, held: Held::File(file) })
            }
            Op::SetLength { file, len } => {
                let request = Request::SetLen { file: self.writable_file(host, &file)?, len };
                Ok(Prepared { request, stage: Stage::Unit, held: Held::File(file) })
            }
            Op::Allocate { file, position, len } => {
                let inode = self.writable_file(host, &file)?;
                let request = Request::Allocate { file: inode, position, length: len, extend: true };
                Ok(Prepared { request, stage: Stage::Unit, held: Held::File(file) })
            }
            Op::WriteZeros { file, position, len } => {
                let inode = self.writable_file(host, &file)?;
                let access = sim_file(&file).access();
                if access == Access::Direct && !(is_aligned(position) && is_aligned(len)) {
                    return Err(Errno(libc::EINVAL).into());
                }
                let request = write_of_zeros(inode, position, len, access);
                let stage = Stage::Zeros { file: inode, position, left: len, access };
                Ok(Prepared { request, stage, held: Held::File(file) })
            }
            Op::SendFile { socket, file, position, len } => {
                let inode = self.open_file(host, &file)?;
                let request = Request::Read { file: inode, position, length: len };
                let stage = Stage::SendFile { endpoint: sim_socket(&socket).endpoint, length: len };
                Ok(Prepared { request, stage, held: Held::SocketAndFile(socket, file) })
            }
            Op::CreateDirAll { path } => plain(Request::CreateDirectories { path }),
            Op::ReadDir { path } => {
                Ok(Prepared { request: Request::List { path }, stage: Stage::Entries, held: Held::Nothing })
            }
            Op::Metadata { path } => {
                Ok(Prepared { request: Request::Stat { path }, stage: Stage::Metadata, held: Held::Nothing })
            }
            Op::Rename { from, to } => plain(Request::Rename { from, to }),
            Op::RemoveFile { path } => plain(Request::RemoveFile { path }),
            Op::RemoveDirAll { path } => plain(Request::RemoveTree { path }),
            Op::SyncDir { path } => plain(Request::SyncDirectory { path }),
            Op::SyncFileSystem { path } => plain(Request::FlushEverything { path }),
            _ => unreachable!("every other operation is handled before"),
        }
    }

    fn open_file(&mut self, host: HostId, file: &File) -> Result<Inode, Errno> {
        let file = sim_file(file);
        let is_ours = file.host == host && file.process == self.machine(host).process;
        if is_ours { Ok(file.inode) } else { Err(Errno(libc::EBADF)) }
    }

    fn writable_file(&mut self, host: HostId, file: &File) -> Result<Inode, Errno> {
        let inode = self.open_file(host, file)?;
        if sim_file(file).writable { Ok(inode) } else { Err(Errno(libc::EBADF)) }
    }

    fn wait(&mut self, begin: Begin, stage: Stage, held: Held) -> Ticket {
        let Begin { core, host, slots, key } = begin;
        let ticket = Ticket(self.ticket_next);
        self.ticket_next += 1;
        self.tickets.insert((core, key), ticket);
        self.waiting.insert(ticket, Waiting { core, host, slots, key, stage, _held: held });
        ticket
    }

    fn ask_disk(&mut self, begin: Begin, request: Request, stage: Stage, held: Held) {
        let host = begin.host;
        let ticket = self.wait(begin, stage, held);
        self.issue(host, ticket, request);
    }

    fn issue(&mut self, host: HostId, ticket: Ticket, request: Request) {
        self.note(b'I'.into(), request.digest());
        let (wall_clock, now) = (self.wall_clock(host), self.now);
        let machine = self.machine(host);
        machine.disk.set_wall_clock(wall_clock);
        let transfer = machine.disk.transfer_time(&request).as_nanos() as u64;
        machine.disk_busy_until = machine.disk_busy_until.max(now) + transfer;
        let queued = machine.disk_busy_until - now;
        let (operation, delay) = machine.disk.issue(request);
        let (process, cut_is_due) = (machine.process, machine.disk.cut_is_due(Some(operation)));
        self.plan(now + queued + delay.as_nanos() as u64, Due::Disk { host, process, operation, ticket });
        if cut_is_due {
            self.planned_cut(host);
        }
    }

    fn disk_answers(&mut self, host: HostId, process: u64, operation: OperationId, ticket: Ticket) {
        let machine = self.machine(host);
        if machine.process != process {
            return;
        }
        let answer = machine.disk.complete(operation);
        if machine.disk.cut_is_due(None) {
            return self.planned_cut(host);
        }
        self.note(b'D'.into(), answer.as_ref().map_or_else(|errno| errno.0 as u64, Reply::digest));
        let Some(waiting) = self.waiting.remove(&ticket) else { return };
        self.disk_answered(ticket, waiting, answer);
        self.deliver_outputs();
    }

    fn disk_answered(&mut self, ticket: Ticket, mut waiting: Waiting, answer: Result<Reply, Errno>) {
        match (&mut waiting.stage, &answer) {
            (Stage::Write { file, position, rest, access }, Ok(Reply::Written(count))) if *count < rest.len() => {
                *rest = rest[*count..].into();
                *position += *count as u64;
                let (bytes, access) = (Rc::clone(rest), *access);
                let request = Request::Write { file: *file, position: *position, bytes, access };
                let host = waiting.host;
                self.waiting.insert(ticket, waiting);
                return self.issue(host, ticket, request);
            }
            (Stage::Zeros { file, position, left, access }, Ok(Reply::Written(count))) if (*count as u64) < *left => {
                *position += *count as u64;
                *left -= *count as u64;
                let request = write_of_zeros(*file, *position, *left, *access);
                let host = waiting.host;
                self.waiting.insert(ticket, waiting);
                return self.issue(host, ticket, request);
            }
            (Stage::SendFile { endpoint, length }, Ok(Reply::Bytes(bytes))) if bytes.len() == *length => {
                let endpoint = *endpoint;
                waiting.stage = Stage::Unit;
                self.waiting.insert(ticket, waiting);
                let Ok(Reply::Bytes(bytes)) = answer else { unreachable!("just matched") };
                return self.network.send_bytes(self.now, endpoint, ticket, bytes);
            }
            _ => {}
        }
        let outcome = self.disk_outcome(&mut waiting, answer);
        self.finish(waiting, outcome);
    }

    fn disk_outcome(&mut self, waiting: &mut Waiting, answer: Result<Reply, Errno>) -> Outcome {
        let stage = std::mem::replace(&mut waiting.stage, Stage::Unit);
        let result = match (stage, answer) {
            (Stage::Read { mut buffer }, answer) => {
                let result = answer.map_err(os_error).map(|reply| match reply {
                    Reply::Bytes(bytes) => {
                        buffer.extend_from_slice(&bytes);
                        Value::Count(bytes.len())
                    }
                    other => unreachable!("a read gives bytes, not {other:?}"),
                });
                return Outcome { result, buffer: Some(buffer) };
            }
            (_, Err(errno)) => Err(os_error(errno)),
            (Stage::Open { path, writable, direct }, Ok(Reply::Opened { file, handle })) => {
                let host = waiting.host;
                let process = self.machine(host).process;
                let file = SimFile { host, process, inode: file, handle, writable, direct };
                Ok(Value::File(File::new(path, FileKind::Sim(file))))
            }
            (Stage::SendFile { .. }, Ok(_)) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            (Stage::Entries, Ok(Reply::Entries(entries))) => {
                let entry = |entry: super::request::Entry| DirEntry {
                    name: entry.name.to_string_lossy().into_owned(),
                    kind: kind(entry.is_directory),
                };
                Ok(Value::Entries(entries.into_iter().map(entry).collect()))
            }
            (Stage::Metadata, Ok(Reply::Stat { is_directory, len, modified_ms })) => {
                Ok(Value::Metadata(Metadata { len, kind: kind(is_directory), modified_ms }))
            }
            (Stage::Write { .. } | Stage::Zeros { .. }, Ok(Reply::Written(_))) | (Stage::Unit, Ok(Reply::Done)) => {
                Ok(Value::Unit)
            }
            (_, Ok(other)) => unreachable!("the disk answers what it was asked, not {other:?}"),
        };
        Outcome::of(result)
    }

    fn network_answered(&mut self, ticket: Ticket, reply: NetworkReply) {
        self.note(b'N'.into(), reply.digest());
        let Some(mut waiting) = self.waiting.remove(&ticket) else { return };
        let stage = std::mem::replace(&mut waiting.stage, Stage::Unit);
        let outcome = match (stage, reply) {
            (Stage::Receive { mut buffer }, NetworkReply::Received(bytes)) => {
                buffer.extend_from_slice(&bytes);
                Outcome { result: Ok(Value::Count(bytes.len())), buffer: Some(buffer) }
            }
            (Stage::Receive { buffer }, NetworkReply::Failed(errno)) => {
                Outcome { result: Err(os_error(errno)), buffer: Some(buffer) }
            }
            (_, NetworkReply::Failed(errno)) => Outcome::of(Err(os_error(errno))),
            (stage, NetworkReply::Connected { endpoint, local, peer }) => {
                let kind = SocketKind::Sim(SimSocket { endpoint, mail: Arc::clone(&self.mail) });
                let socket = Socket::new(local, peer, kind);
                let accepted = matches!(stage, Stage::Accept);
                Outcome::of(Ok(if accepted { Value::Accepted(socket, peer) } else { Value::Socket(socket) }))
            }
            (_, NetworkReply::Sent) => Outcome::of(Ok(Value::Unit)),
            (_, other) => unreachable!("the network answers what it was asked, not {other:?}"),
        };
        self.finish(waiting, outcome);
    }

    /// Nobody waits for the operation any more. A file operation runs to its end all the same.
    pub(crate) fn cancel(&mut self, core: CoreId, key: OpKey) {
        self.read_mail();
        let Some(&ticket) = self.tickets.get(&(core, key)) else { return };
        if !self.network.cancel(self.now, ticket)
            && matches!(self.waiting[&ticket].stage, Stage::Forever)
            && let Some(waiting) = self.waiting.remove(&ticket)
        {
            self.finish(waiting, Outcome::of(Err(os_error(Errno(libc::ECANCELED)))));
        }
        self.deliver_outputs();
    }

    /// The core is gone, and nobody hears what it asked for. Writes that are in flight arrive all the same.
    pub(crate) fn close_core(&mut self, core: CoreId) {
        let tickets: Vec<Ticket> = self
            .tickets
            .range((core, OpKey::from_bits(0))..=(core, OpKey::from_bits(u64::MAX)))
            .map(|(_, ticket)| *ticket)
            .collect();
        for ticket in tickets {
            if let Some(waiting) = self.waiting.remove(&ticket) {
                self.tickets.remove(&(waiting.core, waiting.key));
            }
            self.network.cancel(self.now, ticket);
        }
        self.read_mail();
    }

    fn finish(&mut self, waiting: Waiting, outcome: Outcome) {
        self.tickets.remove(&(waiting.core, waiting.key));
        waiting.slots.finish(waiting.key, outcome);
    }

    /// Carries out what the network asked for.
    pub(crate) fn deliver_outputs(&mut self) {
        while !self.network.outputs.is_empty() {
            for output in std::mem::take(&mut self.network.outputs) {
                match output {
                    Output::Finish(ticket, reply) => self.network_answered(ticket, reply),
                    Output::Deliver(time, packet) => self.plan(time, Due::Packet(packet)),
                }
            }
        }
    }

    fn plan(&mut self, time: u64, due: Due) {
        self.agenda.insert((time, self.agenda_next), due);
        self.agenda_next += 1;
    }
}

/// As much of a write of zeros as is done at once.
fn write_of_zeros(file: Inode, position: u64, left: u64, access: Access) -> Request {
    let bytes = vec![0; left.min(ZEROS_AT_ONCE_MAX) as usize].into();
    Request::Write { file, position, bytes, access }
}

/// Who starts an operation.
struct Begin {
    core: CoreId,
    host: HostId,
    slots: Slots,
    key: OpKey,
}

struct Prepared {
    request: Request,
    stage: Stage,
    held: Held,
}

struct Refused {
    op_buffer: Option<Buffer>,
    errno: Errno,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused { op_buffer: None, errno }
    }
}
