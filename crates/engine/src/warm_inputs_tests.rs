//! What versions are warmed with.
