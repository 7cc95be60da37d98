//! The life of the process, and what bad input gets: refusals in one clear line with status 1 and nothing changed,
//! signals, and bytes on the port that are not Kafka's.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::time::Duration;
use std::{fs, io};

use heddle_tests::process::{Broker, refused};
use heddle_tests::{pause, thread};

fn data_dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Everything below a folder, as sorted relative paths.
fn listing(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.expect("a folder can be listed").path();
            found.push(path.strip_prefix(folder).expect("below it").to_string_lossy().into_owned());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Asserts status 1 and one error line that holds every one of `words`.
#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "it said:\n{said}");
    let about: Vec<&str> = said.lines().filter(|line| words.iter().all(|word| line.contains(word))).collect();
    assert_eq!(about.len(), 1, "one line with {words:?}; it said:\n{said}");
    assert!(!said.contains("panicked"), "it said:\n{said}");
}

#[test]
fn a_port_in_use_is_refused() {
    let data = data_dir();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let fresh = data.path().join("fresh");
    assert_refused(&refused(&fresh, &["--listen", &address]), &[&address, "in use"]);
    assert!(!fresh.exists(), "a refused start leaves nothing behind: {:?}", listing(data.path()));
}

/// Whoever is killed is gone before its port is free: the next start waits for that.
#[test]
fn a_port_that_becomes_free_is_taken() {
    let data = data_dir();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let leaving = thread(move || {
        pause(Duration::from_millis(300));
        drop(taken);
    });
    let mut broker = Broker::start(data.path(), &["--listen", &address]);
    leaving.join().expect("it only waits");
    for _ in 0..5 {
        assert_eq!(broker.address, address);
        broker.kill();
        broker = Broker::start(data.path(), &["--listen", &address]);
    }
    broker.stop();
}

#[test]
fn a_locked_data_directory_is_refused_with_the_pid_of_its_holder() {
    let data = data_dir();
    let broker = Broker::start(data.path(), &[]);
    let before = listing(data.path());
    assert_refused(&refused(data.path(), &[]), &[&broker.id().to_string()]);
    assert_eq!(listing(data.path()), before);
    broker.stop();
}

#[test]
fn a_foreign_directory_is_refused() {
    let data = data_dir();
    fs::write(data.path().join("thesis.txt"), "mine").expect("a file is written");
    assert_refused(&refused(data.path(), &[]), &[&data.path().display().to_string()]);
    assert_eq!(listing(data.path()), ["thesis.txt"]);
}

#[test]
fn an_unknown_setting_is_refused_and_the_nearest_is_named() {
    let data = data_dir();
    let fresh = data.path().join("fresh");
    assert_refused(&refused(&fresh, &["--set", "num.partition=3"]), &["num.partition", "num.partitions"]);
    assert_refused(&refused(&fresh, &["--set", "num.partitions=many"]), &["num.partitions", "many"]);
    assert!(!fresh.exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_refused() {
    let data = data_dir();
    let file = data.path().join("file");
    fs::write(&file, "").expect("a file is written");
    assert_refused(&refused(&file.join("data"), &[]), &[&file.display().to_string()]);
}

/// A file system in memory has no way around the page cache.
#[test]
fn a_log_device_that_the_file_system_cannot_have_is_refused() {
    let data = tempfile::tempdir_in("/dev/shm").expect("a temporary folder in memory");
    let fresh = data.path().join("new").join("fresh");
    assert_refused(&refused(&fresh, &["--set", "log.device=direct"]), &["log.device", "tmpfs"]);
    assert_eq!(listing(data.path()), Vec::<String>::new(), "a refused start leaves nothing behind");
    let broker = Broker::start(&fresh, &["--set", "log.device=auto"]);
    broker.stop();
    let before = listing(data.path());
    assert_refused(&refused(&fresh, &["--set", "log.device=direct"]), &["log.device", "tmpfs"]);
    assert_eq!(listing(data.path()), before);
}

#[test]
fn other_machines_are_let_in_only_on_purpose() {
    let data = data_dir();
    assert_refused(&refused(&data.path().join("fresh"), &["--listen", "0.0.0.0:0"]), &["--insecure"]);
}

#[test]
fn sigterm_and_sigint_end_it_cleanly() {
    for signal in ["TERM", "INT"] {
        let data = data_dir();
        let broker = Broker::start(data.path(), &[]);
        broker.signal(signal);
        let (status, said) = broker.wait();
        assert_eq!(status.code(), Some(0), "{signal}; it said:\n{said}");
    }
}

fn connect(broker: &Broker) -> TcpStream {
    let stream = TcpStream::connect(&broker.address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout can be set");
    stream
}

/// Sends bytes and reads until the broker closes the connection.
fn answer_until_closed(broker: &Broker, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(broker);
    stream.write_all(bytes).expect("it reads");
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => answer,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => answer,
        Err(error) => panic!("the connection was not closed: {error}"),
    }
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).expect("a small frame").to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// A request header of version 1 without a client id, and a body.
fn request(key: i16, version: i16, correlation_id: i32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&key.to_be_bytes());
    bytes.extend_from_slice(&version.to_be_bytes());
    bytes.extend_from_slice(&correlation_id.to_be_bytes());
    bytes.extend_from_slice(&(-1i16).to_be_bytes());
    bytes.extend_from_slice(body);
    frame(&bytes)
}

/// ApiVersions 0 on a connection of its own: the broker is well.
fn assert_serves(broker: &Broker) {
    let mut stream = connect(broker);
    stream.write_all(&request(18, 0, 7, &[])).expect("it reads");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("an answer");
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body).expect("an answer");
    assert_eq!(body[..6], [0, 0, 0, 7, 0, 0], "correlation id 7, no error");
}

/// Cases 66, 67, 68, 70 and 71: bytes that are not Kafka's close their own connection and trouble nobody else.
#[test]
fn bytes_that_are_not_kafkas_are_cut_off() {
    let data = data_dir();
    let broker = Broker::start(data.path(), &[]);
    let mut tagged = request(18, 3, 1, &[]);
    tagged.truncate(14);
    tagged.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    let length = u32::try_from(tagged.len() - 4).expect("small").to_be_bytes();
    tagged[..4].copy_from_slice(&length);
    let cases: [(&str, Vec<u8>); 9] = [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("TLS", [&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03][..], &[0x5a; 500]].concat()),
        ("a negative length", (-5i32).to_be_bytes().to_vec()),
        ("a length over the limit", (200i32 << 20).to_be_bytes().to_vec()),
        ("an empty frame", frame(&[])),
        ("an unknown API", request(999, 0, 1, &[])),
        ("an unsupported version", request(3, 99, 1, &[])),
        ("a count that cannot be", request(3, 1, 1, &i32::MAX.to_be_bytes())),
        ("four thousand million tags", tagged),
    ];
    for (name, bytes) in cases {
        let answer = answer_until_closed(&broker, &bytes);
        assert!(answer.is_empty(), "{name} was answered: {answer:?}");
        assert_serves(&broker);
    }
    broker.stop();
}

/// An ApiVersions request from the future is answered in version 0 with error 35 (KIP-511).
#[test]
fn a_client_from_the_future_is_told_the_versions() {
    let data = data_dir();
    let broker = Broker::start(data.path(), &[]);
    let mut stream = connect(&broker);
    stream.write_all(&request(18, 99, 3, &[0xde, 0xad])).expect("it reads");
    let mut head = [0; 14];
    stream.read_exact(&mut head).expect("an answer");
    assert_eq!(head[4..10], [0, 0, 0, 3, 0, 35]);
    assert_eq!(
        i32::from_be_bytes([head[10], head[11], head[12], head[13]]),
        1,
        "the versions of this API, as Kafka does"
    );
    broker.stop();
}

/// A frame that never ends holds up nobody, and a slow sender costs no memory that it has not sent.
#[test]
fn a_truncated_frame_holds_up_nobody() {
    let data = data_dir();
    let broker = Broker::start(data.path(), &["--cores", "1"]);
    let slow: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = connect(&broker);
            stream.write_all(&(99i32 << 20).to_be_bytes()).expect("it reads");
            stream.write_all(&[0; 9]).expect("it reads");
            stream
        })
        .collect();
    assert_serves(&broker);
    let kilobytes = broker.memory_kib("VmRSS");
    assert!(kilobytes < 200 << 10, "50 declared frames of 99 MiB took {kilobytes} kB");
    drop(slow);
    broker.stop();
}

#[test]
fn help_and_usage_errors_have_their_own_status() {
    let data = data_dir();
    let output = refused(data.path(), &["--no-such-flag"]);
    assert_eq!(output.status.code(), Some(2), "a usage error is status 2");
}

#[test]
fn log_lines_for_programs_are_one_object_each() {
    let data = data_dir();
    let mut broker = Broker::start(data.path(), &["--cores", "1", "--log-format", "json", "-v"]);
    let mut stranger = connect(&broker);
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it reads");
    let about = broker.wait_for(|line| line.contains("connection closed").then(|| line.to_owned()));
    let said = broker.stop();
    for line in said.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let words = |name: &str| event[name].as_str().unwrap_or_else(|| panic!("no {name}: {line}")).to_owned();
        assert!(["ERROR", "WARN", "INFO", "DEBUG"].contains(&words("level").as_str()), "{line}");
        assert!(words("timestamp").ends_with('Z') && !words("message").is_empty(), "{line}");
    }
    let about: serde_json::Value = serde_json::from_str(&about).expect("it was read before");
    let (level, peer) = (about["level"].as_str(), about["peer"].as_str());
    assert_eq!((level, peer.is_some_and(|peer| peer.starts_with("127.0.0.1:"))), (Some("WARN"), true), "{about}");
}
