//! The metadata of the cluster: decides, stores, publishes.
//!
//! Owns the image that decisions are made on. Keeps it in memory only.
use crate::core::Core;
use crate::error::StartError;
use heddle_cluster::controller::{Command, Context, Fault, RegisterBroker, Response, step};
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
        core: &Core,
        _engine: &Engine,
        endpoints: Vec<Endpoint>,
    ) -> Result<(Self, Arc<MetadataImage>), StartError> {
        let command = Command::RegisterBroker(RegisterBroker {
            id: core.broker_id(),
            incarnation: core.io().random_bytes16(),
            endpoints,
            rack: core.config().rack.clone(),
        });
        let mut image = MetadataImage::default();
        decide(core, &mut image, command);
        Ok((Self { image: RefCell::new(image.clone()) }, Arc::new(image)))
    }

    /// Decides, and publishes what has changed.
    pub(crate) async fn execute(&self, core: &Core, command: Command) -> Result<Response, Fault> {
        let (image, response) = {
            let mut image = self.image.borrow_mut();
            let response = decide(core, &mut image, command);
            (Arc::new(image.clone()), response)
        };
        core.publish(image).await.expect("published");
        Ok(response)
    }
}

fn decide(core: &Core, image: &mut MetadataImage, command: Command) -> Response {
    let context = Context {
        image,
        now: Timestamp::new(core.io().wall_clock()),
        broker: core.broker_id(),
        start: &core.config().settings,
    };
    let decision = step(&context, command);
    for record in &decision.records {
        image.apply(record).expect("what is decided on an image fits it");
    }
    decision.response
}
