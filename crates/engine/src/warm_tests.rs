//! Warming on the fake backend.
