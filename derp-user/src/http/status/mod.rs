//! The status page at `/debug/` and the document at `/debug/status.json`, which the page's script and `derpd top` read.
//!
//! The page is whole without its script: tables and figures are made here, and only here. The script draws the charts,
//! and puts newer figures and tables, as this module makes them, in place of older ones.

mod assets;
mod page;

use hyper::{StatusCode, http::request::Parts};

pub(super) use self::assets::find as find_asset;
use super::{Reply, reply};
use crate::status::{ClientOrder, MOST_ROWS, Since, Status};

/// What a request wants to see.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Wish {
    since: Since,
    /// Most rows of the tables of clients and flows.
    rows: usize,
    order: ClientOrder,
    /// What else is in the query and belongs into links: the key that opens the pages, if it is there.
    key: Option<String>,
}

impl Wish {
    /// Reads the query. `since` is what is meant if it does not say.
    fn of(request: &Parts, since: Since) -> Result<Self, String> {
        let query = request.uri.query().unwrap_or_default();
        let mut wish = Self { since, rows: MOST_ROWS, order: ClientOrder::default(), key: None };
        let (mut run, mut after) = (None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let number = || {
                let number = value.parse::<u64>();
                number.map_err(|_| format!("{name}: {value:?} is not a whole number"))
            };
            match &*name {
                "run" => run = Some(number()?),
                "after" => after = Some(number()?),
                "rows" => {
                    let rows = usize::try_from(number()?).unwrap_or(usize::MAX);
                    wish.rows = rows.min(MOST_ROWS);
                }
                "sort" => {
                    wish.order =
                        value.parse::<ClientOrder>().map_err(|error| format!("sort: {error}"))?;
                }
                "debugkey" => wish.key = Some(value.into_owned()),
                _ => {}
            }
        }
        match (run, after) {
            (Some(run), Some(time)) => wish.since = Since::After { run, time },
            (None, None) => {}
            (Some(_), None) | (None, Some(_)) => {
                return Err(
                    "run and after belong together: both are of an earlier answer".to_owned()
                );
            }
        }
        Ok(wish)
    }

    /// The document as wished for.
    fn apply(&self, mut status: Status) -> Status {
        self.order.sort(&mut status.clients.shown);
        status.clients.shown.truncate(self.rows);
        status.flows.shown.truncate(self.rows);
        status
    }
}

/// Answers `/debug/status.json`.
pub(super) fn document(request: &Parts, status: impl FnOnce(Since) -> Status) -> Reply {
    match Wish::of(request, Since::Everything) {
        Ok(wish) => reply::json(&wish.apply(status(wish.since))),
        Err(fault) => reply::text(StatusCode::BAD_REQUEST, &fault),
    }
}

/// Answers `/debug/`. `facts` are the rows of its table of what does not change.
pub(super) fn index(
    request: &Parts,
    facts: &[(&'static str, String)],
    status: impl FnOnce(Since) -> Status,
) -> Reply {
    match Wish::of(request, Since::Last) {
        Ok(wish) => {
            let status = wish.apply(status(wish.since));
            reply::html(
                StatusCode::OK,
                page::render(&status, facts, wish.order, wish.key.as_deref()),
            )
        }
        Err(fault) => reply::text(StatusCode::BAD_REQUEST, &fault),
    }
}

#[cfg(test)]
mod tests;
