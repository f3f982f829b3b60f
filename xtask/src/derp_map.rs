//! The DERP map that points Tailscale clients at a relay with a self-signed certificate.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// Ids from 900 on are reserved for the user's own regions.
pub(crate) const REGION: u16 = 900;

/// Returns the file that derpd keeps the certificate for an address in: colons are left out.
pub(crate) fn certificate_file(directory: &Path, address: IpAddr) -> PathBuf {
    directory.join(format!("{}.crt", address.to_string().replace(':', "")))
}

/// Returns the pin of a certificate in a PEM file: the SHA-256 of its DER form.
pub(crate) fn pin(certificate: &Path) -> Result<String> {
    let leaf = CertificateDer::from_pem_file(certificate)
        .with_context(|| format!("reading the certificate {}", certificate.display()))?;
    let digits: String = Sha256::digest(&leaf).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256-raw:{digits}"))
}

/// Returns a DERP map, as indented JSON, with one region of one node at `address`.
///
/// The node's certificate is pinned, as it is in the file `certificate`.
pub(crate) fn of_one_node(
    address: IpAddr,
    certificate: &Path,
    tls_port: u16,
    stun_port: Option<u16>,
) -> Result<String> {
    of_nodes(&[(address, certificate.to_owned())], tls_port, stun_port)
}

/// Returns the same with several nodes, each with its address and the file of its certificate, in the
/// order in which clients shall prefer them.
pub(crate) fn of_nodes(
    nodes: &[(IpAddr, PathBuf)],
    tls_port: u16,
    stun_port: Option<u16>,
) -> Result<String> {
    map(&[region(REGION, "dev", nodes, tls_port, stun_port)?])
}

/// Returns a DERP map with a region of one node for each address and file of its certificate, numbered from [`REGION`]
/// on. Clients prefer the last one by far, wherever they are.
pub(crate) fn of_regions(nodes: &[(IpAddr, PathBuf)]) -> Result<String> {
    let regions = (REGION..).zip(nodes).map(|(id, node)| {
        region(id, &format!("dev{id}"), std::slice::from_ref(node), 443, Some(3478))
    });
    map(&regions.collect::<Result<Vec<_>>>()?)
}

fn region(
    id: u16,
    code: &str,
    nodes: &[(IpAddr, PathBuf)],
    tls_port: u16,
    stun_port: Option<u16>,
) -> Result<Value> {
    let node = |(number, (address, certificate)): (usize, &(IpAddr, PathBuf))| {
        Ok(json!({
            "Name": if number == 0 { code.to_owned() } else { format!("{code}{}", number + 1) },
            "RegionID": id,
            "HostName": address,
            "CertName": pin(certificate)?,
            "DERPPort": tls_port,
            // Clients take -1 for "no STUN here" and 0 for the usual port.
            "STUNPort": stun_port.map_or(-1, i32::from),
        }))
    };
    Ok(json!({
        "RegionID": id,
        "RegionCode": code,
        "RegionName": "derpd development relay",
        "Nodes": nodes.iter().enumerate().map(node).collect::<Result<Vec<_>>>()?,
    }))
}

fn map(regions: &[Value]) -> Result<String> {
    let mut ids = regions.iter().map(|region| region["RegionID"].to_string());
    let mut map = json!({
        "OmitDefaultRegions": true,
        "Regions": ids.clone().zip(regions.iter().cloned()).collect::<Map<_, _>>(),
    });
    if let (true, Some(last)) = (regions.len() > 1, ids.next_back()) {
        map["HomeParams"] = json!({ "RegionScore": { last: 0.01 } });
    }
    serde_json::to_string_pretty(&map).context("writing JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_the_certificate() {
        let directory = std::env::temp_dir().join(format!("derp-map-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let address = "2001:db8::1".parse().unwrap();
        let file = certificate_file(&directory, address);
        assert_eq!(file.file_name().unwrap(), "2001db81.crt");
        // Three bytes stand in for a certificate; the pin is the hash of whatever DER is there.
        let pem = "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n";
        std::fs::write(&file, pem).unwrap();
        let map = of_one_node(address, &file, 8443, None).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        let map: Value = serde_json::from_str(&map).unwrap();
        let node = &map["Regions"]["900"]["Nodes"][0];
        assert_eq!(
            node["CertName"],
            "sha256-raw:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(node["STUNPort"], -1);
        assert_eq!(node["HostName"], "2001:db8::1");
    }
}
