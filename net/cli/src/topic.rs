//! `heddle topic`: create, list, describe, alter, delete.

use std::rc::Rc;

use heddle_client::{
    Client, Error, Isolation, Mode, NewTopic, OffsetQuery, Partition, Resource, Setting, SettingChange, SettingSource,
    Topic,
};
use heddle_protocol::ErrorCode;
use heddle_record::{BrokerId, Offset, PartitionIndex};
use serde_json::{Map, Value, json};

use crate::args::{TopicAlterArgs, TopicCommand, TopicCreateArgs, TopicDeleteArgs, TopicDescribeArgs, TopicListArgs};
use crate::failure::{Exit, Failure};
use crate::output::{self, Table, counted, grouped};
use crate::session;

/// Runs the subcommand.
///
/// # Errors
/// What the cluster says, or that it cannot be reached.
pub(crate) fn run(command: &TopicCommand) -> anyhow::Result<()> {
    match command {
        TopicCommand::Create(args) => session::run(&args.ask.connect, async |client| create(client, args).await),
        TopicCommand::List(args) => session::run(&args.ask.connect, async |client| list(client, args).await),
        TopicCommand::Describe(args) => session::run(&args.ask.connect, async |client| describe(client, args).await),
        TopicCommand::Alter(args) => session::run(&args.ask.connect, async |client| alter(client, args).await),
        TopicCommand::Delete(args) => session::run(&args.ask.connect, async |client| delete(client, args).await),
    }
}

fn mode(dry_run: bool) -> Mode {
    if dry_run { Mode::ValidateOnly } else { Mode::Apply }
}

async fn create(client: &Client, args: &TopicCreateArgs) -> anyhow::Result<()> {
    let topic = NewTopic {
        name: args.topic.clone(),
        partition_count: args.partitions,
        replication_factor: args.replication_factor,
        settings: args.settings.clone(),
    };
    let created = match client.admin().create_topic(&topic, mode(args.dry_run)).await {
        Ok(created) => created,
        Err(error) if args.if_not_exists && error.code() == Some(ErrorCode::TopicAlreadyExists) => {
            output::note(&format!("topic {} exists already", args.topic));
            return if args.ask.json {
                output::print_json(&json!({"topic": args.topic, "created": false}))
            } else {
                Ok(())
            };
        }
        Err(error) => return Err(error.into()),
    };
    if args.ask.json {
        return output::print_json(&json!({
            "topic": args.topic,
            "created": !args.dry_run,
            "id": (!created.id.is_zero()).then(|| created.id.to_string()),
            "partitions": created.partition_count,
            "replication_factor": created.replication_factor,
        }));
    }
    let done = if args.dry_run { "would create" } else { "created" };
    let mut details = Vec::new();
    details.extend(created.partition_count.map(|count| counted(count.unsigned_abs().into(), "partition")));
    details.extend(created.replication_factor.map(|factor| format!("replication factor {factor}")));
    let details = if details.is_empty() { String::new() } else { format!(": {}", details.join(", ")) };
    output::print(&format!("{done} topic {}{details}\n", args.topic))
}

async fn list(client: &Client, args: &TopicListArgs) -> anyhow::Result<()> {
    let mut topics = client.topics().await?;
    topics.retain(|topic| args.internal || !topic.internal);
    if args.ask.json {
        let topics: Vec<Value> = topics.iter().map(|topic| Value::Object(summary(topic))).collect();
        return output::print_json(&Value::Array(topics));
    }
    if topics.is_empty() {
        output::note("there are no topics; `heddle topic create NAME` makes one");
        return Ok(());
    }
    let mut table = Table::new(&["TOPIC", " PARTITIONS", " REPLICAS", "ID"]);
    for topic in &topics {
        let replicas = replication_factor(topic).to_string();
        table.row([topic.name.to_string(), topic.partition_count().to_string(), replicas, topic.id.to_string()]);
    }
    output::print(&table.render())
}

/// Copies of each partition; of the first, where they differ while partitions move.
fn replication_factor(topic: &Topic) -> usize {
    topic.partitions.first().map_or(0, |it| it.replicas.len())
}

fn summary(topic: &Topic) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("topic".to_owned(), json!(&*topic.name));
    map.insert("id".to_owned(), json!(topic.id.to_string()));
    map.insert("internal".to_owned(), json!(topic.internal));
    map.insert("partition_count".to_owned(), json!(topic.partition_count()));
    map.insert("replication_factor".to_owned(), json!(replication_factor(topic)));
    map
}

/// All that is shown of one topic.
struct Description {
    topic: Rc<Topic>,
    settings: Vec<Setting>,
    /// First readable offset and log end of each partition that has a leader.
    offsets: Vec<Option<(Offset, Offset)>>,
    /// Bytes that each partition takes on its leader's disk, where the leader says.
    sizes: Vec<Option<u64>>,
}

async fn describe(client: &Client, args: &TopicDescribeArgs) -> anyhow::Result<()> {
    let topics = if args.topics.is_empty() {
        let mut topics = client.topics().await?;
        topics.retain(|topic| !topic.internal);
        topics
    } else {
        let names: Vec<&str> = args.topics.iter().map(String::as_str).collect();
        client.admin().describe_topics(&names).await?
    };
    let mut descriptions = Vec::with_capacity(topics.len());
    for topic in topics {
        let mut settings = client.admin().describe_settings(&Resource::Topic(topic.name.to_string())).await?;
        settings.retain(|setting| args.all_settings || setting.source != SettingSource::Default);
        let offsets = offsets(client, &topic).await?;
        let sizes = sizes(client, &topic).await?;
        descriptions.push(Description { topic, settings, offsets, sizes });
    }
    if args.ask.json {
        let values: Vec<Value> = descriptions.iter().map(description_json).collect();
        return output::print_json(&Value::Array(values));
    }
    let texts: Vec<String> = descriptions.iter().map(description_text).collect();
    output::print(&texts.join("\n"))
}

async fn offsets(client: &Client, topic: &Topic) -> anyhow::Result<Vec<Option<(Offset, Offset)>>> {
    let led: Vec<&Partition> = topic.partitions.iter().filter(|it| it.leader.is_some()).collect();
    let ask = async |query| {
        let queries: Vec<_> = led.iter().map(|it| (&*topic.name, it.index, query)).collect();
        client.admin().list_offsets(&queries, Isolation::ReadUncommitted).await
    };
    let (first, end) = (ask(OffsetQuery::Earliest).await?, ask(OffsetQuery::Latest).await?);
    let mut known = first.into_iter().zip(end).map(|(first, end)| Some((first.offset?, end.offset?)));
    Ok(topic.partitions.iter().map(|it| it.leader.and_then(|_| known.next().flatten())).collect())
}

/// Bytes of each partition where it is led.
async fn sizes(client: &Client, topic: &Topic) -> anyhow::Result<Vec<Option<u64>>> {
    let sizes = client.admin().log_sizes(&[topic]).await?;
    let size = |it: &Partition| sizes.get(&(it.leader?, topic.name.to_string(), it.index)).copied();
    Ok(topic.partitions.iter().map(size).collect())
}

fn description_json(description: &Description) -> Value {
    let Description { topic, settings, offsets, sizes } = description;
    let mut map = summary(topic);
    let setting = |it: &Setting| (it.name.clone(), json!({"value": it.value, "source": it.source.name()}));
    map.insert("settings".to_owned(), Value::Object(settings.iter().map(setting).collect()));
    let partitions = topic.partitions.iter().zip(offsets).zip(sizes).map(|((it, offsets), size)| {
        let ids = |brokers: &[BrokerId]| brokers.iter().map(|id| id.get()).collect::<Vec<_>>();
        json!({
            "partition": it.index.get(),
            "leader": it.leader.map(BrokerId::get),
            "leader_epoch": it.leader_epoch.get(),
            "replicas": ids(&it.replicas),
            "in_sync_replicas": ids(&it.in_sync_replicas),
            "log_start_offset": offsets.map(|(first, _)| first.get()),
            "log_end_offset": offsets.map(|(_, end)| end.get()),
            "size_bytes": size,
        })
    });
    map.insert("partitions".to_owned(), Value::Array(partitions.collect()));
    Value::Object(map)
}

fn description_text(description: &Description) -> String {
    let Description { topic, settings, offsets, sizes } = description;
    let partitions = counted(topic.partitions.len() as u64, "partition");
    let mut text =
        format!("{}  {partitions}, replication factor {}, id {}\n", topic.name, replication_factor(topic), topic.id);
    for Setting { name, value, source, .. } in settings {
        let source = if *source == SettingSource::Topic { String::new() } else { format!("  ({})", source.name()) };
        text.push_str(&format!("  {name}={}{source}\n", value.as_deref().unwrap_or("")));
    }
    let mut table =
        Table::new(&[" PARTITION", " LEADER", "REPLICAS", "IN SYNC", " START", " END", " OFFSETS", " BYTES"]);
    for ((it, offsets), size) in topic.partitions.iter().zip(offsets).zip(sizes) {
        let ids = |brokers: &[BrokerId]| brokers.iter().map(BrokerId::to_string).collect::<Vec<_>>().join(",");
        let number = |number: Option<i64>| number.map_or_else(|| "?".to_owned(), |it| it.to_string());
        table.row([
            it.index.to_string(),
            it.leader.map_or_else(|| "none".to_owned(), |it| it.to_string()),
            ids(&it.replicas),
            ids(&it.in_sync_replicas),
            number(offsets.map(|(first, _)| first.get())),
            number(offsets.map(|(_, end)| end.get())),
            number(offsets.map(|(first, end)| end.get() - first.get())),
            size.map_or_else(|| "?".to_owned(), grouped),
        ]);
    }
    text.push_str(&table.render());
    text
}

async fn alter(client: &Client, args: &TopicAlterArgs) -> anyhow::Result<()> {
    let admin = client.admin();
    let mode = mode(args.dry_run);
    let mut done = Vec::new();
    let sets = args.settings.iter().map(|(name, value)| (name.clone(), SettingChange::Set(value.clone())));
    let unsets = args.unset.iter().map(|name| (name.clone(), SettingChange::Unset));
    let changes: Vec<_> = sets.chain(unsets).collect();
    if !changes.is_empty() {
        admin.alter_settings(&Resource::Topic(args.topic.clone()), &changes, mode).await?;
        done.extend(args.settings.iter().map(|(name, value)| format!("{name}={value}")));
        done.extend(args.unset.iter().map(|name| format!("{name} at its default")));
    }
    if let Some(total) = args.partitions {
        admin.create_partitions(&args.topic, total, mode).await?;
        done.push(counted(total.unsigned_abs().into(), "partition"));
    }
    for (partition, offset) in &args.delete_records {
        let before = (*offset >= 0).then(|| Offset::new(*offset));
        let partition = PartitionIndex::new(*partition);
        let first = if args.dry_run {
            first_offset_after(client, &args.topic, partition, before).await?
        } else {
            admin.delete_records(&args.topic, partition, before).await?
        };
        done.push(format!("partition {partition} starts at offset {first}"));
    }
    if args.ask.json {
        return output::print_json(&json!({"topic": args.topic, "altered": !args.dry_run, "now": done}));
    }
    let verb = if args.dry_run { "would become" } else { "now" };
    output::print(&format!("topic {} {verb}: {}\n", args.topic, done.join(", ")))
}

/// Where a partition would start if the records below `before` were deleted, or all.
async fn first_offset_after(
    client: &Client,
    topic: &str,
    partition: PartitionIndex,
    before: Option<Offset>,
) -> anyhow::Result<Offset> {
    let queries = [OffsetQuery::Earliest, OffsetQuery::Latest].map(|query| (topic, partition, query));
    let limits = client.admin().list_offsets(&queries, Isolation::ReadUncommitted).await?;
    let limit = |index: usize| limits.get(index).and_then(|it| it.offset).unwrap_or(Offset::ZERO);
    let (first, end) = (limit(0), limit(1));
    match before {
        Some(before) if before > end => {
            let message = format!("{topic}-{partition} ends at offset {end}; no record has offset {before}");
            Err(Failure::new(Exit::Failed, message).into())
        }
        Some(before) => Ok(before.max(first)),
        None => Ok(end),
    }
}

/// What would go with these topics.
async fn show_what_goes(client: &Client, args: &TopicDeleteArgs) -> anyhow::Result<()> {
    let mut table = Table::new(&["TOPIC", " PARTITIONS", " OFFSETS", " BYTES"]);
    let mut values = Vec::new();
    for name in &args.topics {
        let topic = match client.admin().describe_topics(&[name.as_str()]).await {
            Ok(topics) => topics.into_iter().next().expect("a topic for each name"),
            Err(Error::UnknownTopic { .. }) if args.if_exists => continue,
            Err(error) => return Err(error.into()),
        };
        let offsets: i64 =
            offsets(client, &topic).await?.iter().flatten().map(|(first, end)| end.get() - first.get()).sum();
        let bytes: Option<u64> = sizes(client, &topic).await?.into_iter().sum();
        values.push(json!({
            "topic": name,
            "partition_count": topic.partition_count(),
            "offsets": offsets,
            "size_bytes": bytes,
        }));
        let bytes = bytes.map_or_else(|| "?".to_owned(), grouped);
        table.row([name.clone(), topic.partition_count().to_string(), grouped(offsets.unsigned_abs()), bytes]);
    }
    if args.ask.json {
        return output::print_json(&json!({"would_delete": values}));
    }
    if values.is_empty() {
        output::note("nothing would be deleted");
        return Ok(());
    }
    output::print(&format!("would delete\n{}", table.render()))
}

async fn delete(client: &Client, args: &TopicDeleteArgs) -> anyhow::Result<()> {
    if args.dry_run {
        return show_what_goes(client, args).await;
    }
    let mut deleted = Vec::new();
    let mut failed: Option<anyhow::Error> = None;
    for topic in &args.topics {
        match client.admin().delete_topic(topic).await {
            Ok(()) => deleted.push(topic),
            Err(Error::UnknownTopic { .. }) if args.if_exists => {}
            // The others are deleted all the same; every failure is told, the last by the exit.
            Err(error) => {
                if let Some(earlier) = failed.replace(error.into()) {
                    output::complain(&earlier);
                }
            }
        }
    }
    if args.ask.json {
        output::print_json(&json!({"deleted": deleted}))?;
    } else if !deleted.is_empty() {
        let lines: Vec<_> = deleted.iter().map(|topic| format!("deleted topic {topic}\n")).collect();
        output::print(&lines.concat())?;
    }
    match failed {
        None => Ok(()),
        Some(error) => Err(match error.downcast::<Error>() {
            Ok(Error::UnknownTopic { topic }) => session::unknown_topic(client, &topic).await.into(),
            Ok(other) => other.into(),
            Err(other) => Failure::new(Exit::Failed, other.to_string()).into(),
        }),
    }
}
