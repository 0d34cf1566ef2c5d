//! The sidecar as a whole: the real binary, over real sockets, before the embedded Cognito or a scripted endpoint.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops at the first surprise")]

mod certs;
mod certs_checks;
mod harness;
mod proxy;
mod proxy_checks;
mod raw;
mod scripted;
mod scripted_checks;

mod abuse;
mod access;
mod attacks;
mod audit;
mod aws;
mod budget;
mod bulk;
mod bulk_command;
mod calls;
mod check;
mod commands;
mod cost;
mod credentials;
mod docs;
mod faults;
mod health;
mod layout;
mod limits;
mod observe;
mod properties;
mod sockets;
mod stopping;
mod time;
mod tls;
mod traces;
