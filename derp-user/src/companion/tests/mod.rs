pub(crate) mod model;
#[cfg(test)]
mod report;
#[cfg(test)]
mod rules;
#[cfg_attr(not(test), expect(dead_code, reason = "the models need a part of it"))]
mod support;
