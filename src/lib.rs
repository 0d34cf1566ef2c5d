//! A sidecar that signs a user out everywhere in Amazon Cognito, asked over gRPC.
//!
//! One crate: this library is what the binary and the tests share; it is not meant for others to depend on.
//!
//! # How a call walks
//!
//! message -> [`service`] parses it into the vocabulary of [`sign_out`], once -> [`quota`] joins it to one that waits for the
//! same user -> [`retry`] attempts within the deadline -> [`quota`] lets through what the account's quota allows, and no more
//! at one time than allowed -> [`cognito`] makes one attempt by the AWS SDK -> a
//! `SignedOut` or a `SignOutError` -> [`status`] maps that, once, to what the caller sees.
//!
//! # Modules
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | every flag and environment variable, typed; nothing else reads the environment |
//! | [`pattern`] | names matched exactly, or by a prefix that ends in one `*` |
//! | [`sign_out`] | the vocabulary: whom to sign out, what came of it, why not; and the port, `trait SignOut` |
//! | [`policy`] | who may sign out whom: what a connection shows, the callers, their pools |
//! | [`reload`] | values that are read from files, and read anew when these change |
//! | `redact` | what must not leave the process |
//! | [`status`] | a failure to a gRPC status with google.rpc details; the only place that knows gRPC codes |
//! | [`deadline`] | when a call must have been answered, and that it is |
//! | [`service`] | gRPC in and out |
//! | [`record`] | what is left of a call: its log line, its metrics, its audit event, its span |
//! | [`attempts`] | attempts and their waiting, seen: two `SignOut`s around a `SignOut` |
//! | [`retry`] | attempts within the deadline: a `SignOut` around a `SignOut` |
//! | `bulk` | the bidirectional stream, each item a call of its own |
//! | [`quota`] | how much is asked of Cognito: in flight, a second, and never twice where once will do: two more |
//! | [`cognito`] | the adapter: one attempt by the SDK, its failure in our words; the only place that knows AWS |
//! | [`server`] | bind everything, serve, drain; owns health and the admin listener |
//! | [`audit`] | the audit log: one event for each sign-out asked for |
//! | [`metrics`] | what is counted, and how it is told |
//! | [`telemetry`] | logs |
//! | [`traces`] | the caller's trace context, spans, OTLP |
//! | [`panics`] | a panic takes one call along, never the process |
//! | [`shutdown`] | SIGTERM, SIGINT and SIGHUP |
//! | [`client`] | the commands that are clients: `sign-out`, `bulk`, `health`; and `check` |
//! | `demo` | the commands `demo` and `emulate`, with the embedded Cognito (feature `demo`) |
//! | [`codec`] | messages to bytes and back |
//! | [`pb`] | the code generated from `proto/` |
//!
//! # Who may use whom
//!
//! To the right only; a test reads the `use` lines and holds it.
//!
//! ```text
//! main -> client, demo -> server -> service -> bulk, retry, quota, cognito, telemetry -> attempts -> record -> audit, traces
//!     -> metrics, deadline -> status, policy, redact, config -> sign_out -> pattern
//! ```
//!
//! `service` and `cognito` never see each other: what they share is the vocabulary. `codec`, `pb`, `panics`, `reload` and
//! `shutdown` may be used by all and use nothing.

pub mod attempts;
pub mod audit;
mod bulk;
pub mod client;
pub mod codec;
pub mod cognito;
pub mod config;
pub mod deadline;
#[cfg(feature = "demo")]
pub mod demo;
pub mod metrics;
pub mod panics;
pub mod pattern;
pub mod policy;
pub mod quota;
pub mod record;
mod redact;
pub mod reload;
pub mod retry;
pub mod server;
pub mod service;
pub mod shutdown;
pub mod sign_out;
pub mod status;
pub mod telemetry;
pub mod traces;

/// The code generated from `proto/cognito/signout/v1/sign_out.proto`.
pub mod pb {
    #![allow(missing_docs, reason = "generated; the comments are in the proto")]
    #![allow(clippy::all, clippy::pedantic, reason = "generated")]

    tonic::include_proto!("cognito.signout.v1");

    /// All protos compiled, with `google/rpc/error_details.proto`, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
