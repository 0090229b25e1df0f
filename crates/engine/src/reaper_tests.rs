//! The reaper on the fake backend.
