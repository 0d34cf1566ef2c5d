//! The thread that writes, and its queue.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};
use tracing::{error, info};

use super::sink::Sink;
use crate::metrics::{Kind, Metrics};

/// A write that failed is tried again this often; that is also how long a refused caller is told to wait.
const RETRY: Duration = Duration::from_secs(1);
/// So many events are kept while the sink fails, and calls go on. Where calls do not go on, only those that were under way
/// can add to the queue, and none is dropped.
const MOST_KEPT: usize = 8192;

/// The writer of a sink.
pub(super) struct Writer(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    counters: Arc<Counters>,
    ended: watch::Sender<bool>,
    keep_all: bool,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Line>,
    /// Those, and the one that is being written.
    unwritten: usize,
    closing: bool,
}

struct Line {
    text: String,
    written: Option<oneshot::Sender<()>>,
}

/// What became of the events.
#[derive(Debug, Default)]
pub(super) struct Counters {
    failing: AtomicBool,
    written: AtomicU64,
    lost: AtomicU64,
    failures: AtomicU64,
}

impl Counters {
    pub(super) fn register(counters: &Arc<Self>, metrics: &Metrics) {
        let ours = counters.clone();
        metrics.watch(Kind::Counter, "audit_events", "Events of the audit log", None, move |samples| {
            samples.labelled([("result", "written")], ours.written.load(Ordering::Relaxed) as f64)?;
            samples.labelled([("result", "lost")], ours.lost.load(Ordering::Relaxed) as f64)
        });
        let ours = counters.clone();
        metrics.watch(
            Kind::Counter,
            "audit_write_failures",
            "Writes to the audit log that failed, tries anew included",
            None,
            move |samples| samples.one(ours.failures.load(Ordering::Relaxed) as f64),
        );
        let ours = counters.clone();
        metrics.watch(
            Kind::Gauge,
            "audit_failing",
            "1 while the last write to the audit log failed",
            None,
            move |samples| samples.one(f64::from(u8::from(ours.failing.load(Ordering::Relaxed)))),
        );
    }

    fn lose(&self, events: usize) {
        self.lost.fetch_add(events as u64, Ordering::Relaxed);
    }
}

impl Writer {
    pub(super) fn start(sink: Sink, keep_all: bool) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            counters: Arc::default(),
            ended: watch::Sender::new(false),
            keep_all,
        });
        let ours = shared.clone();
        thread::Builder::new().name("audit".to_owned()).spawn(move || ours.run(sink))?;
        Ok(Self(shared))
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }

    pub(super) fn is_failing(&self) -> bool {
        self.0.counters.failing.load(Ordering::Relaxed)
    }

    /// A write takes longer than anybody can wait: as good as a failure, until it has ended.
    pub(super) fn stalled(&self) {
        let queue = self.0.queue();
        // It may have ended in this very moment, and then nothing would follow that says so.
        if queue.unwritten > 0 && !self.0.counters.failing.swap(true, Ordering::Relaxed) {
            error!("audit: the sink does not take what is written");
        }
    }

    /// Appends a line; if asked for, what is returned ends when it is written, or when a write has failed.
    pub(super) fn push(&self, text: String, tell: bool) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut queue = self.0.queue();
        // Nobody will write it, or there is no room: so it is said, not hidden.
        if *self.0.ended.borrow() || (!self.0.keep_all && queue.lines.len() >= MOST_KEPT) {
            self.0.counters.lose(1);
            return None;
        }
        let (sender, receiver) =
            if tell && !self.is_failing() { Some(oneshot::channel()).unzip() } else { (None, None) };
        queue.lines.push_back(Line { text, written: sender });
        queue.unwritten += 1;
        drop(queue);
        self.0.wake.notify_one();
        receiver.map(|written: oneshot::Receiver<()>| async {
            // An error is a write that failed: what follows from that is for the calls to come.
            let _ = written.await;
        })
    }

    /// Waits until the queue is written, but no longer than that.
    pub(super) async fn close(&self, deadline: Instant) {
        self.0.queue().closing = true;
        self.0.wake.notify_one();
        let mut ended = self.0.ended.subscribe();
        if timeout_at(deadline, ended.wait_for(|ended| *ended)).await.is_err() {
            error!(
                events = self.0.queue().lines.len(),
                "audit: events are lost, the sink does not take them"
            );
        }
    }
}

impl Shared {
    fn run(&self, mut sink: Sink) {
        while let Some(mut line) = self.next() {
            if !self.write(&mut sink, &mut line) {
                let left = 1 + std::mem::take(&mut self.queue().lines).len();
                self.counters.lose(left);
                error!(events = left, "audit: events are lost, the sink does not take them");
                break;
            }
            self.counters.written.fetch_add(1, Ordering::Relaxed);
            if let Some(written) = line.written {
                // The call may be gone; its record stays.
                let _ = written.send(());
            }
        }
        self.ended.send_replace(true);
    }

    /// The next line; `None` when there is none and none will come.
    fn next(&self) -> Option<Line> {
        let queue = self.queue();
        let mut queue = self
            .wake
            .wait_while(queue, |queue| queue.lines.is_empty() && !queue.closing)
            .unwrap_or_else(PoisonError::into_inner);
        queue.lines.pop_front()
    }

    /// Writes a line, and tries for as long as it takes; `false` if it fails while the process is on its way out.
    fn write(&self, sink: &mut Sink, line: &mut Line) -> bool {
        loop {
            match sink.write(&line.text) {
                Ok(()) => {
                    let mut queue = self.queue();
                    queue.unwritten -= 1;
                    if self.counters.failing.swap(false, Ordering::Relaxed) {
                        info!("audit: the sink takes what is written again");
                    }
                    return true;
                }
                Err(error) => {
                    self.counters.failures.fetch_add(1, Ordering::Relaxed);
                    if !self.counters.failing.swap(true, Ordering::Relaxed) {
                        error!(%error, "audit: an event cannot be written");
                    }
                }
            }
            let mut queue = self.queue();
            // The sign-outs are done, and their answers cannot wait for a sink to recover: it is new calls that must.
            line.written = None;
            queue.lines.iter_mut().for_each(|line| line.written = None);
            let (queue, _) = self
                .wake
                .wait_timeout_while(queue, RETRY, |queue| !queue.closing)
                .unwrap_or_else(PoisonError::into_inner);
            if queue.closing {
                drop(queue);
                return sink.write(&line.text).is_ok();
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{PipeReader, Read as _, pipe},
        os::fd::OwnedFd,
    };

    use super::*;

    /// More than any pipe holds.
    const LONG: usize = 1 << 20;

    fn piped(keep_all: bool) -> (PipeReader, Writer) {
        let (reader, writer) = pipe().unwrap();
        let sink = Sink::of(File::from(OwnedFd::from(writer)));
        (reader, Writer::start(sink, keep_all).unwrap())
    }

    fn drain(mut reader: PipeReader) -> thread::JoinHandle<usize> {
        thread::spawn(move || reader.read_to_end(&mut Vec::new()).unwrap())
    }

    #[tokio::test]
    async fn a_sink_that_takes_nothing_counts_as_failing_until_it_does() {
        let (reader, writer) = piped(true);
        let written = writer.push("x".repeat(LONG), true).unwrap();
        assert!(!writer.is_failing());
        writer.stalled();
        assert!(writer.is_failing());
        assert!(writer.push("y".to_owned(), true).is_none(), "nobody waits for a sink that fails");

        let reader = drain(reader);
        written.await;
        writer.close(Instant::now() + Duration::from_secs(10)).await;
        assert!(!writer.is_failing());
        writer.stalled();
        assert!(!writer.is_failing(), "everything is written, so nothing would ever end it");
        drop(writer);
        assert_eq!(reader.join().unwrap(), LONG + 1);
    }

    #[tokio::test]
    async fn what_is_beyond_the_room_is_lost_and_counted_unless_all_is_kept() {
        for (keep_all, lost) in [(false, 10), (true, 0)] {
            let (reader, writer) = piped(keep_all);
            // Once the thread has taken it, and is held up by it, the queue fills.
            drop(writer.push("x".repeat(LONG), false));
            while !writer.0.queue().lines.is_empty() {
                tokio::task::yield_now().await;
            }
            for _ in 0..MOST_KEPT + 10 {
                drop(writer.push("y".to_owned(), false));
            }
            assert_eq!(writer.counters().lost.load(Ordering::Relaxed), lost);
            let reader = drain(reader);
            writer.close(Instant::now() + Duration::from_secs(30)).await;
            drop(writer);
            assert_eq!(reader.join().unwrap() as u64, (LONG + MOST_KEPT + 10) as u64 - lost);
        }
    }
}
