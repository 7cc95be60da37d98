//! One command's connection to a cluster: a core to run on, the client, and what to say when it cannot be reached.

use std::time::Duration;

use heddle_client::{Client, ClientConfig, Error, nearest};
use heddle_io::{Backend, Executor, IoConfig};
use heddle_protocol::ApiKey;

use crate::args::ConnectArgs;
use crate::failure::{Exit, Failure};

/// The longest wait for a connection, whatever `--timeout` says.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// Runs `body` with a client that is connected to the cluster of `--bootstrap`.
///
/// # Errors
/// No broker answers, or what `body` says.
pub(crate) fn run(args: &ConnectArgs, body: impl AsyncFnOnce(&Client) -> anyhow::Result<()>) -> anyhow::Result<()> {
    // A command does little IO for a short time: system calls do, and they work in every container.
    let executor = Executor::new(IoConfig { backend: Backend::Blocking, ..IoConfig::default() })?;
    let io = executor.io();
    executor.run(async {
        let client = Client::connect(&io, &args.bootstrap, config(args)).await.map_err(explain)?;
        match body(&client).await {
            Ok(()) => Ok(()),
            Err(error) => Err(with_suggestion(&client, error).await),
        }
    })
}

fn config(args: &ConnectArgs) -> ClientConfig {
    let timeout = Duration::from_secs(args.timeout.into());
    ClientConfig {
        client_id: "heddle-cli".to_owned(),
        connect_timeout: timeout.min(CONNECT_TIMEOUT_MAX),
        request_timeout: timeout,
        retry_timeout: timeout,
        ..ClientConfig::default()
    }
}

/// A client's error with its exit code, and what to do about it where that is known.
pub(crate) fn explain(error: Error) -> Failure {
    match &error {
        Error::Unreachable { reason, .. } => {
            let what_to_do = match reason.as_str() {
                "connection refused" => "start a broker with `heddle serve`, or name another with --bootstrap",
                _ => "is this the address of a Kafka broker? --bootstrap names another",
            };
            Failure::new(Exit::Unreachable, format!("{error}; {what_to_do}"))
        }
        Error::Disconnected { .. } => Failure::new(
            Exit::Unreachable,
            format!("{error}; the cluster gave this address: is its advertised.listeners right for this machine?"),
        ),
        Error::Unsupported { api: ApiKey::Metadata, .. } => {
            let message = format!("{error}; is this the address of a controller, not of a broker?");
            Failure::new(Exit::Unreachable, message)
        }
        Error::UnknownTopic { .. } | Error::UnknownPartition { .. } => Failure::new(Exit::NotFound, error.to_string()),
        Error::Invalid { .. } => Failure::new(Exit::Usage, error.to_string()),
        _ => Failure::new(Exit::Failed, error.to_string()),
    }
}

/// Names the topic that was probably meant, where one was named that does not exist.
async fn with_suggestion(client: &Client, error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<Error>() {
        Ok(Error::UnknownTopic { topic }) => unknown_topic(client, &topic).await.into(),
        Ok(error) => explain(error).into(),
        Err(other) => other,
    }
}

/// The failure for a topic that does not exist.
pub(crate) async fn unknown_topic(client: &Client, topic: &str) -> Failure {
    let topics = client.topics().await.unwrap_or_default();
    let suggestion = match nearest(topic, topics.iter().map(|it| &*it.name)) {
        Some(name) => format!("did you mean {name:?}?"),
        None => format!("`heddle topic create {topic}` makes it, `heddle topic list` names those there are"),
    };
    Failure::new(Exit::NotFound, format!("there is no topic {topic:?}; {suggestion}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_says_what_to_do() {
        let error =
            Error::Unreachable { addresses: "127.0.0.1:9092".to_owned(), reason: "connection refused".to_owned() };
        let said = explain(error).to_string();
        assert!(said.contains("127.0.0.1:9092") && said.contains("heddle serve") && said.contains("--bootstrap"));
    }
}
