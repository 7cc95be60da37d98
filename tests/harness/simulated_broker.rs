//! A whole broker on a simulated host: started, cut off from its power, killed, stopped, started again.
//!
//! Owns the broker's life between two crashes. Never looks into it: clients do.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use heddle_broker::config::{Machine, StartSettings};
use heddle_broker::{BrokerConfig, seats};
use heddle_engine::PlantedBug;
use heddle_io::sim::{Host, Simulator};
use heddle_io::sync::Notify;

/// The port that it listens on.
const PORT: u16 = 9092;
/// How long a start or a stop may take, in virtual time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker and its host.
pub struct SimulatedBroker {
    host: Host,
    bug: PlantedBug,
    life: RefCell<Option<Life>>,
}

/// From a start to a stop or a crash.
struct Life {
    stop: Notify,
    /// What the broker said in the end, if it came to that.
    ended: Rc<RefCell<Option<Result<(), String>>>>,
}

impl SimulatedBroker {
    /// A host for a broker that is to be started.
    pub fn new(simulator: &Simulator, bug: PlantedBug) -> SimulatedBroker {
        SimulatedBroker { host: simulator.host("broker"), bug, life: RefCell::new(None) }
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host.address(), PORT)
    }

    /// Starts it on so many cores, and waits until it serves.
    ///
    /// # Errors
    /// Why it does not serve.
    pub fn start(&self, cores: usize) -> Result<(), String> {
        let (first, others) = seats(self.config(cores));
        for seat in others {
            let io = self.host.start_core();
            io.spawn(seat.run(io.clone())).detach();
        }
        let io = self.host.start_core();
        let (serves, ended, stop) = (Rc::new(Cell::new(false)), Rc::new(RefCell::new(None)), Notify::new());
        let (serving, place, stopped) = (Rc::clone(&serves), Rc::clone(&ended), stop.wait());
        let broker = first.run(io.clone(), move |_| serving.set(true), stopped);
        io.spawn(async move {
            let result = broker.await;
            *place.borrow_mut() = Some(result.map_err(|error| error.to_string()));
        })
        .detach();
        self.life.replace(Some(Life { stop, ended: Rc::clone(&ended) }));
        self.wait("it does not start", || match &*ended.borrow() {
            Some(result) => Some(Err(format!("it ended instead of starting: {result:?}"))),
            None => serves.get().then_some(Ok(())),
        })
    }

    /// Stops it as SIGTERM does, and waits until it is done.
    ///
    /// # Errors
    /// What it says, or that it never ends.
    pub fn stop(&self) -> Result<(), String> {
        let life = self.life.take().ok_or("it was not started")?;
        life.stop.notify_all();
        self.wait("it does not stop", || life.ended.borrow().clone())?;
        // The process ends, and with it the other cores.
        self.host.kill();
        Ok(())
    }

    /// Whether it has ended by itself, and how.
    pub fn ended(&self) -> Option<Result<(), String>> {
        self.life.borrow().as_ref().and_then(|life| life.ended.borrow().clone())
    }

    fn wait(&self, what: &str, done: impl Fn() -> Option<Result<(), String>>) -> Result<(), String> {
        let simulator = self.host.simulator();
        let end = simulator.now() + PATIENCE;
        loop {
            if let Some(result) = done() {
                return result;
            }
            if simulator.now() > end || !simulator.step() || !self.host.is_up() {
                return Err(what.to_owned());
            }
        }
    }

    fn config(&self, cores: usize) -> BrokerConfig {
        let listener = self.address().to_string();
        let mut settings = StartSettings::default();
        for (name, value) in [("log.dirs", "/data"), ("listeners", listener.as_str()), ("insecure", "true")] {
            settings.set(name, value, "test").expect("the settings of a test are right");
        }
        let machine = Machine { cores, memory_bytes: 1 << 30 };
        let mut config = settings.check(machine).expect("the settings of a test are right");
        config.engine.planted_bug = self.bug;
        // Checkpoints often, so that crashes fall into them.
        config.engine.checkpoint_interval = Duration::from_millis(300);
        config
    }
}
