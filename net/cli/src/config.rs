//! `heddle config`: describe, set and delete settings of topics, brokers, groups, subscriptions and loggers.

use heddle_client::{Client, Mode, Resource, Setting, SettingChange, SettingSource, nearest};
use heddle_record::BrokerId;
use serde_json::{Value, json};

use crate::args::{ConfigChangeArgs, ConfigCommand, ConfigDeleteArgs, ConfigDescribeArgs, ConfigSetArgs, ResourceArgs};
use crate::failure::{Exit, Failure};
use crate::output::{self, Table};
use crate::session;

/// Runs the subcommand.
///
/// # Errors
/// What the cluster says, or that it cannot be reached.
pub(crate) fn run(command: &ConfigCommand) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Describe(args) => session::run(&args.ask.connect, async |client| describe(client, args).await),
        ConfigCommand::Set(args) => session::run(&args.change.ask.connect, async |client| set(client, args).await),
        ConfigCommand::Delete(args) => {
            session::run(&args.change.ask.connect, async |client| delete(client, args).await)
        }
    }
}

fn resource(args: &ResourceArgs) -> Resource {
    match args {
        ResourceArgs { topic: Some(name), .. } => Resource::Topic(name.clone()),
        ResourceArgs { broker: Some(id), .. } => Resource::Broker(BrokerId::new(*id)),
        ResourceArgs { group: Some(name), .. } => Resource::Group(name.clone()),
        ResourceArgs { client_metrics: Some(name), .. } => Resource::ClientMetrics(name.clone()),
        ResourceArgs { loggers: Some(id), .. } => Resource::Loggers(BrokerId::new(*id)),
        // The command line names exactly one.
        ResourceArgs { .. } => Resource::AllBrokers,
    }
}

async fn describe(client: &Client, args: &ConfigDescribeArgs) -> anyhow::Result<()> {
    let resource = resource(&args.resource);
    let mut settings = client.admin().describe_settings(&resource).await?;
    if let Some(name) = args.names.iter().find(|name| !settings.iter().any(|it| it.name == **name)) {
        return Err(unknown(&known(client, &resource).await?, &resource, name).into());
    }
    if args.names.is_empty() {
        settings.retain(|it| args.all || it.source != SettingSource::Default);
    } else {
        settings.retain(|it| args.names.contains(&it.name));
    }
    if args.ask.json {
        return output::print_json(&Value::Array(settings.iter().map(setting_json).collect()));
    }
    if settings.is_empty() {
        output::note(&format!("{resource}: every setting has its default; --all shows them"));
        return Ok(());
    }
    let mut table = Table::new(if args.docs { &COLUMNS } else { &COLUMNS[..4] });
    for it in &settings {
        let may_change = if it.read_only { "at the start" } else { "any time" };
        let cells = [it.name.clone(), shown(it).to_owned(), it.source.name().to_owned(), may_change.to_owned()];
        let documentation = args.docs.then(|| it.documentation.clone().unwrap_or_default());
        table.row(cells.into_iter().chain(documentation));
    }
    output::print(&table.render())
}

const COLUMNS: [&str; 5] = ["SETTING", "VALUE", "FROM", "CHANGES", "WHAT IT IS FOR"];

fn shown(setting: &Setting) -> &str {
    if setting.sensitive { "(secret)" } else { setting.value.as_deref().unwrap_or("(unset)") }
}

fn setting_json(setting: &Setting) -> Value {
    json!({
        "name": setting.name,
        "value": setting.value,
        "source": setting.source.name(),
        "read_only": setting.read_only,
        "sensitive": setting.sensitive,
        "documentation": setting.documentation,
    })
}

async fn set(client: &Client, args: &ConfigSetArgs) -> anyhow::Result<()> {
    let resource = resource(&args.change.resource);
    let changes: Vec<(String, SettingChange)> = args.settings.iter().map(|(name, value)| change(name, value)).collect();
    // A broker takes names that nobody knows; a typing error is found here.
    let known = known(client, &resource).await?;
    let is_error = |name: &String| !known.contains(name) && nearest(name, known.iter().map(String::as_str)).is_some();
    if let Some((name, _)) = changes.iter().find(|(name, _)| is_error(name)) {
        return Err(unknown(&known, &resource, name).into());
    }
    let lines = changes.iter().map(|(name, change)| match change {
        SettingChange::Append(value) => format!("{name} with {value}"),
        SettingChange::Subtract(value) => format!("{name} without {value}"),
        SettingChange::Set(value) => format!("{name}={value}"),
        SettingChange::Unset => format!("{name} at its default"),
    });
    alter(client, &args.change, &changes, lines.collect()).await
}

/// `NAME=VALUE` comes in two pieces; a name that ends with `+` or `-` means an item of a list.
fn change(name: &str, value: &str) -> (String, SettingChange) {
    let value = value.to_owned();
    match (name.strip_suffix('+'), name.strip_suffix('-')) {
        (Some(name), _) => (name.to_owned(), SettingChange::Append(value)),
        (_, Some(name)) => (name.to_owned(), SettingChange::Subtract(value)),
        _ => (name.to_owned(), SettingChange::Set(value)),
    }
}

async fn delete(client: &Client, args: &ConfigDeleteArgs) -> anyhow::Result<()> {
    let resource = resource(&args.change.resource);
    // A value that nobody knows any more can be deleted, but what is neither known nor set is a typing error.
    let now = client.admin().describe_settings(&resource).await?;
    let known = known(client, &resource).await?;
    let is_there = |name: &String| known.contains(name) || now.iter().any(|it| it.name == *name);
    if let Some(name) = args.names.iter().find(|name| !is_there(name)) {
        return Err(unknown(&known, &resource, name).into());
    }
    let changes: Vec<_> = args.names.iter().map(|name| (name.clone(), SettingChange::Unset)).collect();
    let lines = args.names.iter().map(|name| format!("{name} at its default")).collect();
    alter(client, &args.change, &changes, lines).await
}

async fn alter(
    client: &Client,
    ConfigChangeArgs { resource: named, dry_run, ask }: &ConfigChangeArgs,
    changes: &[(String, SettingChange)],
    lines: Vec<String>,
) -> anyhow::Result<()> {
    let resource = resource(named);
    let mode = if *dry_run { Mode::ValidateOnly } else { Mode::Apply };
    client.admin().alter_settings(&resource, changes, mode).await?;
    if ask.json {
        return output::print_json(&json!({"resource": resource.to_string(), "changed": !dry_run, "now": lines}));
    }
    let verb = if *dry_run { "would become" } else { "now" };
    output::print(&format!("{resource} {verb}: {}\n", lines.join(", ")))
}

/// The names that this kind of resource is known to have. Of all brokers together only what is set is told: one broker
/// knows the rest.
async fn known(client: &Client, resource: &Resource) -> anyhow::Result<Vec<String>> {
    let asked = match resource {
        Resource::AllBrokers => match client.admin().describe_cluster().await?.brokers.first() {
            Some(broker) => Resource::Broker(broker.id),
            None => return Ok(Vec::new()),
        },
        other => other.clone(),
    };
    Ok(client.admin().describe_settings(&asked).await?.into_iter().map(|it| it.name).collect())
}

fn unknown(known: &[String], resource: &Resource, name: &str) -> Failure {
    let suggestion = match nearest(name, known.iter().map(String::as_str)) {
        Some(near) if near == name => "it is not set here".to_owned(),
        Some(near) => format!("did you mean {near}?"),
        None => "`heddle config describe --all` names those there are".to_owned(),
    };
    Failure::new(Exit::NotFound, format!("{name} is no setting of {resource}; {suggestion}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_lists_have_signs_of_their_own() {
        let value = || "x".to_owned();
        assert_eq!(change("a.b", "x"), ("a.b".to_owned(), SettingChange::Set(value())));
        assert_eq!(change("a.b+", "x"), ("a.b".to_owned(), SettingChange::Append(value())));
        assert_eq!(change("a.b-", "x"), ("a.b".to_owned(), SettingChange::Subtract(value())));
    }
}
