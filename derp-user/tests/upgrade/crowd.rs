//! A network of its own for those who connect by TCP: when 200 clients come back at once they fill the 256 places of a
//! virtual cable's queue, and what else came by it would be lost there.

use std::process::id;

use crate::{lab::Lab, netns::run};

/// The relay's address for the crowd.
pub(crate) const RELAY: &str = "10.78.3.1";

/// A namespace behind a third interface of the relay's; removed on drop.
pub(crate) struct Crowd {
    pub(crate) namespace: String,
}

impl Crowd {
    pub(crate) fn settle(lab: &Lab) -> Result<Self, String> {
        let this = Self { namespace: format!("{}-crowd-{}", lab.relay, id()) };
        let (relay, crowd) = (&lab.relay, &this.namespace);
        run(&format!("ip netns add {crowd}"))?;
        run(&format!("ip link add relay-c netns {relay} type veth peer name c0 netns {crowd}"))?;
        for (namespace, interface, address) in
            [(relay, "relay-c", RELAY), (crowd, "c0", "10.78.3.2")]
        {
            run(&format!("ip -n {namespace} addr add {address}/24 brd + dev {interface}"))?;
            run(&format!("ip -n {namespace} link set {interface} up"))?;
        }
        Ok(this)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // It may not have been made.
        let _ = run(&format!("ip netns del {}", self.namespace));
    }
}
