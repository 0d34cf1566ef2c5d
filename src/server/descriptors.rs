//! File descriptors: a connection takes one, and many systems give a process no more than 1024 unless it asks.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// For all that is neither a caller's connection nor one to Cognito: most of it the admin listener's connections, and what
/// is accepted and not served yet.
const OTHERS: u64 = 400;

/// Raises the soft limit to what the limits of connections and calls may come to, within the hard one, and warns if that
/// is not enough. No further: a program that the AWS configuration starts for credentials inherits it.
///
/// `handshakes` is how many peers may be in their TLS handshakes: they are no connections yet.
pub(super) fn provide(max_connections: u32, handshakes: usize, max_in_flight: u32) {
    // Two for an attempt: a call that makes a connection may take one that another gives back, and both are kept.
    let needed = u64::from(max_connections) + handshakes as u64 + 2 * u64::from(max_in_flight) + OTHERS;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (Some(allowed), most) = (current, maximum.unwrap_or(u64::MAX)) else { return };
    if allowed >= needed {
        return;
    }
    let raised = needed.min(most);
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        Ok(()) if raised >= needed => info!(allowed, raised, "more file descriptors are allowed now"),
        Ok(()) => {
            warn!(
                needed,
                allowed = raised,
                "too few file descriptors for --max-connections and --max-in-flight; raise ulimit -n"
            );
        }
        Err(error) => {
            warn!(needed, allowed, %error, "too few file descriptors for --max-connections and --max-in-flight; raise ulimit -n");
        }
    }
}
