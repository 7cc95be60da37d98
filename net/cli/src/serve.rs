//! `heddle serve`: hands the flags to the broker and runs it until a signal ends it.
//!
//! Owns how flags become settings, how log lines look, and what is said once the broker serves. Runs nothing itself.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::{fs, io, panic, thread};

use anyhow::Context as _;
use heddle_broker::config::{Machine, StartSettings};
use heddle_broker::log_levels::{self, LogLevels};
use heddle_broker::{BrokerConfig, Chosen, Started};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::{IoChoice, LogFormat, LogLevel, ServeArgs};

/// Runs a broker until SIGTERM or SIGINT.
///
/// # Errors
/// A sentence that says what stops the broker from starting and what to do about it.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let log_levels = start_logging(args);
    let settings = settings(args)?;
    for name in settings.without_effect() {
        tracing::warn!("{name} is kept and reported, but has no effect yet");
    }
    let config = BrokerConfig { log_levels: Arc::new(log_levels), ..settings.check(machine())? };
    let data_dir = config.data_dir.display().to_string();
    let wildcards = wildcard_names(&config);
    heddle_broker::run(config, |started, chosen| announce(started, chosen, &data_dir, &wildcards, args.log_format))?;
    Ok(())
}

/// The settings of the file, then those of `--set`, then the flags with names of their own; the later wins.
fn settings(args: &ServeArgs) -> anyhow::Result<StartSettings> {
    let mut settings = StartSettings::default();
    if let Some(file) = &args.config {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read --config {}", file.display()))?;
        settings.read_properties(&file.display().to_string(), &text)?;
    }
    for (name, value) in &args.settings {
        settings.set(name, value, "--set")?;
    }
    if let Some(data_dir) = &args.data_dir {
        let data_dir = data_dir.to_str().context("--data-dir: the path is not UTF-8")?;
        settings.set("log.dirs", data_dir, "--data-dir")?;
    }
    if !args.listen.is_empty() {
        settings.set("listeners", &args.listen.join(","), "--listen")?;
    }
    if !args.advertise.is_empty() {
        settings.set("advertised.listeners", &args.advertise.join(","), "--advertise")?;
    }
    if let Some(metrics) = &args.metrics {
        settings.set("metrics.listener", metrics, "--metrics")?;
    }
    if let Some(cores) = args.cores {
        settings.set("cores", &cores.to_string(), "--cores")?;
    }
    match args.io {
        IoChoice::Auto => {}
        IoChoice::Uring => settings.set("io.backend", "uring", "--io")?,
        IoChoice::Blocking => settings.set("io.backend", "blocking", "--io")?,
    }
    if args.insecure {
        settings.set("insecure", "true", "--insecure")?;
    }
    Ok(settings)
}

/// What this process may use: cores by affinity and cgroup quota, memory by the machine and its cgroup.
fn machine() -> Machine {
    let memory_bytes = heddle_io::memory().map_or(u64::MAX, |memory| memory.total);
    Machine { cores: thread::available_parallelism().map_or(1, Into::into), memory_bytes }
}

/// Names of the listeners that listen on every address and advertise none.
fn wildcard_names(config: &BrokerConfig) -> Vec<String> {
    let is_wildcard = |host: &str| host.is_empty() || host == "0.0.0.0" || host == "::";
    let open = config.listeners.iter().filter(|it| is_wildcard(&it.host) && it.advertised.is_none());
    open.map(|listener| listener.name.clone()).collect()
}

/// Log lines on standard error; a panic is one of them. Gives the levels, which may change at any time.
fn start_logging(args: &ServeArgs) -> LogLevels {
    let root = match args.level() {
        LogLevel::Error => log_levels::LogLevel::Error,
        LogLevel::Warn => log_levels::LogLevel::Warn,
        LogLevel::Info => log_levels::LogLevel::Info,
        LogLevel::Debug => log_levels::LogLevel::Debug,
        LogLevel::Trace => log_levels::LogLevel::Trace,
    };
    let (layer, handle) = reload::Layer::new(Targets::new().with_default(filter(root)));
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(layer);
    match args.log_format {
        LogFormat::Text => registry.with(lines).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        tracing::error!("thread {name} {panic}");
    }));
    LogLevels::new(root, move |levels| {
        let own = levels.own.iter().map(|(logger, level)| (*logger, filter(*level)));
        let targets = Targets::new().with_targets(own).with_default(filter(levels.root));
        if let Err(error) = handle.reload(targets) {
            tracing::error!("levels of loggers stay as they are: {error}");
        }
    })
}

fn filter(level: log_levels::LogLevel) -> LevelFilter {
    match level {
        log_levels::LogLevel::Error => LevelFilter::ERROR,
        log_levels::LogLevel::Warn => LevelFilter::WARN,
        log_levels::LogLevel::Info => LevelFilter::INFO,
        log_levels::LogLevel::Debug => LevelFilter::DEBUG,
        log_levels::LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Says what runs where, and what to type next.
fn announce(started: &Started, chosen: &Chosen, data_dir: &str, wildcards: &[String], format: LogFormat) {
    for listening in &started.listeners {
        let advertised = listening.advertised.as_ref().map(|(host, port)| format!("{host}:{port}"));
        match advertised {
            Some(advertised) => {
                tracing::info!(
                    "listening on {} ({}), clients are told {advertised}",
                    listening.address,
                    listening.name
                );
            }
            None => tracing::info!("listening on {} ({})", listening.address, listening.name),
        }
    }
    if let Some(address) = chosen.metrics {
        tracing::info!("metrics on http://{address}/metrics, health on /healthz and /readyz");
    }
    for name in wildcards {
        tracing::info!("{name}: clients are told the address that they have connected to; --advertise tells another");
    }
    let Started { cluster_id, broker_id, topics, partitions, .. } = started;
    tracing::info!(
        "data in {data_dir}: cluster {cluster_id}, broker {broker_id}, {topics} topics, {partitions} partitions"
    );
    let cores = chosen.cores;
    tracing::info!("{cores} {} on {}: {}", if cores == 1 { "core" } else { "cores" }, chosen.backend, chosen.reason);
    let address = started.listeners.iter().map(|listening| listening.address).find(|it| it.ip().is_loopback());
    if format == LogFormat::Text
        && let Some(address) = address.or(started.listeners.first().map(|listening| listening.address))
    {
        suggest(address);
    }
}

/// The program as it was started, as a shell takes it.
fn pasted(program: Option<OsString>) -> String {
    let program = program.map_or_else(|| "heddle".to_owned(), |program| program.to_string_lossy().into_owned());
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
    if program.bytes().all(is_plain) { program } else { format!("'{}'", program.replace('\'', "'\\''")) }
}

/// Lines to paste. Nobody listening on the other end is no failure.
fn suggest(address: SocketAddr) {
    let bootstrap = if address.port() == 9092 { String::new() } else { format!(" --bootstrap {address}") };
    let is_on_path = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join("heddle").is_file()));
    let heddle = if is_on_path { "heddle".to_owned() } else { pasted(std::env::args_os().next()) };
    let lines = format!(
        "\nTry it, with heddle or with kcat:\n\
         \x20 {heddle} topic create hello{bootstrap}\n\
         \x20 echo 'key:value' | {heddle} produce hello --key-separator :{bootstrap}\n\
         \x20 {heddle} consume hello --from beginning{bootstrap}\n\n\
         \x20 echo 'key:value' | kcat -b {address} -t hello -P -K:\n\
         \x20 kcat -b {address} -t hello -C -e\n\n"
    );
    let mut output = io::stdout().lock();
    let shown = output.write_all(lines.as_bytes()).and_then(|()| output.flush());
    if let Err(error) = shown
        && io::stdout().is_terminal()
    {
        tracing::debug!("standard output: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_named_as_a_shell_takes_it() {
        assert_eq!(pasted(Some("target/release/heddle".into())), "target/release/heddle");
        assert_eq!(pasted(Some("/opt/it's here/heddle".into())), r"'/opt/it'\''s here/heddle'");
        assert_eq!(pasted(None), "heddle");
    }
}
