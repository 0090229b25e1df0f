//! Whole-server tests: the real binary, over real sockets. One binary, one harness.
//!
//! - `broken`: files and configs that cannot be served: each says why, everything else is served
//! - `changes`: models change on disk while they serve
//! - `cli`: the command line: flags, environment, files, and one sentence for every mistake
//! - `clients`: clients in other languages against the sample repository
//! - `control`: loading and unloading by request, and what is told of models
//! - `dtypes`: every datatype through a real model and back, bit by bit
//! - `generation`: one request, many answers
//! - `health`: health over gRPC and HTTP, while serving and while draining
//! - `logging`: the log, what changes it while the server runs, and what a person can ask a server
//! - `models`: real TorchScript models, every kind of signature, with the numbers they must give
//! - `monitoring`: metrics, and what is deployed to watch them
//! - `operators`: custom operators out of a library that is compiled here
//! - `readme`: every example of README.md, and its tables against the binary
//! - `reference`: answers compared with those of libtorch itself (feature `reference`)
//! - `refusals`: every wrong request, its code and its sentence
//! - `rpcs`: what each RPC tells, and which are not served
//! - `scheduling`: what callers see of it: codes, deadlines, and how much of the machine is used
//! - `sequences`: requests that hang together
//! - `shutdown`: signals, and what is in flight when they come
//! - `statistics`: what is counted of requests and calls
//! - `streams`: conversations: frames, ends, callers who do not read
//! - `tidy`: what a machine can see of how the code is kept
//! - `tracing`: what reaches a collector of traces, and what becomes of requests where none listens
//! - `traffic`: many calls, large ones, slow ones, late ones, and clients that give up
//! - `wire`: messages on the wire: framing, encodings, sizes and the budget
//!
//! Those on the scripted backend run in every build; those on libtorch need the `torch` feature.
#![allow(missing_docs, unreachable_pub)]

mod broken;
mod changes;
mod cli;
mod clients;
mod control;
mod dtypes;
mod generation;
mod harness;
mod health;
mod logging;
mod models;
mod monitoring;
mod operators;
mod raw;
mod readme;
mod reference;
mod refusals;
mod rpcs;
mod scheduling;
mod sequences;
mod shutdown;
mod statistics;
mod streams;
mod tidy;
mod tracing;
mod traffic;
mod wire;
