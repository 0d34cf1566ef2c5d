//! What the first call would otherwise wait for, done before it comes, with nothing sent.

use aws_sdk_cognitoidentityprovider::{
    Client,
    config::{ConfigBag, Intercept, RuntimeComponents},
};
use aws_smithy_runtime_api::client::{
    http::{HttpClient as _, HttpConnectorSettings},
    interceptors::context::BeforeTransmitInterceptorContextRef,
};
use aws_smithy_types::timeout::TimeoutConfig;
use tracing::debug;

use crate::sign_out::BoxError;

/// Gathers the entropy of TLS, which takes tens of milliseconds of CPU once in the life of a process.
pub(super) async fn gather_entropy() {
    // Elsewhere, so that calls can be served meanwhile.
    let gathered = tokio::task::spawn_blocking(|| aws_lc_rs::rand::fill(&mut [0; 1])).await;
    if !matches!(gathered, Ok(Ok(()))) {
        debug!("no entropy yet");
    }
}

/// Walks the way of a call up to the HTTP client: endpoint rules, identity, signature, root certificates.
pub(super) async fn walk(client: &Client) {
    let ended = client
        .admin_user_global_sign_out()
        .user_pool_id("us-east-1_WarmUp")
        .username("warm-up")
        .customize()
        .interceptor(SendsNothing)
        .send()
        .await;
    debug!(ended = ended.err().map(tracing::field::display), "warmed up");
}

/// Ends a call at the last moment before the request would be handed to the HTTP client.
#[derive(Debug)]
struct SendsNothing;

impl Intercept for SendsNothing {
    fn name(&self) -> &'static str {
        "cognito-signout-warm-up"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // What the SDK would do next, short of using it: the connector is kept, with the certificates it has read.
        if let (Some(http), Some(timeouts)) = (components.http_client(), config.load::<TimeoutConfig>()) {
            let mut settings = HttpConnectorSettings::builder();
            settings.set_connect_timeout(timeouts.connect_timeout());
            settings.set_read_timeout(timeouts.read_timeout());
            http.http_connector(&settings.build(), components);
        }
        Err("nothing is sent while warming up".into())
    }
}
