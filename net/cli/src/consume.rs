//! `heddle consume`: records to standard output, from where and until when the flags say.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Context as _;
use heddle_client::{
    Client, Consumer, ConsumerConfig, ConsumerRecord, Creation, Error, FetchedBatch, Isolation, OffsetQuery,
    OutOfRange, Position, Topic,
};
use heddle_record::{Offset, PartitionIndex, Timestamp};

use crate::args::{ConsumeArgs, Start};
use crate::failure::{Exit, Failure};
use crate::output::{self, Progress, counted};
use crate::session;
use crate::text::{Format, record_json};

/// Bytes that are printed at once, at most.
const PRINT_BYTES: usize = 64 * 1024;

/// Runs the command.
///
/// # Errors
/// What the cluster says, that it cannot be reached, that nobody reads the output.
pub(crate) fn run(args: &ConsumeArgs) -> anyhow::Result<()> {
    let style = style(args)?;
    session::run(&args.connect, async |client| consume(client, args, style).await)
}

/// How records are printed.
enum Style {
    Json,
    Format(Format),
}

fn style(args: &ConsumeArgs) -> anyhow::Result<Style> {
    if args.json {
        return Ok(Style::Json);
    }
    let usage = |error: anyhow::Error| Failure::new(Exit::Usage, error.to_string());
    if let Some(format) = &args.format {
        return Ok(Style::Format(Format::parse(format).map_err(usage)?));
    }
    let fields = [
        (args.print_partition, 'p'),
        (args.print_offset, 'o'),
        (args.print_timestamp, 'D'),
        (args.print_headers, 'h'),
        (args.print_key, 'k'),
    ];
    let fields: Vec<char> = fields.into_iter().filter_map(|(wanted, field)| wanted.then_some(field)).collect();
    Ok(Style::Format(Format::of_fields(&fields, &args.separator).map_err(usage)?))
}

/// What is read of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: Offset,
    /// Exclusive.
    end: Offset,
}

async fn consume(client: &Client, args: &ConsumeArgs, style: Style) -> anyhow::Result<()> {
    let topic = client.topic(&args.topic, Creation::Forbidden).await?;
    let partitions = partitions(&topic, args)?;
    let isolation = if args.read_uncommitted { Isolation::ReadUncommitted } else { Isolation::ReadCommitted };
    let spans = spans(client, args, &partitions, isolation).await?;
    let config = ConsumerConfig { isolation, out_of_range: OutOfRange::Fail, ..ConsumerConfig::default() };
    let consumer = client.consumer(config);
    let mut printer = Printer {
        args,
        style,
        // What is not read to its end yet; empty from the start where there is nothing to read.
        open: spans.into_iter().filter(|(_, span)| args.follow || span.start < span.end).collect(),
        printed: 0,
        pending: Vec::new(),
        progress: Progress::new(client.io(), !args.quiet && !io::stdout().is_terminal()),
    };
    for (partition, span) in &printer.open {
        consumer.assign(&args.topic, *partition, Position::Offset(span.start));
    }
    printer.run(&consumer).await?;
    drop(printer.progress);
    if !args.quiet && printer.printed == 0 {
        output::note(&format!("{} has no records from there on; --follow waits for new ones", args.topic));
    }
    Ok(())
}

/// The partitions to read: those named, or all.
fn partitions(topic: &Topic, args: &ConsumeArgs) -> anyhow::Result<Vec<PartitionIndex>> {
    if args.partitions.is_empty() {
        return Ok(topic.partitions.iter().map(|it| it.index).collect());
    }
    let mut partitions: Vec<_> = args.partitions.iter().copied().map(PartitionIndex::new).collect();
    partitions.sort();
    partitions.dedup();
    for partition in &partitions {
        if topic.partition(*partition).is_none() {
            let (topic, partition_count) = (args.topic.clone(), topic.partition_count());
            return Err(Error::UnknownPartition { topic, partition: *partition, partition_count }.into());
        }
    }
    Ok(partitions)
}

/// Where to start and where to stop in each partition.
async fn spans(
    client: &Client,
    args: &ConsumeArgs,
    partitions: &[PartitionIndex],
    isolation: Isolation,
) -> anyhow::Result<BTreeMap<PartitionIndex, Span>> {
    let ask = async |query| {
        let queries: Vec<_> = partitions.iter().map(|it| (args.topic.as_str(), *it, query)).collect();
        client.admin().list_offsets(&queries, isolation).await
    };
    let firsts = ask(OffsetQuery::Earliest).await?;
    let ends = ask(OffsetQuery::Latest).await?;
    let times = match args.from {
        Start::Time(ms) => ask(OffsetQuery::AtTime(Timestamp::new(ms))).await?,
        _ => Vec::new(),
    };
    let mut spans = BTreeMap::new();
    for (place, partition) in partitions.iter().enumerate() {
        let first = firsts[place].offset.unwrap_or(Offset::ZERO);
        let end = ends[place].offset.unwrap_or(first);
        let start = match args.from {
            Start::Beginning => first,
            Start::End => end,
            Start::Offset(offset) => Offset::new(offset).max(first),
            Start::Last(count) => Offset::new(end.get().saturating_sub(count)).max(first),
            Start::Time(_) => times[place].offset.unwrap_or(end),
        };
        spans.insert(*partition, Span { start, end });
    }
    check_offset(args, &spans)?;
    Ok(spans)
}

/// An offset behind the end of every partition was not meant.
fn check_offset(args: &ConsumeArgs, spans: &BTreeMap<PartitionIndex, Span>) -> anyhow::Result<()> {
    let Start::Offset(offset) = args.from else { return Ok(()) };
    if spans.values().any(|span| offset <= span.end.get()) {
        return Ok(());
    }
    let ends: Vec<_> = spans.iter().map(|(partition, span)| format!("{partition} at {}", span.end)).collect();
    let message = format!("offset {offset} is behind the end of {}: partition {}", args.topic, ends.join(", "));
    Err(Failure::new(Exit::NotFound, message).into())
}

struct Printer<'a> {
    args: &'a ConsumeArgs,
    style: Style,
    /// Partitions that are not read to their end, with where that is.
    open: BTreeMap<PartitionIndex, Span>,
    /// Records so far.
    printed: u64,
    /// Not written to standard output yet.
    pending: Vec<u8>,
    progress: Progress,
}

impl Printer<'_> {
    /// Prints until the end, or for ever with `--follow`.
    async fn run(&mut self, consumer: &Consumer) -> anyhow::Result<()> {
        while !self.open.is_empty() && !self.is_done() {
            let batch = match consumer.try_next() {
                Some(batch) => batch?,
                None => {
                    self.flush()?;
                    consumer.next().await?
                }
            };
            self.take(&batch)?;
            if !self.args.follow && self.open.get(&batch.partition()).is_some_and(|it| batch.next_offset() >= it.end) {
                self.open.remove(&batch.partition());
                consumer.unassign(&self.args.topic, batch.partition());
            }
            self.progress.tick(|| counted(self.printed, "record"));
        }
        self.flush()
    }

    fn is_done(&self) -> bool {
        self.args.count.is_some_and(|count| self.printed >= count)
    }

    fn take(&mut self, batch: &FetchedBatch) -> anyhow::Result<()> {
        let end = self.open.get(&batch.partition()).map(|it| it.end);
        for record in batch.records() {
            let record = record?;
            let beyond = !self.args.follow && end.is_none_or(|end| record.offset >= end);
            if beyond || self.is_done() {
                break;
            }
            self.print(batch, &record);
            if self.pending.len() >= PRINT_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn print(&mut self, batch: &FetchedBatch, record: &ConsumerRecord<'_>) {
        let partition = batch.partition().get();
        match &self.style {
            Style::Format(format) => format.write(&self.args.topic, partition, record, &mut self.pending),
            Style::Json => {
                let line = record_json(&self.args.topic, partition, record);
                writeln!(self.pending, "{line}").expect("a Vec takes everything");
            }
        }
        self.printed += 1;
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        if !self.pending.is_empty() {
            let mut output = io::stdout().lock();
            output.write_all(&self.pending).and_then(|()| output.flush()).context("standard output")?;
            self.pending.clear();
        }
        Ok(())
    }
}
