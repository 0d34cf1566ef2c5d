//! What health checks see: `""`, whether the process takes calls, and the service, whether sign-outs can work.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tracing::{info, warn};

use crate::{cognito::CredentialsHealth, service::Observer, sign_out::Cause};

const SERVICE: &str = "cognito.signout.v1.SignOutService";
/// So many SIDECAR_CREDENTIALS_* answers in a row say that no sign-out can work.
const TELLING: u32 = 3;
/// After this long it is tried again, although the provider gave no other credentials: AWS may have changed its mind.
const TRIAL_AFTER: Duration = Duration::from_secs(30);

/// The health of the sidecar. Clones are the same.
#[derive(Clone)]
pub(super) struct Health(Arc<Shared>);

struct Shared {
    api: HealthReporter,
    admin: HealthReporter,
    process: watch::Sender<bool>,
    credentials: CredentialsHealth,
    failures: Arc<Failures>,
}

#[derive(Default)]
struct Failures {
    in_a_row: AtomicU32,
    too_many: Notify,
}

impl Health {
    /// The health, and the services that tell it on the API listener and on the admin listener.
    pub(super) async fn new(
        credentials: CredentialsHealth,
    ) -> (Self, HealthServer<HealthService>, HealthServer<HealthService>) {
        let (api, admin) = (HealthReporter::new(), HealthReporter::new());
        let server = |reporter: &HealthReporter| {
            HealthServer::new(HealthService::from_health_reporter(reporter.clone()))
        };
        let servers = (server(&api), server(&admin));
        let health = Self(Arc::new(Shared {
            api,
            admin,
            process: watch::Sender::new(true),
            credentials,
            failures: Arc::default(),
        }));
        // Before anything is served, so that no probe is told that there is no such service.
        health.set("", ServingStatus::Serving).await;
        health.set(SERVICE, ServingStatus::NotServing).await;
        (health, servers.0, servers.1)
    }

    /// Whether the process takes calls.
    pub(super) fn process(&self) -> watch::Receiver<bool> {
        self.0.process.subscribe()
    }

    /// What has to see every answer.
    pub(super) fn watcher(&self) -> Watcher {
        Watcher(self.0.failures.clone())
    }

    /// Keeps the health of the service true until a stop is asked for, then keeps it NOT_SERVING.
    pub(super) async fn keep(&self) {
        let mut credentials = self.0.credentials.clone();
        let mut process = self.process();
        let keep = async {
            while *credentials.borrow_and_update() == 0 {
                if credentials.changed().await.is_err() {
                    return;
                }
            }
            loop {
                self.0.failures.in_a_row.store(0, Ordering::Relaxed);
                self.set(SERVICE, ServingStatus::Serving).await;
                info!(service = SERVICE, "health: SERVING");

                self.0.failures.too_many.notified().await;
                self.set(SERVICE, ServingStatus::NotServing).await;
                warn!(service = SERVICE, "health: NOT_SERVING: the AWS credentials do not work");
                credentials.mark_unchanged();
                tokio::select! {
                    changed = credentials.changed() => if changed.is_err() { return },
                    () = sleep(TRIAL_AFTER) => {}
                }
            }
        };
        tokio::select! {
            () = keep => {}
            // Whatever the credentials do: a process that stops does not come back.
            () = async { _ = process.wait_for(|serving| !serving).await } => {}
        }
        self.set("", ServingStatus::NotServing).await;
        self.set(SERVICE, ServingStatus::NotServing).await;
        std::future::pending().await
    }

    /// A stop is asked for: from now on NOT_SERVING.
    pub(super) async fn stopping(&self) {
        self.0.process.send_replace(false);
        // The keeper will do the same; but what follows must find it done.
        self.set("", ServingStatus::NotServing).await;
        self.set(SERVICE, ServingStatus::NotServing).await;
    }

    /// Ends the watches on the API listener, which never end by themselves and would hold its connections open.
    pub(super) async fn close_watches(&self) {
        for service in ["", SERVICE] {
            self.0.api.clone().clear_service_status(service).await;
        }
    }

    async fn set(&self, service: &str, status: ServingStatus) {
        self.0.api.set_service_status(service, status).await;
        self.0.admin.set_service_status(service, status).await;
    }
}

/// Counts the answers that say that the credentials do not work.
pub(super) struct Watcher(Arc<Failures>);

impl Observer for Watcher {
    fn answered(&self, failure: Option<&Cause>) {
        match failure {
            Some(cause) if cause.is_about_credentials() => {
                if self.0.in_a_row.fetch_add(1, Ordering::Relaxed) + 1 == TELLING {
                    self.0.too_many.notify_one();
                }
            }
            // These say nothing about credentials, good or bad.
            Some(
                Cause::InvalidRequest(_)
                | Cause::CognitoUnreachable
                | Cause::DeadlineExceeded
                | Cause::Overloaded
                | Cause::QuotaExhausted
                | Cause::ShuttingDown
                | Cause::AuditUnavailable
                | Cause::CallerUnauthenticated(_)
                | Cause::CallerNotAllowed
                | Cause::SidecarInternalError,
            ) => {}
            _ => self.0.in_a_row.store(0, Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Request;
    use tonic_health::pb::{HealthCheckRequest, health_check_response, health_server::Health as _};

    use super::*;

    async fn status(health: &Health, service: &str) -> health_check_response::ServingStatus {
        let request = Request::new(HealthCheckRequest { service: service.to_owned() });
        let told = HealthService::from_health_reporter(health.0.api.clone()).check(request).await.unwrap();
        // Whoever keeps the health runs in between.
        sleep(Duration::from_millis(1)).await;
        told.into_inner().status()
    }

    #[tokio::test(start_paused = true)]
    async fn after_three_failures_in_a_row_the_service_is_tried_again_in_thirty_seconds() {
        use health_check_response::ServingStatus::{NotServing, Serving};

        let (loaded, credentials) = watch::channel(0);
        let (health, _, _) = Health::new(credentials).await;
        let keeper = health.clone();
        tokio::spawn(async move { keeper.keep().await });
        let watcher = health.watcher();
        let invalid = || watcher.answered(Some(&Cause::SidecarCredentialsInvalid));

        assert_eq!(status(&health, SERVICE).await, NotServing);
        loaded.send(1).unwrap();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(status(&health, SERVICE).await, Serving);

        invalid();
        invalid();
        watcher.answered(None);
        invalid();
        invalid();
        // These come before the credentials are used, or say nothing about them.
        watcher.answered(Some(&Cause::InvalidRequest(Vec::new())));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(status(&health, SERVICE).await, Serving, "a success in between begins anew");
        invalid();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(status(&health, SERVICE).await, NotServing);
        assert_eq!(status(&health, "").await, Serving);

        sleep(TRIAL_AFTER).await;
        assert_eq!(status(&health, SERVICE).await, Serving, "on trial");
        (0..3).for_each(|_| invalid());
        sleep(Duration::from_millis(1)).await;
        assert_eq!(status(&health, SERVICE).await, NotServing);
        loaded.send(2).unwrap();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(status(&health, SERVICE).await, Serving, "the provider gave others");
    }
}
