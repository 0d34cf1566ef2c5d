//! Which service a request is for.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::FutureExt as _;
use http::{Request, Response};
use tonic::{body::Body, codegen::Service, server::NamedService, service::Routes};

use super::{MAX_REQUEST_BYTES, unary};
use crate::pb::sign_out_service_server::{SignOutService, SignOutServiceServer};

/// The services of the API listener. Sign-outs do not go through tonic's routes, which would keep 2 KB more for each call
/// that waits.
pub(super) struct Services<S> {
    sign_out: Arc<S>,
    /// The same service as tonic serves it: the stream, and methods that do not exist.
    sign_out_by_tonic: SignOutServiceServer<S>,
    others: Routes,
}

impl<S> Services<S> {
    pub(super) fn new(sign_out: S, others: Routes) -> Self {
        let sign_out = Arc::new(sign_out);
        let sign_out_by_tonic = SignOutServiceServer::from_arc(sign_out.clone())
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_REQUEST_BYTES);
        Self { sign_out, sign_out_by_tonic, others }
    }
}

// Derived, it would ask for an `S` that can be cloned.
impl<S> Clone for Services<S> {
    fn clone(&self) -> Self {
        Self {
            sign_out: self.sign_out.clone(),
            sign_out_by_tonic: self.sign_out_by_tonic.clone(),
            others: self.others.clone(),
        }
    }
}

impl<S: SignOutService> Service<Request<Body>> for Services<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // tonic's services are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
        match method {
            Some((SignOutServiceServer::<S>::NAME, "AdminUserGlobalSignOut")) => {
                Box::pin(unary::sign_out(self.sign_out.clone(), request).map(Ok))
            }
            Some((SignOutServiceServer::<S>::NAME, _)) => self.sign_out_by_tonic.call(request),
            _ => Box::pin(self.others.call(request)),
        }
    }
}
