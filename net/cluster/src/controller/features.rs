//! Levels of features that a whole cluster agrees on: there are none yet, and a wish for one is refused as Kafka
//! refuses a feature that it does not know.

use alloc::format;
use alloc::string::String;

use heddle_protocol::ErrorCode;
use heddle_record::BrokerId;

use super::Fault;

/// A wish for another level of a feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FeatureUpdate<'a> {
    /// The feature's name.
    pub name: &'a str,
    /// The level that is wanted.
    pub level: i16,
    /// The protocol's number of the kind of change: upgrade, safe downgrade, unsafe downgrade.
    pub kind: i8,
}

/// Decides wishes for levels, all or none. Changes nothing: `controller`, who decides, knows no feature.
///
/// # Errors
/// There is a wish; the first that cannot be fulfilled is named.
pub fn update_features<'a>(
    controller: BrokerId,
    updates: impl IntoIterator<Item = FeatureUpdate<'a>>,
) -> Result<(), Fault> {
    match updates.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(Fault::with(ErrorCode::InvalidUpdateVersion, refusal(controller, &first))),
    }
}

fn refusal(controller: BrokerId, update: &FeatureUpdate<'_>) -> String {
    let FeatureUpdate { name, level, kind } = update;
    let reason = match (kind, level) {
        (1..=3, ..0) => "A feature version cannot be less than 0.".into(),
        (1..=3, 0) => format!("Feature {name} not found."),
        (1..=3, _) => format!("Local controller {controller} does not support this feature."),
        _ => "The controller does not support the given upgrade type.".into(),
    };
    format!(
        "The update failed for all features since the following feature had an error: \
         Invalid update version {level} for feature {name}. {reason}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_feature_is_known() {
        let message = |level, kind| {
            let update = FeatureUpdate { name: "nope", level, kind };
            update_features(BrokerId::new(1), [update]).unwrap_err().message.unwrap()
        };
        assert!(
            message(1, 1).ends_with("version 1 for feature nope. Local controller 1 does not support this feature.")
        );
        assert!(message(0, 2).ends_with("version 0 for feature nope. Feature nope not found."));
        assert!(message(-1, 1).ends_with("A feature version cannot be less than 0."));
        assert!(message(2, 9).ends_with("The controller does not support the given upgrade type."));
        assert_eq!(update_features(BrokerId::new(1), []), Ok(()));
    }
}
