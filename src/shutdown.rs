//! SIGTERM, SIGINT and SIGHUP, as something that every task can wait for.

use std::io::{self, IsTerminal as _};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// Asks a process to stop: once to finish what it is doing, twice to end at once. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    asked: CancellationToken,
    at_once: CancellationToken,
}

impl Stop {
    /// Asked for by SIGTERM and SIGINT, which from now on no longer end the process by themselves.
    pub fn on_signals() -> io::Result<Self> {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = Self::default();
        let ours = stop.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {},
                    _ = interrupt.recv() => {},
                }
                ours.ask();
            }
        });
        Ok(stop)
    }

    /// Asks once; asked already, it is the second time.
    pub fn ask(&self) {
        if self.asked.is_cancelled() {
            self.at_once.cancel();
        }
        self.asked.cancel();
    }

    /// Waits until it is asked for.
    pub async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// Waits until it is asked for twice.
    pub async fn at_once(&self) {
        self.at_once.cancelled().await;
    }
}

/// Hears of SIGHUP, which from now on does not end the process by itself: what is returned changes with each, and asks to
/// look at all files that may have changed. But a process that was started at a terminal means it as that terminal does,
/// which is gone: it is asked to stop.
pub fn hang_ups(stop: &Stop) -> io::Result<watch::Receiver<()>> {
    let mut hang_up = signal(SignalKind::hangup())?;
    let (sender, look) = watch::channel(());
    let stop = io::stderr().is_terminal().then(|| stop.clone());
    tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            match &stop {
                Some(stop) => stop.ask(),
                None => {
                    sender.send_replace(());
                }
            }
        }
    });
    Ok(look)
}
