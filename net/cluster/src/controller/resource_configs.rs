//! Changes of the settings of groups and of subscriptions to clients' metrics. Neither need exist otherwise: settings
//! can be there first.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use heddle_protocol::ErrorCode;

use super::configs::{AlterResource, Operation, changed, differences, invalid_config, invalid_request};
use super::{Context, Fault};
use crate::record::{MetadataRecord, Resource};
use crate::settings::layers::Values;
use crate::settings::value::list_items;
use crate::settings::{Setting, client_metrics_setting, group_setting};

pub(super) fn alter_group(context: &Context<'_>, resource: &AlterResource) -> Result<Vec<MetadataRecord>, Fault> {
    if resource.name.is_empty() {
        return Err(invalid_request("Default group resources are not allowed."));
    }
    let unknown = |name: &str| invalid_config(format!("Unknown group config name: {name}"));
    let group = Resource::Group(resource.name.clone());
    let (before, after) = alter(context, &group, resource, group_setting, unknown)?;
    check_bounds(context, &after)?;
    Ok(records(&group, before, &after))
}

pub(super) fn alter_client_metrics(
    context: &Context<'_>,
    resource: &AlterResource,
) -> Result<Vec<MetadataRecord>, Fault> {
    if resource.name.is_empty() {
        return Err(invalid_request("Subscription name can't be empty"));
    }
    let unknown = |name: &str| invalid_request(format!("Unknown client metrics configuration: {name}"));
    let subscription = Resource::ClientMetrics(resource.name.clone());
    let (before, after) = alter(context, &subscription, resource, client_metrics_setting, unknown)?;
    check_subscription(&after)?;
    Ok(records(&subscription, before, &after))
}

/// The values before and after all changes.
fn alter<'a>(
    context: &Context<'a>,
    of: &Resource,
    resource: &AlterResource,
    find: impl Fn(&str) -> Option<&'static Setting>,
    unknown: impl Fn(&str) -> Fault,
) -> Result<(&'a Values, Values), Fault> {
    let before = context.image.resource_config(of);
    let mut after = resource.base(before);
    for change in &resource.changes {
        let setting = find(&change.name);
        // A value that a newer version set can always be removed.
        if setting.is_none() && Operation::from_code(change.operation) != Some(Operation::Delete) {
            return Err(unknown(&change.name));
        }
        changed(&mut after, change, setting, || setting.and_then(|setting| setting.default.map(ToString::to_string)))?;
    }
    Ok((before, after))
}

fn records(resource: &Resource, before: &Values, after: &Values) -> Vec<MetadataRecord> {
    let record = |(name, value)| MetadataRecord::ResourceConfig { resource: resource.clone(), name, value };
    differences(before, after).map(record).collect()
}

/// A group's own value lies between those that brokers allow.
fn check_bounds(context: &Context<'_>, values: &Values) -> Result<(), Fault> {
    for (name, value) in values {
        let (Ok(number), Some((kind, rest))) = (value.trim().parse::<i64>(), name.split_once('.')) else { continue };
        let rest = rest.strip_prefix("num.").unwrap_or(rest);
        let bound = |which: &str| {
            let bound = format!("group.{kind}.{which}.{rest}");
            let value = context.layers().broker_value(&bound).and_then(|value| value.trim().parse::<i64>().ok());
            value.map(|value| (bound, value))
        };
        if let Some((bound, least)) = bound("min")
            && number < least
        {
            return Err(invalid_config(format!("{name} must be greater than or equal to {bound}")));
        }
        if let Some((bound, most)) = bound("max")
            && number > most
        {
            return Err(invalid_config(format!("{name} must be less than or equal to {bound}")));
        }
    }
    Ok(())
}

/// Milliseconds between two pushes of a client's metrics.
const INTERVAL_LEAST: i64 = 100;
const INTERVAL_MOST: i64 = 3_600_000;

/// What of a client a subscription can be for.
const MATCHED: [&str; 6] = [
    "client_instance_id",
    "client_id",
    "client_software_name",
    "client_software_version",
    "client_source_address",
    "client_source_port",
];

fn check_subscription(values: &Values) -> Result<(), Fault> {
    let interval = values.get("interval.ms").and_then(|value| value.trim().parse::<i64>().ok());
    if let Some(interval) = interval.filter(|interval| !(INTERVAL_LEAST..=INTERVAL_MOST).contains(interval)) {
        return Err(invalid_request(format!(
            "Invalid value {interval} for interval.ms, interval must be between 100 and 3600000 (1 hour)"
        )));
    }
    for pattern in list_items(values.get("match").map_or("", String::as_str)) {
        let is_known = pattern
            .split_once('=')
            .is_some_and(|(key, regex)| MATCHED.contains(&key.trim()) && !regex.trim().is_empty());
        if !is_known {
            let message = format!("Illegal client matching pattern: {pattern}");
            return Err(Fault::with(ErrorCode::InvalidConfig, message));
        }
    }
    Ok(())
}
