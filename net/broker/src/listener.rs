//! Where clients come in: sockets that listen, and the loop that accepts.
//!
//! Owns the listening sockets of one core and what a client is told to connect to. Never reads a byte from a client.
//!
//! Every core listens on every address (SO_REUSEPORT): the kernel spreads connections by a hash of their addresses.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::{Io, ListenOptions, Listener, Socket};

use crate::config::ListenerConfig;
use crate::connection::{self, Session};
use crate::core::Core;
use crate::error::StartError;
use crate::mailbox::FIRST_CORE;
use crate::message::{AdmitRequest, ReleaseRequest};

/// Connections that may wait to be accepted, on each core.
const BACKLOG: u32 = 1024;
/// How long accepting pauses when the process has no file descriptor left.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(200);
/// How long accepting pauses after any other failure.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);

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

/// Finds out what each listener can bind, on the first core, and binds it.
///
/// A second broker must not share a port with this one, as SO_REUSEPORT would let it: so each address is bound once
/// without sharing before it is bound with it.
///
/// # Errors
/// The address is in use, is not this machine's, or may not be bound.
pub(crate) async fn bind(io: &Io, configs: &[ListenerConfig]) -> Result<Vec<(Listener, Listening)>, StartError> {
    let mut bound = Vec::new();
    for config in configs {
        let address = resolve(io, config).await?;
        let probe = io.listen(address, ListenOptions { reuse_port: false, backlog: BACKLOG });
        match probe.map(|probe| probe.local_addr()) {
            Ok(address) => {
                let listening = Listening { name: config.name.clone(), address, advertised: config.advertised.clone() };
                bound.push((share(io, address)?, listening));
            }
            Err(error) if config.is_optional && is_missing(&error) => {
                tracing::info!("not listening on {address}, which this machine does not have");
            }
            Err(error) => return Err(StartError::Bind { address, error }),
        }
    }
    Ok(bound)
}

/// Whether the machine has no such address, or none of its kind (no IPv6).
fn is_missing(error: &heddle_io::Error) -> bool {
    matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::Unsupported)
        || error.raw_os_error() == Some(ADDRESS_FAMILY_UNKNOWN)
}

/// Binds an address that other cores of this broker bind, too.
///
/// # Errors
/// As [`bind`].
pub(crate) fn share(io: &Io, address: SocketAddr) -> Result<Listener, StartError> {
    let options = ListenOptions { reuse_port: true, backlog: BACKLOG };
    io.listen(address, options).map_err(|error| StartError::Bind { address, error })
}

async fn resolve(io: &Io, config: &ListenerConfig) -> Result<SocketAddr, StartError> {
    let unresolved = |reason: String| StartError::Resolve { host: config.host.clone(), reason };
    let addresses = io.resolve(&config.host, config.port).await.map_err(|error| unresolved(error.to_string()))?;
    addresses.first().copied().ok_or_else(|| unresolved("the name has no address".to_owned()))
}

/// Accepts connections until the core drains.
pub(crate) async fn accept(core: Core, listener: Listener, listening: Rc<Listening>) {
    loop {
        match core.io().accept(&listener).await {
            Ok((socket, _)) => {
                let session = Rc::new(Session::new(&core, core.sessions().number(), &socket, Rc::clone(&listening)));
                drop(core.io().spawn(welcome(core.clone(), socket, session)));
            }
            Err(error) if error.is_too_many_files() => {
                core.peer_log().paused(&error);
                core.io().sleep(DESCRIPTOR_PAUSE).await;
            }
            Err(error) => {
                core.peer_log().paused(&error);
                core.io().sleep(FAILURE_PAUSE).await;
            }
        }
    }
}

/// Serves a connection if there is room for it, and counts it out again when it is over, however it ends.
async fn welcome(core: Core, socket: Socket, session: Rc<Session>) {
    let address = session.peer.ip();
    if let Err(turned) = core.ask(FIRST_CORE, AdmitRequest(address)).await {
        core.peer_log().refused(session.peer, &turned.to_string());
        return;
    }
    core.sessions().add(&session);
    connection::serve(core.clone(), socket, Rc::clone(&session)).await;
    core.sessions().remove(&session);
    core.ask(FIRST_CORE, ReleaseRequest(address)).await;
}
