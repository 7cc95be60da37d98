//! One client of one cluster: its connections, what it knows of the cluster, and calls that are tried again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use heddle_io::sync::Semaphore;
use heddle_io::{Io, Monotonic};
use heddle_protocol::messages::metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse};
use heddle_protocol::{ApiKey, ErrorCode};
use heddle_record::{BrokerId, LeaderEpoch, PartitionIndex};

use crate::admin::Admin;
use crate::brokers::{Address, Brokers, Purpose, backoff};
use crate::config::{ClientConfig, ConsumerConfig, ProducerConfig};
use crate::connection::Connection;
use crate::consumer::Consumer;
use crate::error::{Error, Result};
use crate::groups::Groups;
use crate::membership::Membership;
use crate::metadata::{Broker, Metadata, Topic, TopicAnswer};
use crate::producer::Producer;
use crate::versions::BrokerVersions;

/// A client. Clones are the same client: they share connections and metadata. Stays on its core.
#[derive(Clone)]
pub struct Client {
    inner: Rc<Inner>,
}

struct Inner {
    io: Io,
    config: Rc<ClientConfig>,
    bootstrap: Vec<Address>,
    brokers: Brokers,
    metadata: RefCell<Metadata>,
    /// One metadata request at a time.
    refreshing: Semaphore,
    /// Topics to ask for in the next request.
    wanted: RefCell<BTreeSet<String>>,
    /// Tells the connections of producers and consumers apart.
    next_number: Cell<u32>,
}

/// Whether asking for a topic may make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// If the broker is set up to (`auto.create.topics.enable`).
    Allowed,
    /// Never.
    Forbidden,
}

/// Where a partition's leader is.
#[derive(Debug, Clone)]
pub(crate) struct Leader {
    pub(crate) broker: Broker,
    pub(crate) epoch: LeaderEpoch,
    pub(crate) topic: Rc<Topic>,
}

impl Client {
    /// Connects to a cluster. `bootstrap` lists some of its brokers as `host:port`, comma separated; a missing port is
    /// 9092. The first that answers tells the rest.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an address that is none, [`Error::Unreachable`] when no broker answers in its first try.
    pub async fn connect(io: &Io, bootstrap: &str, config: ClientConfig) -> Result<Self> {
        let config = Rc::new(config);
        let inner = Inner {
            io: io.clone(),
            bootstrap: addresses(bootstrap)?,
            brokers: Brokers::new(io.clone(), Rc::clone(&config)),
            metadata: RefCell::default(),
            refreshing: Semaphore::new(1),
            wanted: RefCell::default(),
            next_number: Cell::new(0),
            config,
        };
        let client = Self { inner: Rc::new(inner) };
        client.ask_metadata(Asked::Nothing, Creation::Forbidden).await?;
        Ok(client)
    }

    /// A producer with its own connections.
    ///
    /// # Errors
    /// [`Error::Invalid`] for settings that contradict each other.
    pub fn producer(&self, config: ProducerConfig) -> Result<Producer> {
        Producer::new(self.clone(), self.next_number(), config)
    }

    /// A consumer with its own connections, that reads nothing yet.
    pub fn consumer(&self, config: ConsumerConfig) -> Consumer {
        Consumer::new(self.clone(), self.next_number(), config)
    }

    /// Calls that change or describe the cluster.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// A member of a group, to share these topics with the others; it has not joined yet.
    pub fn membership(&self, group: &str, topics: &[&str]) -> Membership {
        let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        Membership::new(self.clone(), self.next_number(), group.to_owned(), topics)
    }

    /// Calls about consumer groups.
    pub fn groups(&self) -> Groups {
        Groups::new(self.clone())
    }

    /// The core that the client lives on.
    pub fn io(&self) -> &Io {
        &self.inner.io
    }

    /// How the client was set up.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// The cluster's id, from the last metadata.
    pub fn cluster_id(&self) -> Option<String> {
        self.inner.metadata.borrow().cluster_id.clone()
    }

    /// The brokers, from the last metadata, by id.
    pub fn brokers(&self) -> Vec<Broker> {
        self.inner.metadata.borrow().brokers().cloned().collect()
    }

    /// The broker to send changes of the cluster to, from the last metadata.
    pub fn controller(&self) -> Option<BrokerId> {
        self.inner.metadata.borrow().controller
    }

    /// What a broker accepts; any broker's when `broker` is not given.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn versions(&self, broker: Option<BrokerId>) -> Result<BrokerVersions> {
        match broker {
            Some(id) => Ok(self.connection_to(id, Purpose::Control).await?.versions()),
            None => Ok(self.any_connection().await?.versions()),
        }
    }

    /// All topics, by name, asked for anew.
    ///
    /// # Errors
    /// No broker answers.
    pub async fn topics(&self) -> Result<Vec<Rc<Topic>>> {
        let answers = self.ask_metadata(Asked::All, Creation::Forbidden).await?;
        Ok(answers.into_values().filter_map(|answer| answer.ok()).collect())
    }

    /// One topic, from the cache where that is fresh.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`] at once where the topic may not be created; else after trying again what may come right.
    pub async fn topic(&self, name: &str, creation: Creation) -> Result<Rc<Topic>> {
        let deadline = self.inner.io.now() + self.inner.config.retry_timeout;
        let mut failures = 0;
        loop {
            let error = match self.topic_once(name, creation).await {
                Ok(topic) => return Ok(topic),
                Err(error) => error,
            };
            let unknown = error.code() == Some(ErrorCode::UnknownTopicOrPartition);
            if unknown && creation == Creation::Forbidden {
                return Err(Error::UnknownTopic { topic: name.to_owned() });
            }
            if !error.retriable() || self.inner.io.now() >= deadline {
                return Err(if unknown { Error::UnknownTopic { topic: name.to_owned() } } else { error });
            }
            self.wait_before_retry(&mut failures).await;
        }
    }

    /// One attempt at [`Client::topic`]. Attempts that happen together share a request.
    async fn topic_once(&self, name: &str, creation: Creation) -> Result<Rc<Topic>> {
        if let Some(topic) = self.cached(name) {
            return Ok(topic);
        }
        self.inner.wanted.borrow_mut().insert(name.to_owned());
        let _one_request = self.inner.refreshing.acquire(1).await;
        if let Some(topic) = self.cached(name) {
            self.inner.wanted.borrow_mut().remove(name);
            return Ok(topic);
        }
        // Those who wait find the answer to theirs in the cache; with creation every topic is asked for by itself.
        let names = match creation {
            Creation::Forbidden => self.inner.wanted.take(),
            Creation::Allowed => BTreeSet::new(),
        };
        self.inner.wanted.borrow_mut().remove(name);
        let names = names.into_iter().chain([name.to_owned()]).collect();
        let mut answers = self.ask_metadata(Asked::Named(names), creation).await?;
        let unknown = || Err(ErrorCode::UnknownTopicOrPartition);
        let subject = || format!("topic {name:?}");
        answers.remove(name).unwrap_or_else(unknown).map_err(|code| Error::Broker {
            code,
            subject: subject(),
            message: None,
        })
    }

    /// Asks again before a topic is used the next time: something failed that a change in the cluster explains.
    pub fn doubt(&self, topic: &str) {
        self.inner.metadata.borrow_mut().doubt(topic);
    }

    fn cached(&self, name: &str) -> Option<Rc<Topic>> {
        let age_max = self.inner.config.metadata_age_max;
        let now = self.inner.io.now().as_nanos();
        let not_before = now.saturating_sub(u64::try_from(age_max.as_nanos()).unwrap_or(u64::MAX));
        self.inner.metadata.borrow().fresh(name, Monotonic::from_nanos(not_before))
    }

    /// Who leads a partition. Tries once, and its errors say whether to try again; where there is no leader the topic is
    /// asked for again the next time.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`], [`Error::NoLeader`], what the broker says about the topic.
    pub(crate) async fn leader(&self, topic: &str, partition: PartitionIndex, creation: Creation) -> Result<Leader> {
        let topic = self.topic_once(topic, creation).await?;
        let Some(found) = topic.partition(partition) else {
            let partition_count = topic.partition_count();
            return Err(Error::UnknownPartition { topic: topic.name.to_string(), partition, partition_count });
        };
        let broker = found.leader.and_then(|id| self.inner.metadata.borrow().broker(id).cloned());
        let epoch = found.leader_epoch;
        match broker {
            Some(broker) => Ok(Leader { broker, epoch, topic }),
            None => {
                self.doubt(&topic.name);
                Err(Error::NoLeader { topic: topic.name.to_string(), partition })
            }
        }
    }

    /// The connection to a broker that the cluster has.
    pub(crate) async fn connection_to(&self, id: BrokerId, purpose: Purpose) -> Result<Connection> {
        let address = self.inner.metadata.borrow().broker(id).map(|it| it.address.clone());
        match address {
            Some(address) => self.inner.brokers.connection(&address, purpose).await,
            None => Err(Error::Invalid { what: format!("there is no broker {id} in the cluster") }),
        }
    }

    /// The connection to an address.
    pub(crate) async fn connection(&self, address: &Address, purpose: Purpose) -> Result<Connection> {
        self.inner.brokers.connection(address, purpose).await
    }

    /// The connection to the controller, or to any broker where none is known.
    pub(crate) async fn controller_connection(&self) -> Result<Connection> {
        match self.controller() {
            Some(id) => self.connection_to(id, Purpose::Control).await,
            None => self.any_connection().await,
        }
    }

    /// A connection to the first broker that takes it: those of the last metadata, then those of the bootstrap list.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub(crate) async fn any_connection(&self) -> Result<Connection> {
        let known: Vec<_> = self.inner.metadata.borrow().brokers().map(|it| it.address.clone()).collect();
        let bootstrap = self.inner.bootstrap.iter().filter(|it| !known.contains(it));
        let mut reason = String::new();
        for address in known.iter().chain(bootstrap) {
            match self.connection(address, Purpose::Control).await {
                Ok(connection) => return Ok(connection),
                Err(error @ Error::Unsupported { .. }) => return Err(error),
                Err(Error::Disconnected { reason: why, .. }) => reason = why,
                Err(error) => reason = error.to_string(),
            }
        }
        let addresses: Vec<_> = self.inner.bootstrap.iter().map(Address::to_string).collect();
        Err(Error::Unreachable { addresses: addresses.join(","), reason })
    }

    /// Ends the connections of a producer or consumer.
    pub(crate) fn forget(&self, purpose: Purpose) {
        self.inner.brokers.forget(purpose);
    }

    /// Waits before an attempt, longer each time.
    pub(crate) async fn wait_before_retry(&self, failures: &mut u32) {
        let wait = self.backoff(*failures);
        *failures += 1;
        self.inner.io.sleep(wait).await;
    }

    /// How long to wait after `failures + 1` failures.
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        backoff(&self.inner.config, failures, self.inner.io.random_u64())
    }

    /// Runs `attempt` until it succeeds, fails for good, or [`ClientConfig::retry_timeout`] has passed.
    pub(crate) async fn retry<T>(&self, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        let deadline = self.inner.io.now() + self.inner.config.retry_timeout;
        let mut failures = 0;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if !error.retriable() || self.inner.io.now() >= deadline {
                return Err(error);
            }
            self.wait_before_retry(&mut failures).await;
            if error.invalidates_metadata() {
                // A cluster that cannot be asked fails the next attempt, which says so better.
                let _ = self.ask_metadata(Asked::Nothing, Creation::Forbidden).await;
            }
        }
    }

    async fn ask_metadata(&self, asked: Asked, creation: Creation) -> Result<BTreeMap<String, TopicAnswer>> {
        let connection = self.any_connection().await?;
        let version = connection.pick(ApiKey::Metadata, i16::MAX)?;
        let topics: Option<Vec<String>> = match asked {
            Asked::All => None,
            Asked::Nothing => Some(Vec::new()),
            Asked::Named(names) => Some(names),
        };
        let request = MetadataRequest {
            topics: topics.as_ref().map(|names| names.iter().map(|it| asked_topic(it)).collect()),
            // Before version 4 there is no such field: the broker creates as it is set up to.
            allow_auto_topic_creation: version < 4 || creation == Creation::Allowed,
            ..MetadataRequest::default()
        };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: MetadataResponse<'_> = reply.decode()?;
        Error::check(response.error_code, None, || format!("broker {}", connection.broker()))?;
        Ok(self.inner.metadata.borrow_mut().update(&response, self.inner.io.now()))
    }

    fn next_number(&self) -> u32 {
        let number = self.inner.next_number.get();
        self.inner.next_number.set(number + 1);
        number
    }
}

/// Which topics a metadata request is about.
enum Asked {
    All,
    Nothing,
    Named(Vec<String>),
}

fn asked_topic(name: &str) -> MetadataRequestTopic<'_> {
    MetadataRequestTopic { name: Some(name), ..MetadataRequestTopic::default() }
}

/// Parses `host:port,[::1]:port,host`.
fn addresses(list: &str) -> Result<Vec<Address>> {
    let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
    let addresses = parts.map(address).collect::<Result<Vec<_>>>()?;
    if addresses.is_empty() {
        return Err(Error::Invalid { what: "no broker is named: expected host:port".to_owned() });
    }
    Ok(addresses)
}

/// The port of Kafka's protocol where none is named.
const DEFAULT_PORT: u16 = 9092;

fn address(text: &str) -> Result<Address> {
    let invalid = || Error::Invalid { what: format!("{text:?} is no broker address: expected host:port") };
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':').or(rest.is_empty().then_some(""))),
        None if text.matches(':').count() > 1 => (text, Some("")),
        None => text.split_once(':').map_or((text, Some("")), |(host, port)| (host, Some(port))),
    };
    let port = match port.ok_or_else(invalid)? {
        "" if !text.ends_with(':') || text.matches(':').count() > 1 => DEFAULT_PORT,
        port => port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?,
    };
    if host.is_empty() || host.contains(['/', ' ']) {
        return Err(invalid());
    }
    Ok(Address { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Result<Vec<String>> {
        Ok(addresses(list)?.iter().map(Address::to_string).collect())
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        assert_eq!(
            parsed("a:1, b ,[::1]:3,[::2],::3,").unwrap(),
            ["a:1", "b:9092", "[::1]:3", "[::2]:9092", "[::3]:9092"]
        );
        for wrong in ["", ",", "a:b", "a:0", "a:70000", "http://a:1", ":1", "[::1]x", "a:"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
