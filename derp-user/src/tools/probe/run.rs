//! Makes the probes.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use rustls::{CertificateError, Error};
use tokio::time::timeout;

use super::{
    Arguments, Outcome, Report,
    judge::{self, Expiry, Verdict, milliseconds},
    plan::{Kind, Pair, Task, plan},
    traffic::{Dialled, Traffic},
};
use crate::{
    client::{
        Connector, UsualJudge,
        map::{DerpMap, Node},
    },
    proto::{keys::MeshKey, login::ClientInfo},
    tools::{
        MonitorError, Severity,
        addresses::stun_addresses,
        in_lanes,
        netcheck::LATENCY_CHECK,
        progress::Progress,
        stun::{self, Silence},
    },
};

/// What was measured, by name and unit.
type Values = BTreeMap<&'static str, f64>;

/// Probes every relay of the map. `map_fault` says why it is an old one.
pub(super) async fn probe(
    map: &DerpMap,
    arguments: &Arguments,
    mesh_key: Option<&MeshKey>,
    map_fault: Option<String>,
) -> Result<Report, MonitorError> {
    let time = SystemTime::now();
    let trust = arguments.relays.trust();
    let prober = Prober { arguments, mesh_key, usual: UsualJudge::new(&trust) };
    // What is wrong with the operator's own file is no fault of a relay.
    prober.usual.prepare()?;
    let lanes = usize::from(arguments.concurrency);
    let nodes: Vec<_> = map.regions.values().flat_map(|region| &region.nodes).collect();
    let stun = in_lanes(lanes, nodes.len(), async |at| {
        stun_addresses(nodes[at]).await.map_err(|error| error.to_string())
    });
    let tasks = plan(map, &stun.await, arguments);
    let (alone, together): (Vec<_>, Vec<_>) =
        tasks.into_iter().partition(|task| task.kind.wants_to_be_alone());
    let mut probes = Vec::new();
    if let Some(fault) = map_fault {
        let (name, text) = ("derpmap-probe".to_owned(), format!("the last map is used: {fault}"));
        let (class, status, values) = ("derp_map", Severity::Warning, Values::new());
        probes.push(Outcome { name, class, status, text, values });
    }
    let progress = Progress::new(true);
    progress.begin("probing", (together.len() + alone.len()) as u64);
    let done = in_lanes(lanes, together.len(), async |at| {
        let outcome = prober.outcome(&together[at]).await;
        progress.step();
        outcome
    });
    probes.extend(done.await);
    for task in &alone {
        progress.say(&task.name);
        probes.push(prober.outcome(task).await);
        progress.step();
    }
    progress.clear();
    Ok(Report::new(time, probes))
}

struct Prober<'a> {
    arguments: &'a Arguments,
    mesh_key: Option<&'a MeshKey>,
    usual: UsualJudge<'a>,
}

impl Prober<'_> {
    async fn outcome(&self, task: &Task<'_>) -> Outcome {
        let mut values = Values::new();
        let (status, text) = match self.make(&task.kind, &mut values).await {
            Ok(verdict) => verdict,
            Err(text) => (Severity::Critical, text),
        };
        Outcome { name: task.name.clone(), class: task.kind.class(), status, text, values }
    }

    /// Makes one probe; what is wrong with it, if it cannot be judged.
    async fn make(&self, kind: &Kind<'_>, values: &mut Values) -> Result<Verdict, String> {
        match kind {
            Kind::Tls(node) => self.tls(node, values).await,
            Kind::Http(node) => {
                let connector = self.connector(node)?;
                let (status, took) = self.limited(connector.get(LATENCY_CHECK)).await?;
                values.insert("latency_seconds", took.as_secs_f64());
                Ok(judge::page(status, took))
            }
            Kind::Stun(server) => match stun::ask(*server).await {
                Ok(seen) => {
                    values.insert("latency_seconds", seen.latency.as_secs_f64());
                    let text = format!("{}, sees {}", milliseconds(seen.latency), seen.address);
                    Ok((Severity::Ok, text))
                }
                // That is this machine's fault, not the relay's.
                Err(silence @ Silence::NoRoute) => {
                    Ok((Severity::Warning, format!("STUN at {server}: {silence}")))
                }
                Err(silence) => Err(format!("STUN at {server}: {silence}")),
            },
            Kind::Mesh(pair) => {
                let traffic = self.open(*pair, true).await?;
                values.insert("latency_seconds", traffic.latency.as_secs_f64());
                Ok((Severity::Ok, milliseconds(traffic.latency)))
            }
            Kind::Bandwidth(pair) => {
                let size = self.arguments.bandwidth_size;
                let mut traffic = self.open(*pair, false).await?;
                let took =
                    match timeout(self.arguments.patience.timeout, traffic.transfer(size)).await {
                        Ok(took) => took?,
                        Err(_) => {
                            let limit = self.arguments.patience.timeout;
                            return Err(format!("{size} bytes did not arrive within {limit:?}"));
                        }
                    };
                let rate = size as f64 * 8.0 / took.as_secs_f64().max(1e-9);
                values.insert("bits_per_second", rate);
                values.insert("transfer_seconds", took.as_secs_f64());
                Ok((
                    Severity::Ok,
                    format!("{size} bytes in {}, {:.1} Mbit/s", milliseconds(took), rate / 1e6),
                ))
            }
            Kind::Delay(pair) => self.delay(*pair, values).await,
            Kind::Failed(text) => Err(text.clone()),
        }
    }

    async fn tls(&self, node: &Node, values: &mut Values) -> Result<Verdict, String> {
        let connector = self.connector(node)?;
        let seen = self.limited(connector.inspect()).await?;
        values.insert("handshake_seconds", seen.took.as_secs_f64());
        let other_pin = Error::from(CertificateError::ApplicationVerificationFailure);
        let fault = seen.fault.map(|fault| {
            if fault == other_pin {
                "it is not the pinned one".to_owned()
            } else {
                fault.to_string()
            }
        });
        let Arguments { expiry_warning, expiry_critical, .. } = *self.arguments;
        let limits = Expiry { warning: expiry_warning, critical: expiry_critical };
        let now = SystemTime::now();
        Ok(judge::certificates(&seen.certificates, fault.as_deref(), seen.is_pinned, limits, now))
    }

    async fn delay(&self, pair: Pair<'_>, values: &mut Values) -> Result<Verdict, String> {
        let Arguments { delay_packets, delay_duration, loss_warning, .. } = *self.arguments;
        let mut traffic = self.open(pair, false).await?;
        let flow = traffic.flow(delay_packets, delay_duration).await?;
        values.insert("sent_packets", flow.sent as f64);
        values.insert("lost_packets", flow.sent.saturating_sub(flow.delays.count()) as f64);
        for (name, share) in
            [("delay_p50_seconds", 0.5), ("delay_p90_seconds", 0.9), ("delay_p99_seconds", 0.99)]
        {
            values.insert(name, flow.delays.quantile(share).as_secs_f64());
        }
        values.insert("delay_max_seconds", flow.delays.longest().as_secs_f64());
        Ok(judge::flow(&flow, loss_warning / 100.0))
    }

    fn connector(&self, node: &Node) -> Result<Connector, String> {
        Connector::to_node_of(node, &self.usual).map_err(|error| error.to_string())
    }

    /// Connects clients to both relays; as derpprobe, they say that they are probers only if they send little.
    async fn open(&self, pair: Pair<'_>, is_prober: bool) -> Result<Traffic, String> {
        let (from, to) = (self.connector(pair.from)?, self.connector(pair.to)?);
        let info = || ClientInfo {
            mesh_key: self.mesh_key.cloned(),
            is_prober,
            app_name: "derpd probe".to_owned(),
        };
        Dialled { pair, from, to }.open(info, self.arguments.patience.timeout).await
    }

    async fn limited<T>(
        &self,
        probe: impl Future<Output = Result<T, crate::client::ClientError>>,
    ) -> Result<T, String> {
        let limit: Duration = self.arguments.patience.timeout;
        match timeout(limit, probe).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("not done within {limit:?}")),
        }
    }
}
