//! IncrementalAlterConfigs (key 44): settings of topics and brokers, changed while they run.
//!
//! Owns the translation between the wire and the controller, which decides.

use heddle_cluster::controller::{
    AlterConfigs, AlterResource, AlteredResource, Command, ConfigChange, Others, Response,
};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::incremental_alter_configs::{
    AlterConfigsResource, AlterConfigsResourceResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};

use super::{Answer, Call, Refusal};

/// Serves a request for changes.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: IncrementalAlterConfigsRequest<'_> = call.decode()?;
    let named = request.resources.iter().map(|resource| 1 + resource.configs.len()).sum();
    call.check_count("resources and settings", named)?;
    let resources: Vec<AlterResource> = request.resources.iter().map(|resource| changes(&resource)).collect();
    let altered = alter(call, AlterConfigs { resources, validate_only: request.validate_only }).await;
    let responses: Vec<AlterConfigsResourceResponse<'_>> = altered
        .iter()
        .map(|resource| {
            let fault = resource.result.as_ref().err();
            AlterConfigsResourceResponse {
                error_code: fault.map_or(ErrorCode::None, |fault| fault.code).code(),
                error_message: fault.and_then(|fault| fault.message.as_deref()),
                resource_type: resource.kind,
                resource_name: &resource.name,
            }
        })
        .collect();
    let response =
        IncrementalAlterConfigsResponse { responses: responses.into(), ..IncrementalAlterConfigsResponse::default() };
    call.answer(&response)
}

/// Has the controller decide; where it cannot, every resource fails alike.
pub(super) async fn alter(call: &Call, command: AlterConfigs) -> Vec<AlteredResource> {
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
