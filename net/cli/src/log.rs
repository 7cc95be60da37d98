//! `heddle log inspect|verify`: what logs hold, read without a broker.
//!
//! Owns the tables and the JSON; the reading and the checks are [`heddle_engine::inspect`]'s. Works on data directories,
//! on directories of single logs (Apache Kafka's as well) and on segment files.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context as _;
use heddle_engine::inspect::{Damage, SegmentReport, StoredBatch, StoredLog, StoredSegment, find_logs};
use heddle_io::{Backend, Executor, Io, IoConfig};
use heddle_record::{ProducerId, Timestamp};
use serde_json::{Map, Value, json};

use crate::args::{LogCommand, LogInspectArgs, LogVerifyArgs};
use crate::failure::{Exit, Failure};
use crate::time::format_timestamp;

/// Prints what the files hold, or what is damaged in them.
///
/// # Errors
/// The files cannot be read, or something in them is damaged.
pub(crate) fn run(command: &LogCommand) -> anyhow::Result<()> {
    // Files are read one after the other; nothing here needs a ring.
    let config = IoConfig { backend: Backend::Blocking, ..IoConfig::default() };
    let executor = Executor::new(config).context("cannot start")?;
    let io = executor.io();
    let mut output = BufWriter::new(io::stdout().lock());
    let damaged = match command {
        LogCommand::Inspect(args) => executor.run(inspect(&io, args, &mut output)),
        LogCommand::Verify(args) => executor.run(verify(&io, args, &mut output)),
    }?;
    output.flush()?;
    match damaged {
        0 => Ok(()),
        1 => Err(Failure::new(Exit::Failed, "1 place is damaged").into()),
        places => Err(Failure::new(Exit::Failed, format!("{places} places are damaged")).into()),
    }
}

async fn logs_at(io: &Io, path: &Path) -> anyhow::Result<Vec<StoredLog>> {
    if !io.exists(path).await? {
        return Err(Failure::new(Exit::NotFound, format!("{} does not exist", path.display())).into());
    }
    find_logs(io, path).await.with_context(|| format!("no logs in {}", path.display()))
}

/// Shows everything. Returns how many places are damaged.
async fn inspect(io: &Io, args: &LogInspectArgs, output: &mut impl Write) -> anyhow::Result<usize> {
    let mut damaged = 0;
    let details = Details { batches: args.batches, records: args.records, json: args.json };
    if !args.json {
        print_heading(output)?;
    }
    for log in logs_at(io, &args.path).await? {
        for segment in &log.segments {
            let mut failed = None;
            let report = segment
                .walk(io, &mut |batch| {
                    if failed.is_none() {
                        failed = details.print(&batch, output).err();
                    }
                })
                .await?;
            if let Some(error) = failed {
                return Err(error.into());
            }
            damaged += report.damage.len();
            print_segment(&log, segment, &report, args.json, output)?;
        }
    }
    Ok(damaged)
}

/// Shows what is damaged, and a summary. Returns how many places are.
async fn verify(io: &Io, args: &LogVerifyArgs, output: &mut impl Write) -> anyhow::Result<usize> {
    let (mut damaged, mut segments, mut batches, mut records) = (0, 0, 0, 0);
    let logs = logs_at(io, &args.path).await?;
    for log in &logs {
        for (segment, report) in log.check(io).await? {
            segments += 1;
            batches += report.batches;
            records += report.records;
            damaged += report.damage.len();
            if args.json {
                print_segment(log, &segment, &report, true, output)?;
            } else {
                print_damage(&report, output)?;
            }
        }
    }
    if !args.json {
        let logs = logs.len();
        writeln!(
            output,
            "{logs} logs, {segments} segments, {batches} batches, {records} records: {}",
            verdict(damaged)
        )?;
    }
    Ok(damaged)
}

fn verdict(damaged: usize) -> String {
    if damaged == 0 { "sound".to_owned() } else { format!("{damaged} damaged") }
}

fn print_heading(output: &mut impl Write) -> io::Result<()> {
    writeln!(
        output,
        "{:<40} {:>20} {:>21} {:>9} {:>9} {:>12}  STATE",
        "LOG", "SEGMENT", "OFFSETS", "BATCHES", "RECORDS", "BYTES"
    )
}

fn print_segment(
    log: &StoredLog,
    segment: &StoredSegment,
    report: &SegmentReport,
    as_json: bool,
    output: &mut impl Write,
) -> io::Result<()> {
    if as_json {
        return writeln!(output, "{}", segment_json(log, segment, report));
    }
    let offsets = match (report.first_offset, report.last_offset) {
        (Some(first), Some(last)) => format!("{first}..{last}"),
        _ => "-".to_owned(),
    };
    let state = match (&report.torn_tail, report.damage.len()) {
        (None, 0) if segment.compacted_bytes.is_some() => "sound, compacted".to_owned(),
        (None, 0) => "sound".to_owned(),
        (Some(_), 0) => "torn tail".to_owned(),
        (_, places) => format!("{places} damaged"),
    };
    writeln!(
        output,
        "{:<40} {:>20} {:>21} {:>9} {:>9} {:>12}  {state}",
        log.name, segment.base_offset, offsets, report.batches, report.records, report.batch_bytes
    )?;
    print_damage(report, output)
}

fn print_damage(report: &SegmentReport, output: &mut impl Write) -> io::Result<()> {
    for Damage { path, position, reason } in &report.damage {
        writeln!(output, "damaged: {} at {position}: {reason}", path.display())?;
    }
    if let Some(Damage { path, position, reason }) = &report.torn_tail {
        writeln!(output, "torn, the next start cuts it off: {} at {position}: {reason}", path.display())?;
    }
    Ok(())
}

fn segment_json(log: &StoredLog, segment: &StoredSegment, report: &SegmentReport) -> Value {
    let place = |damage: &Damage| json!({"file": damage.path.display().to_string(), "position": damage.position, "reason": damage.reason});
    json!({
        "log": log.name,
        "segment": segment.base_offset.get(),
        "file": segment.path.display().to_string(),
        "compacted": segment.compacted_bytes.is_some(),
        "fileBytes": report.file_bytes,
        "batchBytes": report.batch_bytes,
        "batches": report.batches,
        "records": report.records,
        "firstOffset": report.first_offset.map(|offset| offset.get()),
        "lastOffset": report.last_offset.map(|offset| offset.get()),
        "maxTimestamp": timestamp_json(report.max_timestamp),
        "offsetIndexEntries": report.index_entries[0],
        "timeIndexEntries": report.index_entries[1],
        "damage": report.damage.iter().map(place).collect::<Vec<_>>(),
        "tornTail": report.torn_tail.as_ref().map(place),
    })
}

fn timestamp_json(timestamp: Timestamp) -> Value {
    if timestamp == Timestamp::NONE { Value::Null } else { json!(timestamp.get()) }
}

/// What is shown of each batch.
struct Details {
    batches: bool,
    records: bool,
    json: bool,
}

impl Details {
    fn print(&self, stored: &StoredBatch<'_>, output: &mut impl Write) -> io::Result<()> {
        if self.batches {
            if self.json {
                writeln!(output, "{}", batch_json(stored))?;
            } else {
                print_batch(stored, output)?;
            }
        }
        if self.records {
            self.print_records(stored, output)?;
        }
        Ok(())
    }

    fn print_records(&self, stored: &StoredBatch<'_>, output: &mut impl Write) -> io::Result<()> {
        let Some(body) = stored.body else { return Ok(()) };
        let header = stored.batch.header();
        for record in stored.batch.records_in(body).map_while(Result::ok) {
            let (offset, timestamp) = (header.offset_of(&record), header.timestamp_of(&record));
            if self.json {
                let headers: Vec<Value> =
                    record.headers.iter().map(|header| json!([text(Some(header.key)), text(header.value)])).collect();
                let line = json!({
                    "offset": offset.get(), "timestamp": timestamp_json(timestamp),
                    "key": text(record.key), "value": text(record.value), "headers": headers,
                });
                writeln!(output, "{line}")?;
            } else {
                let shown = |bytes: Option<&[u8]>| text(bytes).as_str().map_or("null".to_owned(), str::to_owned);
                writeln!(
                    output,
                    "    {offset} {} {} = {}",
                    shown_time(timestamp),
                    shown(record.key),
                    shown(record.value)
                )?;
            }
        }
        Ok(())
    }
}

fn print_batch(stored: &StoredBatch<'_>, output: &mut impl Write) -> io::Result<()> {
    let batch = &stored.batch;
    write!(
        output,
        "  at {} offsets {}..{} epoch {} records {} bytes {} {} up to {}",
        stored.position,
        batch.base_offset(),
        batch.last_offset(),
        batch.partition_leader_epoch(),
        batch.record_count(),
        batch.len(),
        batch.compression().map_or("unknown", |codec| codec.name()),
        shown_time(batch.max_timestamp()),
    )?;
    if batch.producer_id() != ProducerId::NONE {
        write!(
            output,
            " producer {} epoch {} from {}",
            batch.producer_id(),
            batch.producer_epoch(),
            batch.base_sequence()
        )?;
    }
    if let Some(horizon) = batch.header().delete_horizon() {
        write!(output, " tombstones go at {}", shown_time(horizon))?;
    }
    let flags = [(batch.is_transactional(), " transactional"), (batch.is_control(), " control")];
    for (_, flag) in flags.iter().filter(|(set, _)| *set) {
        write!(output, "{flag}")?;
    }
    writeln!(output)
}

fn batch_json(stored: &StoredBatch<'_>) -> Value {
    let batch = &stored.batch;
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("position", json!(stored.position));
    put("bytes", json!(batch.len()));
    put("baseOffset", json!(batch.base_offset().get()));
    put("lastOffset", json!(batch.last_offset().get()));
    put("partitionLeaderEpoch", json!(batch.partition_leader_epoch().get()));
    put("records", json!(batch.record_count()));
    put("compression", json!(batch.compression().map_or("unknown", |codec| codec.name())));
    put("maxTimestamp", timestamp_json(batch.max_timestamp()));
    put("deleteHorizon", batch.header().delete_horizon().map_or(Value::Null, timestamp_json));
    put("producerId", json!(batch.producer_id().get()));
    put("producerEpoch", json!(batch.producer_epoch().get()));
    put("baseSequence", json!(batch.base_sequence().get()));
    put("transactional", json!(batch.is_transactional()));
    put("control", json!(batch.is_control()));
    put("crc", json!(batch.crc()));
    Value::Object(fields)
}

fn shown_time(timestamp: Timestamp) -> String {
    if timestamp == Timestamp::NONE { "no time".to_owned() } else { format_timestamp(timestamp.get()) }
}

/// Bytes as text; what is no UTF-8 shows as U+FFFD.
fn text(bytes: Option<&[u8]>) -> Value {
    bytes.map_or(Value::Null, |bytes| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}
