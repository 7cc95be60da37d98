//! Runs a script against a broker: connections, requests, answers. Knows not which broker it talks to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use heddle_protocol::ApiKey;
use heddle_protocol::frame::LENGTH_BYTES;
use heddle_protocol::schema::MessageSpec;

use super::normal::Names;
use super::script::{Action, Request, Script, Step, Versions};
use super::value::{Cursor, Value};
use super::{decode, encode};

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How often an `until` asks, and how long it waits in between.
const UNTIL_TRIES: u32 = 200;
const UNTIL_PAUSE: Duration = Duration::from_millis(50);

/// What a script's steps were answered; `None` for a step that was left out.
pub type Answers = Vec<Option<Vec<(Versions, Value)>>>;

/// Runs the script against the broker at `address`, leaving out the APIs that it does not serve.
///
/// # Errors
/// The script is wrong, or the broker cannot be reached.
pub fn run(script: &Script, address: &str) -> Result<Answers, String> {
    let mut talk = Talk { address: address.to_owned(), names: Names::default(), connections: BTreeMap::new() };
    let served = served(address)?.into_keys().collect::<BTreeSet<_>>();
    talk.learn_the_broker()?;
    let mut answers = Vec::new();
    for step in &script.steps {
        let left_out = step.action.request().is_some_and(|request| !served.contains(&request.api.code()));
        let answer =
            if left_out { None } else { Some(talk.step(step).map_err(|error| format!("{}: {error}", step.text))?) };
        answers.push(answer);
    }
    Ok(answers)
}

/// The APIs that the broker at `address` serves, with their versions.
///
/// # Errors
/// It cannot be reached or does not say.
pub fn served(address: &str) -> Result<BTreeMap<i16, Versions>, String> {
    let mut connection = Connection::open(address)?;
    connection.send(ApiKey::ApiVersions, 0, &map(vec![]))?;
    let answer = connection.receive();
    let Some(Value::List(apis)) = answer.field("apiKeys") else { return Err(format!("no APIs in {}", answer.line())) };
    let number = |api: &Value, name| match api.field(name) {
        Some(Value::Int(number)) => i16::try_from(*number).unwrap_or(-1),
        _ => 0,
    };
    Ok(apis.iter().map(|api| (number(api, "apiKey"), (number(api, "minVersion"), number(api, "maxVersion")))).collect())
}

/// Deletes every group and every topic but internal ones, so that the next script finds an empty broker.
///
/// # Errors
/// The broker cannot be reached, or something is still there after a while.
pub fn clean(address: &str) -> Result<(), String> {
    let mut connection = Connection::open(address)?;
    for _ in 0..UNTIL_TRIES {
        let groups = connection.names(ApiKey::ListGroups, 2, &map(vec![]), "groups", "groupId")?;
        let topics = connection.names(ApiKey::Metadata, 2, &map(vec![("topics", Value::Null)]), "topics", "name")?;
        let topics: Vec<Value> = topics.into_iter().filter(|name| !name.line().starts_with("__")).collect();
        if groups.is_empty() && topics.is_empty() {
            return Ok(());
        }
        for group in &groups {
            connection.empty(group)?;
        }
        connection.ask(ApiKey::DeleteGroups, 1, &map(vec![("groupsNames", Value::List(groups))]))?;
        let fields = map(vec![("topicNames", Value::List(topics)), ("timeoutMs", Value::Int(5_000))]);
        connection.ask(ApiKey::DeleteTopics, 3, &fields)?;
        pause();
    }
    Err("the broker could not be emptied".to_owned())
}

fn map(fields: Vec<(&str, Value)>) -> Value {
    Value::Map(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

struct Talk {
    address: String,
    names: Names,
    connections: BTreeMap<String, Connection>,
}

impl Talk {
    /// Names for what every broker calls differently.
    fn learn_the_broker(&mut self) -> Result<(), String> {
        let mut connection = Connection::open(&self.address)?;
        connection.send(ApiKey::Metadata, 2, &map(vec![("topics", Value::List(Vec::new()))]))?;
        let answer = connection.receive();
        let cluster = answer.field("clusterId").ok_or_else(|| format!("no cluster in {}", answer.line()))?;
        self.names.bind("cluster", "clusterId", cluster.clone());
        let port = self.address.rsplit(':').next().and_then(|port| port.parse().ok()).ok_or("an address has a port")?;
        self.names.bind("port", "port", Value::Int(port));
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<Vec<(Versions, Value)>, String> {
        let mut answers: Vec<(i16, Value)> = Vec::new();
        let mut last = Value::Null;
        match &step.action {
            Action::Close => drop(self.connections.remove(&step.connection)),
            Action::Send(request) => drop(self.send(step, request, request.versions.0)?),
            Action::Tell(request) => self.send(step, request, request.versions.0)?.waiting.clear(),
            Action::Receive => {
                let connection = self.connection(&step.connection)?;
                let version = connection.waiting.front().ok_or("nothing was sent")?.1;
                last = connection.receive();
                self.add(&mut answers, step, version, &last);
            }
            Action::Raw(bytes) => {
                last = self.connection(&step.connection)?.raw(bytes);
                self.add(&mut answers, step, 0, &last);
            }
            Action::Until(request, path, value) => {
                for _ in 0..UNTIL_TRIES {
                    last = self.send(step, request, request.versions.0)?.receive();
                    if last.at(path).unwrap_or(&Value::Int(0)) == value {
                        break;
                    }
                    pause();
                }
                self.add(&mut answers, step, request.versions.0, &last);
            }
            Action::Call(request) => {
                for version in request.versions.0..=request.versions.1 {
                    last = self.send(step, request, version)?.receive();
                    self.add(&mut answers, step, version, &last);
                }
            }
        }
        for (name, path) in &step.binds {
            let value = last.at(path).ok_or_else(|| format!("nothing at `{path}` in {}", last.line()))?;
            self.names.bind(name, path.rsplit('.').next().unwrap_or_default(), value.clone());
        }
        // What was bound is a name in this very answer, too.
        let mut merged: Vec<(Versions, Value)> = Vec::new();
        for (version, answer) in answers {
            let answer = answer.without(&step.less);
            let answer = if step.verbatim { self.names.verbatim(&answer) } else { self.names.normal(&answer) };
            match merged.last_mut() {
                Some((versions, before)) if *before == answer => versions.1 = version,
                _ => merged.push(((version, version), answer)),
            }
        }
        Ok(merged)
    }

    /// Keeps an answer; a connection that gave none is done with.
    fn add(&mut self, answers: &mut Vec<(i16, Value)>, step: &Step, version: i16, answer: &Value) {
        if matches!(answer, Value::Text(_)) {
            self.connections.remove(&step.connection);
        }
        answers.push((version, answer.clone()));
    }

    fn send(&mut self, step: &Step, request: &Request, version: i16) -> Result<&mut Connection, String> {
        self.names.bind("v", "", Value::Int(i64::from(version)));
        let fields = self.names.fill(&request.fields)?;
        let connection = self.connection(&step.connection)?;
        connection.send(request.api, version, &fields)?;
        Ok(connection)
    }

    fn connection(&mut self, name: &str) -> Result<&mut Connection, String> {
        if !self.connections.contains_key(name) {
            self.connections.insert(name.to_owned(), Connection::open(&self.address)?);
        }
        Ok(self.connections.get_mut(name).expect("it was inserted"))
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's client runs on no core")]
fn pause() {
    std::thread::sleep(UNTIL_PAUSE);
}

/// One connection, with what was sent on it and not answered.
pub struct Connection {
    stream: TcpStream,
    correlation_id: i32,
    waiting: VecDeque<(ApiKey, i16, i32)>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn open(address: &str) -> Result<Connection, String> {
        let stream = TcpStream::connect(address).map_err(|error| format!("cannot connect to {address}: {error}"))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(Connection { stream, correlation_id: 0, waiting: VecDeque::new() })
    }

    /// Sends a request; [`Connection::receive`] gives its answer.
    ///
    /// # Errors
    /// The fields do not fit the request. That the broker is gone is told by the answer.
    pub fn send(&mut self, api: ApiKey, version: i16, fields: &Value) -> Result<(), String> {
        self.correlation_id += 1;
        let mut frame = Vec::new();
        frame.extend(api.code().to_be_bytes());
        frame.extend(version.to_be_bytes());
        frame.extend(self.correlation_id.to_be_bytes());
        frame.extend(b"\x00\x06script");
        let spec = MessageSpec::request(api.code()).expect("every API has a request");
        let described = version.clamp(spec.versions.min, spec.versions.max);
        if api.request_header_version(described) >= 2 {
            frame.push(0);
        }
        encode::message(&mut frame, spec, version, fields)?;
        // A broker that closed the connection says so when the answer is read.
        drop(self.write(&frame));
        self.waiting.push_back((api, version, self.correlation_id));
        Ok(())
    }

    /// Sends a request that is written as in a script, and gives the answer.
    ///
    /// # Errors
    /// There is none.
    pub fn call(&mut self, api: ApiKey, version: i16, fields: &str) -> Result<Value, String> {
        self.ask(api, version, &Cursor::new(fields).value()?)
    }

    fn ask(&mut self, api: ApiKey, version: i16, fields: &Value) -> Result<Value, String> {
        self.send(api, version, fields)?;
        match self.receive() {
            Value::Text(why) => Err(format!("{} was not answered: {why}", api.name())),
            answer => Ok(answer),
        }
    }

    /// One field of every structure in a list of the answer.
    fn names(
        &mut self,
        api: ApiKey,
        version: i16,
        fields: &Value,
        list: &str,
        field: &str,
    ) -> Result<Vec<Value>, String> {
        let answer = self.ask(api, version, fields)?;
        let Some(Value::List(items)) = answer.field(list) else { return Ok(Vec::new()) };
        Ok(items.iter().filter_map(|item| item.field(field)).cloned().collect())
    }

    /// Sends every member of a group away.
    fn empty(&mut self, group: &Value) -> Result<(), String> {
        let fields = map(vec![("groups", Value::List(vec![group.clone()]))]);
        let answer = self.ask(ApiKey::DescribeGroups, 4, &fields)?;
        let Some(Value::List(members)) = answer.at("groups.0.members") else { return Ok(()) };
        let field = |member: &Value, name| member.field(name).cloned().unwrap_or(Value::Null);
        let members = members.iter().map(|it| {
            map(vec![("memberId", field(it, "memberId")), ("groupInstanceId", field(it, "groupInstanceId"))])
        });
        let fields = map(vec![("groupId", group.clone()), ("members", Value::List(members.collect()))]);
        self.ask(ApiKey::LeaveGroup, 3, &fields).map(drop)
    }

    fn write(&mut self, frame: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(frame.len()).expect("a script's frame is small");
        self.stream.write_all(&length.to_be_bytes())?;
        self.stream.write_all(frame)
    }

    /// The next answer; a text says why there is none.
    pub fn receive(&mut self) -> Value {
        let Some((api, version, correlation_id)) = self.waiting.pop_front() else { return word("nothing-was-asked") };
        let frame = match self.read() {
            Ok(frame) => frame,
            Err(why) => return why,
        };
        if !frame[LENGTH_BYTES..].starts_with(&correlation_id.to_be_bytes()) {
            return word("another-request's-answer");
        }
        // What a client may not know is answered in version 0 (KIP-511).
        let known = api.versions().contains(version);
        let version = if api == ApiKey::ApiVersions && !known { 0 } else { version };
        decode::response(api.code(), version, &frame)
            .unwrap_or_else(|error| Value::Text(format!("<undecodable: {error}>")))
    }

    fn raw(&mut self, bytes: &[u8]) -> Value {
        drop(self.stream.write_all(bytes));
        self.read().map_or_else(|why| why, Value::Bytes)
    }

    fn read(&mut self) -> Result<Vec<u8>, Value> {
        let mut length = [0; LENGTH_BYTES];
        self.stream.read_exact(&mut length).map_err(|error| silence(&error))?;
        // With its length before it, so that the codec need not guess whether it is there.
        let mut frame = length.to_vec();
        frame.resize(LENGTH_BYTES + u32::from_be_bytes(length) as usize, 0);
        self.stream.read_exact(&mut frame[LENGTH_BYTES..]).map_err(|error| silence(&error))?;
        Ok(frame)
    }
}

fn silence(error: &std::io::Error) -> Value {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => word("no-answer"),
        _ => word("closed"),
    }
}

fn word(what: &str) -> Value {
    Value::Text(format!("<{what}>"))
}
