//! A TCP proxy that a test puts between a client and a broker, to cut their connections at a moment it chooses.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Forwards connections from an address of its own to a broker.
pub struct Proxy {
    /// Where clients connect, as `127.0.0.1:port`.
    pub address: String,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    target: Option<SocketAddr>,
    /// Both ends of every connection so far; some have ended.
    connections: Vec<TcpStream>,
}

impl Proxy {
    /// A proxy without target: connections end at once until [`Proxy::forward_to`].
    ///
    /// # Panics
    /// When there is no free port.
    #[expect(clippy::new_without_default, reason = "it opens a port and starts a thread")]
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let accepting = Arc::clone(&shared);
        crate::thread(move || {
            for client in listener.incoming().map_while(Result::ok) {
                open(&accepting, client);
            }
        });
        Self { address, shared }
    }

    /// Where connections go from now on.
    ///
    /// # Panics
    /// When `address` is no socket address.
    pub fn forward_to(&self, address: &str) {
        let target = address.parse().expect("an address with a port");
        self.shared.lock().expect("no holder panics").target = Some(target);
    }

    /// Cuts every connection in both directions, whatever is on its way.
    pub fn cut(&self) {
        let connections = std::mem::take(&mut self.shared.lock().expect("no holder panics").connections);
        for connection in connections {
            // One that has ended already is cut.
            drop(connection.shutdown(Shutdown::Both));
        }
    }
}

fn open(shared: &Mutex<Shared>, client: TcpStream) {
    let mut shared = shared.lock().expect("no holder panics");
    let Some(broker) = shared.target.and_then(|target| TcpStream::connect(target).ok()) else { return };
    for stream in [&client, &broker] {
        stream.set_nodelay(true).expect("it is a TCP socket");
        shared.connections.push(stream.try_clone().expect("a descriptor is left"));
    }
    let reversed =
        (broker.try_clone().expect("a descriptor is left"), client.try_clone().expect("a descriptor is left"));
    crate::thread(move || forward(client, broker));
    crate::thread(move || forward(reversed.0, reversed.1));
}

/// Copies until either end closes; then the other end hears of it.
fn forward(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = [0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
    drop(from.shutdown(Shutdown::Both));
}
