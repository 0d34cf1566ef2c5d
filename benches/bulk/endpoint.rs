//! Cognito as far as a sign-out goes: HTTP/1.1 by hand, a thread for each connection.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

const WELL: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.1\r\n\
    x-amzn-requestid: 5c217ed0-0000-4000-8000-000000000000\r\ncontent-length: 2\r\n\r\n{}";
const THROTTLED: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/x-amz-json-1.1\r\n\
    x-amzn-requestid: 5c217ed0-0000-4000-8000-000000000001\r\n\
    x-amzn-errortype: TooManyRequestsException\r\ncontent-length: 27\r\n\r\n{\"message\":\"Rate exceeded\"}";

/// An endpoint that runs for as long as the process does.
pub(crate) struct Upstream {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    answered: AtomicUsize,
    /// When each call came, and whether it was served; only where there is a rate.
    seen: Mutex<Vec<(Instant, bool)>>,
}

impl Upstream {
    /// Serves every call.
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared { answered: AtomicUsize::new(0), seen: Mutex::default() });
        let url = serve(shared.clone(), |_| true);
        Self { url, shared }
    }

    /// Serves so many a second: a bucket of one second's calls. Notes what came when.
    pub(crate) fn enforcing(rate: f64) -> Self {
        let shared = Arc::new(Shared { answered: AtomicUsize::new(0), seen: Mutex::default() });
        let bucket = Mutex::new((rate, Instant::now()));
        let url = serve(shared.clone(), move |shared| {
            let mut bucket = bucket.lock().unwrap();
            let now = Instant::now();
            let tokens = (bucket.0 + (now - bucket.1).as_secs_f64() * rate).min(rate);
            let admits = tokens >= 1.0;
            *bucket = (tokens - f64::from(u8::from(admits)), now);
            shared.seen.lock().unwrap().push((now, admits));
            admits
        });
        Self { url, shared }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// How many calls were served, and how many throttled, from one moment to another.
    pub(crate) fn between(&self, from: Instant, to: Instant) -> (f64, f64) {
        let seen = self.shared.seen.lock().unwrap();
        let within = |served: bool| {
            seen.iter().filter(|(at, was)| (from..to).contains(at) && *was == served).count() as f64
        };
        (within(true), within(false))
    }
}

fn serve(shared: Arc<Shared>, admits: impl Fn(&Shared) -> bool + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let admits = Arc::new(admits);
    thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let (shared, admits) = (shared.clone(), admits.clone());
            // Ends with its connection.
            thread::spawn(move || _ = converse(connection, &shared, &*admits));
        }
    });
    url
}

fn converse(
    connection: TcpStream,
    shared: &Shared,
    admits: &impl Fn(&Shared) -> bool,
) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut writer = connection.try_clone()?;
    let mut reader = BufReader::new(connection);
    let (mut line, mut body) = (String::new(), Vec::new());
    loop {
        let mut length = 0;
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
        let answer = if admits(shared) { WELL } else { THROTTLED };
        shared.answered.fetch_add(1, Ordering::Relaxed);
        writer.write_all(answer.as_bytes())?;
    }
}
