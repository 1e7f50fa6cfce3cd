//! Clients that are as raw as a test needs them: HTTP/1.1 byte by byte, HTTP/2 frame by
//! frame. They read no more than they are asked to, and leave in whatever way is wanted.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Answer;

const PATIENCE: Duration = Duration::from_secs(20);

/// The text of a POST over HTTP/1.1, with a key, a known length and further header lines.
pub fn http1_post(path: &str, key: &str, lines: &[&str], body: &str) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\nidempotency-key: {key}\r\n\
         content-length: {}\r\n{lines}\r\n{body}",
        body.len()
    )
}

async fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A connection that speaks HTTP/1.1.
pub struct Http1 {
    stream: TcpStream,
    read: BytesMut,
}

/// An answer of which only the head was read.
#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
}

impl Http1 {
    pub async fn connect(addr: SocketAddr) -> Self {
        Self {
            stream: connect(addr).await,
            read: BytesMut::new(),
        }
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// A POST with a key and its answer, read to its end.
    pub async fn post(&mut self, path: &str, key: &str, body: &str) -> Answer {
        self.write(http1_post(path, key, &[], body)).await;
        self.answer().await
    }

    /// False at the end of the connection.
    async fn read_more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.read);
        timeout(PATIENCE, read)
            .await
            .expect("the server is silent")
            .unwrap()
            > 0
    }

    /// What the server says until it closes the connection.
    pub async fn rest(&mut self) -> String {
        while self.read_more().await {}
        String::from_utf8_lossy(&self.read.split()).into_owned()
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.read.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.read.split_to(end);
                self.read.advance(2);
                return String::from_utf8_lossy(&line).into_owned();
            }
            assert!(self.read_more().await, "the answer ends within a line");
        }
    }

    async fn fields(&mut self) -> HeaderMap {
        let mut fields = HeaderMap::new();
        loop {
            let line = self.line().await;
            if line.is_empty() {
                return fields;
            }
            let (name, value) = line.split_once(':').unwrap();
            fields.append(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_str(value.trim()).unwrap(),
            );
        }
    }

    /// The next head, interim ones as they come.
    pub async fn head(&mut self) -> Head {
        let line = self.line().await;
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let headers = self.fields().await;
        Head { status, headers }
    }

    /// The next bytes, exactly that many.
    pub async fn bytes(&mut self, len: usize) -> Bytes {
        while self.read.len() < len {
            assert!(self.read_more().await, "the answer ends within its body");
        }
        self.read.split_to(len).freeze()
    }

    /// The next chunk of a chunked body; empty at the end, where the trailers follow.
    pub async fn chunk(&mut self) -> Bytes {
        let size = usize::from_str_radix(&self.line().await, 16).unwrap();
        let chunk = self.bytes(size).await;
        if size > 0 {
            assert_eq!(self.line().await, "");
        }
        chunk
    }

    /// The body that belongs to a head, to its end.
    pub async fn body(&mut self, head: Head) -> Answer {
        let Head { status, headers } = head;
        let mut trailers = None;
        let body = if let Some(len) = headers.get("content-length") {
            let len = len.to_str().unwrap().parse().unwrap();
            self.bytes(len).await
        } else if headers.contains_key("transfer-encoding") {
            let mut body = BytesMut::new();
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    break;
                }
                body.extend_from_slice(&chunk);
            }
            trailers = Some(self.fields().await).filter(|fields| !fields.is_empty());
            body.freeze()
        } else {
            Bytes::new()
        };
        Answer {
            status,
            headers,
            body,
            trailers,
            outcome: None,
        }
    }

    pub async fn answer(&mut self) -> Answer {
        let head = self.head().await;
        self.body(head).await
    }

    /// Leaves with a FIN, as a client does that ends in order.
    pub fn close(self) {
        drop(self.stream);
    }

    /// Leaves with an RST, as a client does that crashed.
    pub fn reset(self) {
        let stream = self.stream.into_std().unwrap();
        let stream = TcpStream::from_std(stream).unwrap();
        stream.set_zero_linger().unwrap();
        drop(stream);
    }
}

/// A connection that speaks HTTP/2.
pub struct Http2 {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

impl Http2 {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = connect(addr).await;
        let (requests, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self {
            requests,
            connection,
        }
    }

    /// Sends a head; the body is to follow on the stream.
    pub async fn open(&self, head: Request<()>) -> (ResponseFuture, SendStream<Bytes>) {
        let mut requests = self.requests.clone().ready().await.unwrap();
        requests.send_request(head, false).unwrap()
    }

    /// Sends the head of a POST with a key; the body is to follow on the stream.
    pub async fn begin(&self, path: &str, key: &str) -> (ResponseFuture, SendStream<Bytes>) {
        let request = Request::post(format!("http://test{path}")).header("idempotency-key", key);
        self.open(request.body(()).unwrap()).await
    }

    /// Sends a whole POST with a key. The stream is for resetting it.
    pub async fn send(
        &self,
        path: &str,
        key: &str,
        body: &str,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let (answer, mut stream) = self.begin(path, key).await;
        stream
            .send_data(Bytes::copy_from_slice(body.as_bytes()), true)
            .unwrap();
        (answer, stream)
    }

    pub async fn post(&self, path: &str, key: &str, body: &str) -> Answer {
        let (answer, _stream) = self.send(path, key, body).await;
        read(answer).await
    }

    /// Closes the connection, whatever is under way on it.
    pub fn close(self) {
        self.connection.abort();
    }
}

/// An answer, read to its end.
pub async fn read(answer: ResponseFuture) -> Answer {
    let answer = timeout(PATIENCE, answer)
        .await
        .expect("the server is silent");
    let (parts, mut body) = answer.unwrap().into_parts();
    let mut data = BytesMut::new();
    while let Some(more) = next(&mut body).await {
        data.extend_from_slice(&more);
    }
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: data.freeze(),
        trailers: body.trailers().await.unwrap(),
        outcome: None,
    }
}

/// The next data of an answer, `None` at its end.
pub async fn next(body: &mut RecvStream) -> Option<Bytes> {
    let data = timeout(PATIENCE, body.data())
        .await
        .expect("the server is silent");
    let data = data?.unwrap();
    let _ = body.flow_control().release_capacity(data.len());
    Some(data)
}

/// Gives up one request and keeps the connection.
pub fn reset(mut stream: SendStream<Bytes>) {
    stream.send_reset(Reason::CANCEL);
}
