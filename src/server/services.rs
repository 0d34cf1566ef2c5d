//! Which service a request is for.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::Request;
use tonic::{body::Body, codegen::Service, server::NamedService, service::Routes};

use crate::pb::sign_out_service_server::{SignOutService, SignOutServiceServer};

/// The services of the API listener. A sign-out goes straight to its own: tonic's routes would keep 2 KB more for each
/// call that waits.
pub(super) struct Services<S> {
    sign_out: SignOutServiceServer<S>,
    others: Routes,
}

impl<S> Services<S> {
    pub(super) fn new(sign_out: SignOutServiceServer<S>, others: Routes) -> Self {
        Self { sign_out, others }
    }
}

// Derived, it would ask for an `S` that can be cloned.
impl<S> Clone for Services<S> {
    fn clone(&self) -> Self {
        Self { sign_out: self.sign_out.clone(), others: self.others.clone() }
    }
}

impl<S: SignOutService> Service<Request<Body>> for Services<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<
        <SignOutServiceServer<S> as Service<Request<Body>>>::Future,
        <Routes as Service<Request<Body>>>::Future,
    >;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // tonic's services are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
        match service {
            Some((SignOutServiceServer::<S>::NAME, _)) => Either::Left(self.sign_out.call(request)),
            _ => Either::Right(self.others.call(request)),
        }
    }
}
