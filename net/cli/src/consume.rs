//! `heddle consume`: records to standard output, from where and until when the flags say.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use heddle_client::{
    Client, Consumer, ConsumerConfig, ConsumerRecord, Creation, Error, FetchedBatch, Isolation, Membership,
    OffsetQuery, OutOfRange, Place, Position, Topic,
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
    if let Some(group) = &args.group {
        return consume_in_group(client, args, style, group).await;
    }
    let partitions = partitions(&topic, args)?;
    let isolation = isolation(args);
    let spans = spans(client, args, &partitions, isolation).await?;
    let config = ConsumerConfig { isolation, out_of_range: OutOfRange::Fail, ..ConsumerConfig::default() };
    let consumer = client.consumer(config);
    let mut printer = Printer::new(client, args, style);
    printer.assign(&consumer, spans);
    printer.run(&consumer).await?;
    drop(printer.progress);
    if !args.quiet && printer.printed == 0 {
        output::note(&format!("{} has no records from there on; --follow waits for new ones", args.topic));
    }
    Ok(())
}

fn isolation(args: &ConsumeArgs) -> Isolation {
    if args.read_uncommitted { Isolation::ReadUncommitted } else { Isolation::ReadCommitted }
}

/// How often a member says that it lives, and commits what it has printed.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(3);

/// Reads as a member of a group, until the end of what it was given, or for ever.
async fn consume_in_group(client: &Client, args: &ConsumeArgs, style: Style, group: &str) -> anyhow::Result<()> {
    let mut membership = client.membership(group, &[&args.topic]);
    let mut printer = Printer::new(client, args, style);
    loop {
        membership.join().await?;
        let topic = args.topic.as_str();
        let own = membership.partitions().iter().filter(|it| it.0 == topic).map(|it| it.1);
        let partitions: Vec<PartitionIndex> = own.collect();
        output::note(&format!("{} of {topic}", counted(partitions.len() as u64, "partition")));
        let mut spans = spans(client, args, &partitions, isolation(args)).await?;
        for it in client.groups().offsets(group).await?.into_iter().filter(|it| it.topic == topic) {
            if let Some(span) = spans.get_mut(&it.partition) {
                span.start = it.offset;
            }
        }
        let config = ConsumerConfig {
            isolation: isolation(args),
            out_of_range: OutOfRange::Beginning,
            ..ConsumerConfig::default()
        };
        let consumer = client.consumer(config);
        printer.assign(&consumer, spans);
        if printer.run_as_member(client, &consumer, &membership).await? == Place::Kept {
            membership.leave().await?;
            return Ok(());
        }
    }
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
    /// Where to read on, in each partition that was read since the last commit.
    read: BTreeMap<PartitionIndex, Offset>,
    /// Not written to standard output yet.
    pending: Vec<u8>,
    progress: Progress,
}

impl<'a> Printer<'a> {
    fn new(client: &Client, args: &'a ConsumeArgs, style: Style) -> Self {
        Self {
            args,
            style,
            open: BTreeMap::new(),
            printed: 0,
            read: BTreeMap::new(),
            pending: Vec::new(),
            progress: Progress::new(client.io(), !args.quiet && !io::stdout().is_terminal()),
        }
    }

    /// Reads these from now on, but for those where there is nothing to read.
    fn assign(&mut self, consumer: &Consumer, spans: BTreeMap<PartitionIndex, Span>) {
        self.open = spans.into_iter().filter(|(_, span)| self.args.follow || span.start < span.end).collect();
        for (partition, span) in &self.open {
            consumer.assign(&self.args.topic, *partition, Position::Offset(span.start));
        }
    }

    /// Prints what a member of a group has until its end, or until the group shares anew. What was printed is committed.
    async fn run_as_member(
        &mut self,
        client: &Client,
        consumer: &Consumer,
        membership: &Membership,
    ) -> anyhow::Result<Place> {
        let mut beats_at = client.io().now() + HEARTBEAT_EVERY;
        while (self.args.follow || !self.open.is_empty()) && !self.is_done() {
            let left = beats_at.since(client.io().now());
            if left.is_zero() {
                beats_at = client.io().now() + HEARTBEAT_EVERY;
                if self.commit(membership).await? == Place::Lost || membership.heartbeat().await? == Place::Lost {
                    return Ok(Place::Lost);
                }
            } else if self.open.is_empty() {
                // More members than partitions: this one is there in case another goes.
                client.io().sleep(left).await;
            } else if let Ok(batch) = client.io().timeout(left, consumer.next()).await {
                let batch = batch?;
                self.take(&batch)?;
                self.close_if_read(consumer, &batch);
            } else {
                self.flush()?;
            }
        }
        self.commit(membership).await
    }

    /// Commits what has been printed.
    async fn commit(&mut self, membership: &Membership) -> anyhow::Result<Place> {
        self.flush()?;
        let read = std::mem::take(&mut self.read);
        let offsets: Vec<_> =
            read.into_iter().map(|(index, offset)| (self.args.topic.as_str(), index, offset)).collect();
        Ok(membership.commit(&offsets).await?)
    }

    fn close_if_read(&mut self, consumer: &Consumer, batch: &FetchedBatch) {
        if !self.args.follow && self.open.get(&batch.partition()).is_some_and(|it| batch.next_offset() >= it.end) {
            self.open.remove(&batch.partition());
            consumer.unassign(&self.args.topic, batch.partition());
        }
    }

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
            self.close_if_read(consumer, &batch);
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
                return Ok(());
            }
            self.print(batch, &record);
            self.read.insert(batch.partition(), record.offset.next());
            if self.pending.len() >= PRINT_BYTES {
                self.flush()?;
            }
        }
        self.read.insert(batch.partition(), batch.next_offset());
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
