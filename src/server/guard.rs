//! The locks on the doors: TLS and the policy, as the flags say, loaded and kept as their files have them.

use std::{sync::Arc, time::Duration};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;
use tracing::warn;

use super::{
    listen::MOST_HANDSHAKES,
    tls::{Acceptor, TlsFiles},
};
use crate::{
    config::{AccessArgs, ListenAddress, ListenArgs},
    metrics::Metrics,
    pattern::Pattern,
    policy::{self, Access, Policy},
    reload::Kept,
};

/// TLS, the policy, and who may reach what.
pub(super) struct Guard {
    tls: Option<Kept<ServerConfig>>,
    policy: Option<Kept<Policy>>,
    certificates: bool,
    allow_pools: Vec<Pattern>,
    every: Duration,
}

impl Guard {
    /// Loads what the flags name. An error is a line for the operator.
    pub(super) fn load(args: &AccessArgs) -> Result<Self, String> {
        let AccessArgs { tls_cert, tls_key, tls_client_ca, policy, allow_pool, reload_interval } =
            args.clone();
        let certificates = tls_client_ca.is_some();
        let tls = match (tls_cert, tls_key) {
            (Some(certificate), Some(key)) => {
                let files = TlsFiles { certificate, key, client_ca: tls_client_ca };
                Some(Kept::load("certificates", move |reader| files.load(reader))?)
            }
            // That both or none are given was seen to before.
            _ => None,
        };
        let policy = match policy {
            Some(path) => Some(
                Kept::load("the policy", move |files| policy::load(&path, files))
                    .map_err(|error| format!("--policy {error}"))?,
            ),
            None => None,
        };
        Ok(Self { tls, policy, certificates, allow_pools: allow_pool, every: reload_interval })
    }

    /// How many peers may be in their TLS handshakes with these listeners.
    pub(super) fn most_handshakes<'a>(&self, addresses: impl Iterator<Item = &'a ListenAddress>) -> usize {
        let tcp = addresses.filter(|address| matches!(address, ListenAddress::Tcp(_))).count();
        if self.tls.is_some() { tcp * MOST_HANDSHAKES } else { 0 }
    }

    /// What TLS is made with, and counts whom it refuses; `None` for plain text.
    pub(super) fn acceptor(&self, refused: Counter) -> Option<Acceptor> {
        self.tls.as_ref().map(|tls| Acceptor { config: tls.current(), refused: refused.clone() })
    }

    /// What decides on every call.
    pub(super) fn access(&self) -> Access {
        Access {
            policy: self.policy(),
            certificates: self.certificates,
            allow_pools: self.allow_pools.clone(),
        }
    }

    fn policy(&self) -> Option<watch::Receiver<Arc<Policy>>> {
        self.policy.as_ref().map(Kept::current)
    }

    /// Refuses to open the power to end every session to a network on which nobody has to say who they are.
    pub(super) fn check(&self, listen: &ListenArgs) -> Result<(), String> {
        match listen.listen.iter().find_map(|address| self.lacks_at(address).map(|lacks| (address, lacks))) {
            Some((address, lacks)) if !listen.insecure_listen => Err(format!(
                "--listen {address} can be reached from the network, so it needs {lacks}; or listen on 127.0.0.1 or \
                 unix:/PATH, or say --insecure-listen if something else guards it"
            )),
            _ => Ok(()),
        }
    }

    /// The flags that are missing for an address to be safe.
    fn lacks_at(&self, address: &ListenAddress) -> Option<String> {
        match address {
            ListenAddress::Tcp(address) if !address.ip().to_canonical().is_loopback() => {}
            ListenAddress::Tcp(_) | ListenAddress::Unix(_) => return None,
        }
        let tokens = self.policy().is_some_and(|policy| policy.borrow().has_tokens());
        let tls = self.tls.is_none().then_some("TLS (--tls-cert and --tls-key)");
        let identity = (!self.certificates && !tokens)
            .then_some("callers that identify themselves (--tls-client-ca, or --policy with tokens)");
        match (tls, identity) {
            (Some(tls), Some(identity)) => Some(format!("{tls} and {identity}")),
            (Some(lacks), None) | (None, Some(lacks)) => Some(lacks.to_owned()),
            (None, None) => None,
        }
    }

    /// Tells the log what is dangerous, or cannot be meant.
    pub(super) fn warn<'a>(&self, addresses: impl Iterator<Item = &'a ListenAddress> + Clone) {
        for address in addresses.clone() {
            match self.lacks_at(address) {
                None => {}
                Some(_) if self.policy.is_none() && !self.certificates => {
                    warn!(%address, "--insecure-listen: everybody who reaches this address can sign users out");
                }
                Some(lacks) => {
                    warn!(%address, "--insecure-listen: this address can be reached from the network, without {lacks}");
                }
            }
        }
        let Some(policy) = self.policy() else { return };
        let policy = policy.borrow();
        let unix = addresses.clone().any(|address| matches!(address, ListenAddress::Unix(_)));
        for (useless, what, flag) in [
            (policy.has_certificates() && !self.certificates, "a certificate", "--tls-client-ca is not set"),
            (policy.has_uids() && !unix, "a uid", "there is no --listen unix:/PATH"),
        ] {
            if useless {
                warn!("the policy has callers known by {what}, but {flag}");
            }
        }
        for warning in policy.warnings() {
            warn!("--policy: {warning}");
        }
    }

    /// Keeps TLS as its files have it, for as long as the process lives, and the policy likewise. They are looked at at
    /// once when `look` changes.
    pub(super) fn keepers(
        self,
        look: &watch::Receiver<()>,
        metrics: &Metrics,
    ) -> (impl Future<Output = ()> + use<>, impl Future<Output = ()> + use<>) {
        (
            keep(self.tls, self.every, look.clone(), metrics, "tls"),
            keep(self.policy, self.every, look.clone(), metrics, "policy"),
        )
    }
}

fn keep<T: Send + Sync + 'static>(
    kept: Option<Kept<T>>,
    every: Duration,
    look: watch::Receiver<()>,
    metrics: &Metrics,
    what: &'static str,
) -> impl Future<Output = ()> + use<T> {
    let kept = kept.map(|kept| (kept, metrics.reloads(what)));
    async move {
        match kept {
            Some((kept, told)) => kept.keep(every, look, told).await,
            None => std::future::pending().await,
        }
    }
}
