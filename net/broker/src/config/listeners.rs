//! The listeners: `listeners`, `advertised.listeners` and what they must not be.
//!
//! Owns the syntax `NAME://host:port` and the refusal of listeners that would be open to everybody. Binds nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::ListenerConfig;
use super::start::{ConfigError, Reader};

pub(super) const ADVERTISED_LISTENERS: &str = "advertised.listeners";
/// The name of a listener that has none.
const DEFAULT_NAME: &str = "PLAINTEXT";

/// `NAME://host:port`; the host may be empty or in square brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    name: String,
    host: String,
    port: u16,
}

impl Address {
    fn parse(setting: &str, text: &str) -> Result<Self, ConfigError> {
        let malformed = || ConfigError::new(format!("{setting}: {text} is not [NAME://]host:port"));
        let (name, address) = text.split_once("://").unwrap_or((DEFAULT_NAME, text));
        let (host, port) = address.rsplit_once(':').ok_or_else(malformed)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(malformed)?,
            None if host.contains(':') => return Err(malformed()),
            None => host,
        };
        if name.is_empty() || host.contains(['/', ' ', '[', ']']) {
            return Err(malformed());
        }
        let port = port.parse().map_err(|_| malformed())?;
        Ok(Self { name: name.to_uppercase(), host: host.to_owned(), port })
    }
}

/// The listeners that the settings ask for.
///
/// # Errors
/// One is malformed, asks for a security protocol, is open to other machines without `insecure`, or is advertised and
/// does not exist.
pub(super) fn check(read: &Reader<'_>) -> Result<Vec<ListenerConfig>, ConfigError> {
    let controllers: Vec<String> =
        read.list("controller.listener.names").iter().map(|name| name.to_uppercase()).collect();
    let is_broker = |address: &Address| !controllers.contains(&address.name);
    let parse = |setting: &'static str| -> Result<Vec<Address>, ConfigError> {
        let all: Result<Vec<Address>, ConfigError> =
            read.list(setting).iter().map(|text| Address::parse(setting, text)).collect();
        Ok(all?.into_iter().filter(is_broker).collect())
    };
    let (listeners, advertised) = (parse("listeners")?, parse(ADVERTISED_LISTENERS)?);
    if listeners.is_empty() {
        return Err(ConfigError::new("listeners names no listener for clients; give one as host:port"));
    }
    check_distinct(&listeners)?;
    check_advertised(&listeners, &advertised)?;
    let is_default = !read.is_set("listeners");
    listeners
        .into_iter()
        .map(|listener| {
            check_protocol(read, &listener.name)?;
            if !is_loopback(&listener.host) && !read.is_on("insecure") {
                return Err(open_to_all(&listener));
            }
            let advertised = advertised.iter().find(|known| known.name == listener.name);
            Ok(ListenerConfig {
                advertised: advertised.map(|address| (address.host.clone(), address.port)),
                is_optional: is_default && listener.host == "::1",
                name: listener.name,
                host: listener.host,
                port: listener.port,
            })
        })
        .collect()
}

/// What `advertised.listeners` comes to where only `listeners` is set: each at an address that is known before it is bound.
/// A client that asks for the settings sees what it is told to connect to, and that this was configured.
pub(super) fn advertised(read: &Reader<'_>, listeners: &[ListenerConfig]) -> Option<String> {
    let is_known = |listener: &ListenerConfig| {
        let is_wildcard = listener.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
        !listener.host.is_empty() && !is_wildcard && listener.port != 0
    };
    if !read.is_set("listeners") || read.is_set(ADVERTISED_LISTENERS) || !listeners.iter().all(is_known) {
        return None;
    }
    let texts = listeners.iter().map(|ListenerConfig { name, host, port, .. }| match host.contains(':') {
        true => format!("{name}://[{host}]:{port}"),
        false => format!("{name}://{host}:{port}"),
    });
    Some(texts.collect::<Vec<_>>().join(","))
}

/// Where metrics are to be served, if anywhere.
///
/// # Errors
/// The place is malformed, or open to other machines without `insecure`.
pub(super) fn metrics(read: &Reader<'_>) -> Result<Option<(String, u16)>, ConfigError> {
    const SETTING: &str = "metrics.listener";
    let Some(text) = read.text(SETTING).filter(|text| !text.is_empty()) else { return Ok(None) };
    let address = if text.contains("://") { None } else { Address::parse(SETTING, &text).ok() };
    let Some(address) = address else { return Err(ConfigError::new(format!("{SETTING}: {text} is not host:port"))) };
    if !is_loopback(&address.host) && !read.is_on("insecure") {
        return Err(open_to_all(&address));
    }
    Ok(Some((address.host, address.port)))
}

fn check_distinct(listeners: &[Address]) -> Result<(), ConfigError> {
    let mut places = BTreeSet::new();
    for listener in listeners {
        if listener.port != 0 && !places.insert((listener.host.as_str(), listener.port)) {
            let Address { host, port, .. } = listener;
            return Err(ConfigError::new(format!("listeners names {host}:{port} twice")));
        }
    }
    Ok(())
}

fn check_advertised(listeners: &[Address], advertised: &[Address]) -> Result<(), ConfigError> {
    for address in advertised {
        let Address { name, host, .. } = address;
        if listeners.iter().all(|listener| listener.name != *name) {
            let message = format!("advertised.listeners names {name}, which listeners does not have");
            return Err(ConfigError::new(message));
        }
        if host.is_empty() || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
            let message = "advertised.listeners: clients cannot connect to every address; name one that they reach";
            return Err(ConfigError::new(message));
        }
        if advertised.iter().filter(|other| other.name == *name).count() > 1 {
            return Err(ConfigError::new(format!("advertised.listeners names {name} twice")));
        }
    }
    Ok(())
}

/// There is neither TLS nor SASL yet, so a listener that asks for one must not be opened without.
fn check_protocol(read: &Reader<'_>, name: &str) -> Result<(), ConfigError> {
    let map = read.list("listener.security.protocol.map");
    let mapped = map.iter().filter_map(|pair| pair.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case(name));
    match mapped.map_or(DEFAULT_NAME, |(_, protocol)| protocol) {
        DEFAULT_NAME => Ok(()),
        protocol => Err(ConfigError::new(format!(
            "listener {name} asks for {protocol}, which this version does not have; use PLAINTEXT on a loopback address"
        ))),
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn open_to_all(listener: &Address) -> ConfigError {
    let host = if listener.host.is_empty() { "every address" } else { &listener.host };
    ConfigError::new(format!(
        "listening on {host} port {} would let other machines in, and there is no authentication yet; listen on \
         127.0.0.1, or say --insecure",
        listener.port
    ))
}

#[cfg(test)]
mod tests {
    use crate::config::{ListenerConfig, Machine, StartSettings};

    fn listeners(pairs: &[(&str, &str)]) -> Result<Vec<ListenerConfig>, String> {
        let mut settings = StartSettings::default();
        for (name, value) in pairs {
            settings.set(name, value, "--set").map_err(|error| error.to_string())?;
        }
        let checked = settings.check(Machine { cores: 1, memory_bytes: 1 << 30 });
        checked.map(|config| config.listeners).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses() {
        let one = |text: &str| {
            let all = listeners(&[("listeners", text), ("insecure", "true")]).unwrap();
            (all[0].name.clone(), all[0].host.clone(), all[0].port)
        };
        assert_eq!(one("127.0.0.1:1"), ("PLAINTEXT".into(), "127.0.0.1".into(), 1));
        assert_eq!(one("inside://[::1]:9092"), ("INSIDE".into(), "::1".into(), 9092));
        assert_eq!(one("PLAINTEXT://:0"), ("PLAINTEXT".into(), String::new(), 0));
        for text in ["127.0.0.1", "a:b", "a:70000", "::1:9092", "[::1:9092", "://a:1", "a b:1", "http://a/:1"] {
            assert!(listeners(&[("listeners", text)]).unwrap_err().contains("is not [NAME://]host:port"), "{text}");
        }
    }

    #[test]
    fn nothing_is_open_to_other_machines_by_accident() {
        for host in ["0.0.0.0", "", "[::]", "192.168.1.1", "example.org"] {
            let text = format!("PLAINTEXT://{host}:9092");
            assert!(listeners(&[("listeners", &text)]).unwrap_err().contains("--insecure"), "{host}");
            assert!(listeners(&[("listeners", &text), ("insecure", "true")]).is_ok(), "{host}");
        }
        for host in ["localhost", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"] {
            assert!(listeners(&[("listeners", &format!("{host}:9092"))]).is_ok(), "{host}");
        }
    }

    #[test]
    fn a_listener_that_asks_for_tls_is_not_opened_without() {
        assert!(listeners(&[("listeners", "SSL://localhost:9093")]).unwrap_err().contains("asks for SSL"));
        let map = ("listener.security.protocol.map", "OUT:SASL_SSL");
        assert!(listeners(&[("listeners", "OUT://localhost:9093"), map]).unwrap_err().contains("SASL_SSL"));
    }

    #[test]
    fn advertised_addresses_belong_to_a_listener() {
        let all = listeners(&[
            ("listeners", "A://localhost:1,B://localhost:2"),
            ("advertised.listeners", "B://example.org:99"),
        ]);
        let all = all.unwrap();
        assert_eq!((all[0].advertised.clone(), all[1].advertised.clone()), (None, Some(("example.org".into(), 99))));
        let refused = |advertised| listeners(&[("advertised.listeners", advertised)]).unwrap_err();
        assert!(refused("X://example.org:1").contains("which listeners does not have"));
        assert!(refused("0.0.0.0:9092").contains("every address"));
        assert!(refused("a:1,b:1").contains("twice"));
        assert!(listeners(&[("listeners", "localhost:1,localhost:1")]).unwrap_err().contains("twice"));
    }

    #[test]
    fn what_is_advertised_follows_from_the_listeners_where_it_can_be_told() {
        let advertised = |pairs: &[(&str, &str)]| {
            let mut settings = StartSettings::default();
            pairs.iter().for_each(|(name, value)| settings.set(name, value, "--set").unwrap());
            let config = settings.check(Machine { cores: 1, memory_bytes: 1 << 30 }).unwrap();
            config.settings.get("advertised.listeners").cloned()
        };
        let derived = advertised(&[("listeners", "127.0.0.1:1,in://[::1]:2")]);
        assert_eq!(derived.as_deref(), Some("PLAINTEXT://127.0.0.1:1,IN://[::1]:2"));
        let set = [("listeners", "localhost:1"), ("advertised.listeners", "example.org:9")];
        assert_eq!(advertised(&set).as_deref(), Some("example.org:9"));
        assert_eq!(advertised(&[]), None, "nobody set the listeners either");
        for text in ["127.0.0.1:0", "0.0.0.0:1", "[::]:1", "PLAINTEXT://:1"] {
            assert_eq!(advertised(&[("listeners", text), ("insecure", "true")]), None, "{text}");
        }
    }

    #[test]
    fn metrics_are_served_where_it_is_said_and_not_to_other_machines_unasked() {
        let metrics = |pairs: &[(&str, &str)]| {
            let mut settings = StartSettings::default();
            pairs.iter().for_each(|(name, value)| settings.set(name, value, "--set").unwrap());
            let checked = settings.check(Machine { cores: 1, memory_bytes: 1 << 30 });
            checked.map(|config| config.metrics.listener).map_err(|error| error.to_string())
        };
        assert_eq!(metrics(&[]), Ok(None));
        assert_eq!(metrics(&[("metrics.listener", "")]), Ok(None));
        assert_eq!(metrics(&[("metrics.listener", "127.0.0.1:9644")]), Ok(Some(("127.0.0.1".into(), 9644))));
        assert_eq!(metrics(&[("metrics.listener", "[::1]:0")]), Ok(Some(("::1".into(), 0))));
        for malformed in ["9644", "PLAIN://127.0.0.1:9644", "127.0.0.1:99999", "::1:9644"] {
            assert!(
                metrics(&[("metrics.listener", malformed)]).unwrap_err().contains("is not host:port"),
                "{malformed}"
            );
        }
        let open = [("metrics.listener", "0.0.0.0:9644")];
        assert!(metrics(&open).unwrap_err().contains("--insecure"));
        assert_eq!(metrics(&[open[0], ("insecure", "true")]), Ok(Some(("0.0.0.0".into(), 9644))));
    }
}
