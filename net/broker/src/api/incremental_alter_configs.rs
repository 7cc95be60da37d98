//! IncrementalAlterConfigs (key 44): settings of topics, brokers, groups, subscriptions and loggers, changed while they
//! run.
//!
//! Owns the translation between the wire and who decides: the controller, but for levels of loggers, which are this
//! process's own and no metadata.

use std::collections::BTreeSet;

use heddle_cluster::controller::{
    AlterConfigs, AlterResource, AlteredResource, Command, ConfigChange, Fault, Operation, Others, ResourceKind,
    Response,
};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::incremental_alter_configs::{
    AlterConfigsResource, AlterConfigsResourceResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};

use super::outcome::Altered;
use super::{Answer, Call, Refusal};
use crate::log_levels::{self, LogLevel, ROOT};

/// Serves a request for changes.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: IncrementalAlterConfigsRequest<'_> = call.decode()?;
    let named = request.resources.iter().map(|resource| 1 + resource.configs.len()).sum();
    call.check_count("resources and settings", named)?;
    let resources: Vec<AlterResource> = request.resources.iter().map(|resource| changes(&resource)).collect();
    let (loggers, resources) = resources.into_iter().partition(is_of_loggers);
    let mut altered = alter_loggers(call, loggers, request.validate_only);
    altered.extend(alter(call, AlterConfigs { resources, validate_only: request.validate_only }).await);
    let responses = altered.iter().map(|resource| {
        let Altered { error_code, error_message, resource_type, resource_name } = Altered::from(resource);
        AlterConfigsResourceResponse { error_code, error_message, resource_type, resource_name }
    });
    let responses = responses.collect();
    call.answer(&IncrementalAlterConfigsResponse { responses, ..IncrementalAlterConfigsResponse::default() })
}

/// Has the controller decide; where it cannot, every resource fails alike.
pub(super) async fn alter(call: &Call, command: AlterConfigs) -> Vec<AlteredResource> {
    if command.resources.is_empty() {
        return Vec::new();
    }
    let named: Vec<(i8, String)> =
        command.resources.iter().map(|resource| (resource.kind, resource.name.clone())).collect();
    match call.control(Command::AlterConfigs(command)).await {
        Ok(Response::AlterConfigs(altered)) => altered,
        Ok(_) => unreachable!("a command is answered in kind"),
        Err(fault) => {
            let failed = |(kind, name)| AlteredResource { kind, name, result: Err(fault.clone()) };
            named.into_iter().map(failed).collect()
        }
    }
}

fn changes(resource: &AlterConfigsResource<'_>) -> AlterResource {
    let changes = resource.configs.iter().map(|config| ConfigChange {
        name: config.name.to_owned(),
        operation: config.config_operation,
        value: config.value.map(str::to_owned),
    });
    AlterResource {
        kind: resource.resource_type,
        name: resource.resource_name.to_owned(),
        changes: changes.collect(),
        others: Others::Kept,
    }
}

fn is_of_loggers(resource: &AlterResource) -> bool {
    ResourceKind::from_code(resource.kind) == Some(ResourceKind::BrokerLogger)
}

fn alter_loggers(call: &Call, resources: Vec<AlterResource>, validate_only: bool) -> Vec<AlteredResource> {
    let mut seen = BTreeSet::new();
    let twice: BTreeSet<String> =
        resources.iter().map(|it| it.name.clone()).filter(|name| !seen.insert(name.clone())).collect();
    let alter = |resource: AlterResource| {
        let decided = if twice.contains(&resource.name) {
            Err(invalid_request("Each resource must appear at most once."))
        } else {
            decide_levels(call, &resource)
        };
        let result = decided.map(|levels| {
            if !validate_only && !levels.is_empty() {
                let told: Vec<String> = levels.iter().map(told).collect();
                tracing::info!("levels of loggers, changed by {}: {}", call.session.peer, told.join(", "));
                call.core.config().log_levels.set(&levels);
            }
        });
        AlteredResource { kind: resource.kind, name: resource.name, result }
    };
    resources.into_iter().map(alter).collect()
}

fn told((logger, level): &(&'static str, Option<LogLevel>)) -> String {
    format!("{logger} {}", level.map_or("inherits", LogLevel::name))
}

fn invalid_request(message: impl Into<String>) -> Fault {
    Fault::with(ErrorCode::InvalidRequest, message)
}

/// All changes of a broker's loggers, or why there are none.
fn decide_levels(call: &Call, resource: &AlterResource) -> Result<Vec<(&'static str, Option<LogLevel>)>, Fault> {
    let mut names = BTreeSet::new();
    if !resource.changes.iter().all(|change| names.insert(change.name.as_str())) {
        return Err(invalid_request("Error due to duplicate config keys"));
    }
    let own = call.core.broker_id().get();
    match resource.name.parse::<i32>() {
        Ok(id) if id == own => {}
        Ok(id) => return Err(invalid_request(format!("Unexpected node id. Expected {own}, but received {id}"))),
        Err(_) => return Err(invalid_request(format!("Node id must be an integer, but it is: {}", resource.name))),
    }
    resource.changes.iter().map(decide_level).collect()
}

fn decide_level(change: &ConfigChange) -> Result<(&'static str, Option<LogLevel>), Fault> {
    let name = &change.name;
    let logger = || {
        let unknown = || Fault::with(ErrorCode::InvalidConfig, format!("Logger {name} does not exist!"));
        log_levels::find(name).ok_or_else(unknown)
    };
    let no_lists = |operation| {
        let message = format!("{operation} operation is not allowed for the BROKER_LOGGER resource");
        Err(invalid_request(message))
    };
    match Operation::from_code(change.operation) {
        None => Err(Fault::new(ErrorCode::UnknownServerError)),
        Some(Operation::Append) => no_lists("APPEND"),
        Some(Operation::Subtract) => no_lists("SUBTRACT"),
        Some(Operation::Delete) => match logger()? {
            ROOT => Err(invalid_request("Removing the log level of the root logger is not allowed")),
            logger => Ok((logger, None)),
        },
        Some(Operation::Set) => {
            let value = change.value.as_deref();
            let value = value.ok_or_else(|| invalid_request(format!("Null value not supported for : {name}")))?;
            let logger = logger()?;
            let level = LogLevel::from_name(value).ok_or_else(|| {
                let names = LogLevel::names();
                let message = format!(
                    "Cannot set the log level of {name} to {value} as it is not a supported log level. \
                     Valid log levels are {names}"
                );
                Fault::with(ErrorCode::InvalidConfig, message)
            })?;
            Ok((logger, Some(level)))
        }
    }
}
