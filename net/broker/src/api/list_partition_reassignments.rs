//! ListPartitionReassignments (key 46): replicas on the move. There are none: partitions stay where they were created.
//!
//! Owns the answer.

use heddle_protocol::messages::list_partition_reassignments::{
    ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};

use super::{Answer, Call, Refusal};

/// Serves a question for replicas on the move. Whatever is not on the move is not in the answer, and no error.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let _: ListPartitionReassignmentsRequest<'_> = call.decode()?;
    let response = ListPartitionReassignmentsResponse { error_message: None, ..Default::default() };
    call.answer(&response)
}
