//! What the relay has forwarded, and by which endpoint a ping came.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::{
    super::{
        lab::{Lab, RELAYS},
        relay::page,
    },
    WAY,
};

/// Finds address and VNI in the answer to a ping.
pub(super) fn endpoint(pong: &str) -> Result<(String, u32)> {
    let parts = pong
        .split_once(WAY)
        .and_then(|(_, rest)| rest.split_once(')'))
        .and_then(|(way, _)| way.split_once(":vni:"))
        .with_context(|| format!("no address and VNI: {pong}"))?;
    let vni = parts.1.parse().with_context(|| format!("a VNI: {pong}"))?;
    Ok((parts.0.to_owned(), vni))
}

/// The flow of one endpoint, as the relay shows it.
#[derive(Deserialize)]
pub(super) struct Flow {
    vni: Option<u32>,
    pub(super) ends: [End; 2],
}

/// One end of it.
#[derive(Deserialize)]
pub(super) struct End {
    /// Where its client is.
    pub(super) remote: Option<String>,
    /// Who forwards what comes from there.
    pub(super) forwarder: String,
    kernel: Count,
    userspace: Count,
}

#[derive(Deserialize)]
struct Count {
    bytes: u64,
}

impl Flow {
    /// Reads the flow with a VNI.
    pub(super) fn read(lab: &Lab, vni: u32) -> Result<Self> {
        #[derive(Deserialize)]
        struct Flows {
            flows: Vec<Flow>,
        }
        let text = page(lab, RELAYS[0].parse()?, "/debug/flows?format=json")?;
        let Flows { flows } = serde_json::from_str(&text).context("reading /debug/flows")?;
        let flow = flows.into_iter().find(|flow| flow.vni == Some(vni));
        flow.with_context(|| format!("no flow has VNI {vni}: {text}"))
    }

    /// Returns what has been forwarded.
    pub(super) fn counted(&self) -> Counted {
        let [a, b] = &self.ends;
        Counted {
            kernel: a.kernel.bytes + b.kernel.bytes,
            userspace: a.userspace.bytes + b.userspace.bytes,
        }
    }
}

/// Bytes that the relay has forwarded for one endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    pub(super) kernel: u64,
    pub(super) userspace: u64,
}

impl Counted {
    pub(super) fn sum(self) -> u64 {
        self.kernel + self.userspace
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            kernel: self.kernel.saturating_sub(before.kernel),
            userspace: self.userspace.saturating_sub(before.userspace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_vni_are_found_in_a_pong() {
        let pong = "pong from right (100.64.0.2) via peer-relay(10.77.0.1:40000:vni:4711) in 1ms";
        assert_eq!(endpoint(pong).unwrap(), ("10.77.0.1:40000".to_owned(), 4711));
        assert!(endpoint("pong from right (100.64.0.2) via DERP(dev) in 1ms").is_err());
    }
}
