//! A connection to a broker: requests out, answers in, as many in flight as the caller likes.
//!
//! Owns the bytes on their way. Never retries: what does not work ends the program.

use std::cell::RefCell;
use std::net::SocketAddr;

use heddle_io::{Buffer, Io, Lease, Socket};
use heddle_protocol::{Message, Reader, Request, Writer, frame};

/// Bytes that are received at a time, at least.
const ROOM: usize = 64 << 10;
/// Bytes of the length and of the correlation id in front of a response of the versions that are used here.
const RESPONSE_HEADER: usize = 8;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    socket: Socket,
    received: RefCell<Buffer>,
}

impl Connection {
    /// Connects to a broker.
    ///
    /// # Panics
    /// If nobody listens at `address`.
    pub async fn open(io: &Io, address: SocketAddr) -> Self {
        let socket = io.connect(address).await.expect("the broker listens");
        Self { io: io.clone(), socket, received: RefCell::new(Buffer::with_capacity(ROOM)) }
    }

    /// Sends a request and gives its answer. Of a version whose headers have no tagged fields.
    ///
    /// # Panics
    /// If the connection ends.
    pub async fn call<'a, R: Request<'a>>(&self, version: i16, request: &R) -> Answer {
        self.send(encoded(version, request)).await;
        Answer { version, bytes: self.answer().await }
    }

    /// Sends bytes that are one or more whole requests.
    ///
    /// # Panics
    /// If the connection ends.
    pub async fn send(&self, bytes: Lease) {
        self.io.send(&self.socket, vec![bytes]).await.expect("the broker takes bytes");
    }

    /// The next answer, its length and header included.
    ///
    /// # Panics
    /// If the connection ends before it.
    pub async fn answer(&self) -> Vec<u8> {
        loop {
            let mut received = self.received.replace(Buffer::with_capacity(0));
            let length = received.first_chunk::<4>().map(|length| 4 + u32::from_be_bytes(*length) as usize);
            if let Some(length) = length.filter(|length| *length <= received.len()) {
                let answer = received[..length].to_vec();
                received.consume(length);
                self.received.replace(received);
                return answer;
            }
            received.reserve(length.unwrap_or(ROOM).saturating_sub(received.len()));
            self.receive(received).await;
        }
    }

    /// How many answers have come, one at least, each of which is `expected`, byte for byte.
    ///
    /// # Panics
    /// If another comes, or none.
    pub async fn answers(&self, expected: &[u8]) -> usize {
        loop {
            let mut received = self.received.replace(Buffer::with_capacity(0));
            let whole = received.len() / expected.len();
            if whole > 0 {
                let bytes = whole * expected.len();
                assert!(received[..bytes].chunks(expected.len()).all(|answer| answer == expected), "another answer");
                received.consume(bytes);
                self.received.replace(received);
                return whole;
            }
            received.reserve(ROOM);
            self.receive(received).await;
        }
    }

    async fn receive(&self, buffer: Buffer) {
        let (result, buffer) = self.io.recv(&self.socket, buffer).await;
        assert!(result.expect("the connection lives") > 0, "the broker has closed the connection");
        self.received.replace(buffer);
    }
}

/// A request's bytes.
///
/// # Panics
/// If the request cannot be expressed in this version.
pub fn encoded<'a, R: Request<'a>>(version: i16, request: &R) -> Lease {
    let mut writer = Writer::new();
    frame::encode_request(&mut writer, version, 1, Some("bench"), request).expect("it can be said");
    Lease::from_vec(writer.into_bytes())
}

/// An answer, to be decoded where it lies.
#[derive(Debug)]
pub struct Answer {
    version: i16,
    bytes: Vec<u8>,
}

impl Answer {
    /// The response.
    ///
    /// # Panics
    /// If it is none of this kind.
    pub fn decode<'a, M: Message<'a>>(&'a self) -> M {
        M::decode(&mut Reader::new(&self.bytes[RESPONSE_HEADER..]), self.version).expect("a response")
    }
}
