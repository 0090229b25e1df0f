//! The wire and the wiring: gRPC, HTTP, command line, logs, shutdown.
//!
//! A request meets, in this order: `listen` (a connection, after its `handshake`), `grpc` (four lines per RPC), `wire`
//! (messages in and out), `from_proto`, the engine, `to_proto`; `status` chooses every code. Around
//! it: `cli`, `options` and `follow` (what was asked for), `serve` (the parts put together, and taken
//! apart), `shutdown`, `control` (loading and unloading by request), `models` (what is told of them), `health`,
//! `admin`, `metrics`, `debug`, `observe`, `access` and `trace` (who is told of calls), `logging`; `client` is `sconce infer`
//! and `sconce models`, `columns` how tables look.
//!
//! This crate does not know how a model is run.

mod access;
mod admin;
mod cli;
mod client;
mod columns;
mod control;
mod conversation;
mod debug;
mod follow;
mod from_proto;
mod grpc;
mod handshake;
mod health;
mod listen;
mod logging;
mod metrics;
mod models;
mod observe;
mod options;
mod serve;
mod shutdown;
mod status;
mod to_proto;
mod trace;
mod wire;

pub use cli::main;
