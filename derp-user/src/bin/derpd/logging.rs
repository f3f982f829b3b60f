//! The log: in which form, where to, and which of it.

use std::{
    env, fs, io,
    io::IsTerminal as _,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
};

use anyhow::Context as _;
use derp_user::config::{Config, LogFormat};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// Set by systemd to the device and inode of the stream that leads to its journal.
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";

/// What is logged, which can be changed while derpd runs.
pub(crate) struct Levels {
    handle: reload::Handle<EnvFilter, Registry>,
}

/// Starts the log.
///
/// # Errors
///
/// If there is no journal to write to, or the filter is none.
pub(crate) fn start(config: &Config) -> anyhow::Result<Levels> {
    let (filter, handle) = reload::Layer::new(filter(&config.log)?);
    let output: Box<dyn Layer<_> + Send + Sync> = match config.log_format {
        LogFormat::Journald => journal()?,
        // Where systemd says that there is a journal, but none can be reached, lines get there, too.
        LogFormat::Auto if leads_to_journal() => journal().unwrap_or_else(|_| human()),
        LogFormat::Auto | LogFormat::Human => human(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(io::stderr)
            .boxed(),
    };
    tracing_subscriber::registry().with(filter.and_then(output)).init();
    Ok(Levels { handle })
}

/// What these levels let through.
fn filter(levels: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    // That more has changed than its buffer holds is an error of its stream, too, after which the host is read anew.
    let quiet = if levels.contains("netlink_proto") { "" } else { ",netlink_proto=error" };
    EnvFilter::try_new(format!("{levels}{quiet}"))
}

fn human<S>() -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(is_coloured())
        .with_target(false)
        .boxed()
}

/// Levels have a colour on a terminal, unless `NO_COLOR` says that nobody wants any (no-color.org).
fn is_coloured() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|it| it.is_empty())
}

fn journal<S>() -> anyhow::Result<Box<dyn Layer<S> + Send + Sync>>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = tracing_journald::layer()
        .context("-log-format journald: the journal of systemd cannot be reached")?;
    Ok(layer.with_syslog_identifier("derpd".to_owned()).boxed())
}

/// Whether the standard error output is the stream that systemd has opened to its journal.
fn leads_to_journal() -> bool {
    let Ok(stream) = env::var(JOURNAL_STREAM) else { return false };
    let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() else { return false };
    let metadata = fs::File::from(stderr).metadata();
    metadata.is_ok_and(|it| stream == format!("{}:{}", it.dev(), it.ino()))
}

impl Levels {
    /// Logs what this filter says from now on. Returns what has changed, if anything.
    pub(crate) fn apply(&self, wanted: &str) -> Option<String> {
        let filter = filter(wanted).ok()?;
        let now = filter.to_string();
        let before = self.handle.with_current(ToString::to_string).ok()?;
        if now == before {
            return None;
        }
        self.handle.reload(filter).ok()?;
        Some(format!("log: levels are {wanted}"))
    }
}
