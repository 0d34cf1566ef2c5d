//! One message in, one message out: as tonic's generated code serves such a method, and by its codec, but so that nothing of
//! the reading and the writing is held while the call waits in between. tonic's own future has room for all of it from
//! beginning to end, 2 KB for each of the thousands that may wait.

use std::{future::ready, sync::Arc};

use futures_util::stream::once;
use http::{Extensions, HeaderMap, Response, header::CONTENT_TYPE};
use tonic::{
    Request, Status, Streaming,
    body::Body,
    codec::{Codec as _, EncodeBody, SingleMessageCompressionOverride},
    metadata::{GRPC_CONTENT_TYPE, MetadataMap, MetadataValue},
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
    let (parts, body) = request.into_parts();
    // Made here, because the block below would hold the request for as long as it lives.
    let reading = Box::pin(read(is_plain(&parts.headers), needed(&parts.headers), parts.extensions, body));
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

async fn read(
    is_plain: Result<(), Status>,
    headers: HeaderMap,
    extensions: Extensions,
    body: Body,
) -> Result<Request<AdminUserGlobalSignOutRequest>, Status> {
    is_plain?;
    let mut messages =
        Streaming::new_request(Codec::default().decoder(), body, None, Some(MAX_REQUEST_BYTES));
    let message = messages.message().await?.ok_or_else(|| Status::internal("Missing request message."))?;
    // To the end of the request; its trailers say nothing.
    messages.trailers().await?;
    Ok(Request::from_parts(MetadataMap::from_headers(headers), extensions, message))
}

fn is_plain(headers: &HeaderMap) -> Result<(), Status> {
    match headers.get("grpc-encoding").filter(|encoding| *encoding != "identity") {
        None => Ok(()),
        Some(encoding) => {
            let mut status = Status::unimplemented(format!(
                "the message is compressed ({encoding:?}), which is not supported"
            ));
            status.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static("identity"));
            Err(status)
        }
    }
}

/// Of the headers, those that are looked at once the message is there. Others would be held in the meantime, and thousands of
/// calls may wait for their messages.
fn needed(headers: &HeaderMap) -> HeaderMap {
    let mut needed = HeaderMap::new();
    for name in ["authorization", "traceparent", "tracestate"] {
        for value in headers.get_all(name) {
            needed.append(name, value.clone());
        }
    }
    needed
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
