//! The whole command line of `heddle`: every subcommand, flag, default and help text.
//!
//! Owns names and syntax, never behaviour: each subcommand's behaviour is the `run` function of the file named after it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A durable Kafka-protocol broker, and the tools to talk to one.
#[derive(Debug, Parser)]
#[command(name = "heddle", version, propagate_version = true, disable_help_subcommand = true)]
#[command(after_help = "\
Exit codes: 0 done; 1 failed; 2 the command line is wrong; 3 no broker could be reached;
4 a topic, partition or file that was named does not exist.

Start:   heddle serve
Then:    heddle topic create hello
         echo 'key:value' | heddle produce hello --key-separator :
         heddle consume hello --from beginning")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What `heddle` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a broker
    Serve(Box<ServeArgs>),
    /// Create, list, describe, alter and delete topics
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Show and change settings of topics, brokers and groups
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write records, one for each line of standard input or of a file
    Produce(ProduceArgs),
    /// Read records by partition and offset
    Consume(ConsumeArgs),
    /// List, describe, reset and delete consumer groups
    #[command(subcommand)]
    Group(GroupCommand),
    /// Ask a cluster about itself
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Look at a data directory or a segment file, with no broker running on it
    #[command(subcommand)]
    Log(LogCommand),
    /// Decode captured bytes of the Kafka protocol: JSON Lines in, JSON Lines out
    Decode(DecodeArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
}

/// How to reach a cluster; the same for every command that talks to one.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConnectArgs {
    /// Brokers to ask first, as host:port, comma separated
    #[arg(short, long, env = "HEDDLE_BOOTSTRAP", default_value = "127.0.0.1:9092", value_name = "HOST:PORT,…")]
    pub(crate) bootstrap: String,
    /// Give up on a request after this many seconds
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) timeout: u32,
}

/// What every command has that asks a cluster and prints the answer.
#[derive(Debug, Clone, Args)]
pub(crate) struct AskArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// `heddle serve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    /// Where logs are kept; made when it does not exist [default: ./heddle-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where to listen.
    #[arg(
        long,
        value_name = "[NAME://]HOST:PORT",
        help = "Listen here; repeats [default: 127.0.0.1:9092 and [::1]:9092]"
    )]
    pub(crate) listen: Vec<String>,
    /// Tell clients of the listener with this name to connect here; repeats [default: the address listened on]
    #[arg(long, value_name = "[NAME://]HOST:PORT")]
    pub(crate) advertise: Vec<String>,
    /// Serve metrics and health over HTTP here
    #[arg(
        long,
        value_name = "HOST:PORT",
        num_args = 0..=1,
        default_missing_value = "127.0.0.1:9644",
        help = "Serve metrics and health over HTTP, here or on 127.0.0.1:9644 [default: not at all]"
    )]
    pub(crate) metrics: Option<String>,
    /// How many cores to use [default: what CPU affinity and the cgroup quota allow]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) cores: Option<u16>,
    /// How to do IO
    #[arg(long, value_enum, default_value_t = IoChoice::Auto)]
    pub(crate) io: IoChoice,
    /// Read settings from a file (a Kafka server.properties works)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Set one setting by its Kafka name; repeats, and wins over --config
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) settings: Vec<(String, String)>,
    /// Allow a listener that other machines can reach, although there is no authentication yet
    #[arg(long)]
    pub(crate) insecure: bool,
    /// How log lines on standard error look
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// How much to log
    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    pub(crate) log_level: LogLevel,
    /// Log more: -v is debug, -vv is trace
    #[arg(short, action = clap::ArgAction::Count, conflicts_with = "log_level")]
    pub(crate) verbose: u8,
}

impl ServeArgs {
    /// The level that `--log-level` and `-v` ask for together.
    pub(crate) fn level(&self) -> LogLevel {
        match self.verbose {
            0 => self.log_level,
            1 => LogLevel::Debug,
            _ => LogLevel::Trace,
        }
    }
}

/// The IO backend of `serve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IoChoice {
    /// io_uring where the kernel allows it, else blocking
    Auto,
    /// io_uring, or fail
    Uring,
    /// Ordinary system calls on a pool of threads
    Blocking,
}

/// The shape of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// The least important log line that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// What failed
    Error,
    /// What may need a person
    Warn,
    /// What a person would want to know
    Info,
    /// What an engineer would want to know
    Debug,
    /// Everything
    Trace,
}

/// `heddle topic …`.
#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Make a topic
    Create(TopicCreateArgs),
    /// Name all topics
    #[command(visible_alias = "ls")]
    List(TopicListArgs),
    /// Show partitions, replicas, offsets and settings of topics
    Describe(TopicDescribeArgs),
    /// Add partitions to a topic, or change its settings
    Alter(TopicAlterArgs),
    /// Delete topics and everything in them
    #[command(visible_alias = "rm")]
    Delete(TopicDeleteArgs),
}

/// `heddle topic create`.
#[derive(Debug, Args)]
pub(crate) struct TopicCreateArgs {
    /// The topic's name: letters, digits, '.', '_' and '-'
    pub(crate) topic: String,
    /// How many partitions [default: the broker's num.partitions]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) partitions: Option<i32>,
    /// How many copies of each partition [default: the broker's default.replication.factor]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i16).range(1..))]
    pub(crate) replication_factor: Option<i16>,
    /// A setting of the topic, by its Kafka name; repeats
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) settings: Vec<(String, String)>,
    /// A topic that exists already is no failure
    #[arg(long)]
    pub(crate) if_not_exists: bool,
    /// Only ask whether it would work
    #[arg(long, alias = "validate-only")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle topic list`.
#[derive(Debug, Args)]
pub(crate) struct TopicListArgs {
    /// Name the cluster's own topics too
    #[arg(long)]
    pub(crate) internal: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle topic describe`.
#[derive(Debug, Args)]
pub(crate) struct TopicDescribeArgs {
    /// Which topics [default: all]
    #[arg(value_name = "TOPIC")]
    pub(crate) topics: Vec<String>,
    /// Show every setting, not only those that differ from the default
    #[arg(long)]
    pub(crate) all_settings: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle topic alter`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub(crate) struct TopicAlterArgs {
    /// The topic to change
    pub(crate) topic: String,
    /// How many partitions there shall be, never fewer than now
    #[arg(short, long, value_name = "N", group = "change", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) partitions: Option<i32>,
    /// Change a setting; repeats
    #[arg(long = "set", value_name = "NAME=VALUE", group = "change", value_parser = pair)]
    pub(crate) settings: Vec<(String, String)>,
    /// Return a setting to its default; repeats
    #[arg(long = "unset", value_name = "NAME", group = "change")]
    pub(crate) unset: Vec<String>,
    /// Delete the records below an offset; partition:offset, or partition:end for all; repeats
    #[arg(long, value_name = "PARTITION:OFFSET", group = "change", value_parser = partition_offset)]
    pub(crate) delete_records: Vec<(i32, i64)>,
    /// Only ask whether it would work, and show which records would be deleted
    #[arg(long, alias = "validate-only")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle topic delete`.
#[derive(Debug, Args)]
pub(crate) struct TopicDeleteArgs {
    /// The topics to delete
    #[arg(required = true, value_name = "TOPIC")]
    pub(crate) topics: Vec<String>,
    /// A topic that does not exist is no failure
    #[arg(long)]
    pub(crate) if_exists: bool,
    /// Only show what would be deleted
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle config …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show settings, and where their values come from
    #[command(visible_alias = "get")]
    Describe(ConfigDescribeArgs),
    /// Change settings: NAME=VALUE; NAME+=VALUE and NAME-=VALUE for an item of a list
    Set(ConfigSetArgs),
    /// Return settings to what they are when nobody sets them
    #[command(visible_alias = "unset")]
    Delete(ConfigDeleteArgs),
}

/// What settings belong to; exactly one.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("resource").required(true))]
pub(crate) struct ResourceArgs {
    /// A topic
    #[arg(short, long, value_name = "TOPIC", group = "resource")]
    pub(crate) topic: Option<String>,
    /// A broker
    #[arg(long, value_name = "ID", group = "resource", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) broker: Option<i32>,
    /// All brokers at once
    #[arg(long, group = "resource")]
    pub(crate) brokers: bool,
    /// A group
    #[arg(short, long, value_name = "GROUP", group = "resource")]
    pub(crate) group: Option<String>,
    /// A subscription to clients' metrics
    #[arg(long, value_name = "NAME", group = "resource")]
    pub(crate) client_metrics: Option<String>,
    /// The loggers of a broker: levels TRACE, DEBUG, INFO, WARN and ERROR
    #[arg(long, value_name = "ID", group = "resource", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) loggers: Option<i32>,
}

/// `heddle config describe`.
#[derive(Debug, Args)]
pub(crate) struct ConfigDescribeArgs {
    /// Only these settings [default: those that differ from the default]
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) resource: ResourceArgs,
    /// Every setting, not only those that differ from the default
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Say what each setting is for
    #[arg(short, long)]
    pub(crate) docs: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle config set`.
#[derive(Debug, Args)]
pub(crate) struct ConfigSetArgs {
    /// What to change
    #[arg(required = true, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) settings: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) change: ConfigChangeArgs,
}

/// `heddle config delete`.
#[derive(Debug, Args)]
pub(crate) struct ConfigDeleteArgs {
    /// What to return to its default
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) change: ConfigChangeArgs,
}

/// Whose settings change, and how it is said.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigChangeArgs {
    #[command(flatten)]
    pub(crate) resource: ResourceArgs,
    /// Only ask whether it would work
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle produce`.
#[derive(Debug, Args)]
pub(crate) struct ProduceArgs {
    /// The topic to write to
    pub(crate) topic: String,
    /// Read lines from these files, in order [default: standard input]
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Cut each line into key and value at the first occurrence of this text
    #[arg(short = 'K', long, value_name = "TEXT")]
    pub(crate) key_separator: Option<String>,
    /// The key of every record
    #[arg(short, long, conflicts_with = "key_separator")]
    pub(crate) key: Option<String>,
    /// A header of every record; repeats
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) headers: Vec<(String, String)>,
    /// Write to this partition [default: by key as Kafka does, spread where there is no key]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) partition: Option<i32>,
    /// How to compress batches
    #[arg(short = 'z', long, value_enum, default_value_t = CompressionChoice::None)]
    pub(crate) compression: CompressionChoice,
    /// Who must have a record before it counts as written
    #[arg(short, long, value_enum, default_value_t = AcksChoice::All)]
    pub(crate) acks: AcksChoice,
    /// Each line is a JSON object as `consume --json` prints it
    #[arg(long, conflicts_with_all = ["key_separator", "key", "headers", "whole_file"])]
    pub(crate) json_lines: bool,
    /// Write an empty value (or key) as null: a tombstone on a compacted topic
    #[arg(short = 'Z', long)]
    pub(crate) null_empty: bool,
    /// Make each file (or all of standard input) one record
    #[arg(long, conflicts_with = "key_separator")]
    pub(crate) whole_file: bool,
    /// Wait at most this many milliseconds for a batch to fill
    #[arg(long, default_value_t = 5, value_name = "MS", value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub(crate) linger: u32,
    /// The most bytes in one batch
    #[arg(long, default_value_t = 1_000_000, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    pub(crate) batch_bytes: u32,
    /// Give up on a record that is not written after this many seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) delivery_timeout: u32,
    /// Print partition and offset of every record as JSON, and the total at the end
    #[arg(long)]
    pub(crate) json: bool,
    /// Print nothing when all went well
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Codecs of `produce --compression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompressionChoice {
    /// As they are
    None,
    /// Small, slow
    Gzip,
    /// Fast
    Snappy,
    /// Fast
    Lz4,
    /// Small, fast enough
    Zstd,
}

/// Acknowledgement of `produce --acks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcksChoice {
    /// Every in-sync replica, on disk
    #[value(alias = "-1")]
    All,
    /// The leader
    #[value(name = "1")]
    Leader,
    /// Nobody: offsets are not known
    #[value(name = "0")]
    None,
}

/// `heddle consume`.
#[derive(Debug, Args)]
pub(crate) struct ConsumeArgs {
    /// The topic to read
    pub(crate) topic: String,
    /// Read only these partitions; repeats, or comma separated [default: all]
    #[arg(short, long = "partition", value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) partitions: Vec<i32>,
    /// Where to start: beginning, end, an offset, -N (the last N of each partition), or @TIME
    /// (milliseconds since 1970, or 2026-01-31T12:00:00Z)
    #[arg(
        short = 'o',
        long,
        default_value = "beginning",
        value_name = "WHERE",
        allow_hyphen_values = true,
        value_parser = start
    )]
    pub(crate) from: Start,
    /// Read as a member of this consumer group: share partitions with its other members, go on where the group has got
    /// to (--from says where it has not been yet), and commit
    #[arg(short, long, value_name = "GROUP", conflicts_with = "partitions")]
    pub(crate) group: Option<String>,
    /// Wait for new records instead of stopping at the end
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Stop after this many records
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Print one JSON object for each record
    #[arg(long, conflicts_with_all = ["format", "print_key", "print_headers", "print_timestamp", "print_offset", "print_partition"])]
    pub(crate) json: bool,
    /// Print the key before the value
    #[arg(short = 'k', long)]
    pub(crate) print_key: bool,
    /// Print the headers before the value
    #[arg(long)]
    pub(crate) print_headers: bool,
    /// Print the timestamp before the value
    #[arg(long)]
    pub(crate) print_timestamp: bool,
    /// Print the offset before the value
    #[arg(long)]
    pub(crate) print_offset: bool,
    /// Print the partition before the value
    #[arg(long)]
    pub(crate) print_partition: bool,
    /// Text between key and value and the other printed fields
    #[arg(short = 'K', long, default_value = "\t", value_name = "TEXT")]
    pub(crate) separator: String,
    /// Print each record like this: %t topic, %p partition, %o offset, %k key, %s value, %h headers, %T timestamp,
    /// %D the same as a date, %K and %S lengths, %% a percent sign, \n \t \0 as usual
    #[arg(long, value_name = "FORMAT", conflicts_with_all = ["print_key", "print_headers", "print_timestamp", "print_offset", "print_partition"])]
    pub(crate) format: Option<String>,
    /// Print also records of transactions that are open or were aborted
    #[arg(long)]
    pub(crate) read_uncommitted: bool,
    /// Print nothing about the reading itself on standard error
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// A position that `consume --from` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// The first readable record.
    Beginning,
    /// Records that arrive from now on.
    End,
    /// This offset.
    Offset(i64),
    /// This many records before the end, in each partition.
    Last(i64),
    /// The first record with this timestamp (milliseconds since 1970) or a later one.
    Time(i64),
}

/// `heddle group …`.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// List all groups
    List(GroupListArgs),
    /// Show members, committed offsets and lag
    Describe(GroupDescribeArgs),
    /// Set where a group without members reads on; shows what would change unless --execute is given
    ResetOffsets(GroupResetArgs),
    /// Forget committed offsets; shows which unless --execute is given
    DeleteOffsets(GroupDeleteOffsetsArgs),
    /// Delete groups without members; shows which unless --execute is given
    Delete(GroupDeleteArgs),
}

/// `heddle group list`.
#[derive(Debug, Args)]
pub(crate) struct GroupListArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle group describe`.
#[derive(Debug, Args)]
pub(crate) struct GroupDescribeArgs {
    /// The groups to show
    #[arg(required = true, value_name = "GROUP")]
    pub(crate) groups: Vec<String>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle group reset-offsets`.
#[derive(Debug, Args)]
pub(crate) struct GroupResetArgs {
    /// The group; it must have no members
    pub(crate) group: String,
    /// Where to read on: beginning, end, an offset, -N (the last N of each partition), or @TIME
    /// (milliseconds since 1970, or 2026-01-31T12:00:00Z)
    #[arg(long, value_name = "WHERE", allow_hyphen_values = true, value_parser = start)]
    pub(crate) to: Start,
    /// Only these topics or partitions; repeats [default: all that the group has committed for]
    #[arg(long = "topic", value_name = "TOPIC[:PARTITION]")]
    pub(crate) topics: Vec<String>,
    /// Do it
    #[arg(long)]
    pub(crate) execute: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle group delete-offsets`.
#[derive(Debug, Args)]
pub(crate) struct GroupDeleteOffsetsArgs {
    /// The group
    pub(crate) group: String,
    /// Topics or partitions; repeats
    #[arg(long = "topic", required = true, value_name = "TOPIC[:PARTITION]")]
    pub(crate) topics: Vec<String>,
    /// Do it
    #[arg(long)]
    pub(crate) execute: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle group delete`.
#[derive(Debug, Args)]
pub(crate) struct GroupDeleteArgs {
    /// The groups; they must have no members
    #[arg(required = true, value_name = "GROUP")]
    pub(crate) groups: Vec<String>,
    /// Do it
    #[arg(long)]
    pub(crate) execute: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle cluster …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show the cluster's id, its brokers and what they speak
    Info(ClusterInfoArgs),
}

/// `heddle cluster info`.
#[derive(Debug, Args)]
pub(crate) struct ClusterInfoArgs {
    /// Show which versions of each API the broker accepts
    #[arg(long)]
    pub(crate) apis: bool,
    /// Show the broker's settings that differ from the default
    #[arg(long)]
    pub(crate) settings: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// `heddle log …`.
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Show what a data directory, a partition's directory or a segment file holds
    Inspect(LogInspectArgs),
    /// Check every batch; exit code 1 when something is damaged
    Verify(LogVerifyArgs),
}

/// `heddle log inspect`.
#[derive(Debug, Args)]
pub(crate) struct LogInspectArgs {
    /// A data directory, a partition's directory or a segment file
    #[arg(value_name = "DIR")]
    pub(crate) path: PathBuf,
    /// Show every batch
    #[arg(long)]
    pub(crate) batches: bool,
    /// Show every record
    #[arg(long)]
    pub(crate) records: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `heddle log verify`.
#[derive(Debug, Args)]
pub(crate) struct LogVerifyArgs {
    /// A data directory, a partition's directory or a segment file
    #[arg(value_name = "DIR")]
    pub(crate) path: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `heddle decode`.
#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    /// Lines hold whole frames, header included
    #[arg(long)]
    pub(crate) frame: bool,
    /// Read lines from this file [default: standard input]
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// `heddle completion`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// Which shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// `name=value`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// `partition:offset` or `partition:end`; the end is -1, as on the wire.
fn partition_offset(text: &str) -> Result<(i32, i64), String> {
    let expected = || "expected PARTITION:OFFSET, for example 0:1000 or 0:end".to_owned();
    let (partition, offset) = text.split_once(':').ok_or_else(expected)?;
    let partition = partition.parse::<i32>().ok().filter(|it| *it >= 0).ok_or_else(expected)?;
    if offset == "end" {
        return Ok((partition, -1));
    }
    let offset = offset.parse::<i64>().ok().filter(|it| *it >= 0).ok_or_else(expected)?;
    Ok((partition, offset))
}

/// The argument of `consume --from`.
fn start(text: &str) -> Result<Start, String> {
    let expected = || "expected beginning, end, an offset, -N or @TIME".to_owned();
    match text {
        "beginning" => return Ok(Start::Beginning),
        "end" => return Ok(Start::End),
        _ => {}
    }
    if let Some(time) = text.strip_prefix('@') {
        return crate::time::parse_timestamp_ms(time).map(Start::Time);
    }
    match text.parse::<i64>() {
        Ok(number) if number < 0 || text.starts_with('-') => Ok(Start::Last(number.saturating_neg())),
        Ok(number) => Ok(Start::Offset(number)),
        Err(_) => Err(expected()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_agree_with_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_start_is_understood() {
        assert_eq!(start("beginning"), Ok(Start::Beginning));
        assert_eq!(start("end"), Ok(Start::End));
        assert_eq!(start("17"), Ok(Start::Offset(17)));
        assert_eq!(start("-5"), Ok(Start::Last(5)));
        assert_eq!(start("-0"), Ok(Start::Last(0)));
        assert_eq!(start("@1700000000000"), Ok(Start::Time(1_700_000_000_000)));
        assert_eq!(start("@2026-01-31T12:00:00Z"), Ok(Start::Time(1_769_860_800_000)));
        assert!(start("begin").is_err());
        assert!(start("@noon").is_err());
    }

    #[test]
    fn a_negative_start_is_no_flag() {
        let cli = Cli::try_parse_from(["heddle", "consume", "t", "--from", "-3"]).unwrap();
        let Command::Consume(args) = cli.command else { panic!("not consume") };
        assert_eq!(args.from, Start::Last(3));
    }

    #[test]
    fn alter_needs_a_change() {
        assert!(Cli::try_parse_from(["heddle", "topic", "alter", "t"]).is_err());
        assert!(Cli::try_parse_from(["heddle", "topic", "alter", "t", "--set", "retention.ms=1"]).is_ok());
    }

    #[test]
    fn settings_belong_to_one_thing() {
        let parses = |line: &str| Cli::try_parse_from(std::iter::once("heddle").chain(line.split(' '))).is_ok();
        assert!(parses("config describe --topic t") && parses("config set --brokers a=1 b+=2"));
        assert!(parses("config delete --group g a b --dry-run"));
        assert!(!parses("config describe") && !parses("config describe --topic t --broker 1"));
        assert!(!parses("config set --topic t") && !parses("config set --topic t a"));
    }

    #[test]
    fn the_quick_start_lines_parse() {
        for line in ["topic create hello", "produce hello --key-separator :", "consume hello --from beginning"] {
            let words = std::iter::once("heddle").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }
}
