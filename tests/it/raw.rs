//! A peer that speaks HTTP/2 by hand, byte by byte, so that it can speak it badly.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::harness::PATIENCE;

/// What every HTTP/2 connection begins with.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The path of the one unary method.
pub(crate) const SIGN_OUT: &str = "/cognito.signout.v1.SignOutService/AdminUserGlobalSignOut";

/// Types of frames, from the section "Frame Definitions" of RFC 9113.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const CONTINUATION: u8 = 9;
}

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A block of headers in HPACK's plainest form: nothing indexed, nothing compressed.
pub(crate) fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    fn text(block: &mut Vec<u8>, text: &str) {
        let length = text.len();
        if length < 127 {
            block.push(u8::try_from(length).unwrap());
        } else {
            block.push(127);
            let mut rest = length - 127;
            while rest >= 128 {
                block.push(u8::try_from(rest % 128).unwrap() | 0x80);
                rest /= 128;
            }
            block.push(u8::try_from(rest).unwrap());
        }
        block.extend(text.as_bytes());
    }
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

/// The headers of a call.
pub(crate) fn call_headers(path: &str) -> Vec<u8> {
    header_block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

/// A connection on which nothing is sent or read but what a test says.
pub(crate) struct Raw(TcpStream);

impl Raw {
    /// Opens the connection, and says nothing.
    pub(crate) async fn connect(address: &str) -> Self {
        Self::try_connect(address).await.unwrap()
    }

    pub(crate) async fn try_connect(address: &str) -> io::Result<Self> {
        Ok(Self(TcpStream::connect(address).await?))
    }

    /// Opens the connection and speaks HTTP/2, with nothing to ask.
    pub(crate) async fn greeted(address: &str) -> Self {
        let mut raw = Self::connect(address).await;
        raw.greet().await.unwrap();
        // The server's settings are the sign that it serves the connection.
        raw.wait_for_frame(kind::SETTINGS).await;
        raw
    }

    pub(crate) async fn greet(&mut self) -> io::Result<()> {
        self.send(&[PREFACE, &frame(kind::SETTINGS, 0, 0, &[])].concat()).await
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// Reads frames until there is one of a kind, and returns its payload.
    pub(crate) async fn wait_for_frame(&mut self, kind: u8) -> Vec<u8> {
        timeout(PATIENCE, async {
            loop {
                let mut head = [0; 9];
                self.0.read_exact(&mut head).await.expect("the server closed without the frame");
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let mut payload = vec![0; length];
                self.0.read_exact(&mut payload).await.unwrap();
                if head[3] == kind {
                    return payload;
                }
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no frame of kind {kind} came"))
    }

    /// Waits until the server has ended the connection, and ignores what it says before.
    pub(crate) async fn wait_for_end(&mut self) {
        assert!(self.ends_within(PATIENCE).await, "the server did not end the connection");
    }

    /// Whether the server ends the connection within this time.
    pub(crate) async fn ends_within(&mut self, time: Duration) -> bool {
        let mut ignored = vec![0; 64 * 1024];
        let end = async { while matches!(self.0.read(&mut ignored).await, Ok(read) if read > 0) {} };
        timeout(time, end).await.is_ok()
    }
}
