//! `heddle cluster info`: the cluster's id, brokers, versions, settings.

use heddle_client::{Broker, BrokerVersions, Client, Cluster, Resource, Setting, SettingSource};
use heddle_protocol::ApiKey;
use serde_json::{Map, Value, json};

use crate::args::{ClusterCommand, ClusterInfoArgs};
use crate::output::{self, Table, counted};
use crate::session;

/// Runs the subcommand.
///
/// # Errors
/// What the cluster says, or that it cannot be reached.
pub(crate) fn run(command: &ClusterCommand) -> anyhow::Result<()> {
    let ClusterCommand::Info(args) = command;
    session::run(&args.ask.connect, async |client| info(client, args).await)
}

/// What was asked about one broker.
struct Details {
    broker: Broker,
    versions: Option<BrokerVersions>,
    settings: Option<Vec<Setting>>,
}

async fn info(client: &Client, args: &ClusterInfoArgs) -> anyhow::Result<()> {
    let cluster = client.admin().describe_cluster().await?;
    let topics = client.topics().await?;
    let partitions: usize = topics.iter().map(|topic| topic.partitions.len()).sum();
    let mut brokers = Vec::with_capacity(cluster.brokers.len());
    for broker in cluster.brokers.clone() {
        brokers.push(details(client, args, broker).await?);
    }
    if args.ask.json {
        let brokers: Vec<Value> = brokers.iter().map(broker_json).collect();
        return output::print_json(&json!({
            "cluster_id": cluster.id,
            "controller": cluster.controller.map(|id| id.get()),
            "brokers": brokers,
            "topic_count": topics.len(),
            "partition_count": partitions,
        }));
    }
    let mut text = format!(
        "cluster {}: {}, {}, {}\n",
        cluster.id.as_deref().unwrap_or("without id"),
        counted(brokers.len() as u64, "broker"),
        counted(topics.len() as u64, "topic"),
        counted(partitions as u64, "partition"),
    );
    text.push_str(&broker_table(&cluster));
    for details in &brokers {
        text.push_str(&details_text(details));
    }
    output::print(&text)
}

async fn details(client: &Client, args: &ClusterInfoArgs, broker: Broker) -> anyhow::Result<Details> {
    let versions = if args.apis { Some(client.versions(Some(broker.id)).await?) } else { None };
    let settings = if args.settings {
        let mut settings = client.admin().describe_settings(&Resource::Broker(broker.id)).await?;
        settings.retain(|setting| setting.source != SettingSource::Default);
        Some(settings)
    } else {
        None
    };
    Ok(Details { broker, versions, settings })
}

fn broker_table(cluster: &Cluster) -> String {
    let mut table = Table::new(&[" BROKER", "ADDRESS", "RACK", "ROLE"]);
    for Broker { id, address, rack } in &cluster.brokers {
        let role = if cluster.controller == Some(*id) { "controller" } else { "" };
        table.row([id.to_string(), address.to_string(), rack.clone().unwrap_or_default(), role.to_owned()]);
    }
    table.render()
}

fn details_text(details: &Details) -> String {
    let mut text = String::new();
    if let Some(versions) = &details.versions {
        let mut table = Table::new(&[" KEY", "API", "VERSIONS"]);
        for (key, min, max) in versions.iter() {
            table.row([key.to_string(), api_name(key), format!("{min} to {max}")]);
        }
        text.push_str(&format!("\nbroker {} accepts\n{}", details.broker.id, table.render()));
    }
    if let Some(settings) = &details.settings {
        text.push_str(&format!("\nbroker {} has set\n", details.broker.id));
        for setting in settings {
            text.push_str(&format!("  {}={}\n", setting.name, value(setting)));
        }
    }
    text
}

fn value(setting: &Setting) -> &str {
    if setting.sensitive { "(secret)" } else { setting.value.as_deref().unwrap_or("") }
}

fn api_name(key: i16) -> String {
    ApiKey::from_i16(key).map_or_else(|| "unknown".to_owned(), |api| api.name().to_owned())
}

fn broker_json(details: &Details) -> Value {
    let Broker { id, address, rack } = &details.broker;
    let mut map = Map::new();
    map.insert("broker".to_owned(), json!(id.get()));
    map.insert("host".to_owned(), json!(address.host));
    map.insert("port".to_owned(), json!(address.port));
    map.insert("rack".to_owned(), json!(rack));
    if let Some(versions) = &details.versions {
        let apis = versions
            .iter()
            .map(|(key, min, max)| json!({"key": key, "api": api_name(key), "min_version": min, "max_version": max}));
        map.insert("apis".to_owned(), Value::Array(apis.collect()));
    }
    if let Some(settings) = &details.settings {
        let setting = |it: &Setting| (it.name.clone(), json!({"value": it.value, "source": it.source.name()}));
        map.insert("settings".to_owned(), Value::Object(settings.iter().map(setting).collect()));
    }
    Value::Object(map)
}
