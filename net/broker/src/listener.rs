//! Where clients come in: sockets that listen, and the loop that accepts.
//!
//! Owns the listening sockets and what a client is told to connect to. Never reads a byte from a client.
//!
//! The first core listens, and hands each connection to the core that serves fewest. See docs/decisions/0003-inline-writes.md
//! for what that has over a listener for each core (SO_REUSEPORT).

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use heddle_io::{Io, ListenOptions, Listener, Monotonic, Socket};

use crate::config::ListenerConfig;
use crate::connection::{self, Session};
use crate::core::Core;
use crate::error::StartError;
use crate::mailbox::FIRST_CORE;
use crate::message::{ReleaseRequest, ServeRequest};

/// Connections that may wait to be accepted, on each core.
const BACKLOG: u32 = 1024;
/// How long accepting pauses when the process has no file descriptor left.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(200);
/// How long accepting pauses after any other failure.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);

/// How long an address may be in use by somebody who is just going: after `kill -9` the kernel takes a ring apart, and with it
/// what was bound, when the process is gone already.
const TAKEN_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is tried meanwhile.
const TAKEN_PAUSE: Duration = Duration::from_millis(20);

/// EAFNOSUPPORT, which the standard library has no kind for.
const ADDRESS_FAMILY_UNKNOWN: i32 = 97;

/// A listener, as far as other cores and clients need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// Its name.
    pub name: String,
    /// Where it listens, with the port that the system chose.
    pub address: SocketAddr,
    /// What clients are told to connect to; nothing means the address that they have connected to.
    pub advertised: Option<(String, u16)>,
}

impl Listening {
    /// Where a client that connected to `local` reaches this broker.
    pub(crate) fn endpoint(&self, local: SocketAddr) -> (String, u16) {
        match &self.advertised {
            Some((host, port)) => (host.clone(), *port),
            None => (local.ip().to_canonical().to_string(), local.port()),
        }
    }
}

/// Binds every listener that the machine can have, on the first core. Waits for a moment where an address is in use.
///
/// # Errors
/// The address is in use, is not this machine's, or may not be bound.
pub(crate) async fn bind(io: &Io, configs: &[ListenerConfig]) -> Result<Vec<(Listener, Listening)>, StartError> {
    let mut bound = Vec::new();
    let patient_until = io.now() + TAKEN_PATIENCE;
    for config in configs {
        let address = resolve(io, config).await?;
        match listen(io, address, patient_until).await {
            Ok(listener) => {
                let (name, advertised) = (config.name.clone(), config.advertised.clone());
                let listening = Listening { name, address: listener.local_addr(), advertised };
                bound.push((listener, listening));
            }
            Err(error) if config.is_optional && is_missing(&error) => {
                tracing::info!("not listening on {address}, which this machine does not have");
            }
            Err(error) => return Err(StartError::Bind { address, error }),
        }
    }
    Ok(bound)
}

async fn listen(io: &Io, address: SocketAddr, patient_until: Monotonic) -> Result<Listener, heddle_io::Error> {
    loop {
        match io.listen(address, ListenOptions { reuse_port: false, backlog: BACKLOG }) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && io.now() < patient_until => {
                io.sleep(TAKEN_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Whether the machine has no such address, or none of its kind (no IPv6).
fn is_missing(error: &heddle_io::Error) -> bool {
    matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::Unsupported)
        || error.raw_os_error() == Some(ADDRESS_FAMILY_UNKNOWN)
}

async fn resolve(io: &Io, config: &ListenerConfig) -> Result<SocketAddr, StartError> {
    let unresolved = |reason: String| StartError::Resolve { host: config.host.clone(), reason };
    let addresses = io.resolve(&config.host, config.port).await.map_err(|error| unresolved(error.to_string()))?;
    addresses.first().copied().ok_or_else(|| unresolved("the name has no address".to_owned()))
}

/// Accepts connections until the core drains, and has each served if there is room for it.
pub(crate) async fn accept(core: Core, listener: Listener, listening: Arc<Listening>) {
    loop {
        match core.io().accept(&listener).await {
            Ok((socket, peer)) => match core.admission().admit(peer.ip()) {
                Ok(server) => {
                    let request = ServeRequest { socket, listening: Arc::clone(&listening) };
                    drop(core.post(server, request).await);
                }
                Err(turned) => core.peer_log().refused(peer, &turned.to_string()),
            },
            Err(error) => {
                core.peer_log().paused(&error);
                let pause = if error.is_too_many_files() { DESCRIPTOR_PAUSE } else { FAILURE_PAUSE };
                core.io().sleep(pause).await;
            }
        }
    }
}

/// Serves a connection on this core, and has it counted out when it is over, however it ends.
pub(crate) fn welcome(core: &Core, socket: Socket, listening: Arc<Listening>) {
    let session = Rc::new(Session::new(core, core.sessions().number(), &socket, listening));
    core.sessions().add(&session);
    let (io, core) = (core.io().clone(), core.clone());
    drop(io.spawn(async move {
        connection::serve(core.clone(), socket, Rc::clone(&session)).await;
        core.sessions().remove(&session);
        let release = ReleaseRequest { address: session.peer.ip(), core: core.index() };
        core.ask(FIRST_CORE, release).await;
    }));
}
