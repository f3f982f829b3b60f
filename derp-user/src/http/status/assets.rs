//! The files of the page: its script, its style, and the chart library. They are in the program, so that the page needs
//! nothing from elsewhere; they are no secret, so that whoever opens the page with a key gets them without one.

use std::{hash::Hasher as _, sync::LazyLock};

use crate::http::{Reply, reply};

/// A file of the page.
pub(super) struct Asset {
    pub(super) path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

pub(super) const SCRIPT: Asset = Asset {
    path: "/debug/status.js",
    content_type: "text/javascript; charset=utf-8",
    text: include_str!("status.js"),
};
pub(super) const STYLE: Asset = Asset {
    path: "/debug/status.css",
    content_type: "text/css; charset=utf-8",
    text: include_str!("status.css"),
};
/// uPlot, as `derp-user/vendor/vendored.json` says.
pub(super) const CHARTS_SCRIPT: Asset = Asset {
    path: "/debug/uplot.js",
    content_type: "text/javascript; charset=utf-8",
    text: include_str!("../../../vendor/uplot/uPlot.iife.min.js"),
};
pub(super) const CHARTS_STYLE: Asset = Asset {
    path: "/debug/uplot.css",
    content_type: "text/css; charset=utf-8",
    text: include_str!("../../../vendor/uplot/uPlot.min.css"),
};

const ALL: [&Asset; 4] = [&SCRIPT, &STYLE, &CHARTS_SCRIPT, &CHARTS_STYLE];

/// Tells one build's files from another's, in their addresses: they may be kept for long, but never too long.
pub(super) static MARK: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = std::hash::DefaultHasher::new();
    ALL.iter().for_each(|asset| hasher.write(asset.text.as_bytes()));
    format!("{:016x}", hasher.finish())
});

/// The file at `path`, if there is one.
pub(in crate::http) fn find(path: &str) -> Option<Reply> {
    let asset = ALL.into_iter().find(|asset| asset.path == path)?;
    Some(reply::browser(reply::asset(asset.content_type, asset.text)))
}
