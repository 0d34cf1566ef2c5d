//! Values that are read from files, and read anew when the files change.

use std::{fs, path::Path, sync::Arc, time::Duration};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

/// Reads files, and remembers what was in them: contents are compared, never times. Kubernetes replaces a mounted
/// secret by swapping a symbolic link somewhere above it, which leaves no trace on the path that was given to us.
pub struct Files(Context);

impl Files {
    fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// The contents of a file; an error names it.
    pub fn read(&mut self, path: &Path) -> Result<Vec<u8>, String> {
        // A file of gigabytes is not what anybody meant.
        const MOST: u64 = 1 << 20;

        let read = match fs::metadata(path) {
            Ok(metadata) if metadata.len() > MOST => Err(format!("{} is over 1 MiB", path.display())),
            Ok(_) => fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display())),
            Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
        };
        let bytes = match &read {
            Ok(contents) => contents.as_slice(),
            Err(error) => error.as_bytes(),
        };
        // The length keeps two files apart from two others that read the same one after the other.
        self.0.update(&bytes.len().to_be_bytes());
        self.0.update(bytes);
        read
    }

    fn fingerprint(self) -> Vec<u8> {
        self.0.finish().as_ref().to_vec()
    }
}

/// Makes a value of files, or tells what is wrong with them.
type Load<T> = dyn Fn(&mut Files) -> Result<T, String> + Send + Sync;

/// A value as its files have it. The one in use stays in use until a better one is whole.
pub struct Kept<T> {
    what: &'static str,
    load: Arc<Load<T>>,
    current: watch::Sender<Arc<T>>,
    fingerprint: Vec<u8>,
}

impl<T: Send + Sync + 'static> Kept<T> {
    /// Loads it for the first time; then there is no older one to fall back to. `what` names it in the log.
    pub fn load(
        what: &'static str,
        load: impl Fn(&mut Files) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let mut files = Files::new();
        let value = load(&mut files)?;
        Ok(Self {
            what,
            load: Arc::new(load),
            current: watch::Sender::new(Arc::new(value)),
            fingerprint: files.fingerprint(),
        })
    }

    /// The value in use, now and whenever it is asked.
    pub fn current(&self) -> watch::Receiver<Arc<T>> {
        self.current.subscribe()
    }

    /// Keeps it as the files have it, for as long as the process lives; they are looked at every so often, and whenever
    /// `look` changes. `told` hears of each change: whether it was taken over, or something is wrong with it.
    pub async fn keep(mut self, every: Duration, mut look: watch::Receiver<()>, told: impl Fn(bool)) {
        let (mut reloads, mut failures) = (0_u64, 0_u64);
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut wrong: Option<Wrong> = None;
        loop {
            let asked = tokio::select! {
                _ = ticks.tick() => false,
                Ok(()) = look.changed() => true,
            };
            let load = self.load.clone();
            let loaded = spawn_blocking(move || {
                let mut files = Files::new();
                let value = load(&mut files);
                (value, files.fingerprint())
            });
            // Only a panic ends it otherwise; then this task ends as well, and the process with it.
            let Ok((value, fingerprint)) = loaded.await else { return };
            if fingerprint == self.fingerprint {
                if wrong.take().is_some_and(|wrong| wrong.told) {
                    info!("{} as before: what was wrong with the files is gone", self.what);
                }
                continue;
            }
            match value {
                Ok(value) => {
                    wrong = None;
                    self.fingerprint = fingerprint;
                    self.current.send_replace(Arc::new(value));
                    reloads += 1;
                    told(true);
                    info!(reloads, "{} loaded anew", self.what);
                }
                // A writer that is half-way (a certificate without its key yet) is no news. What is found twice is, and
                // what whoever is done with writing asks us to look at.
                Err(error) => {
                    let before = wrong.take().filter(|wrong| wrong.fingerprint == fingerprint);
                    let was_told = before.as_ref().is_some_and(|wrong| wrong.told);
                    let is_news = !was_told && (asked || before.is_some());
                    if is_news {
                        failures += 1;
                        told(false);
                        warn!(failures, %error, "{} not loaded anew; those in use stay in use", self.what);
                    }
                    wrong = Some(Wrong { fingerprint, told: was_told || is_news });
                }
            }
        }
    }
}

/// A state of the files that is of no use.
struct Wrong {
    fingerprint: Vec<u8>,
    told: bool,
}
