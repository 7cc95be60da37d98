//! Conversations with the controller: commands in `testdata/*.txt`, the whole answer below each, reviewed as a diff.
//! `HEDDLE_REWRITE_TRANSCRIPTS=1 cargo test -p heddle-cluster` writes the answers anew.
//!
//! After each command every record so far is replayed from its bytes into an empty image, which must equal the image.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a transcript that does not parse fails its test")]

mod transcript;

use std::fmt::Write as _;

use heddle_cluster::controller::{
    AlterConfigs, AlterResource, Assignment, Command, ConfigChange, Context, CreatePartitions, CreateTopics,
    DeleteTopic, Fault, MorePartitions, NewTopic, Others, RegisterBroker, Response, step,
};
use heddle_cluster::settings::layers::Values;
use heddle_cluster::{Endpoint, MetadataImage, MetadataRecord};
use heddle_record::{BrokerId, Timestamp, TopicId};

#[test]
fn topics_are_decided_as_written() {
    run("topics.txt");
}

#[test]
fn partitions_are_decided_as_written() {
    run("partitions.txt");
}

#[test]
fn configs_are_decided_as_written() {
    run("configs.txt");
}

#[test]
fn brokers_are_decided_as_written() {
    run("brokers.txt");
}

/// Commands of any kind in any order: no decision contradicts the image it was made on, and replay agrees throughout.
#[test]
fn any_commands_in_any_order_replay_to_the_same_image() {
    const NAMES: [&str; 6] = ["a", "b.c", "b_c", "''", "d", "e"];
    const CONFIGS: [&str; 5] =
        ["retention.ms=5", "cleanup.policy=compact", "nosuch=1", "flush.messages=0", "segment.ms=9"];
    for seed in 1..=20_u64 {
        let mut random = seed;
        let mut pick = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from((random >> 33) % below).unwrap()
        };
        let mut cluster = Cluster::default();
        for _ in 0..150 {
            let (name, other, config) = (NAMES[pick(6)], NAMES[pick(6)], CONFIGS[pick(5)]);
            let (number, operation) = (pick(5), ["set", "delete", "append", "subtract"][pick(4)]);
            let line = match pick(8) {
                0 => format!("register {number} {}", pick(3)),
                1 => format!("create {name} partitions={number} {config} + {other} replicas={}", pick(3)),
                2 => format!("create {name} assign=0:{number};1:{}", pick(5)),
                3 => format!("delete {name} + id={}", pick(200)),
                4 => format!("grow {name} {number} + {other} {}", pick(9)),
                5 => format!("alter topic {name} {operation} {config} + broker '' {operation} log.{config}"),
                6 => format!("alter validate broker {number} {operation} log.retention.ms={number}"),
                _ => format!("producer-ids {number}"),
            };
            cluster.command(&line, &mut String::new());
        }
        assert!(cluster.log.len() > 20, "seed {seed} hardly changed anything");
    }
}

fn run(name: &str) {
    let mut cluster = Cluster::default();
    transcript::run(name, |command, told| cluster.command(command, told));
}

#[derive(Default)]
struct Cluster {
    image: MetadataImage,
    log: Vec<Vec<u8>>,
    start: Values,
    ids: u8,
}

impl Cluster {
    fn command(&mut self, line: &str, told: &mut String) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "start" => self.start = pairs(rest).map(|(name, value)| (name, value.unwrap())).collect(),
            "image" => show(&self.image, told),
            _ => {
                let command = self.parse(verb, rest);
                self.decide(command, told);
            }
        }
    }

    fn decide(&mut self, command: Command, told: &mut String) {
        let context =
            Context { image: &self.image, now: Timestamp::new(1_000), broker: BrokerId::new(1), start: &self.start };
        let decision = step(&context, command);
        respond(&decision.response, told);
        for record in &decision.records {
            writeln!(told, "  + {}", describe(record)).unwrap();
            self.image.apply(record).unwrap();
            self.log.push(record.encode());
        }
        self.image.check_invariants();
        let mut replayed = MetadataImage::default();
        for bytes in &self.log {
            replayed.apply(&MetadataRecord::decode(bytes).unwrap()).unwrap();
        }
        assert_eq!(replayed, self.image, "the records say something else");
    }

    fn parse(&mut self, verb: &str, rest: &str) -> Command {
        let (validate_only, rest) = rest.strip_prefix("validate ").map_or((false, rest), |rest| (true, rest));
        let parts = rest.split(" + ").filter(|part| !part.is_empty());
        match verb {
            "create" => {
                let topics = parts.map(|part| self.new_topic(part)).collect();
                Command::CreateTopics(CreateTopics { topics, validate_only })
            }
            "delete" => Command::DeleteTopics(parts.map(deleted).collect()),
            "grow" => Command::CreatePartitions(CreatePartitions { topics: parts.map(grown).collect(), validate_only }),
            "alter" => Command::AlterConfigs(AlterConfigs { resources: parts.map(altered).collect(), validate_only }),
            "producer-ids" => Command::AllocateProducerIds { broker: BrokerId::new(rest.parse().unwrap()) },
            "register" => Command::RegisterBroker(registered(rest)),
            unknown => panic!("no command {unknown}"),
        }
    }

    fn new_topic(&mut self, part: &str) -> NewTopic {
        self.ids = self.ids.checked_add(1).expect("a conversation asks for at most 255 topics");
        let mut words = part.split(' ');
        let name = word(words.next().unwrap());
        let id = TopicId::new([self.ids; 16]);
        let (partitions, replication_factor) = (-1, -1);
        let mut topic =
            NewTopic { name, id, partitions, replication_factor, assignments: Vec::new(), configs: Vec::new() };
        for option in words {
            match option.split_once('=').unwrap() {
                ("partitions", count) => topic.partitions = count.parse().unwrap(),
                ("replicas", count) => topic.replication_factor = count.parse().unwrap(),
                ("assign", list) => topic.assignments = list.split(';').map(assignment).collect(),
                (name, value) => topic.configs.push((name.into(), value_or_null(value))),
            }
        }
        topic
    }
}

fn word(text: &str) -> String {
    match text {
        "''" => String::new(),
        text => match text.split_once('*') {
            Some((letter, count)) => letter.repeat(count.parse().unwrap()),
            None => text.replace('~', " "),
        },
    }
}

fn value_or_null(value: &str) -> Option<String> {
    (value != "null").then(|| value.to_string())
}

fn pairs(text: &str) -> impl Iterator<Item = (String, Option<String>)> {
    text.split(' ').filter(|word| !word.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_string(), value_or_null(value))
    })
}

fn brokers(list: &str) -> Vec<BrokerId> {
    list.split(',').filter(|id| !id.is_empty()).map(|id| BrokerId::new(id.parse().unwrap())).collect()
}

fn assignment(text: &str) -> Assignment {
    let (partition, list) = text.split_once(':').unwrap();
    Assignment { partition: partition.parse().unwrap(), brokers: brokers(list) }
}

/// A name, `id=N` for the id of the Nth topic that was asked for, or both.
fn deleted(part: &str) -> DeleteTopic {
    let mut topic = DeleteTopic { name: None, id: TopicId::ZERO };
    for text in part.split(' ') {
        match text.strip_prefix("id=") {
            Some(id) => topic.id = TopicId::new([id.parse().unwrap(); 16]),
            None => topic.name = Some(word(text)),
        }
    }
    topic
}

fn grown(part: &str) -> MorePartitions {
    let mut words = part.split(' ');
    let (name, count) = (word(words.next().unwrap()), words.next().unwrap().parse().unwrap());
    let assignments = words.next().map(|list| list.strip_prefix("assign=").unwrap().split(';').map(brokers).collect());
    MorePartitions { name, count, assignments }
}

fn altered(part: &str) -> AlterResource {
    let (others, part) = part.strip_prefix("only ").map_or((Others::Kept, part), |part| (Others::Removed, part));
    let mut words = part.split(' ');
    let kind = match words.next().unwrap() {
        "topic" => 2,
        "broker" => 4,
        number => number.parse().unwrap(),
    };
    let name = word(words.next().unwrap());
    let mut changes = Vec::new();
    while let Some(operation) = words.next() {
        let operation = match operation {
            "set" => 0,
            "delete" => 1,
            "append" => 2,
            "subtract" => 3,
            number => number.parse().unwrap(),
        };
        let pair = words.next().unwrap();
        let (name, value) = pair.split_once('=').map_or((pair, None), |(name, value)| (name, value_or_null(value)));
        changes.push(ConfigChange { name: name.into(), operation, value });
    }
    AlterResource { kind, name, changes, others }
}

fn registered(rest: &str) -> RegisterBroker {
    let mut words = rest.split(' ');
    let id = BrokerId::new(words.next().unwrap().parse().unwrap());
    let incarnation = [words.next().unwrap().parse().unwrap(); 16];
    let endpoints = vec![Endpoint { listener: "PLAINTEXT".into(), host: "127.0.0.1".into(), port: 9092 }];
    RegisterBroker { id, incarnation, endpoints, rack: words.next().map(str::to_string) }
}

fn respond(response: &Response, told: &mut String) {
    let result = |result: &Result<(), Fault>| match result {
        Ok(()) => "ok".to_string(),
        Err(fault) => fault.to_string(),
    };
    let lines: Vec<String> = match response {
        Response::CreateTopics(topics) => topics
            .iter()
            .map(|topic| match &topic.result {
                Err(fault) => format!("'{}' {fault}", topic.name),
                Ok(shape) => {
                    let (partitions, replicas) = (shape.partitions, shape.replication_factor);
                    format!("'{}' ok {} {partitions}x{replicas} {:?}", topic.name, shape.id, shape.config)
                }
            })
            .collect(),
        Response::DeleteTopics(topics) => {
            topics.iter().map(|topic| format!("{:?} {} {}", topic.name, topic.id, result(&topic.result))).collect()
        }
        Response::CreatePartitions(topics) => {
            topics.iter().map(|(name, outcome)| format!("'{name}' {}", result(outcome))).collect()
        }
        Response::AlterConfigs(resources) => {
            resources.iter().map(|r| format!("{} '{}' {}", r.kind, r.name, result(&r.result))).collect()
        }
        Response::AllocateProducerIds(Ok(first)) => vec![format!("from {first}")],
        Response::AllocateProducerIds(Err(fault)) => vec![fault.to_string()],
        Response::RegisterBroker { epoch } => vec![format!("epoch {epoch}")],
    };
    for line in lines {
        writeln!(told, "  {line}").unwrap();
    }
}

fn describe(record: &MetadataRecord) -> String {
    match record {
        MetadataRecord::Topic { name, id } => format!("topic {name} {id}"),
        MetadataRecord::Partition { topic, partition, state } => {
            let ids = |list: &[BrokerId]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            let (replicas, in_sync) = (ids(&state.replicas), ids(&state.in_sync_replicas));
            let epochs = format!("epochs {}/{}", state.leader_epoch, state.partition_epoch);
            format!("partition {topic}-{partition} leader {} of {replicas} in sync {in_sync} {epochs}", state.leader)
        }
        MetadataRecord::RemoveTopic { id } => format!("remove {id}"),
        MetadataRecord::TopicConfig { topic, name, value } => format!("config {topic} {name} = {value:?}"),
        MetadataRecord::BrokerConfig { broker, name, value } => format!("config {broker:?} {name} = {value:?}"),
        MetadataRecord::ResourceConfig { resource, name, value } => format!("config {resource:?} {name} = {value:?}"),
        MetadataRecord::ProducerIds { broker, next } => format!("producer ids of {broker} up to {next}"),
        MetadataRecord::RegisterBroker { id, registration } => {
            format!("broker {id} epoch {} rack {:?}", registration.epoch, registration.rack)
        }
        MetadataRecord::FeatureLevel { name, level } => format!("feature {name} {level}"),
    }
}

fn show(image: &MetadataImage, told: &mut String) {
    for topic in image.topics_by_name("") {
        let partitions = topic.partitions.len();
        writeln!(told, "  {} {} partitions {partitions} {:?}", topic.name, topic.id, topic.config).unwrap();
    }
    for (id, registration) in image.brokers() {
        writeln!(told, "  broker {id} epoch {} {:?}", registration.epoch, image.broker_config(id)).unwrap();
    }
    writeln!(told, "  all brokers {:?}, next producer id {}", image.cluster_config(), image.next_producer_id())
        .unwrap();
}
