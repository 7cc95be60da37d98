//! `heddle group`: list, describe, reset-offsets, delete-offsets, delete.

use std::collections::{BTreeMap, BTreeSet};

use heddle_client::{Client, GroupDescription, GroupOffset, Isolation, OffsetQuery};
use heddle_record::{Offset, PartitionIndex, Timestamp};
use serde_json::{Value, json};

use crate::args::{
    GroupCommand, GroupDeleteArgs, GroupDeleteOffsetsArgs, GroupDescribeArgs, GroupListArgs, GroupResetArgs, Start,
};
use crate::failure::{Exit, Failure};
use crate::output::{self, Table, counted, grouped};
use crate::session;

/// Runs the subcommand.
///
/// # Errors
/// What the cluster says, or that it cannot be reached.
pub(crate) fn run(command: &GroupCommand) -> anyhow::Result<()> {
    match command {
        GroupCommand::List(args) => session::run(&args.ask.connect, async |client| list(client, args).await),
        GroupCommand::Describe(args) => session::run(&args.ask.connect, async |client| describe(client, args).await),
        GroupCommand::ResetOffsets(args) => session::run(&args.ask.connect, async |client| reset(client, args).await),
        GroupCommand::DeleteOffsets(args) => {
            session::run(&args.ask.connect, async |client| delete_offsets(client, args).await)
        }
        GroupCommand::Delete(args) => session::run(&args.ask.connect, async |client| delete(client, args).await),
    }
}

async fn list(client: &Client, args: &GroupListArgs) -> anyhow::Result<()> {
    let groups = client.groups().list().await?;
    if args.ask.json {
        let group = |it: &heddle_client::GroupListing| json!({"group": it.group, "protocol_type": it.protocol_type, "state": it.state});
        return output::print_json(&Value::Array(groups.iter().map(group).collect()));
    }
    if groups.is_empty() {
        output::note("there are no groups; a consumer with a group.id makes one");
        return Ok(());
    }
    let mut table = Table::new(&["GROUP", "STATE", "TYPE"]);
    for it in groups {
        table.row([it.group, it.state.unwrap_or_default(), it.protocol_type]);
    }
    output::print(&table.render())
}

/// One partition that a group has committed for, or that a member of it has.
struct Line {
    topic: String,
    partition: PartitionIndex,
    committed: Option<Offset>,
    /// The end of what can be read; none where the partition is gone.
    end: Option<Offset>,
    /// The member that has it.
    member: Option<String>,
}

impl Line {
    fn lag(&self) -> Option<i64> {
        Some((self.end?.get() - self.committed?.get()).max(0))
    }
}

async fn describe(client: &Client, args: &GroupDescribeArgs) -> anyhow::Result<()> {
    let mut texts = Vec::new();
    let mut values = Vec::new();
    for name in &args.groups {
        let Some(group) = client.groups().describe(name).await? else { return Err(unknown(client, name).await.into()) };
        let offsets = client.groups().offsets(name).await?;
        let lines = lines(client, &group, &offsets).await?;
        if args.ask.json {
            values.push(group_json(&group, &lines));
        } else {
            texts.push(group_text(&group, &lines));
        }
    }
    if args.ask.json { output::print_json(&Value::Array(values)) } else { output::print(&texts.join("\n")) }
}

async fn lines(client: &Client, group: &GroupDescription, offsets: &[GroupOffset]) -> anyhow::Result<Vec<Line>> {
    let mut found: BTreeMap<(String, PartitionIndex), (Option<Offset>, Option<String>)> = BTreeMap::new();
    for it in offsets {
        found.entry((it.topic.clone(), it.partition)).or_default().0 = Some(it.offset);
    }
    for member in &group.members {
        for it in &member.partitions {
            found.entry(it.clone()).or_default().1 = Some(member.id.clone());
        }
    }
    let known = existing(client).await?;
    let there: Vec<_> = found.keys().filter(|it| known.contains(*it)).collect();
    let queries: Vec<_> = there.iter().map(|it| (it.0.as_str(), it.1, OffsetQuery::Latest)).collect();
    let ends = client.admin().list_offsets(&queries, Isolation::ReadUncommitted).await?;
    let ends: BTreeMap<(String, PartitionIndex), Option<Offset>> =
        there.into_iter().cloned().zip(ends.into_iter().map(|it| it.offset)).collect();
    let lines = found.into_iter().map(|(at, (committed, member))| {
        let end = ends.get(&at).copied().flatten();
        Line { topic: at.0, partition: at.1, committed, end, member }
    });
    Ok(lines.collect())
}

/// Every partition that there is.
async fn existing(client: &Client) -> anyhow::Result<BTreeSet<(String, PartitionIndex)>> {
    let topics = client.topics().await?;
    let partitions = topics.iter().flat_map(|it| it.partitions.iter().map(|p| (it.name.to_string(), p.index)));
    Ok(partitions.collect())
}

fn group_json(group: &GroupDescription, lines: &[Line]) -> Value {
    let members = group.members.iter().map(|it| {
        let partitions = it.partitions.iter().map(|(topic, index)| json!({"topic": topic, "partition": index.get()}));
        json!({
            "member": it.id,
            "instance": it.instance,
            "client_id": it.client_id,
            "host": it.client_host,
            "partitions": partitions.collect::<Vec<_>>(),
        })
    });
    let lines = lines.iter().map(|it| {
        json!({
            "topic": it.topic,
            "partition": it.partition.get(),
            "committed": it.committed.map(Offset::get),
            "end": it.end.map(Offset::get),
            "lag": it.lag(),
            "member": it.member,
        })
    });
    json!({
        "group": group.group,
        "state": group.state,
        "protocol_type": group.protocol_type,
        "assignor": group.protocol,
        "coordinator": group.coordinator,
        "members": members.collect::<Vec<_>>(),
        "offsets": lines.collect::<Vec<_>>(),
    })
}

fn group_text(group: &GroupDescription, lines: &[Line]) -> String {
    let members = counted(group.members.len() as u64, "member");
    let lag: i64 = lines.iter().filter_map(Line::lag).sum();
    let mut text = format!("group {}: {}, {members}, lag {}\n", group.group, group.state, grouped(lag.unsigned_abs()));
    let dash = || "-".to_owned();
    if !lines.is_empty() {
        let mut table = Table::new(&["TOPIC", " PARTITION", " COMMITTED", " END", " LAG", "MEMBER"]);
        for it in lines {
            let number = |offset: Option<Offset>| offset.map_or_else(dash, |it| it.to_string());
            table.row([
                it.topic.clone(),
                it.partition.to_string(),
                number(it.committed),
                number(it.end),
                it.lag().map_or_else(dash, |lag| lag.to_string()),
                it.member.clone().unwrap_or_else(dash),
            ]);
        }
        text.push_str(&table.render());
    }
    if !group.members.is_empty() {
        let mut table = Table::new(&["MEMBER", "INSTANCE", "CLIENT", "HOST", " PARTITIONS"]);
        for it in &group.members {
            let instance = it.instance.clone().unwrap_or_else(dash);
            let count = it.partitions.len().to_string();
            table.row([it.id.clone(), instance, it.client_id.clone(), it.client_host.clone(), count]);
        }
        text.push_str(&table.render());
    }
    text
}

/// The failure for a group that does not exist.
async fn unknown(client: &Client, name: &str) -> Failure {
    let groups = client.groups().list().await.unwrap_or_default();
    let suggestion = match heddle_client::nearest(name, groups.iter().map(|it| it.group.as_str())) {
        Some(name) => format!("did you mean {name:?}?"),
        None => "`heddle group list` names those there are".to_owned(),
    };
    Failure::new(Exit::NotFound, format!("there is no group {name:?}; {suggestion}"))
}

/// The partitions that a command is about: those named by topic or `topic:partition`, or all that the group has
/// committed for.
async fn chosen(client: &Client, group: &str, words: &[String]) -> anyhow::Result<Vec<(String, PartitionIndex)>> {
    let known = existing(client).await?;
    if words.is_empty() {
        let offsets = client.groups().offsets(group).await?;
        let committed = offsets.into_iter().map(|it| (it.topic, it.partition));
        return Ok(committed.filter(|it| known.contains(it)).collect());
    }
    let mut chosen = BTreeSet::new();
    for word in words {
        let named = word.rsplit_once(':').and_then(|(topic, index)| Some((topic, index.parse::<i32>().ok()?)));
        let (topic, index) = named.map_or((word.as_str(), None), |(topic, index)| (topic, Some(index)));
        let is_meant = |it: &&(String, PartitionIndex)| it.0 == topic && index.is_none_or(|index| it.1.get() == index);
        let before = chosen.len();
        chosen.extend(known.iter().filter(is_meant).cloned());
        if chosen.len() == before {
            if known.iter().any(|it| it.0 == topic) {
                return Err(Failure::new(Exit::NotFound, format!("there is no partition {word}")).into());
            }
            return Err(session::unknown_topic(client, topic).await.into());
        }
    }
    Ok(chosen.into_iter().collect())
}

async fn reset(client: &Client, args: &GroupResetArgs) -> anyhow::Result<()> {
    let chosen = chosen(client, &args.group, &args.topics).await?;
    if chosen.is_empty() {
        let message = format!("group {:?} has committed nothing; --topic says what to reset", args.group);
        return Err(Failure::new(Exit::NotFound, message).into());
    }
    let before = client.groups().offsets(&args.group).await?;
    let targets = targets(client, &chosen, args.to).await?;
    let changes: Vec<Change<'_>> = chosen
        .iter()
        .zip(targets)
        .map(|((topic, partition), to)| Change {
            topic,
            partition: *partition,
            from: before.iter().find(|it| it.topic == *topic && it.partition == *partition).map(|it| it.offset),
            to,
        })
        .collect();
    if args.execute {
        let offsets: Vec<_> = changes.iter().map(|it| (it.topic, it.partition, it.to)).collect();
        client.groups().commit(&args.group, &offsets).await?;
    }
    if args.ask.json {
        let change = |it: &Change<'_>| {
            json!({
                "topic": it.topic,
                "partition": it.partition.get(),
                "from": it.from.map(Offset::get),
                "to": it.to.get(),
            })
        };
        let changes: Vec<Value> = changes.iter().map(change).collect();
        return output::print_json(&json!({"group": args.group, "executed": args.execute, "offsets": changes}));
    }
    let mut table = Table::new(&["TOPIC", " PARTITION", " FROM", " TO"]);
    for it in &changes {
        let from = it.from.map_or_else(|| "-".to_owned(), |it| it.to_string());
        table.row([it.topic.to_owned(), it.partition.to_string(), from, it.to.to_string()]);
    }
    output::print(&table.render())?;
    say_dry(args.execute);
    Ok(())
}

/// What becomes of one committed offset.
struct Change<'a> {
    topic: &'a str,
    partition: PartitionIndex,
    from: Option<Offset>,
    to: Offset,
}

/// Where each partition is to be read from, within what it has.
async fn targets(client: &Client, chosen: &[(String, PartitionIndex)], to: Start) -> anyhow::Result<Vec<Offset>> {
    let ask = async |query| {
        let queries: Vec<_> = chosen.iter().map(|(topic, partition)| (topic.as_str(), *partition, query)).collect();
        client.admin().list_offsets(&queries, Isolation::ReadUncommitted).await
    };
    let firsts = ask(OffsetQuery::Earliest).await?;
    let ends = ask(OffsetQuery::Latest).await?;
    let times = match to {
        Start::Time(ms) => ask(OffsetQuery::AtTime(Timestamp::new(ms))).await?,
        _ => Vec::new(),
    };
    let target = |place: usize| {
        let first = firsts[place].offset.unwrap_or(Offset::ZERO);
        let end = ends[place].offset.unwrap_or(first);
        match to {
            Start::Beginning => first,
            Start::End => end,
            Start::Offset(offset) => Offset::new(offset).max(first).min(end),
            Start::Last(count) => Offset::new(end.get().saturating_sub(count)).max(first),
            Start::Time(_) => times[place].offset.unwrap_or(end),
        }
    };
    Ok((0..chosen.len()).map(target).collect())
}

async fn delete_offsets(client: &Client, args: &GroupDeleteOffsetsArgs) -> anyhow::Result<()> {
    let chosen = chosen(client, &args.group, &args.topics).await?;
    if args.execute {
        let partitions: Vec<_> = chosen.iter().map(|(topic, partition)| (topic.as_str(), *partition)).collect();
        client.groups().delete_offsets(&args.group, &partitions).await?;
    }
    if args.ask.json {
        let offset = |(topic, index): &(String, PartitionIndex)| json!({"topic": topic, "partition": index.get()});
        let offsets: Vec<Value> = chosen.iter().map(offset).collect();
        return output::print_json(&json!({"group": args.group, "executed": args.execute, "offsets": offsets}));
    }
    let mut table = Table::new(&["TOPIC", " PARTITION"]);
    for (topic, partition) in chosen {
        table.row([topic, partition.to_string()]);
    }
    output::print(&table.render())?;
    say_dry(args.execute);
    Ok(())
}

async fn delete(client: &Client, args: &GroupDeleteArgs) -> anyhow::Result<()> {
    for name in &args.groups {
        if client.groups().describe(name).await?.is_none() {
            return Err(unknown(client, name).await.into());
        }
    }
    if args.execute {
        for name in &args.groups {
            client.groups().delete(name).await?;
        }
    }
    if args.ask.json {
        return output::print_json(&json!({"groups": args.groups, "executed": args.execute}));
    }
    let done = if args.execute { "deleted" } else { "would delete" };
    for name in &args.groups {
        output::print(&format!("{done} group {name}\n"))?;
    }
    say_dry(args.execute);
    Ok(())
}

/// Says to a person that nothing has changed.
fn say_dry(is_executed: bool) {
    if !is_executed {
        output::note("nothing has changed yet: --execute does it");
    }
}
