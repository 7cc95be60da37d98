//! The metadata of the cluster: decides, stores, publishes.
//!
//! Owns the image that decisions are made on. Keeps it in memory only.
use crate::core::Core;
use crate::error::StartError;
use heddle_cluster::controller::{Command, Context, Fault, Response, step};
use heddle_cluster::{Endpoint, MetadataImage};
use heddle_engine::Engine;
use heddle_record::Timestamp;
use std::cell::RefCell;
use std::sync::Arc;

/// The first core's controller.
pub(crate) struct Controller {
    image: RefCell<MetadataImage>,
}
impl Controller {
    /// The controller of a broker that starts.
    pub(crate) async fn open(
        _core: &Core,
        _engine: &Engine,
        _endpoints: Vec<Endpoint>,
    ) -> Result<(Self, Arc<MetadataImage>), StartError> {
        Ok((Self { image: RefCell::default() }, Arc::default()))
    }

    /// Decides, and publishes what has changed.
    pub(crate) async fn execute(&self, core: &Core, command: Command) -> Result<Response, Fault> {
        let (image, response) = {
            let mut image = self.image.borrow_mut();
            let decision = step(
                &Context {
                    image: &image,
                    now: Timestamp::new(core.io().wall_clock()),
                    broker: core.broker_id(),
                    start: &core.config().settings,
                },
                command,
            );
            for record in &decision.records {
                image.apply(record).expect("fits");
            }
            (Arc::new(image.clone()), decision.response)
        };
        core.publish(image).await.expect("published");
        Ok(response)
    }
}
