//! The commands that are clients of a sidecar, and `check`, which stands where a sidecar will.

pub mod check;
pub mod health;
pub mod print;
pub mod sign_out;

use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use crate::config::ClientArgs;

/// A channel to the sidecar; connects when it is first used, so that a failure is a status like any other.
fn channel(args: &ClientArgs) -> Result<Channel, Status> {
    let ClientArgs { address, timeout: _ } = args;
    let uri = if address.starts_with("unix:") { address.clone() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(uri).map_err(|error| {
        Status::invalid_argument(format!("--address {address} is neither HOST:PORT nor unix:/PATH: {error}"))
    })?;
    Ok(endpoint.connect_timeout(args.timeout).connect_lazy())
}

/// A request with its deadline, which the sidecar obeys.
fn request<T>(message: T, args: &ClientArgs) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(args.timeout);
    request
}
