//! Region to client: one AWS configuration, one credential cache, one SDK client per region, made on first use and kept.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_config::{
    AppName, BehaviorVersion, SdkConfig,
    environment::EnvironmentVariableRegionProvider,
    meta::region::{ProvideRegion as _, RegionProviderChain},
    profile::ProfileFileRegionProvider,
};
use aws_sdk_cognitoidentityprovider::{
    Client,
    config::{self, IdentityCache, retry::RetryConfig, timeout::TimeoutConfig},
};
use aws_smithy_runtime::client::defaults::default_http_client_plugin_v2;
use aws_smithy_runtime_api::client::{
    http::SharedHttpClient, runtime_components::RuntimeComponentsBuilder, runtime_plugin::RuntimePlugin as _,
};
use tokio::sync::OnceCell;

use super::Credentials;
use crate::{
    pattern::Pattern,
    sign_out::{Region, UserPoolId},
};

/// The name that AWS sees in the user agent.
const APP_NAME: &str = "cognito-signout";

/// Where the AWS configuration comes from. Read once, when it is first needed.
#[derive(Debug)]
pub struct AwsSource {
    cell: OnceCell<SdkConfig>,
    needs_region: bool,
}

impl AwsSource {
    /// The environment and the profile files, as every AWS SDK reads them.
    ///
    /// `needs_region`: whether credentials may come from a service that has to be called in a region (STS, SSO), so
    /// that the instance's metadata may be asked for one. The region of a pool never comes from here.
    pub fn environment(needs_region: bool) -> Arc<Self> {
        Arc::new(Self { cell: OnceCell::new(), needs_region })
    }

    /// A configuration that is there already.
    pub fn given(config: SdkConfig) -> Arc<Self> {
        Arc::new(Self { cell: OnceCell::new_with(Some(config)), needs_region: false })
    }

    pub(super) async fn config(&self) -> &SdkConfig {
        if let Some(config) = self.cell.get() {
            return config;
        }
        // Boxed: it is large, is needed once, and would be a part of every attempt.
        let load = self.cell.get_or_init(async || {
            let mut region = EnvironmentVariableRegionProvider::new().region().await;
            if region.is_none() {
                region = ProfileFileRegionProvider::new().region().await;
            }
            let mut chain = RegionProviderChain::first_try(region);
            if self.needs_region {
                chain = chain.or_default_provider();
            }
            aws_config::defaults(BehaviorVersion::latest()).region(chain).load().await
        });
        Box::pin(load).await
    }
}

/// How long the stages of an attempt may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// For a connection to be made, TLS included.
    pub(super) connect: Duration,
    /// For one attempt as a whole.
    pub(super) attempt: Duration,
}

/// The regional clients.
pub(super) struct Clients {
    source: Arc<AwsSource>,
    timeouts: Timeouts,
    credentials: Credentials,
    /// One for all regions: root certificates are read once, and connections are kept by host anyway.
    http: Option<SharedHttpClient>,
    kept: Mutex<Kept>,
}

/// Clients with the number of the use that was their last.
#[derive(Default)]
struct Kept {
    uses: u64,
    by_region: HashMap<Region, (u64, Client)>,
}

/// More than AWS has regions, and a bound on what pool ids with invented regions can make us keep.
const MAX_KEPT: usize = 64;

impl Clients {
    pub(super) fn new(source: Arc<AwsSource>, timeouts: Timeouts, credentials: Credentials) -> Self {
        Self { source, timeouts, credentials, http: default_http_client(), kept: Mutex::default() }
    }

    pub(super) async fn of(&self, region: &Region) -> Client {
        let config = self.source.config().await;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.uses += 1;
        let now = kept.uses;
        if let Some((last_use, client)) = kept.by_region.get_mut(region) {
            *last_use = now;
            return client.clone();
        }
        if kept.by_region.len() >= MAX_KEPT {
            let oldest = kept
                .by_region
                .iter()
                .min_by_key(|(_, (last_use, _))| *last_use)
                .map(|(region, _)| region.clone());
            oldest.and_then(|region| kept.by_region.remove(&region));
        }
        let client = self.make(config, region);
        kept.by_region.insert(region.clone(), (now, client.clone()));
        client
    }

    /// The client that the first call will most probably use: of the sidecar's own region.
    pub(super) async fn likeliest(&self) -> Client {
        let own = self.source.config().await.region().and_then(|region| region.as_ref().parse().ok());
        // Of any other region, it shares with the right one what takes longest.
        let region = own.or_else(|| "us-east-1".parse().ok());
        self.of(&region.unwrap_or_else(|| unreachable!("a constant that is a region"))).await
    }

    fn make(&self, config: &SdkConfig, region: &Region) -> Client {
        let http = config.http_client().or_else(|| self.http.clone());
        let mut config = config::Builder::from(config)
            .region(config::Region::new(region.as_str().to_owned()))
            .app_name(AppName::new(APP_NAME).unwrap_or_else(|_| unreachable!("a constant of allowed characters")))
            .credentials_provider(self.credentials.clone())
            // Ours is the cache: it can be told to load anew, which the SDK's cannot.
            .identity_cache(IdentityCache::no_cache())
            // One attempt a call: the loop that knows the deadline is ours.
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(self.timeouts.connect)
                    .operation_attempt_timeout(self.timeouts.attempt)
                    .build(),
            );
        config.set_http_client(http);
        Client::from_conf(config.build())
    }
}

/// The one that every client of the SDK would otherwise make for itself.
fn default_http_client() -> Option<SharedHttpClient> {
    let plugin = default_http_client_plugin_v2(BehaviorVersion::latest())?;
    plugin.runtime_components(&RuntimeComponentsBuilder::new("cognito-signout")).http_client()
}

/// Which region a pool is in.
#[derive(Debug, Clone, Default)]
pub(super) struct Regions {
    overrides: Vec<(Pattern, Region)>,
}

impl Regions {
    /// What the pool ids say, but for the pools that a pattern names. Of several patterns that match, the most precise
    /// counts.
    pub(super) fn new(mut overrides: Vec<(Pattern, Region)>) -> Self {
        overrides.sort_by_key(|(pattern, _)| Reverse(pattern.precision()));
        Self { overrides }
    }

    /// The region to call for a pool; `None` if neither its id nor the configuration tells.
    pub(super) fn of(&self, pool: &UserPoolId) -> Option<Region> {
        let overridden = self.overrides.iter().find(|(pattern, _)| pattern.matches(pool.as_str()));
        overridden.map(|(_, region)| region.clone()).or_else(|| pool.region())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_precise_override_counts_and_else_the_pools_own_region() {
        let regions = Regions::new(
            [("*", "us-west-1"), ("us-east-1_Replica", "eu-west-1"), ("us-east-1_*", "us-west-2")]
                .map(|(pattern, region)| (pattern.parse().unwrap(), region.parse().unwrap()))
                .to_vec(),
        );
        let of = |regions: &Regions, pool| {
            regions.of(&UserPoolId::parse(pool).unwrap()).map(|region| region.to_string())
        };
        assert_eq!(of(&regions, "us-east-1_Replica").as_deref(), Some("eu-west-1"));
        assert_eq!(of(&regions, "us-east-1_Other").as_deref(), Some("us-west-2"));
        assert_eq!(of(&regions, "local_pool").as_deref(), Some("us-west-1"));
        assert_eq!(of(&Regions::default(), "eu-central-1_A").as_deref(), Some("eu-central-1"));
        assert_eq!(of(&Regions::default(), "local_pool"), None);
    }

    #[tokio::test]
    async fn at_most_so_many_clients_are_kept_and_the_least_recently_used_goes() {
        let source =
            AwsSource::given(SdkConfig::builder().behavior_version(BehaviorVersion::latest()).build());
        let timeouts = Timeouts { connect: Duration::from_secs(1), attempt: Duration::from_secs(1) };
        let (credentials, _) = Credentials::new(source.clone(), Duration::from_secs(1));
        let clients = Clients::new(source, timeouts, credentials);

        let region = |n: usize| format!("xx-test-{n}").parse::<Region>().unwrap();
        for n in 0..MAX_KEPT {
            clients.of(&region(n)).await;
        }
        clients.of(&region(0)).await;
        clients.of(&region(MAX_KEPT)).await;

        let kept = clients.kept.lock().unwrap();
        assert_eq!(kept.by_region.len(), MAX_KEPT);
        assert!(kept.by_region.contains_key(&region(0)));
        assert!(!kept.by_region.contains_key(&region(1)));
    }
}
