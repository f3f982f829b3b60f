//! A DERP map as text.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::Format;
use crate::client::map::{DerpMap, Node};

#[derive(Serialize)]
struct Policy<'a> {
    #[serde(rename = "derpMap")]
    derp_map: &'a DerpMap,
}

/// Writes `map`, with a newline at the end.
pub(super) fn write(map: &DerpMap, format: Format) -> String {
    let json = |text: serde_json::Result<String>| {
        text.expect("a map has only numbers and texts as keys") + "\n"
    };
    match format {
        Format::Json => json(serde_json::to_string_pretty(map)),
        Format::Tailscale => json(serde_json::to_string_pretty(&Policy { derp_map: map })),
        Format::Headscale => yaml(map).expect("memory can be written to"),
    }
}

/// Headscale reads the same fields by their names in lower case.
fn yaml(map: &DerpMap) -> Result<String, fmt::Error> {
    let mut text = String::new();
    if map.omit_default_regions {
        text.push_str("omitdefaultregions: true\n");
    }
    text.push_str("regions:\n");
    for (id, region) in &map.regions {
        writeln!(text, "  {id}:")?;
        writeln!(text, "    regionid: {id}")?;
        writeln!(text, "    regioncode: {}", quoted(&region.code))?;
        writeln!(text, "    regionname: {}", quoted(&region.name))?;
        text.push_str("    nodes:\n");
        for node in &region.nodes {
            let mut begin = "    - ";
            for (name, value) in fields(node) {
                writeln!(text, "{begin}{name}: {value}")?;
                begin = "      ";
            }
        }
    }
    Ok(text)
}

/// The fields of a node that are said, in the order of Headscale's own example.
fn fields(node: &Node) -> Vec<(&'static str, String)> {
    let number = |number: i32| if number == 0 { String::new() } else { number.to_string() };
    let text = |text: &str| if text.is_empty() { String::new() } else { quoted(text) };
    let truth = |truth: bool| if truth { "true".to_owned() } else { String::new() };
    let mut fields = vec![
        ("name", text(&node.name)),
        ("regionid", node.region_id.to_string()),
        ("hostname", text(&node.host_name)),
        ("certname", text(&node.cert_name)),
        ("ipv4", text(&node.ipv4)),
        ("ipv6", text(&node.ipv6)),
        ("stunport", number(node.stun_port)),
        ("stunonly", truth(node.stun_only)),
        ("derpport", number(node.derp_port.into())),
        ("insecurefortests", truth(node.insecure_for_tests)),
        ("stuntestip", text(&node.stun_test_ip)),
        ("canport80", truth(node.can_port80)),
    ];
    fields.retain(|(_, value)| !value.is_empty());
    fields
}

/// A JSON text is a YAML text in double quotes, too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
