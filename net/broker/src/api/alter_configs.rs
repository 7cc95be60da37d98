//! AlterConfigs (key 33): the older way to change settings, which takes away every setting that it does not name.
//!
//! Owns the translation between the wire and the controller, which decides.

use heddle_cluster::controller::{AlterConfigs, AlterResource, ConfigChange, Operation, Others};
use heddle_protocol::messages::alter_configs::{
    AlterConfigsRequest, AlterConfigsResource, AlterConfigsResourceResponse, AlterConfigsResponse,
};

use super::incremental_alter_configs::alter;
use super::outcome::Altered;
use super::{Answer, Call, Refusal};

/// Serves a request for settings.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: AlterConfigsRequest<'_> = call.decode()?;
    let named = request.resources.iter().map(|resource| 1 + resource.configs.len()).sum();
    call.check_count("resources and settings", named)?;
    let resources: Vec<AlterResource> = request.resources.iter().map(|resource| settings(&resource)).collect();
    let altered = alter(call, AlterConfigs { resources, validate_only: request.validate_only }).await;
    let responses = altered.iter().map(|resource| {
        let Altered { error_code, error_message, resource_type, resource_name } = Altered::from(resource);
        AlterConfigsResourceResponse { error_code, error_message, resource_type, resource_name }
    });
    call.answer(&AlterConfigsResponse { responses: responses.collect(), ..AlterConfigsResponse::default() })
}

fn settings(resource: &AlterConfigsResource<'_>) -> AlterResource {
    let changes = resource.configs.iter().map(|config| ConfigChange {
        name: config.name.to_owned(),
        operation: Operation::Set.code(),
        value: config.value.map(str::to_owned),
    });
    AlterResource {
        kind: resource.resource_type,
        name: resource.resource_name.to_owned(),
        changes: changes.collect(),
        others: Others::Removed,
    }
}
