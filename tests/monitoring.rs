//! Metrics, and what is deployed to watch them: the dashboard, the rules and the runbook.
//!
//! - `bounds`: what callers make up adds no series, and what is gone leaves none
//! - `deployed`: dashboard, rules and runbook against each other and against `/metrics`
//! - `exercise`: a server to which everything has happened that has a number
//! - `exposition`: reads `/metrics`
//! - `live`: a real Prometheus answers what dashboard and rules ask
//! - `numbers`: the numbers are those that callers counted
//! - `prometheus`: starts Prometheus and its tool
//! - `promql`: reads queries
//! - `table`: the tables of README.md

mod bounds;
mod deployed;
mod exercise;
mod exposition;
mod live;
mod numbers;
mod prometheus;
mod promql;
mod table;
