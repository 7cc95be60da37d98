//! A consumer of a group, written request by request, and the ledger in which all of them keep what must hold.
//!
//! The ledger asserts; a member only acts, and takes every error for a reason to join again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use heddle_protocol::ApiKey;

use crate::wire::talk::Connection;
use crate::wire::value::Value;

/// How long a member waits before it tries again what did not work.
const PAUSE: Duration = Duration::from_millis(20);

/// What all members of a group have seen.
#[derive(Default)]
pub struct Ledger {
    /// Where nobody may read from below, by partition: the largest offset whose commit was answered.
    committed: Mutex<BTreeMap<i64, i64>>,
    /// Who has a partition in a generation.
    owners: Mutex<BTreeMap<(i64, i64), String>>,
    /// The offsets that somebody was given, by partition.
    delivered: Mutex<BTreeSet<(i64, i64)>>,
    /// Set when the members shall end.
    pub ending: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with it")
}

impl Ledger {
    /// What was committed and answered.
    pub fn committed(&self) -> BTreeMap<i64, i64> {
        lock(&self.committed).clone()
    }

    /// Generations in which somebody had a partition.
    pub fn generations(&self) -> usize {
        lock(&self.owners).keys().map(|(generation, _)| generation).collect::<BTreeSet<_>>().len()
    }

    /// How many of these offsets of a partition nobody was given.
    pub fn missing(&self, partition: i64, end: i64) -> usize {
        let delivered = lock(&self.delivered);
        (0..end).filter(|offset| !delivered.contains(&(partition, *offset))).count()
    }

    /// # Panics
    /// When somebody else has the partition in this generation.
    fn own(&self, generation: i64, partition: i64, member: &str) {
        let before = lock(&self.owners).insert((generation, partition), member.to_owned());
        let alone = before.as_deref().is_none_or(|before| before == member);
        assert!(alone, "generation {generation}: partition {partition} belongs to {before:?} and to {member}");
    }

    fn commit(&self, partition: i64, offset: i64) {
        let mut committed = lock(&self.committed);
        let highest = committed.entry(partition).or_insert(0);
        *highest = offset.max(*highest);
    }

    /// Checks what was found committed against what had been answered before it was asked for.
    ///
    /// # Panics
    /// When a committed offset went back.
    pub fn check(&self, before: &BTreeMap<i64, i64>, partition: i64, found: i64) {
        let floor = before.get(&partition).copied().unwrap_or(0);
        assert!(found.max(0) >= floor, "partition {partition}: {floor} was committed, {found} was found");
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }
}

/// The number at a path; 0 where the field is at its default.
pub fn number(value: &Value, path: &str) -> i64 {
    match value.at(path) {
        Some(Value::Int(number)) => *number,
        _ => 0,
    }
}

/// The text at a path; empty where the field is at its default.
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    match value.at(path) {
        Some(Value::Text(text)) => text,
        _ => "",
    }
}

/// The list at a path.
pub fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    match value.at(path) {
        Some(Value::List(items)) => items,
        _ => &[],
    }
}

/// One member; it joins, reads its partitions of `topic`, commits what it read, and so on until the ledger ends.
pub struct Member<'a> {
    /// Where the broker listens, whenever it does.
    pub address: String,
    /// The group.
    pub group: &'static str,
    /// The topic, and how many partitions it has.
    pub topic: (&'static str, i64),
    /// What the members have seen.
    pub ledger: &'a Ledger,
}

impl Member<'_> {
    /// Runs until the ledger ends.
    ///
    /// # Panics
    /// When the ledger finds that something does not hold.
    pub fn run(&self) {
        let mut id = String::new();
        while !self.ledger.is_ending() {
            // Whatever went wrong, the group is joined again.
            let error = self.generation(&mut id).expect_err("a generation ends in an error");
            if error.contains("UNKNOWN_MEMBER_ID") {
                id.clear();
            }
            crate::pause(PAUSE);
        }
    }

    /// Joins, and works until it is told not to.
    fn generation(&self, id: &mut String) -> Result<(), String> {
        let mut connection = Connection::open(&self.address)?;
        let joined = self.join(&mut connection, id)?;
        let generation = number(&joined, "generationId");
        let given = self.sync(&mut connection, &joined, id)?;
        given.iter().for_each(|partition| self.ledger.own(generation, *partition, id));
        let mut positions = self.positions(&mut connection, &given)?;
        loop {
            for (partition, position) in &mut positions {
                let end = self.read(&mut connection, *partition, *position)?;
                if end > *position {
                    self.commit(&mut connection, generation, id, *partition, end)?;
                    *position = end;
                }
            }
            let fields = format!("{{groupId: {}, generationId: {generation}, memberId: {id:?}}}", self.group);
            ok(connection.call(ApiKey::Heartbeat, 3, &fields)?)?;
            if self.ledger.is_ending() {
                return Err("the end".to_owned());
            }
        }
    }

    fn join(&self, connection: &mut Connection, id: &mut String) -> Result<Value, String> {
        loop {
            let fields = format!(
                "{{groupId: {}, sessionTimeoutMs: 1000, rebalanceTimeoutMs: 1000, memberId: {id:?}, \
                 protocolType: consumer, protocols: [{{name: range, metadata: \
                 ConsumerProtocolSubscription/1{{topics: [{}]}}}}]}}",
                self.group, self.topic.0
            );
            let joined = connection.call(ApiKey::JoinGroup, 5, &fields)?;
            let asked_again = text(&joined, "errorCode") == "MEMBER_ID_REQUIRED";
            if asked_again {
                text(&joined, "memberId").clone_into(id);
                continue;
            }
            return ok(joined);
        }
    }

    /// The leader gives each member its share; an assignment is a list of numbers in one byte each.
    fn sync(&self, connection: &mut Connection, joined: &Value, id: &str) -> Result<Vec<i64>, String> {
        let mut given = String::new();
        let members = list(joined, "members");
        for (place, member) in members.iter().enumerate() {
            let share = (0..self.topic.1).filter(|partition| *partition as usize % members.len() == place);
            let share: String = share.map(|partition| format!("{partition:02x}")).collect();
            let _ = write!(given, "{{memberId: {:?}, assignment: x\"{share}\"}},", text(member, "memberId"));
        }
        let generation = number(joined, "generationId");
        let fields = format!(
            "{{groupId: {}, generationId: {generation}, memberId: {id:?}, assignments: [{given}]}}",
            self.group
        );
        let synced = ok(connection.call(ApiKey::SyncGroup, 3, &fields)?)?;
        match synced.field("assignment") {
            Some(Value::Bytes(bytes)) => Ok(bytes.iter().map(|byte| i64::from(*byte)).collect()),
            _ => Ok(Vec::new()),
        }
    }

    fn positions(&self, connection: &mut Connection, given: &[i64]) -> Result<Vec<(i64, i64)>, String> {
        let before = self.ledger.committed();
        let found = committed(connection, self.group, self.topic.0, given)?;
        for (partition, offset) in &found {
            self.ledger.check(&before, *partition, *offset);
        }
        Ok(found.into_iter().map(|(partition, offset)| (partition, offset.max(0))).collect())
    }

    /// Reads a batch or some; gives the offset after the last record.
    fn read(&self, connection: &mut Connection, partition: i64, position: i64) -> Result<i64, String> {
        let fields = format!(
            "{{replicaId: -1, maxWaitMs: 5, minBytes: 1, maxBytes: 2000, topics: [{{topic: {}, partitions: \
             [{{partition: {partition}, fetchOffset: {position}, partitionMaxBytes: 2000}}]}}]}}",
            self.topic.0
        );
        let answer = connection.call(ApiKey::Fetch, 4, &fields)?;
        let mut end = position;
        for batch in list(&answer, "responses.0.partitions.0.records") {
            let Value::Made(_, fields) = batch else { continue };
            let batch = Value::Map(fields.clone());
            let base = number(&batch, "baseOffset");
            end = base + number(&batch, "lastOffsetDelta") + 1;
            lock(&self.ledger.delivered).extend((base.max(position)..end).map(|offset| (partition, offset)));
        }
        Ok(end)
    }

    fn commit(
        &self,
        connection: &mut Connection,
        generation: i64,
        id: &str,
        partition: i64,
        offset: i64,
    ) -> Result<(), String> {
        let fields = format!(
            "{{groupId: {}, generationIdOrMemberEpoch: {generation}, memberId: {id:?}, topics: [{{name: {}, \
             partitions: [{{partitionIndex: {partition}, committedOffset: {offset}}}]}}]}}",
            self.group, self.topic.0
        );
        let answer = connection.call(ApiKey::OffsetCommit, 7, &fields)?;
        match text(&answer, "topics.0.partitions.0.errorCode") {
            "" => {
                self.ledger.commit(partition, offset);
                Ok(())
            }
            error => Err(error.to_owned()),
        }
    }
}

/// The committed offsets of some partitions; -1 where there is none.
///
/// # Errors
/// The broker does not say.
pub fn committed(
    connection: &mut Connection,
    group: &str,
    topic: &str,
    partitions: &[i64],
) -> Result<Vec<(i64, i64)>, String> {
    let indexes: Vec<String> = partitions.iter().map(i64::to_string).collect();
    let fields =
        format!("{{groupId: {group}, topics: [{{name: {topic}, partitionIndexes: [{}]}}]}}", indexes.join(", "));
    let answer = ok(connection.call(ApiKey::OffsetFetch, 5, &fields)?)?;
    let found = list(&answer, "topics.0.partitions");
    Ok(found.iter().map(|it| (number(it, "partitionIndex"), number(it, "committedOffset"))).collect())
}

/// The answer, if its error code is none.
///
/// # Errors
/// The name of the code.
pub fn ok(answer: Value) -> Result<Value, String> {
    match answer.field("errorCode") {
        None => Ok(answer),
        Some(code) => Err(code.line()),
    }
}
