//! Decompression bombs, in every codec and every way to build one, to every topic that makes the broker look into a batch:
//! each is refused with INVALID_RECORD, memory stays bounded, and who sends what is sound is served meanwhile.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use heddle_protocol::ApiKey;
use heddle_record::checksum::crc32c;
use heddle_record::{BatchBuilder, BatchOptions, Compression, HEADER_LEN, LOG_OVERHEAD, Timestamp, compress};
use heddle_tests::process::Broker;
use heddle_tests::wire::talk::Connection;
use heddle_tests::wire::value::Value;

/// What a bomb claims or has when it is opened; the broker opens no more than 128 MiB.
const OPENED: usize = 136 << 20;
/// The memory that opening them may take, in KiB: what a batch may hold, twice while its buffer grows, and some.
const MEMORY_MAX_KIB: u64 = (2 * 128 + 48) << 10;
/// The time of the first bomb, each of which has its own.
const TIME: i64 = 1_000;
/// Topics whose batches are looked into: for their keys, for another codec, for their times.
const TOPICS: [(&str, &str); 3] = [
    ("keyed", "{name: cleanup.policy, value: compact}"),
    ("recoded", "{name: compression.type, value: uncompressed}"),
    ("bounded", "{name: message.timestamp.before.max.ms, value: \"1000\"}"),
];

fn packed(codec: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    compress(codec, None, bytes, &mut out).expect("there is memory");
    out
}

/// Streams that open to [`OPENED`] bytes and more.
fn bombs() -> Vec<(&'static str, Compression, Vec<u8>)> {
    let mebibyte = vec![0; 1 << 20];
    let gzip_members = packed(Compression::Gzip, &mebibyte).repeat(OPENED >> 20);
    // One block of one frame, as often as it takes, and the end mark.
    let lz4 = packed(Compression::Lz4, &[0; 64 << 10]);
    let (lz4_header, lz4_block) = (&lz4[..7], &lz4[7..lz4.len() - 4]);
    let lz4_blocks = [lz4_header, &lz4_block.repeat(OPENED >> 16), &[0; 4]].concat();
    let lz4_frames = lz4.repeat(OPENED >> 16);
    let snappy = packed(Compression::Snappy, &[0; 32 << 10]);
    let snappy_chunks = [&snappy[..16], &snappy[16..].repeat(OPENED >> 15)].concat();
    // The length of the whole, one zero, and copies of 64 bytes from one byte back.
    let mut snappy_raw = varint(OPENED + 1);
    snappy_raw.extend_from_slice(&[0, 0]);
    snappy_raw.extend_from_slice(&[63 << 2 | 2, 1, 0].repeat(OPENED / 64));
    // A frame of blocks that are one byte, repeated 128 KiB times.
    let zstd_magic = 0xfd2f_b528_u32.to_le_bytes();
    let run = |last: u32| [&(128 << 10 << 3 | 1 << 1 | last).to_le_bytes()[..3], b"a"].concat();
    let runs = [run(0).repeat((OPENED >> 17) - 1), run(1)].concat();
    let zstd_runs = [&zstd_magic[..], &[0, 8 << 3], &runs].concat();
    // The same with a window of 128 MiB, which is legal, and with one of 2 GiB, which nobody opens.
    let zstd_window = [&zstd_magic[..], &[0, 17 << 3], &runs].concat();
    let zstd_huge_window = [&zstd_magic[..], &[0, 21 << 3], &runs].concat();
    let zstd_frames = [&zstd_magic[..], &[0, 8 << 3], &run(1)].concat().repeat(OPENED >> 17);
    vec![
        ("gzip, many members", Compression::Gzip, gzip_members),
        ("gzip, one member", Compression::Gzip, packed(Compression::Gzip, &vec![0; 136 << 20])),
        ("lz4, many blocks", Compression::Lz4, lz4_blocks),
        ("lz4, many frames", Compression::Lz4, lz4_frames),
        ("snappy, many chunks", Compression::Snappy, snappy_chunks),
        ("snappy, one raw block", Compression::Snappy, snappy_raw),
        ("zstd, runs", Compression::Zstd, zstd_runs),
        ("zstd, a large window", Compression::Zstd, zstd_window),
        ("zstd, a huge window", Compression::Zstd, zstd_huge_window),
        ("zstd, many frames", Compression::Zstd, zstd_frames),
    ]
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A batch of one record, whose body is `stream` under a checksum that fits. Its header promises a time of its own.
fn batch(number: i64, codec: Compression, stream: &[u8]) -> Vec<u8> {
    let mut bytes = sound(codec);
    bytes[35..43].copy_from_slice(&(TIME + number).to_be_bytes());
    bytes.truncate(HEADER_LEN);
    bytes.extend_from_slice(stream);
    let length = i32::try_from(bytes.len() - LOG_OVERHEAD).expect("a bomb is small");
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// A batch that every topic takes: without a time, with a key.
fn sound(codec: Compression) -> Vec<u8> {
    let mut builder = BatchBuilder::new(BatchOptions { compression: codec, ..BatchOptions::default() });
    builder.push(Timestamp::NONE, Some(b"key"), Some(b"value"), &[]).expect("it fits");
    let mut out = Vec::new();
    builder.finish(&mut out).expect("it fits");
    out
}

fn produce(connection: &mut Connection, topic: &str, records: Vec<u8>) -> Value {
    let map = |fields: Vec<(&str, Value)>| {
        Value::Map(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    };
    let partition = map(vec![("index", Value::Int(0)), ("records", Value::Bytes(records))]);
    let topic = map(vec![("name", Value::Text(topic.to_owned())), ("partitionData", Value::List(vec![partition]))]);
    let request =
        map(vec![("acks", Value::Int(-1)), ("timeoutMs", Value::Int(30_000)), ("topicData", Value::List(vec![topic]))]);
    connection.send(ApiKey::Produce, 9, &request).expect("a request");
    let answer = connection.receive();
    answer.at("responses.0.partitionResponses.0").unwrap_or_else(|| panic!("{}", answer.line())).clone()
}

fn create(connection: &mut Connection, name: &str, setting: &str) {
    let topic = format!(
        "{{topics: [{{name: {name}, numPartitions: 1, replicationFactor: 1, configs: [{{name: max.message.bytes, \
         value: \"50000000\"}}{setting}]}}], timeoutMs: 5000}}"
    );
    let answer = connection.call(ApiKey::CreateTopics, 4, &topic).expect("an answer");
    assert!(!answer.line().contains("errorCode"), "{}", answer.line());
}

#[test]
fn bombs_are_refused_and_cost_no_more_than_a_batch_may() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let broker = Broker::start(data.path(), &["--cores", "1"]);
    let mut connection = Connection::open(&broker.address).expect("it listens");
    for (topic, setting) in TOPICS {
        create(&mut connection, topic, &format!(", {setting}"));
    }
    create(&mut connection, "plain", "");
    create(&mut connection, "others", "");
    let bombs: Vec<_> =
        (0..).zip(bombs()).map(|(number, (what, codec, stream))| (what, batch(number, codec, &stream))).collect();
    let before = broker.memory_kib("VmHWM");
    let (address, over) = (broker.address.as_str(), AtomicBool::new(false));
    let served = std::thread::scope(|scope| {
        let other = scope.spawn(|| produce_until(address, &over));
        for (number, (what, bomb)) in (0..).zip(&bombs) {
            throw(&mut connection, number, what, bomb);
        }
        over.store(true, Ordering::Relaxed);
        other.join().expect("the other producer is served")
    });
    assert!(served > 0, "nobody else was served");
    let grown = broker.memory_kib("VmHWM") - before;
    assert!(grown < MEMORY_MAX_KIB, "{grown} KiB for {} bombs", bombs.len());
    for (topic, _) in TOPICS {
        for codec in Compression::ALL {
            let answer = produce(&mut connection, topic, sound(codec));
            assert_eq!(answer.field("errorCode"), None, "{codec} to {topic}: {}", answer.line());
        }
    }
}

/// Produces what is sound until it is over; returns how often.
fn produce_until(address: &str, over: &AtomicBool) -> usize {
    let mut connection = Connection::open(address).expect("it listens");
    let mut served = 0;
    while !over.load(Ordering::Relaxed) {
        let answer = produce(&mut connection, "others", sound(Compression::None));
        assert_eq!(answer.field("errorCode"), None, "{}", answer.line());
        served += 1;
    }
    served
}

/// Sends a bomb to a topic that looks into it, one for each in turn since a debug build takes a second and more to open one;
/// and to a topic that does not, where it is asked for by time.
fn throw(connection: &mut Connection, number: i64, what: &str, bomb: &[u8]) {
    let topic = TOPICS[number as usize % TOPICS.len()].0;
    let answer = produce(connection, topic, bomb.to_vec());
    let refused = answer.field("errorCode") == Some(&Value::Text("INVALID_RECORD".to_owned()));
    assert!(refused, "{what} to {topic}: {}", answer.line());
    let words = answer.field("errorMessage").map(Value::line).unwrap_or_default();
    assert!(words.contains("decompressed"), "{what} to {topic}: {words}");
    // Where nobody looks into it, it is bytes like others, and a look-up by time opens no more of it than may be.
    let answer = produce(connection, "plain", bomb.to_vec());
    assert_eq!(answer.field("errorCode"), None, "{what}: {}", answer.line());
    let time = TIME + number;
    let lookup =
        format!("{{replicaId: -1, topics: [{{name: plain, partitions: [{{partitionIndex: 0, timestamp: {time}}}]}}]}}");
    let answer = connection.call(ApiKey::ListOffsets, 7, &lookup).expect("an answer");
    assert_eq!(answer.at("topics.0.partitions.0.offset"), Some(&Value::Int(number)), "{what}: {}", answer.line());
}
