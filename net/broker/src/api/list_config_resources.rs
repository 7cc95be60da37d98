//! ListConfigResources (key 74): everything that has settings.
//!
//! Owns which kinds of resource are listed in which version.

use heddle_cluster::controller::ResourceKind;
use heddle_cluster::record::Resource;
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::list_config_resources::{
    ConfigResource, ListConfigResourcesRequest, ListConfigResourcesResponse,
};

use super::{Answer, Call, Refusal};

/// The first version that can ask for other kinds than subscriptions to clients' metrics.
const KINDS: i16 = 1;

/// Every kind, in the order in which Kafka lists them.
const ALL: [ResourceKind; 5] = [
    ResourceKind::Group,
    ResourceKind::ClientMetrics,
    ResourceKind::BrokerLogger,
    ResourceKind::Broker,
    ResourceKind::Topic,
];

/// Serves a question for resources.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: ListConfigResourcesRequest<'_> = call.decode()?;
    let asked: Vec<Option<ResourceKind>> = match call.version {
        KINDS.. => request.resource_types.iter().map(ResourceKind::from_code).collect(),
        _ => vec![Some(ResourceKind::ClientMetrics)],
    };
    if asked.contains(&None) {
        let error_code = ErrorCode::UnsupportedVersion.code();
        return call.answer(&ListConfigResourcesResponse { error_code, ..Default::default() });
    }
    let image = call.core.image();
    let own = call.core.broker_id().to_string();
    let mut listed = Vec::new();
    for kind in ALL.into_iter().filter(|kind| asked.is_empty() || asked.contains(&Some(*kind))) {
        let names: Vec<&str> = match kind {
            ResourceKind::Topic => image.topics_by_name("").map(|topic| topic.name.as_ref()).collect(),
            ResourceKind::Broker | ResourceKind::BrokerLogger => vec![&own],
            ResourceKind::ClientMetrics | ResourceKind::Group => {
                let of_kind = image.configured_resources().filter(|resource| resource.code() == kind.code());
                of_kind.map(Resource::name).collect()
            }
        };
        listed.extend(
            names.into_iter().map(|resource_name| ConfigResource { resource_name, resource_type: kind.code() }),
        );
    }
    call.answer(&ListConfigResourcesResponse { config_resources: listed.into(), ..Default::default() })
}
