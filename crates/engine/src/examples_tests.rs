//! What is kept of requests.
