mod model;
mod report;
mod rules;
mod support;
