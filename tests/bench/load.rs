//! Senders over plain HTTP/1.1 with keep-alive, written by hand: on two shared cores, what the generator costs is missing from what
//! it measures.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime,
    task::JoinSet,
};

/// The largest head of an answer that we expect, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Where and as whom messages are sent.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The box.
    pub(crate) address: SocketAddr,
    /// The room.
    pub(crate) room: String,
    /// Access tokens of its members; senders take turns with them.
    pub(crate) tokens: Vec<String>,
}

/// When the senders stop.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// After a time.
    Elapsed(Duration),
    /// After a number of events.
    Sent(usize),
}

/// What the senders saw.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// From the first request to the last answer.
    pub(crate) took: Duration,
    /// How long each answer took, sorted.
    pub(crate) latencies: Vec<Duration>,
}

impl Outcome {
    /// Several runs as one.
    pub(crate) fn sum(runs: Vec<Self>) -> Self {
        let took = runs.iter().map(|run| run.took).sum();
        let mut latencies: Vec<Duration> = runs.into_iter().flat_map(|run| run.latencies).collect();
        latencies.sort_unstable();
        Self { took, latencies }
    }

    /// Answers per second.
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// The latency that `percent` of the answers stayed under.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(last * percent / 100).copied().unwrap_or_default()
    }
}

/// Keeps `senders` messages in flight. `run` tells this run's transaction ids from those of other runs.
///
/// # Errors
/// When the box refuses a message or breaks off.
pub(crate) fn send(target: &Target, senders: usize, until: Until, run: &str) -> Result<Outcome> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let started = Instant::now();
        for (index, token) in target.tokens.iter().cycle().take(senders).enumerate() {
            let request = Request {
                path: format!(
                    "/_matrix/client/v3/rooms/{}/send/m.room.message/{run}-{index}-",
                    target.room
                ),
                token: token.clone(),
            };
            let share = match until {
                Until::Elapsed(time) => Share::Until(started + time),
                Until::Sent(count) => {
                    Share::Count(count / senders + usize::from(index < count % senders))
                }
            };
            let address = target.address;
            tasks.spawn(async move { sender(address, request, share).await });
        }
        let mut latencies = Vec::new();
        while let Some(done) = tasks.join_next().await {
            latencies.extend(done??);
        }
        let took = started.elapsed();
        latencies.sort_unstable();
        Ok(Outcome { took, latencies })
    })
}

struct Request {
    path: String,
    token: String,
}

#[derive(Clone, Copy)]
enum Share {
    Until(Instant),
    Count(usize),
}

async fn sender(address: SocketAddr, request: Request, share: Share) -> Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address).await.context("the box does not answer")?;
    stream.set_nodelay(true)?;
    let mut latencies = Vec::new();
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let goes_on = match share {
            Share::Until(end) => Instant::now() < end,
            Share::Count(count) => latencies.len() < count,
        };
        if !goes_on {
            return Ok(latencies);
        }
        let number = latencies.len();
        let body =
            format!(r#"{{"msgtype":"m.text","body":"Situation report {number}: all quiet."}}"#);
        let head = format!(
            "PUT {}{number} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            request.path,
            request.token,
            body.len()
        );
        let started = Instant::now();
        stream.write_all(head.as_bytes()).await?;
        let status = answer(&mut stream, &mut buffer).await?;
        latencies.push(started.elapsed());
        ensure!(status == 200, "send: {status} {}", String::from_utf8_lossy(&buffer));
    }
}

/// Reads one answer; its body is left in `buffer`.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<u16> {
    buffer.clear();
    let head_end = loop {
        if let Some(position) = find(buffer, b"\r\n\r\n") {
            break position + 4;
        }
        ensure!(buffer.len() < HEAD_BYTES_MAX, "an answer with an endless head");
        ensure!(stream.read_buf(buffer).await? > 0, "the box broke off");
    };
    let head =
        String::from_utf8_lossy(buffer.get(..head_end).unwrap_or_default()).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status")?;
    if head.contains("transfer-encoding: chunked") {
        while !buffer.ends_with(b"0\r\n\r\n") {
            ensure!(stream.read_buf(buffer).await? > 0, "the box broke off");
        }
        return Ok(status);
    }
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|value| value.trim().parse().ok())
        .context("an answer without length")?;
    while buffer.len() < head_end + length {
        ensure!(stream.read_buf(buffer).await? > 0, "the box broke off");
    }
    buffer.drain(..head_end);
    Ok(status)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
