//! One message in, one message out: as tonic's generated code serves such a method, and by its codec, but so that nothing of
//! the reading and the writing is held while the call waits in between. tonic's own future has room for all of it from
//! beginning to end, 2 KB for each of the thousands that may wait.

use std::{future::ready, sync::Arc};

use futures_util::stream::once;
use http::{Response, header::CONTENT_TYPE};
use tonic::{
    Request, Status, Streaming,
    body::Body,
    codec::{Codec as _, EncodeBody, SingleMessageCompressionOverride},
    metadata::{GRPC_CONTENT_TYPE, MetadataValue},
};

use super::MAX_REQUEST_BYTES;
use crate::{
    codec::SmallMessages,
    pb::{
        AdminUserGlobalSignOutRequest, AdminUserGlobalSignOutResponse,
        sign_out_service_server::SignOutService,
    },
};

type Codec = SmallMessages<AdminUserGlobalSignOutResponse, AdminUserGlobalSignOutRequest>;

/// Serves one sign-out.
pub(super) fn sign_out<S: SignOutService>(
    service: Arc<S>,
    request: http::Request<Body>,
) -> impl Future<Output = Response<Body>> + Send {
    // Made here, because the block below would hold the request for as long as it lives.
    let reading = Box::pin(read(request));
    async move {
        let request = match reading.await {
            Ok(request) => request,
            Err(status) => return status.into_http(),
        };
        match service.admin_user_global_sign_out(request).await {
            Ok(response) => write(response),
            Err(status) => status.into_http(),
        }
    }
}

async fn read(request: http::Request<Body>) -> Result<Request<AdminUserGlobalSignOutRequest>, Status> {
    if let Some(encoding) = request.headers().get("grpc-encoding").filter(|encoding| *encoding != "identity")
    {
        let mut status = Status::unimplemented(format!(
            "the message is compressed ({encoding:?}), which is not supported"
        ));
        status.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static("identity"));
        return Err(status);
    }
    let (parts, body) = request.into_parts();
    let mut messages =
        Streaming::new_request(Codec::default().decoder(), body, None, Some(MAX_REQUEST_BYTES));
    let message = messages.message().await?.ok_or_else(|| Status::internal("Missing request message."))?;
    // To the end of the request; its trailers say nothing.
    messages.trailers().await?;
    Ok(Request::from_http(http::Request::from_parts(parts, message)))
}

fn write(response: tonic::Response<AdminUserGlobalSignOutResponse>) -> Response<Body> {
    let (metadata, message, _extensions) = response.into_parts();
    let body = EncodeBody::new_server(
        Codec::default().encoder(),
        once(ready(Ok(message))),
        None,
        SingleMessageCompressionOverride::default(),
        Some(MAX_REQUEST_BYTES),
    );
    let mut response = Response::new(Body::new(body));
    *response.headers_mut() = metadata.into_headers();
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}
