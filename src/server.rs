//! The sidecar as a whole: everything is bound, then served, watched, and drained.

mod admin;
mod connection;
mod connections;
mod descriptors;
mod guard;
mod health;
mod intake;
mod listen;
mod services;
mod tasks;
mod tls;
mod uds;
mod unary;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use prometheus_client::registry::Unit;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request,
    service::{RoutesBuilder, interceptor::InterceptedService},
};
use tracing::{info, warn};

use self::{
    connections::{Connections, Protocols},
    guard::Guard,
    health::Health,
    intake::Rules,
    listen::Listener,
    services::Services,
    tasks::Tasks,
    uds::Permission,
};
use crate::{
    attempts::{Attempted, Queued},
    audit::{Audit, AuditError},
    cognito::{AwsSource, Cognito, Credentials},
    config::{LimitArgs, ListenAddress, QuotaRps, ServeArgs, TracesAsked},
    metrics::{Kind, Metrics},
    pb,
    policy::Access,
    quota::{BudgetFigures, Gate, Joining, Paced, Pacer, Quotas},
    record::Recorder,
    retry::Retrying,
    service::{self, Desk, Service},
    shutdown::{self, Stop},
    sign_out::UserPoolId,
    status,
    traces::Traces,
};

/// A request is two short strings; tonic's own limit of 4 MiB would be an invitation. This much still lets a far too
/// long field be answered by what is wrong with it.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// What is under way when the drain deadline cuts it is given so long to notice.
const LAST_MOMENT: Duration = Duration::from_millis(200);

/// Everything is bound, nothing is served yet.
pub struct Sidecar {
    args: ServeArgs,
    source: Arc<AwsSource>,
    guard: Guard,
    listeners: Vec<Listener>,
    admin: Listener,
    audit: Option<Arc<Audit>>,
}

/// Why the sidecar cannot start, in a line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Flags that do not go together.
    #[error("{0}")]
    Config(String),
    /// Certificates, or the policy.
    #[error("cannot start: {0}")]
    Access(String),
    /// A listener.
    #[error("cannot listen on {address}: {source}{}", hint(.source, .flag))]
    Listen {
        /// The flag that sets the address.
        flag: &'static str,
        /// Where.
        address: ListenAddress,
        /// Why not.
        source: io::Error,
    },
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// Why the sidecar ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A task that runs as long as the process has ended.
    #[error("{0} ended unexpectedly")]
    TaskEnded(&'static str),
    /// A task panicked; the log says where.
    #[error("{0} failed: a bug")]
    TaskFailed(&'static str),
}

fn hint(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("; is it running already? Choose another by {flag}"),
        io::ErrorKind::PermissionDenied => format!("; choose one that this user may bind by {flag}"),
        io::ErrorKind::AddrNotAvailable => {
            format!("; no interface of this machine has that address, see {flag}")
        }
        _ => format!("; see {flag}"),
    }
}

impl Sidecar {
    /// Validates the configuration and binds everything; what goes wrong goes wrong before anything is served.
    pub async fn bind(args: ServeArgs, source: Arc<AwsSource>) -> Result<Self, StartError> {
        args.validate().map_err(StartError::Config)?;
        let guard = Guard::load(&args.access).map_err(StartError::Access)?;
        guard.check(&args.listen).map_err(StartError::Config)?;
        let permission =
            Permission { mode: args.listen.socket_mode, group: args.listen.socket_group.clone() };
        let bind = async |address: &ListenAddress, flag| {
            let bound = Listener::bind(address, &permission).await;
            bound.map_err(|source| StartError::Listen { flag, address: address.clone(), source })
        };
        let mut listeners = Vec::new();
        for address in &args.listen.listen {
            listeners.push(bind(address, "--listen").await?);
        }
        let admin = bind(&ListenAddress::Tcp(args.listen.admin_listen), "--admin-listen").await?;
        let audit = Audit::open(&args.audit)?.map(Arc::new);
        Ok(Self { args, source, guard, listeners, admin, audit })
    }

    /// Where gRPC is served, with the ports that were taken.
    pub fn addresses(&self) -> Vec<ListenAddress> {
        self.listeners.iter().map(|listener| listener.address().clone()).collect()
    }

    /// Where probes are served.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        match self.admin.address() {
            ListenAddress::Tcp(address) => Some(*address),
            ListenAddress::Unix(_) => None,
        }
    }

    /// Serves until a stop is asked for and what was under way is done.
    pub async fn run(self, stop: Stop) -> Result<(), RunError> {
        let ServeArgs { listen, access: _, time, limits, connections, aws, observe, audit: _, log: _ } =
            self.args;
        for address in self.listeners.iter().map(Listener::address) {
            info!(address = %address, version = env!("CARGO_PKG_VERSION"), "serving gRPC");
        }
        self.guard.warn(self.listeners.iter().map(Listener::address));
        info!(address = %self.admin.address(), "serving probes");
        let handshakes = self.guard.most_handshakes(self.listeners.iter().map(Listener::address));
        descriptors::provide(connections.max_connections, handshakes, limits.max_in_flight);

        let look = shutdown::hang_ups(&stop).unwrap_or_else(|error| {
            warn!(%error, "SIGHUP cannot be heard");
            watch::channel(()).1
        });
        let mut tasks = Tasks::default();
        let metrics = Metrics::new(observe.metrics_pool_ids);

        // Joining around retrying around pacing around Cognito: every attempt, not every call, is counted, and a call
        // that backs off holds no permit.
        let (credentials, keeper) = Credentials::new(self.source.clone(), aws.credentials_timeout);
        tasks.spawn("the credential loader", keeper);
        let (health, api_health, admin_health) = Health::new(credentials.health()).await;
        let watcher = health.watcher();
        watch(&metrics, &credentials, &health, &limits);
        let gate = Gate::new(limits.max_in_flight as usize, limits.max_waiting as usize);
        let cognito = Arc::new(Cognito::new(self.source, aws, credentials));
        tasks.spawn_ending("the warming-up", cognito.warm_up());
        let region_of = {
            let cognito = cognito.clone();
            move |pool: &UserPoolId| cognito.region_of(pool)
        };
        // From its cancelling on nothing more is sent, and every connection is asked to go.
        let closing = CancellationToken::new();
        let pacer = Pacer::new(quotas(&limits), gate.clone());
        watch_quota(&metrics, &pacer);
        let traces = Traces::start(TracesAsked::by_environment(), &metrics);
        let attempted = Attempted::new(cognito, metrics.clone(), traces.clone());
        let paced = Paced::new(attempted, pacer, region_of);
        let queued = Queued::new(paced, metrics.clone(), traces.clone());
        let chain = Joining::new(Retrying::new(queued, time.max_attempts, closing.clone()));
        if let Some(audit) = &self.audit {
            begin_audit(audit, look.clone(), &metrics, &mut tasks);
        }
        let recorder = Recorder::new(metrics.clone(), self.audit.clone(), traces);
        let access = self.guard.access();
        let desk = Desk::new(chain, watcher, access.clone(), recorder.clone(), time.call_timeout);
        let service = Service::new(desk, gate.closing().clone());

        let mut routes = RoutesBuilder::default();
        routes.add_service(api_health);
        if listen.reflection {
            add_reflection(&mut routes, &access);
        }
        let services = Services::new(service, routes.routes().prepare());

        // The listeners accept, and connections stay, until `closing` is cancelled.
        let (accepted, incoming) = mpsc::channel(64);
        let listening = TaskTracker::new();
        let tls = self.guard.acceptor(metrics.refused_connections("api", "tls"));
        for listener in self.listeners {
            let refused = metrics.refused_connections("api", "accept");
            let accept = listening.track_future(listener.accept(accepted.clone(), refused, tls.clone()));
            tasks.spawn_closable("a gRPC listener", accept, &closing);
        }
        let (certificates, policy) = self.guard.keepers(&look, &metrics);
        tasks.spawn("the reloader of certificates", certificates);
        tasks.spawn("the reloader of the policy", policy);
        drop(accepted);
        let admin_connections = Connections::new(admin::limits(&connections), metrics.clone(), "admin");
        let connections = Connections::new(connections, metrics.clone(), "api");
        let rules =
            Rules::new(limits.max_calls(), time.call_timeout, closing.clone(), Some(recorder.clone()));
        let (api, served) = (connections.clone(), TaskTracker::new());
        let server = api.server(Protocols::Http2);
        let api = api.serve(incoming, server, services, rules, closing.clone());
        tasks.spawn_finishing("the gRPC server", served.track_future(api), &closing);
        // The admin listener serves until the process ends: probes may ask while calls finish.
        let (admin_accepted, admin_incoming) = mpsc::channel(16);
        let refused = metrics.refused_connections("admin", "accept");
        tasks.spawn("the admin listener", self.admin.accept(admin_accepted, refused, None));
        tasks.spawn(
            "the admin server",
            admin::serve(admin_incoming, admin_connections, metrics, admin_health, health.process()),
        );

        let health_keeper = health.clone();
        tasks.spawn("the health keeper", async move { health_keeper.keep().await });

        let way_out = async {
            stop.asked().await;
            let deadline = Instant::now() + time.drain_timeout;
            info!(drain_timeout_s = time.drain_timeout.as_secs_f64(), "stopping: not ready any more");
            health.stopping().await;
            tokio::select! {
                () = sleep(time.drain_delay) => {}
                () = stop.at_once() => {}
            }
            info!("stopping: taking no more work");
            gate.close();
            closing.cancel();
            health.close_watches().await;
            listening.close();
            listening.wait().await;
            served.close();
            tokio::select! {
                drained = timeout_at(deadline, served.wait()) => match drained {
                    Ok(()) => info!("stopped: everything is answered"),
                    Err(_elapsed) => warn!("stopped by --drain-timeout: calls were still under way"),
                },
                () = stop.at_once() => warn!("stopped at once: a stop was asked for twice"),
            }
            recorder.finish(deadline).await;
            // Those whose call was cut off are told so, if they listen.
            let _ = timeout(LAST_MOMENT, served.wait()).await;
            connections.cut();
        };
        let error = tokio::select! {
            () = way_out => return Ok(()),
            error = tasks.unexpected_end() => error,
        };
        recorder.finish(Instant::now()).await;
        Err(error)
    }
}

fn begin_audit(audit: &Arc<Audit>, look: watch::Receiver<()>, metrics: &Metrics, tasks: &mut Tasks) {
    audit.count_in(metrics);
    match audit.key_id() {
        Some(key_id) => info!(key_id, "audit: usernames are told by their keyed hash"),
        None => warn!("audit: users are not told, for there is no --audit-key-file"),
    }
    tasks.spawn("the keeper of the audit key", audit.clone().keep_key(look, metrics));
}

/// Metrics of what others keep.
fn watch(metrics: &Metrics, credentials: &Credentials, health: &Health, limits: &LimitArgs) {
    let LimitArgs { max_in_flight, max_waiting, quota_rps: _, quota_share: _, worker_threads: _ } = *limits;
    metrics.constant(
        "attempts_in_flight_limit",
        "Attempts at one time, by --max-in-flight",
        max_in_flight.into(),
    );
    metrics.constant("queue_waiting_limit", "Attempts that may wait, by --max-waiting", max_waiting.into());

    let process = health.process();
    metrics.watch(Kind::Gauge, "stopping", "1 from the moment a stop is asked for", None, move |samples| {
        samples.one(f64::from(u8::from(!*process.borrow())))
    });

    let figures = |credentials: &Credentials| {
        let credentials = credentials.clone();
        move || credentials.figures()
    };
    let read = figures(credentials);
    metrics.watch(
        Kind::Gauge,
        "credentials_usable",
        "1 if there are AWS credentials that have not expired and that AWS has not called expired",
        None,
        move |samples| samples.one(f64::from(u8::from(read().usable))),
    );
    let read = figures(credentials);
    metrics.watch(
        Kind::Gauge,
        "credentials_loaded_timestamp",
        "When the AWS credentials in use were loaded or confirmed, since the epoch",
        Some(Unit::Seconds),
        move |samples| read().loaded_at.map_or(Ok(()), |at| samples.one(since_epoch(at))),
    );
    let read = figures(credentials);
    metrics.watch(
        Kind::Gauge,
        "credentials_expiry_timestamp",
        "When the AWS credentials in use expire, since the epoch; absent if they do not",
        Some(Unit::Seconds),
        move |samples| read().expires_at.map_or(Ok(()), |at| samples.one(since_epoch(at))),
    );
    let read = figures(credentials);
    metrics.watch(
        Kind::Counter,
        "credentials_loads",
        "Times that the AWS credentials were loaded or refreshed",
        None,
        move |samples| {
            let figures = read();
            samples.labelled([("result", "success")], figures.successes as f64)?;
            samples.labelled([("result", "failure")], figures.failures as f64)
        },
    );
}

/// Metrics of the budgets, region by region, from the first attempt on that was charged to one.
fn watch_quota(metrics: &Metrics, pacer: &Arc<Pacer>) {
    let each = |kind, name, help, value: fn(&BudgetFigures) -> f64| {
        let pacer = pacer.clone();
        metrics.watch(kind, name, help, None, move |samples| {
            pacer.figures().iter().try_for_each(|figures| {
                samples.labelled([("region", figures.region.as_str())], value(figures))
            })
        });
    };
    each(
        Kind::Gauge,
        "quota_limit_per_second",
        "The most attempts a second, by --quota-rps and --quota-share",
        |figures| figures.limit,
    );
    each(
        Kind::Gauge,
        "quota_pace_per_second",
        "Attempts a second that are let through now; it falls with throttling, and use brings it back",
        |figures| figures.pace,
    );
    each(Kind::Counter, "quota_throttled", "Throttled attempts that the pace was told of", |figures| {
        figures.throttled as f64
    });
    let pacer = pacer.clone();
    metrics.watch(Kind::Gauge, "quota_waiting", "Attempts that wait for the pace", None, move |samples| {
        pacer.figures().iter().try_for_each(|figures| {
            let region = ("region", figures.region.as_str());
            samples.labelled([region, ("class", "interactive")], figures.interactive as f64)?;
            samples.labelled([region, ("class", "bulk")], figures.bulk as f64)
        })
    });
}

fn since_epoch(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn quotas(limits: &LimitArgs) -> Quotas {
    let rps = |quota: &&QuotaRps| quota.rps;
    Quotas {
        elsewhere: limits.quota_rps.iter().find(|quota| quota.region.is_none()).as_ref().map(rps),
        regions: limits
            .quota_rps
            .iter()
            .filter_map(|quota| Some((quota.region.clone()?, quota.rps)))
            .collect(),
        share: limits.quota_share,
    }
}

/// Of our own protos, which `google/rpc/error_details.proto` is among, and of health, so that tools can ask for it.
fn add_reflection(routes: &mut RoutesBuilder, access: &Access) {
    // What can be called is told to those who may call.
    let access = access.clone();
    let known = move |request: Request<()>| match access.identify(&service::presented(&request)) {
        Ok(_) => Ok(request),
        Err(why) => Err(status::of_refusal(&why.into())),
    };
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    if let (Ok(v1), Ok(v1alpha)) = (builder().build_v1(), builder().build_v1alpha()) {
        routes
            .add_service(InterceptedService::new(v1, known.clone()))
            .add_service(InterceptedService::new(v1alpha, known));
    }
}
