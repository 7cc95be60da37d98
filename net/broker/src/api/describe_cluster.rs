//! DescribeCluster (key 60): the brokers, and which of them decides.
//!
//! Owns what a client is told of the cluster. Every broker answers for all.

use heddle_protocol::ErrorCode;
use heddle_protocol::messages::describe_cluster::{
    DescribeClusterBroker, DescribeClusterRequest, DescribeClusterResponse,
};

use super::topic_view::CLUSTER_OPERATIONS;
use super::{Answer, Call, Refusal};

/// The only kind of endpoint there is: no listener is for controllers alone.
const BROKERS: i8 = 1;
const CONTROLLERS: i8 = 2;

/// Serves a question for the cluster.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: DescribeClusterRequest = call.decode()?;
    match request.endpoint_type {
        BROKERS => cluster(call, &request),
        CONTROLLERS => {
            let message = "The request was sent to an endpoint of type BROKER, \
                           but we wanted an endpoint of type CONTROLLER";
            refuse(call, ErrorCode::MismatchedEndpointType, message)
        }
        other => refuse(call, ErrorCode::UnsupportedEndpointType, &format!("Unsupported endpoint type {other}")),
    }
}

fn cluster(call: &Call, request: &DescribeClusterRequest) -> Result<Answer, Refusal> {
    let image = call.core.image();
    let endpoints = call.endpoints(image.brokers().map(|(id, _)| id));
    let brokers: Vec<DescribeClusterBroker<'_>> = endpoints
        .iter()
        .map(|(id, host, port)| DescribeClusterBroker {
            broker_id: id.get(),
            host,
            port: i32::from(*port),
            rack: image.broker(*id).and_then(|broker| broker.rack.as_deref()),
            ..DescribeClusterBroker::default()
        })
        .collect();
    let mut response = DescribeClusterResponse {
        cluster_id: &call.core.identity().cluster_id,
        controller_id: call.core.broker_id().get(),
        brokers: brokers.into(),
        ..DescribeClusterResponse::default()
    };
    if request.include_cluster_authorized_operations {
        response.cluster_authorized_operations = CLUSTER_OPERATIONS;
    }
    call.answer(&response)
}

fn refuse(call: &Call, error: ErrorCode, message: &str) -> Result<Answer, Refusal> {
    call.answer(&DescribeClusterResponse {
        error_code: error.code(),
        error_message: Some(message),
        ..DescribeClusterResponse::default()
    })
}
