//! What the companion of a tailscaled is made of.

use std::sync::Arc;

use derp_common::settings::{Port, Services};
use derp_user::{
    companion::Serving,
    config::CompanionSettings,
    dataplane::AttachedMode,
    udp::SettingsCell,
    udp_relay::{CompanionService, CompanionServiceOptions, Keeper},
};

use super::SharedXdp;

/// Makes the companion, which tells the kernel program what is tailscaled's.
pub(super) fn accompany(
    companion: &CompanionSettings,
    xdp: &SharedXdp,
    keeper: &Keeper,
    settings: &Arc<SettingsCell>,
) -> CompanionService {
    let base = settings.load().ports;
    let own_ports = base.iter().filter(|port| port.services != 0);
    let own_ports = own_ports.map(|port| u16::from_be(port.number)).collect();
    for attachment in xdp.lock().attachments() {
        if attachment.mode == AttachedMode::Generic {
            let interface = &attachment.interface;
            tracing::warn!(
                "companion: in generic mode the kernel merges packets for tailscaled's socket first, and leaves them \
                 to it; `ethtool -K {interface} gro off` prevents that"
            );
        }
    }
    let (xdp, settings) = (Arc::clone(xdp), Arc::clone(settings));
    let serve = move |serving: Option<Serving>| {
        let mut new = settings.load();
        new.ports = base;
        if let Some(Serving { port, .. }) = serving
            && let Some(place) = new.ports.iter_mut().find(|place| place.services == 0)
        {
            *place = Port { number: port.to_be(), services: Services::GENEVE };
        }
        new.lease = serving.map_or(0, |serving| serving.lease);
        xdp.lock().kernel_mut().configure(new)?;
        settings.store(new);
        Ok(())
    };
    CompanionService::new(CompanionServiceOptions {
        socket: companion.socket.clone(),
        poll: companion.poll,
        own_ports,
        keeper: keeper.clone(),
        serve: Box::new(serve),
    })
}
