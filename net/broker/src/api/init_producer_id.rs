//! InitProducerId (key 22): a number for a producer that wants its batches told apart.
//!
//! Owns what idempotent producers are told, and the refusal of transactional ones. The numbers are in
//! [`crate::producer_ids`].

use heddle_protocol::ErrorCode;
use heddle_protocol::messages::init_producer_id::{InitProducerIdRequest, InitProducerIdResponse};
use heddle_record::{ProducerEpoch, ProducerId};

use super::{Answer, Call, Refusal};

/// Serves a request for a producer id.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: InitProducerIdRequest<'_> = call.decode()?;
    let decided = match check(&request) {
        Ok(()) => call.core.producer_ids().next(&call.core).await.map_err(|fault| fault.code),
        Err(error) => Err(error),
    };
    call.answer(&match decided {
        Ok(id) => InitProducerIdResponse { producer_id: id.get(), producer_epoch: 0, ..Default::default() },
        Err(error) => InitProducerIdResponse {
            error_code: error.code(),
            producer_id: ProducerId::NONE.get(),
            producer_epoch: ProducerEpoch::NONE.get(),
            ..Default::default()
        },
    })
}

/// An idempotent producer gets a new id with epoch 0, whichever it had (KIP-360).
fn check(request: &InitProducerIdRequest<'_>) -> Result<(), ErrorCode> {
    let names_id = request.producer_id != ProducerId::NONE.get();
    let names_epoch = request.producer_epoch != ProducerEpoch::NONE.get();
    match request.transactional_id {
        _ if names_id != names_epoch => Err(ErrorCode::InvalidRequest),
        Some("") => Err(ErrorCode::InvalidRequest),
        // There are no transactions. This error is final for Java's clients and for librdkafka alike, where those of a
        // coordinator would have them try again for ever.
        Some(_) => Err(ErrorCode::TransactionalIdAuthorizationFailed),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_idempotent_producers_get_ids() {
        let request = |transactional_id, producer_id, producer_epoch| InitProducerIdRequest {
            transactional_id,
            producer_id,
            producer_epoch,
            ..Default::default()
        };
        assert_eq!(check(&request(None, -1, -1)), Ok(()));
        assert_eq!(check(&request(None, 7, 3)), Ok(()));
        assert_eq!(check(&request(None, 7, -1)), Err(ErrorCode::InvalidRequest));
        assert_eq!(check(&request(None, -1, 3)), Err(ErrorCode::InvalidRequest));
        assert_eq!(check(&request(Some(""), -1, -1)), Err(ErrorCode::InvalidRequest));
        assert_eq!(check(&request(Some("loom"), -1, -1)), Err(ErrorCode::TransactionalIdAuthorizationFailed));
    }
}
