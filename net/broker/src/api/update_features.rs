//! UpdateFeatures (key 57): levels of features that the whole cluster agrees on.
//!
//! Owns the translation between the wire and the decision.

use heddle_cluster::controller::{FeatureUpdate, update_features};
use heddle_protocol::messages::update_features::{UpdateFeaturesRequest, UpdateFeaturesResponse};

use super::{Answer, Call, Refusal, outcome};

/// The first version that says which kind of change is meant.
const KINDS: i16 = 1;
const UPGRADE: i8 = 1;
const SAFE_DOWNGRADE: i8 = 2;

/// Serves a request for other levels.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: UpdateFeaturesRequest<'_> = call.decode()?;
    let updates = request.feature_updates.iter().map(|update| FeatureUpdate {
        name: update.feature,
        level: update.max_version_level,
        kind: match call.version {
            KINDS.. => update.upgrade_type,
            _ if update.allow_downgrade => SAFE_DOWNGRADE,
            _ => UPGRADE,
        },
    });
    let decided = update_features(call.core.broker_id(), updates);
    call.answer(&UpdateFeaturesResponse {
        error_code: outcome::code(&decided),
        error_message: outcome::message(&decided),
        ..UpdateFeaturesResponse::default()
    })
}
