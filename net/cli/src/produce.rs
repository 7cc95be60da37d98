//! `heddle produce`: lines of standard input or of files, each a record.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use heddle_client::{Acks, Client, Creation, Delivery, Producer, ProducerConfig, ProducerRecord, RecordMetadata};
use heddle_io::Io;
use heddle_record::{Compression, Offset, PartitionIndex, RecordHeader, Timestamp};
use serde_json::json;

use crate::args::{AcksChoice, CompressionChoice, ProduceArgs};
use crate::failure::{Exit, Failure};
use crate::output::{self, Progress, counted};
use crate::session;
use crate::text::{TextRecord, unescape};

/// Bytes that one read asks for.
const READ_BYTES: usize = 256 * 1024;
/// Records whose fate is not known yet; more wait for the first of them.
const UNSETTLED_MAX: usize = 100_000;

/// Runs the command.
///
/// # Errors
/// The input cannot be read, a line is no record, a record cannot be written.
pub(crate) fn run(args: &ProduceArgs) -> anyhow::Result<()> {
    session::run(&args.connect, async |client| produce(client, args).await)
}

async fn produce(client: &Client, args: &ProduceArgs) -> anyhow::Result<()> {
    // Known before the first record: a typing error costs nothing. A topic that the broker makes by itself is made here.
    client.topic(&args.topic, Creation::Allowed).await?;
    let producer = client.producer(config(args))?;
    let mut writer = Writer {
        args,
        producer,
        separator: args.key_separator.as_deref().map(unescape),
        unsettled: VecDeque::new(),
        lines: 0,
        records: 0,
        bytes: 0,
        progress: Progress::new(client.io(), !args.quiet && !io::stdin().is_terminal()),
    };
    let read = writer.read_all(client.io()).await;
    // What stands before a bad line was taken, and is written.
    let finished = writer.finish().await;
    read.and(finished)
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).map_err(|error| {
        let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, format!("cannot read {}: {error}", path.display())).into()
    })
}

fn config(args: &ProduceArgs) -> ProducerConfig {
    let acks = match args.acks {
        AcksChoice::All => Acks::All,
        AcksChoice::Leader => Acks::Leader,
        AcksChoice::None => Acks::None,
    };
    let compression = match args.compression {
        CompressionChoice::None => Compression::None,
        CompressionChoice::Gzip => Compression::Gzip,
        CompressionChoice::Snappy => Compression::Snappy,
        CompressionChoice::Lz4 => Compression::Lz4,
        CompressionChoice::Zstd => Compression::Zstd,
    };
    let batch_bytes_max = args.batch_bytes as usize;
    ProducerConfig {
        acks,
        idempotence: acks == Acks::All,
        compression,
        linger: Duration::from_millis(args.linger.into()),
        batch_bytes_max,
        // What is too large is for the topic's max.message.bytes to say.
        request_bytes_max: batch_bytes_max.max(64 * 1024 * 1024),
        buffer_bytes_max: batch_bytes_max.max(64 * 1024 * 1024),
        delivery_timeout: Duration::from_secs(args.delivery_timeout.into()),
        ..ProducerConfig::default()
    }
}

struct Writer<'a> {
    args: &'a ProduceArgs,
    producer: Producer,
    separator: Option<Vec<u8>>,
    /// Records on their way, oldest first.
    unsettled: VecDeque<Delivery>,
    /// Lines of the input that is being read.
    lines: u64,
    /// Records that were written.
    records: u64,
    /// Bytes of keys and values that were taken.
    bytes: u64,
    progress: Progress,
}

impl Writer<'_> {
    /// Makes records of standard input or of all files.
    async fn read_all(&mut self, io: &Io) -> anyhow::Result<()> {
        if self.args.files.is_empty() {
            if io::stdin().is_terminal() && !self.args.quiet {
                output::note("one record a line; Ctrl-D ends");
            }
            return self.read(io, Box::new(io::stdin()), "standard input").await;
        }
        for path in &self.args.files {
            let file = open(path)?;
            self.read(io, Box::new(file), &path.display().to_string()).await?;
        }
        Ok(())
    }

    /// Makes records of everything in `input`.
    async fn read(&mut self, io: &Io, input: Box<dyn Read + Send>, name: &str) -> anyhow::Result<()> {
        self.lines = 0;
        let mut input = Some(input);
        let mut pending: Vec<u8> = Vec::new();
        while let Some(source) = input.take() {
            // A read may wait for a person: not on the core that serves the connections.
            let read = io.run_blocking(move || read_some(source)).await?;
            let (source, bytes) = read.with_context(|| format!("cannot read {name}"))?;
            let ended = bytes.is_empty();
            pending.extend(bytes);
            if self.args.whole_file {
                input = (!ended).then_some(source);
                continue;
            }
            let used = self.take_lines(&pending, name).await?;
            pending.drain(..used);
            self.settle(Patience::None).await?;
            input = (!ended).then_some(source);
        }
        // The last line needs no end; a file that is one record may be empty.
        if !pending.is_empty() || self.args.whole_file {
            self.take(&pending, name).await?;
        }
        Ok(())
    }

    /// Makes records of all whole lines; gives how many bytes those were.
    async fn take_lines(&mut self, bytes: &[u8], name: &str) -> anyhow::Result<usize> {
        let mut used = 0;
        while let Some(length) = bytes[used..].iter().position(|byte| *byte == b'\n') {
            self.take(&bytes[used..used + length], name).await?;
            used += length + 1;
        }
        Ok(used)
    }

    /// Makes a record of a line and sends it.
    async fn take(&mut self, line: &[u8], name: &str) -> anyhow::Result<()> {
        self.lines += 1;
        let record = self.parse(line).with_context(|| format!("{name}, line {}", self.lines))?;
        let headers =
            record.headers.iter().map(|(key, value)| RecordHeader { key: key.as_bytes(), value: value.as_deref() });
        let headers: Vec<_> = headers.collect();
        let to_send = ProducerRecord {
            topic: &self.args.topic,
            partition: self.args.partition.map(PartitionIndex::new),
            timestamp: record.timestamp.map(Timestamp::new),
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
        };
        self.unsettled.push_back(self.producer.send(&to_send).await?);
        let bytes = record.key.map_or(0, |key| key.len()) + record.value.map_or(0, |value| value.len());
        self.bytes += bytes as u64;
        if self.unsettled.len() >= UNSETTLED_MAX {
            self.settle(Patience::ForOne).await?;
        }
        self.progress.tick(|| format!("{} written, {}", counted(self.records, "record"), counted(self.bytes, "byte")));
        Ok(())
    }

    fn parse(&self, line: &[u8]) -> anyhow::Result<TextRecord> {
        if self.args.json_lines {
            return TextRecord::parse_json(line);
        }
        let (key, value) = match &self.separator {
            None => (self.args.key.as_ref().map(|key| key.as_bytes().to_vec()), line),
            Some(separator) => {
                let at = line.windows(separator.len().max(1)).position(|part| part == separator.as_slice());
                let at = at.ok_or_else(|| {
                    let separator = self.args.key_separator.as_deref().unwrap_or_default();
                    anyhow!("no {separator:?} between key and value")
                })?;
                (Some(line[..at].to_vec()), &line[at + separator.len()..])
            }
        };
        let or_null = |bytes: Vec<u8>| (!bytes.is_empty() || !self.args.null_empty).then_some(bytes);
        let header = |(name, value): &(String, String)| (name.clone(), Some(value.clone().into_bytes()));
        Ok(TextRecord {
            key: key.and_then(or_null),
            value: or_null(value.to_vec()),
            headers: self.args.headers.iter().map(header).collect(),
            timestamp: None,
        })
    }

    /// Takes in what is known of the oldest records.
    async fn settle(&mut self, patience: Patience) -> anyhow::Result<()> {
        let mut patience = patience;
        while let Some(mut oldest) = self.unsettled.pop_front() {
            let settled = match patience {
                Patience::None => poll_once(&mut oldest).await,
                Patience::ForOne | Patience::ForAll => Some((&mut oldest).await),
            };
            let Some(settled) = settled else {
                self.unsettled.push_front(oldest);
                return Ok(());
            };
            self.written(&settled?)?;
            if patience == Patience::ForOne {
                patience = Patience::None;
            }
        }
        Ok(())
    }

    fn written(&mut self, metadata: &RecordMetadata) -> anyhow::Result<()> {
        self.records += 1;
        if self.args.json {
            let line = json!({
                "topic": self.args.topic,
                "partition": metadata.partition.get(),
                "offset": metadata.offset.map(Offset::get),
                "timestamp": metadata.timestamp.get(),
            });
            writeln!(io::stdout().lock(), "{line}").context("standard output")?;
        }
        Ok(())
    }

    /// Waits for everything and says how much it was.
    async fn finish(mut self) -> anyhow::Result<()> {
        // Sends what lingers; whose fate is bad says so below, with its own error.
        let flushed = self.producer.flush().await;
        self.settle(Patience::ForAll).await?;
        flushed?;
        self.producer.close().await?;
        let Self { args, records, bytes, progress, .. } = self;
        drop(progress);
        if args.json {
            let total = json!({"records": records, "bytes": bytes});
            writeln!(io::stdout().lock(), "{total}").context("standard output")?;
        } else if !args.quiet {
            output::note(&format!("wrote {} to {}", counted(records, "record"), args.topic));
        }
        Ok(())
    }
}

/// How long to wait for the fate of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Take what is known.
    None,
    /// Wait for the oldest, then take what is known.
    ForOne,
    ForAll,
}

async fn poll_once(delivery: &mut Delivery) -> Option<heddle_client::Result<RecordMetadata>> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *delivery).poll(context) {
            std::task::Poll::Ready(settled) => Some(settled),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

/// The next bytes, none at the end, and the source again.
fn read_some(mut source: Box<dyn Read + Send>) -> io::Result<(Box<dyn Read + Send>, Vec<u8>)> {
    let mut bytes = vec![0; READ_BYTES];
    loop {
        match source.read(&mut bytes) {
            Ok(count) => {
                bytes.truncate(count);
                return Ok((source, bytes));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
