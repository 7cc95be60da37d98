//! `heddle` as people and scripts use it: what it prints, what it exits with, what it says when something is wrong. Against
//! `heddle serve`; against Apache Kafka too where a JDK and Kafka's jars are present.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use heddle_tests::kafka::Kafka;
use heddle_tests::process::{Broker, heddle};

/// One cluster to type commands at.
struct Shell {
    bootstrap: String,
}

/// What a command did.
#[derive(Debug)]
struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Done {
    /// What it printed, if it succeeded.
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(self.err.is_empty(), "success is silent where nobody looks: {self:?}");
        self.out
    }

    /// Asserts that it failed with this exit code, in one line that holds all of `words`.
    #[track_caller]
    fn fails(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.err.starts_with("heddle: ") && self.err.lines().count() == 1, "one line: {self:?}");
        assert!(words.iter().all(|word| self.err.contains(word)), "{words:?} in {self:?}");
    }
}

fn done(output: Output) -> Done {
    let text = |bytes| String::from_utf8(bytes).expect("heddle prints text");
    Done { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

impl Shell {
    /// Runs `heddle` with these words, and `input` on its standard input.
    fn pipe(&self, input: &str, words: &[&str]) -> Done {
        let mut command = Command::new(heddle());
        command.args(words).env("HEDDLE_BOOTSTRAP", &self.bootstrap);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("heddle starts");
        // A command that has no use for its input may end before it is written.
        drop(child.stdin.take().expect("a pipe").write_all(input.as_bytes()));
        done(child.wait_with_output().expect("heddle ends"))
    }

    fn run(&self, line: &str) -> Done {
        self.pipe("", &line.split(' ').collect::<Vec<_>>())
    }

    fn json(&self, line: &str) -> Vec<serde_json::Value> {
        let printed = self.run(line).ok();
        printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

#[test]
fn against_heddle() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let broker = Broker::start(data.path(), &[]);
    all(&Shell { bootstrap: broker.address.clone() });
    broker.stop();
}

#[test]
fn against_kafka() {
    let data = tempfile::tempdir().expect("a temporary folder");
    match Kafka::start(&data.path().join("kafka"), None) {
        Ok(kafka) => all(&Shell { bootstrap: kafka.address.clone() }),
        Err(reason) => eprintln!("NOT RUN: the command line against Apache Kafka: {reason}"),
    }
}

fn all(shell: &Shell) {
    quick_start(shell);
    topics(shell);
    lines_in_and_out(shell);
    where_to_start(shell);
    records_travel_as_json(shell);
    cluster(shell);
    mistakes(shell);
    groups(shell);
    settings(shell);
    what_would_go(shell);
}

/// The lines that `heddle serve` and the README tell people to type.
fn quick_start(shell: &Shell) {
    shell.run("topic create hello").ok();
    shell.pipe("key:value\n", &["produce", "hello", "--key-separator", ":"]).ok();
    assert_eq!(shell.run("consume hello --from beginning").ok(), "value\n");
}

fn topics(shell: &Shell) {
    let made = shell.run("topic create -p 2 --set retention.ms=86400000 orders").ok();
    assert_eq!(made, "created topic orders: 2 partitions, replication factor 1\n");
    shell.run("topic create orders").fails(1, &["orders", "exist"]);
    shell.run("topic create orders --if-not-exists").ok();
    shell.run("topic create sketch --validate-only").ok();
    let list = shell.run("topic list").ok();
    assert!(list.starts_with("TOPIC") && list.contains("orders") && !list.contains("sketch"), "{list}");
    let listed = &shell.json("topic list --json")[0];
    let orders = listed.as_array().expect("an array").iter().find(|it| it["topic"] == "orders").expect("it is there");
    assert_eq!((orders["partition_count"].as_i64(), orders["id"].as_str().map(str::len)), (Some(2), Some(22)));
    shell.run("topic alter orders --partitions 3 --set max.message.bytes=2000000").ok();
    let described = shell.run("topic describe orders").ok();
    assert!(described.starts_with("orders  3 partitions"), "{described}");
    assert!(described.contains("  retention.ms=86400000\n") && described.contains("max.message.bytes=2000000"));
    shell.run("topic alter orders --unset retention.ms").ok();
    let described = &shell.json("topic describe orders --json")[0][0];
    assert_eq!(described["settings"]["retention.ms"], serde_json::Value::Null, "{described}");
    assert_eq!(described["partitions"].as_array().map(Vec::len), Some(3));
    shell.run("topic alter orders --set retention.ms=soon").fails(1, &["retention.ms"]);
    shell.run("topic alter orders --partitions 1").fails(1, &["orders"]);
    assert_eq!(shell.run("topic delete orders").ok(), "deleted topic orders\n");
    shell.run("topic delete orders --if-exists").ok();
    shell.run("topic delete orders").fails(4, &["orders"]);
}

fn lines_in_and_out(shell: &Shell) {
    shell.run("topic create lines -p 1").ok();
    let produce = |input: &str, words: &[&str]| {
        let mut all = vec!["produce", "lines"];
        all.extend(words);
        shell.pipe(input, &all)
    };
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        produce(&format!("{codec}\n"), &["-z", codec]).ok();
    }
    assert_eq!(shell.run("consume lines").ok(), "none\ngzip\nsnappy\nlz4\nzstd\n");
    produce("a=1\nb=\n=\nlast", &["-K", "=", "-Z"]).fails(1, &["line 4", "\"=\""]);
    let format = ["consume", "lines", "--from", "5", "--format", "%o|%k|%K|%s|%S|%t|%p\\n"];
    assert_eq!(shell.pipe("", &format).ok(), "5|a|1|1|1|lines|0\n6|b|1||-1|lines|0\n7||-1||-1|lines|0\n");
    produce("x\n\ny", &["-H", "trace=1", "-H", "trace=2", "--key", "k"]).ok();
    let printed = shell.run("consume lines --from -3 --print-key --print-headers --print-offset -K ;").ok();
    assert_eq!(printed, "8;trace=1,trace=2;k;x\n9;trace=1,trace=2;k;\n10;trace=1,trace=2;k;y\n");
    produce("one\nrecord\n", &["--whole-file"]).ok();
    assert_eq!(shell.run("consume lines --from -1").ok(), "one\nrecord\n\n");
    let written = produce("acked\n", &["--json", "--acks", "1"]).ok();
    assert!(written.contains(r#""partition":0,"offset":12"#) && written.contains(r#""records":1"#), "{written}");
    produce("nobody knows\n", &["--acks", "0"]).ok();
    assert_eq!(shell.run("consume lines -n 2").ok(), "none\ngzip\n");
    let many: String = (0..50_000).map(|number| format!("{number}\n")).collect();
    shell.run("topic create many -p 1").ok();
    shell.pipe(&many, &["produce", "many"]).ok();
    assert!(shell.run("consume many").ok() == many, "every line, in order");
}

fn where_to_start(shell: &Shell) {
    shell.run("topic create starts -p 1").ok();
    let lines: String =
        (0..5).map(|number| format!("{{\"value\":\"{number}\",\"timestamp\":{}}}\n", 1_000_000 * number)).collect();
    shell.pipe(&lines, &["produce", "starts", "--json-lines"]).ok();
    let consume = |from: &str| shell.pipe("", &["consume", "starts", "--from", from]);
    assert_eq!(consume("beginning").ok(), "0\n1\n2\n3\n4\n");
    assert_eq!(consume("end").ok(), "");
    assert_eq!(consume("3").ok(), "3\n4\n");
    assert_eq!(consume("-2").ok(), "3\n4\n");
    assert_eq!(consume("-100").ok(), "0\n1\n2\n3\n4\n");
    assert_eq!(consume("@2000001").ok(), "3\n4\n");
    assert_eq!(consume("@1970-01-01T00:50:00Z").ok(), "3\n4\n");
    assert_eq!(consume("@2100-01-01").ok(), "");
    consume("99").fails(4, &["99", "partition 0 at 5"]);
    shell.run("topic alter starts --delete-records 0:2").ok();
    assert_eq!(consume("beginning").ok(), "2\n3\n4\n");
    shell.run("topic alter starts --delete-records 0:end").ok();
    assert_eq!(consume("beginning").ok(), "");
}

fn records_travel_as_json(shell: &Shell) {
    shell.run("topic create from -p 1").ok();
    shell.run("topic create to -p 1").ok();
    shell.pipe("k\tv \u{e4}\n", &["produce", "from", "-K", "\\t", "-H", "h=1"]).ok();
    shell.pipe("{\"value_base64\":\"/wA=\"}\n", &["produce", "from", "--json-lines"]).ok();
    let records = shell.run("consume from --json").ok();
    shell.pipe(&records, &["produce", "to", "--json-lines"]).ok();
    assert_eq!(shell.run("consume to --json").ok(), records.replace("\"from\"", "\"to\""));
    assert!(records.contains(r#""key":"k","value":"v ä","headers":[{"key":"h","value":"1"}]"#), "{records}");
    shell.pipe("{\n", &["produce", "to", "--json-lines"]).fails(1, &["line 1"]);
}

fn cluster(shell: &Shell) {
    let info = shell.run("cluster info").ok();
    assert!(info.contains("1 broker") && info.contains(&shell.bootstrap) && info.contains("controller"), "{info}");
    let info = &shell.json("cluster info --json --apis --settings")[0];
    assert_eq!(info["cluster_id"].as_str().map(str::len), Some(22));
    let apis = info["brokers"][0]["apis"].as_array().expect("apis");
    assert!(apis.iter().any(|it| it["api"] == "Produce" && it["max_version"] == 13), "{apis:?}");
}

fn mistakes(shell: &Shell) {
    shell.run("consume helo").fails(4, &["\"helo\"", "did you mean \"hello\"?"]);
    shell.run("topic describe nothing-like-it").fails(4, &["heddle topic create nothing-like-it"]);
    shell.run("consume hello -p 77").fails(4, &["no partition 77"]);
    shell.run("consume hello --bootstrap 127.0.0.1:1").fails(3, &["127.0.0.1:1", "refused", "heddle serve"]);
    shell.run("consume hello --bootstrap http://localhost").fails(2, &["http://localhost"]);
    shell.run("consume hello --format %q").fails(2, &["%q"]);
    shell.run("produce hello /no/such/file").fails(4, &["/no/such/file"]);
    let usage = shell.run("consume");
    assert!(usage.code == Some(2) && usage.err.contains("TOPIC"), "{usage:?}");
    let usage = shell.run("topic alter hello");
    assert_eq!(usage.code, Some(2), "{usage:?}");
    let usage = shell.run("produse hello");
    assert!(usage.code == Some(2) && usage.err.contains("produce"), "{usage:?}");
}

fn settings(shell: &Shell) {
    shell.run("topic create tuned").ok();
    assert_eq!(shell.run("config set --topic tuned retention.ms=7 --dry-run").ok().lines().count(), 1);
    let of_topic = || {
        let told = &shell.json("config describe --topic tuned --json")[0];
        let told = told.as_array().expect("a list").clone();
        let own = told.into_iter().filter(|it| it["source"] == "topic");
        own.map(|it| format!("{}={}", it["name"].as_str().expect("a name"), it["value"].as_str().expect("a value")))
            .collect::<Vec<_>>()
    };
    assert!(of_topic().is_empty(), "a dry run changes nothing");
    let changed = shell.run("config set --topic tuned retention.ms=7 cleanup.policy+=compact").ok();
    assert_eq!(changed, "topic \"tuned\" now: retention.ms=7, cleanup.policy with compact\n");
    assert_eq!(of_topic(), ["cleanup.policy=delete,compact", "retention.ms=7"]);
    let described = shell.run("config describe --topic tuned retention.ms --docs").ok();
    assert!(described.starts_with("SETTING") && described.contains("retention.ms  7      topic"), "{described}");
    shell.run("config set --topic tuned cleanup.policy-=delete").ok();
    shell.run("config delete --topic tuned retention.ms").ok();
    assert_eq!(of_topic(), ["cleanup.policy=compact"]);

    shell.run("config set --topic tuned retention.mss=7").fails(4, &["retention.mss", "did you mean retention.ms?"]);
    shell.run("config set --topic tuned retention.ms=soon").fails(1, &["retention.ms", "LONG"]);
    shell.run("config delete --topic tuned nothing.like.it").fails(4, &["nothing.like.it", "--all"]);
    shell.run("config describe --topic tunde").fails(4, &["did you mean \"tuned\"?"]);
    shell.run("config set --brokers log.retention.mss=7").fails(4, &["did you mean log.retention.ms?"]);
    shell.run("config set --brokers num.partitions=7").fails(1, &["num.partitions"]);
    shell.run("config describe --broker 77").fails(2, &["77"]);

    shell.run("config set --brokers log.cleaner.backoff.ms=7777").ok();
    assert!(shell.run("config describe --brokers").ok().contains("log.cleaner.backoff.ms"));
    shell.run("config delete --brokers log.cleaner.backoff.ms").ok();
    shell.run("config set --group weavers consumer.session.timeout.ms=50000").ok();
    let described = shell.run("config describe --group weavers").ok();
    assert!(described.contains("consumer.session.timeout.ms  50000  group"), "{described}");
    shell.run("config set --group weavers consumer.session.timeout.ms=1").fails(1, &["min.session.timeout.ms"]);
    shell.run("config delete --group weavers consumer.session.timeout.ms").ok();
    let broker = &shell.json("cluster info --json")[0]["brokers"][0]["broker"];
    assert!(shell.run(&format!("config describe --loggers {broker} root")).ok().contains("INFO"));
    shell.run(&format!("config set --loggers {broker} root=LOUD")).fails(1, &["LOUD", "DEBUG"]);
}

/// Dry runs of what destroys.
fn what_would_go(shell: &Shell) {
    shell.run("topic create doomed -p 1").ok();
    shell.pipe("one\ntwo\n", &["produce", "doomed"]).ok();
    let told = &shell.json("topic delete doomed --dry-run --json")[0]["would_delete"][0];
    assert_eq!((&told["offsets"], told["size_bytes"].as_u64() > Some(0)), (&2.into(), true), "{told}");
    assert!(shell.run("topic delete doomed --dry-run").ok().contains("doomed"));
    shell.run("topic delete doomde --dry-run").fails(4, &["did you mean \"doomed\"?"]);
    let told = shell.run("topic alter doomed --delete-records 0:end --dry-run").ok();
    assert_eq!(told, "topic doomed would become: partition 0 starts at offset 2\n");
    shell.run("topic alter doomed --delete-records 0:9 --dry-run").fails(1, &["ends at offset 2"]);
    assert_eq!(shell.run("consume doomed").ok(), "one\ntwo\n", "nothing is gone");
    let described = &shell.json("topic describe doomed --json")[0][0]["partitions"][0];
    assert!(described["size_bytes"].as_u64() > Some(0), "{described}");
}

/// `heddle consume … | head -1`: a reader that goes away is the end, not a failure.
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let broker = Broker::start(data.path(), &[]);
    let shell = Shell { bootstrap: broker.address.clone() };
    shell.run("topic create pipe").ok();
    let many = "a line that fills pipes\n".repeat(100_000);
    shell.pipe(&many, &["produce", "pipe"]).ok();
    let mut child = Command::new(heddle())
        .args(["consume", "pipe", "--follow"])
        .env("HEDDLE_BOOTSTRAP", &shell.bootstrap)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("heddle starts");
    drop(child.stdout.take());
    let done = done(child.wait_with_output().expect("heddle ends"));
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
}

/// Members commit what they print, and what is destroyed is shown before it is done.
fn groups(shell: &Shell) {
    shell.run("topic create shared --partitions 2").ok();
    let lines: String = (0..10).map(|number| format!("k{number}:v{number}\n")).collect();
    shell.pipe(&lines, &["produce", "shared", "--key-separator", ":"]).ok();
    assert_eq!(shell.run("consume shared --group weavers -n 4").ok().lines().count(), 4);
    assert_eq!(shell.run("consume shared --group weavers").ok().lines().count(), 6, "it goes on where it has got to");
    assert_eq!(shell.run("consume shared --group weavers").ok(), "");

    let listed = &shell.json("group list --json")[0];
    let found = listed.as_array().expect("a list").iter().find(|it| it["group"] == "weavers").expect("the group");
    assert_eq!((&found["state"], &found["protocol_type"]), (&"Empty".into(), &"consumer".into()));
    let lag = || {
        let described = &shell.json("group describe weavers --json")[0][0];
        assert_eq!(described["members"].as_array().map(Vec::len), Some(0));
        let offsets = described["offsets"].as_array().expect("a list").clone();
        offsets.iter().map(|it| it["lag"].as_i64().expect("a number")).sum::<i64>()
    };
    assert_eq!(lag(), 0);
    assert!(shell.run("group reset-offsets weavers --to beginning").ok().starts_with("TOPIC"));
    assert_eq!(lag(), 0, "nothing is done without --execute");
    shell.run("group reset-offsets weavers --to beginning --execute").ok();
    assert_eq!(lag(), 10);
    shell.run("group reset-offsets weavers --to -1 --topic shared:0 --execute").ok();
    assert!(lag() < 10);
    shell.run("group reset-offsets weavers --to end --topic nosuch").fails(4, &["nosuch"]);

    assert!(shell.run("group delete-offsets weavers --topic shared:1").ok().contains("shared"));
    shell.run("group delete-offsets weavers --topic shared:1 --execute").ok();
    let described = &shell.json("group describe weavers --json")[0][0];
    assert_eq!(described["offsets"].as_array().map(Vec::len), Some(1));
    assert_eq!(shell.run("group delete weavers").ok(), "would delete group weavers\n");
    assert_eq!(shell.run("group delete weavers --execute").ok(), "deleted group weavers\n");
    shell.run("group describe weavers").fails(4, &["there is no group", "weavers"]);
    shell.run("group delete weavers --execute").fails(4, &["there is no group"]);
}
