//! From what the cores told to the text: adding up over cores, naming topics, bounding series.
//!
//! Owns which series there are. Every family is named in every text, also without a sample. Topics have series of their own
//! where the cores count them so (`traffic.rs`); partitions and committed offsets up to a bound, in the order of names. What
//! has none is counted in `heddle_metrics_omitted`.

use std::collections::{BTreeMap, BTreeSet};

use heddle_cluster::MetadataImage;
use heddle_engine::{LogStatistics, ReadStatistics};
use heddle_io::LatencyCounts;
use heddle_protocol::ErrorCode;
use heddle_record::{LogId, TopicId};

use super::catalogue as metric;
use super::exposition::Exposition;
use super::observer::Presence;
use super::process::ProcessSample;
use super::sample::{BrokerSample, CoreSample};
use crate::config::MetricsConfig;
use crate::coordinator::CommitSample;
use crate::requests::ApiSample;
use crate::sessions::FAREWELLS;
use crate::traffic::TrafficCounts;

/// The topic that stands for all without series of their own: no topic can be called so.
const OTHER: &str = "(other)";
/// Groups with a longer name have no series: whoever names groups must not choose how long a line gets.
const GROUP_NAME_MAX: usize = 255;

/// A family, and what its value is in a row of type `T`.
type Column<T, V> = (&'static metric::Family, fn(&T) -> V);

/// What the broker is.
pub(super) struct Build<'a> {
    pub(super) version: &'a str,
    pub(super) backend: &'a str,
}

/// All that a text is made of.
pub(super) struct Picture<'a> {
    pub(super) build: Build<'a>,
    pub(super) bounds: &'a MetricsConfig,
    /// Nothing of a core that has not told anything yet.
    pub(super) cores: Vec<(Presence, Option<&'a CoreSample>)>,
    pub(super) is_ready: bool,
    pub(super) process: ProcessSample,
}

impl Picture<'_> {
    /// The text.
    pub(super) fn render(&self) -> String {
        let mut text = Exposition::default();
        self.broker(&mut text);
        self.cores(&mut text);
        self.connections(&mut text);
        self.requests(&mut text);
        let omitted = self.data(&mut text);
        let mut samples = text.family(&metric::OMITTED);
        for (what, count) in omitted {
            samples.value(&[what], count);
        }
        self.disk(&mut text);
        self.storage(&mut text);
        self.kernel(&mut text);
        self.process(&mut text);
        text.finish()
    }

    fn samples(&self) -> impl Iterator<Item = &CoreSample> {
        self.cores.iter().filter_map(|(_, sample)| *sample)
    }

    fn first(&self) -> Option<&BrokerSample> {
        self.samples().find_map(|sample| sample.broker.as_ref())
    }

    /// The sum over all cores.
    fn sum(&self, of: impl Fn(&CoreSample) -> u64) -> u64 {
        self.samples().map(of).sum()
    }

    /// The sum over the engines of all cores.
    fn engines(&self, of: impl Fn(&heddle_engine::Statistics) -> u64) -> u64 {
        self.samples().filter_map(|sample| sample.engine.as_ref()).map(of).sum()
    }

    fn broker(&self, text: &mut Exposition) {
        let device = self.samples().find_map(|sample| sample.engine.as_ref()).map_or("", |engine| engine.device);
        let Build { version, backend } = self.build;
        text.family(&metric::BUILD).value(&[version, backend, device], 1);
        let mut identity = text.family(&metric::IDENTITY);
        if let Some((cluster, broker)) = self.first().and_then(|first| first.identity.as_ref()) {
            identity.value(&[cluster, &broker.to_string()], 1);
        }
        text.family(&metric::READY).value(&[], u8::from(self.is_ready));
    }

    fn cores(&self, text: &mut Exposition) {
        let mut here = text.family(&metric::CORE_HERE);
        for (index, (presence, _)) in self.cores.iter().enumerate() {
            here.value(&[&index.to_string()], u8::from(*presence == Presence::Here));
        }
        let mut time = text.family(&metric::CORE_TIME);
        for (index, sample) in self.numbered() {
            let load = sample.load;
            for (state, span) in [("busy", load.busy), ("spinning", load.spinning), ("asleep", load.asleep)] {
                time.value(&[&index, state], span.as_secs_f64());
            }
        }
        let mut tasks = text.family(&metric::CORE_TASKS);
        for (index, sample) in self.numbered() {
            tasks.value(&[&index], sample.tasks);
        }
    }

    /// The cores that told anything, with their numbers.
    fn numbered(&self) -> impl Iterator<Item = (String, &CoreSample)> {
        let cores = self.cores.iter().enumerate();
        cores.filter_map(|(index, (_, sample))| Some((index.to_string(), (*sample)?)))
    }

    fn connections(&self, text: &mut Exposition) {
        let mut by_listener: BTreeMap<&str, usize> = BTreeMap::new();
        let mut farewells = [0; FAREWELLS.len()];
        for sample in self.samples() {
            sample.connections.iter().for_each(|(name, count)| *by_listener.entry(name).or_default() += count);
            farewells.iter_mut().zip(sample.farewells).for_each(|(sum, count)| *sum += count);
        }
        let mut open = text.family(&metric::CONNECTIONS);
        by_listener.iter().for_each(|(name, count)| open.value(&[name], count));
        let admitted = self.first().map_or(0, |first| first.admitted);
        let turned_away = self.first().map_or(0, |first| first.turned_away);
        text.family(&metric::CONNECTIONS_ACCEPTED).value(&[], admitted);
        text.family(&metric::CONNECTIONS_REFUSED).value(&[], turned_away);
        let mut closed = text.family(&metric::CONNECTIONS_CLOSED);
        FAREWELLS.iter().zip(farewells).for_each(|((_, how), count)| closed.value(&[how], count));
    }

    fn requests(&self, text: &mut Exposition) {
        let mut apis: BTreeMap<i16, ApiSample> = BTreeMap::new();
        for api in self.samples().flat_map(|sample| &sample.requests) {
            match apis.get_mut(&api.key.code()) {
                Some(sum) => sum.add(api),
                None => drop(apis.insert(api.key.code(), api.clone())),
            }
        }
        let named = |api: &ApiSample| format!("{:?}", api.key);
        let mut requests = text.family(&metric::REQUESTS);
        for api in apis.values() {
            api.taken.iter().for_each(|(version, count)| requests.value(&[&named(api), &version.to_string()], count));
        }
        let mut errors = text.family(&metric::REQUEST_ERRORS);
        for api in apis.values() {
            for (code, count) in &api.errors {
                errors.value(&[&named(api), &error_name(*code)], count);
            }
        }
        let mut times = text.family(&metric::REQUEST_TIME);
        apis.values().for_each(|api| times.histogram(&[&named(api)], &api.latencies));
    }

    fn kernel(&self, text: &mut Exposition) {
        let columns: [Column<heddle_io::Counters, u64>; 6] = [
            (&metric::KERNEL_ENTERS, |kernel| kernel.enters),
            (&metric::KERNEL_SUBMISSIONS, |kernel| kernel.submissions),
            (&metric::KERNEL_PUNTS, |kernel| kernel.handed_over),
            (&metric::KERNEL_INLINE, |kernel| kernel.inline_writes),
            (&metric::KERNEL_FLUSHES, |kernel| kernel.flushes),
            (&metric::KERNEL_HELPERS, |kernel| kernel.helper_jobs),
        ];
        for (family, column) in columns {
            let mut samples = text.family(family);
            self.numbered().for_each(|(index, sample)| samples.value(&[&index], column(&sample.kernel)));
        }
    }

    fn process(&self, text: &mut Exposition) {
        let process = &self.process;
        let seconds =
            [(&metric::PROCESS_CPU, process.cpu_seconds), (&metric::PROCESS_STARTED, process.started_seconds)];
        for (family, seconds) in seconds {
            let mut samples = text.family(family);
            seconds.into_iter().for_each(|seconds| samples.value(&[], seconds));
        }
        let counts = [
            (&metric::PROCESS_RESIDENT, process.resident_bytes),
            (&metric::PROCESS_VIRTUAL, process.virtual_bytes),
            (&metric::PROCESS_THREADS, process.threads),
            (&metric::PROCESS_FILES, process.files),
            (&metric::PROCESS_FILES_MAX, process.files_max),
        ];
        for (family, count) in counts {
            let mut samples = text.family(family);
            count.into_iter().for_each(|count| samples.value(&[], count));
        }
    }
}

impl ApiSample {
    /// Adds what another core has counted.
    fn add(&mut self, other: &Self) {
        let mut taken: BTreeMap<usize, u64> = self.taken.iter().copied().collect();
        other.taken.iter().for_each(|(version, count)| *taken.entry(*version).or_default() += count);
        self.taken = taken.into_iter().collect();
        self.latencies.add(&other.latencies);
        other.errors.iter().for_each(|(code, count)| *self.errors.entry(*code).or_default() += count);
    }
}

/// Kafka's name of an error.
fn error_name(code: i16) -> String {
    ErrorCode::from_i16(code).map_or_else(|| code.to_string(), |error| error.name().to_owned())
}

/// Topics, partitions, groups.
impl Picture<'_> {
    /// Gives what has no series of its own, and how many of it.
    fn data(&self, text: &mut Exposition) -> [(&'static str, usize); 3] {
        let nobody = MetadataImage::default();
        let image = self.first().map_or(&nobody, |first| &*first.image);
        let shown: BTreeSet<TopicId> =
            self.samples().flat_map(|sample| &sample.traffic.own).map(|(topic, _)| *topic).collect();
        let logs: BTreeMap<LogId, LogStatistics> = self.samples().flat_map(|sample| &sample.logs).copied().collect();
        self.totals(text);
        self.topics(text, image, &shown, &logs);
        let partitions = self.partitions(text, image, &shown, &logs);
        let group_partitions = self.groups(text, image, &logs);
        let topics = image.topics().filter(|topic| !shown.contains(&topic.id)).count();
        [("topics", topics), ("partitions", partitions), ("group_partitions", group_partitions)]
    }

    fn totals(&self, text: &mut Exposition) {
        text.family(&metric::RECORDS_IN).value(&[], self.sum(|sample| sample.traffic.all.records_in));
        text.family(&metric::BYTES_IN).value(&[], self.sum(|sample| sample.traffic.all.bytes_in));
        text.family(&metric::BYTES_OUT).value(&[], self.sum(|sample| sample.traffic.all.bytes_out));
    }

    fn topics(
        &self,
        text: &mut Exposition,
        image: &MetadataImage,
        shown: &BTreeSet<TopicId>,
        logs: &BTreeMap<LogId, LogStatistics>,
    ) {
        let name = |topic: &TopicId| image.topic(*topic).map(|topic| &*topic.name);
        let mut by_name: BTreeMap<&str, (TrafficCounts, u64)> = BTreeMap::new();
        for sample in self.samples() {
            // What is not in the image was deleted a moment ago, or is about to be made.
            for (topic, counts) in &sample.traffic.own {
                if let Some(name) = name(topic) {
                    by_name.entry(name).or_default().0.add(counts);
                }
            }
            if sample.traffic.other != TrafficCounts::default() {
                by_name.entry(OTHER).or_default().0.add(&sample.traffic.other);
            }
        }
        for (log, statistics) in logs {
            let name = if shown.contains(&log.topic) { name(&log.topic) } else { Some(OTHER) };
            if let Some(name) = name {
                by_name.entry(name).or_default().1 += statistics.size_bytes;
            }
        }
        let columns: [Column<TrafficCounts, u64>; 7] = [
            (&metric::TOPIC_RECORDS_IN, |counts| counts.records_in),
            (&metric::TOPIC_BYTES_IN, |counts| counts.bytes_in),
            (&metric::TOPIC_BYTES_OUT, |counts| counts.bytes_out),
            (&metric::TOPIC_PRODUCES, |counts| counts.produces),
            (&metric::TOPIC_PRODUCES_FAILED, |counts| counts.produces_failed),
            (&metric::TOPIC_FETCHES, |counts| counts.fetches),
            (&metric::TOPIC_FETCHES_FAILED, |counts| counts.fetches_failed),
        ];
        for (family, column) in columns {
            let mut samples = text.family(family);
            by_name.iter().for_each(|(name, (counts, _))| samples.value(&[name], column(counts)));
        }
        let mut sizes = text.family(&metric::TOPIC_SIZE);
        by_name.iter().for_each(|(name, (_, size))| sizes.value(&[name], size));
    }

    /// Gives how many partitions have no series of their own.
    fn partitions(
        &self,
        text: &mut Exposition,
        image: &MetadataImage,
        shown: &BTreeSet<TopicId>,
        logs: &BTreeMap<LogId, LogStatistics>,
    ) -> usize {
        text.family(&metric::TOPICS).value(&[], image.topics().len());
        text.family(&metric::PARTITIONS).value(&[], image.partition_count());
        let offline = logs.values().filter(|log| log.is_offline).count();
        let closed: usize = self.samples().map(|sample| sample.closed).sum();
        text.family(&metric::PARTITIONS_OFFLINE).value(&[], offline + closed);
        let damaged: usize = logs.values().map(|log| log.damaged_segments).sum();
        text.family(&metric::SEGMENTS_DAMAGED).value(&[], damaged);

        let mut named: Vec<(&str, i32, &LogStatistics)> = Vec::new();
        for (log, statistics) in logs.iter().filter(|(log, _)| shown.contains(&log.topic)) {
            if let Some(topic) = image.topic(log.topic) {
                named.push((&topic.name, log.partition.get(), statistics));
            }
        }
        named.sort_unstable_by_key(|(topic, partition, _)| (*topic, *partition));
        named.truncate(self.bounds.partitions_max);
        let columns: [Column<LogStatistics, i128>; 5] = [
            (&metric::PARTITION_START, |log| log.log_start.get().into()),
            (&metric::PARTITION_END, |log| log.log_end.get().into()),
            (&metric::PARTITION_WATERMARK, |log| log.high_watermark.get().into()),
            (&metric::PARTITION_SIZE, |log| log.size_bytes.into()),
            (&metric::PARTITION_SEGMENTS, |log| log.segments as i128),
        ];
        for (family, column) in columns {
            let mut samples = text.family(family);
            for (topic, partition, log) in &named {
                samples.value(&[topic, &partition.to_string()], column(log));
            }
        }
        logs.len() - named.len()
    }

    /// Gives how many committed offsets have no series of their own.
    fn groups(&self, text: &mut Exposition, image: &MetadataImage, logs: &BTreeMap<LogId, LogStatistics>) -> usize {
        let mut states: BTreeMap<&str, u64> =
            ["Empty", "PreparingRebalance", "CompletingRebalance", "Stable"].map(|state| (state, 0)).into();
        for (state, count) in self.samples().flat_map(|sample| &sample.groups.states) {
            *states.entry(state).or_default() += count;
        }
        let mut groups = text.family(&metric::GROUPS);
        states.iter().for_each(|(state, count)| groups.value(&[state], count));
        let all: usize = self.samples().map(|sample| sample.groups.commit_count).sum();
        text.family(&metric::COMMITS).value(&[], all);

        let commits = self.samples().flat_map(|sample| &sample.groups.commits);
        let mut named: Vec<&CommitSample> = commits.filter(|commit| commit.group.len() <= GROUP_NAME_MAX).collect();
        named.sort_unstable_by_key(|commit| (&commit.group, &commit.topic, commit.partition));
        named.truncate(self.bounds.group_partitions_max);
        let labels = |commit: &CommitSample| {
            [commit.group.to_string(), commit.topic.to_string(), commit.partition.get().to_string()]
        };
        let mut lags = text.family(&metric::GROUP_LAG);
        for commit in &named {
            let topic = image.topic(commit.topic_id).or_else(|| image.topic_named(&commit.topic));
            let log = topic.and_then(|topic| logs.get(&LogId { topic: topic.id, partition: commit.partition }));
            if let Some(log) = log {
                let lag = log.high_watermark.get().saturating_sub(commit.offset).max(0);
                lags.value(&labels(commit).each_ref().map(String::as_str), lag);
            }
        }
        let mut offsets = text.family(&metric::GROUP_OFFSET);
        for commit in &named {
            offsets.value(&labels(commit).each_ref().map(String::as_str), commit.offset);
        }
        let sessions = |of: fn(&CoreSample) -> u64| self.sum(of);
        text.family(&metric::SESSIONS).value(&[], sessions(|sample| sample.fetch_sessions.sessions as u64));
        text.family(&metric::SESSION_PARTITIONS).value(&[], sessions(|sample| sample.fetch_sessions.partitions as u64));
        text.family(&metric::SESSIONS_EVICTED).value(&[], sessions(|sample| sample.fetch_sessions.evicted));
        all.saturating_sub(named.len())
    }
}

/// Disk and logs.
impl Picture<'_> {
    fn disk(&self, text: &mut Exposition) {
        let is_online = self.samples().all(|sample| sample.pulse.offline.is_none());
        text.family(&metric::DISK_ONLINE).value(&[], u8::from(is_online));
        let disk = self.first().and_then(|first| first.disk.as_ref());
        let space = disk.and_then(|disk| disk.space);
        let mut free = text.family(&metric::DISK_FREE);
        space.into_iter().for_each(|space| free.value(&[], space.usable_bytes));
        let mut size = text.family(&metric::DISK_SIZE);
        space.into_iter().for_each(|space| size.value(&[], space.total_bytes));
        let mut reserve = text.family(&metric::DISK_RESERVE);
        disk.into_iter().for_each(|disk| reserve.value(&[], u8::from(disk.has_reserve)));
        let mut short = text.family(&metric::DISK_SHORT);
        disk.into_iter().for_each(|disk| short.value(&[], u8::from(disk.is_short)));
    }

    fn storage(&self, text: &mut Exposition) {
        let mut flushes = LatencyCounts::default();
        let mut reads = ReadStatistics::default();
        let mut oldest = 0.0_f64;
        for engine in self.samples().filter_map(|sample| sample.engine.as_ref()) {
            flushes.add(&engine.flushes);
            oldest = oldest.max(engine.flush_oldest.as_secs_f64());
            reads.from_memory += engine.reads.from_memory;
            reads.from_files += engine.reads.from_files;
            reads.memory_bytes += engine.reads.memory_bytes;
            reads.file_bytes += engine.reads.file_bytes;
        }
        text.family(&metric::FLUSH_TIME).histogram(&[], &flushes);
        text.family(&metric::FLUSH_FAILED).value(&[], self.engines(|engine| engine.flush_failures));
        text.family(&metric::FLUSH_OLDEST).value(&[], oldest);
        text.family(&metric::PENDING).value(&[], self.engines(|engine| engine.pending_bytes as u64));
        text.family(&metric::TAIL_HITS).value(&[], reads.from_memory);
        text.family(&metric::TAIL_MISSES).value(&[], reads.from_files);
        let mut bytes = text.family(&metric::READ_BYTES);
        bytes.value(&["memory"], reads.memory_bytes);
        bytes.value(&["file"], reads.file_bytes);
        text.family(&metric::TAIL_BYTES).value(&[], self.engines(|engine| engine.tail_bytes as u64));
        text.family(&metric::TAIL_BYTES_MAX).value(&[], self.engines(|engine| engine.tail_bytes_max as u64));
        text.family(&metric::PRODUCERS).value(&[], self.engines(|engine| engine.producers as u64));
        text.family(&metric::COMPACTIONS).value(&[], self.engines(|engine| engine.compaction.passes));
        text.family(&metric::COMPACTION_READ).value(&[], self.engines(|engine| engine.compaction.done.bytes_read));
        text.family(&metric::COMPACTION_WRITTEN)
            .value(&[], self.engines(|engine| engine.compaction.done.bytes_written));
        text.family(&metric::COMPACTION_REMOVED)
            .value(&[], self.engines(|engine| engine.compaction.done.records_removed));
        text.family(&metric::COMPACTION_WAITING).value(&[], self.engines(|engine| engine.compaction.candidates as u64));
        text.family(&metric::SCRUB_ROUNDS).value(&[], self.engines(|engine| engine.scrub.rounds));
        text.family(&metric::SCRUB_SEGMENTS).value(&[], self.engines(|engine| engine.scrub.segments));
        text.family(&metric::SCRUB_BYTES).value(&[], self.engines(|engine| engine.scrub.bytes));
    }
}
