//! Object storage as it is spoken over HTTP, in this process: as much of S3, of Google Cloud Storage (its XML API) and of Azure
//! Blob Storage as Koios uses, with their conditions, their errors, and faults on demand.
//!
//! It checks who asks by name, not by signature, and keeps everything in memory. What it answers follows the providers'
//! documentation; it is not them.

mod azure;
mod dialect;
mod faults;
mod objects;
mod request;
mod xml;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use koios_runtime::{CancellationToken, ClockHandle, NetHandle, RealClock, RealNet, TaskGroup};
use parking_lot::Mutex;

pub use dialect::Dialect;
pub use faults::{Fault, When};
pub use request::Request;

use faults::Faults;
use objects::Objects;
use request::{Answer, AnswerBody};

/// Whoever brings this name is let in.
const USER: &str = "koiostest";
/// The only region.
const REGION: &str = "us-east-1";

/// A running server with one empty bucket; gone when dropped.
#[derive(Debug)]
pub struct Cloud {
    addr: String,
    state: Arc<State>,
    tasks: TaskGroup,
}

#[derive(Debug)]
struct State {
    dialect: Dialect,
    clock: ClockHandle,
    objects: Mutex<Objects>,
    faults: Mutex<Faults>,
    requests: Mutex<VecDeque<Request>>,
    refusal: Mutex<Option<(u16, String)>>,
}

/// Requests remembered.
const REQUESTS_MAX: usize = 10_000;

impl Cloud {
    /// The bucket, or container, that exists from the start.
    pub const BUCKET: &'static str = "koios-test";

    /// Listens on a free port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(dialect: Dialect) -> io::Result<Self> {
        let net: NetHandle = Arc::new(RealNet);
        let mut listener = net.bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?.to_string();
        let state = Arc::new(State {
            dialect,
            clock: Arc::new(RealClock::new()),
            objects: Mutex::default(),
            faults: Mutex::default(),
            requests: Mutex::default(),
            refusal: Mutex::default(),
        });
        let tasks = TaskGroup::new(CancellationToken::new());
        let (group, shared) = (tasks.clone(), Arc::clone(&state));
        tasks.spawn_cancelled("cloud", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                group.spawn_cancelled("cloud connection", async move {
                    let service = service_fn(move |request| respond(Arc::clone(&state), request));
                    let connection = hyper::server::conn::http1::Builder::new();
                    // It ends when the client wants, or by a fault.
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self { addr, state, tasks })
    }

    /// `host:port`.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// The URL of the bucket with a prefix.
    pub fn url(&self, prefix: &str) -> String {
        format!("{}://{}/{prefix}", self.state.dialect.scheme(), Self::BUCKET)
    }

    /// The environment that points a client at this server.
    pub fn env(&self) -> Vec<(String, String)> {
        self.state.dialect.env(&self.addr)
    }

    /// Lets requests fail.
    pub fn inject(&self, fault: Fault, when: When) {
        self.state.faults.lock().inject(fault, when);
    }

    /// No more faults.
    pub fn heal(&self) {
        *self.state.faults.lock() = Faults::default();
        *self.state.refusal.lock() = None;
    }

    /// Answers everything with a status and a code of the provider's.
    pub fn refuse(&self, status: u16, code: &str) {
        *self.state.refusal.lock() = Some((status, code.to_owned()));
    }

    /// How often an injected fault happened.
    pub fn faults_done(&self) -> u64 {
        self.state.faults.lock().done()
    }

    /// The names of all objects.
    pub fn objects(&self) -> Vec<String> {
        self.state.objects.lock().names()
    }

    /// Uploads in pieces that were neither finished nor dropped.
    pub fn open_uploads(&self) -> usize {
        self.state.objects.lock().open_uploads()
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().drain(..).collect()
    }

    /// Stops answering, as a server that dies.
    pub async fn stop(&self) {
        self.tasks.stop().await;
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

/// The connection is to be closed instead of an answer.
#[derive(Debug)]
struct Close;

impl std::fmt::Display for Close {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed by a fault")
    }
}

impl std::error::Error for Close {}

fn respond(
    state: Arc<State>,
    request: hyper::Request<Incoming>,
) -> BoxFuture<'static, Result<hyper::Response<AnswerBody>, Close>> {
    Box::pin(async move {
        let request = Request::read(request).await.map_err(|_| Close)?;
        let fault = state.faults.lock().next(&request);
        state.remember(&request);
        match fault {
            Some(Fault::Closes) => return Err(Close),
            Some(Fault::Hangs) => {
                state.clock.sleep(Duration::from_secs(3600)).await;
                return Err(Close);
            }
            Some(Fault::Busy) => {
                let code = state.dialect.busy();
                return Ok(state.dialect.error(&request, 503, code).into_response());
            }
            Some(Fault::Conflict) if request.is_conditional() => {
                let answer = state.dialect.error(&request, 409, "ConditionalRequestConflict");
                return Ok(answer.into_response());
            }
            _ => {}
        }
        let stale = fault == Some(Fault::Stale);
        let answer = state.answer(&request, stale);
        Ok(match fault {
            Some(Fault::LostAnswer) => return Err(Close),
            Some(Fault::CutShort) => answer.cut_short(),
            Some(Fault::Slow(pause)) => answer.slowly(Arc::clone(&state.clock), pause),
            _ => answer.into_response(),
        })
    })
}

impl State {
    fn remember(&self, request: &Request) {
        let mut requests = self.requests.lock();
        if requests.len() == REQUESTS_MAX {
            requests.pop_front();
        }
        requests.push_back(request.clone());
    }

    fn answer(&self, request: &Request, stale: bool) -> Answer {
        if let Some((status, code)) = self.refusal.lock().clone() {
            return self.dialect.error(request, status, &code);
        }
        if let Some((status, code)) = self.dialect.stranger(request) {
            return self.dialect.error(request, status, code);
        }
        let Some((bucket, key)) = self.dialect.place(request) else {
            return self.dialect.error(request, 400, "InvalidUri");
        };
        if bucket != Cloud::BUCKET {
            return self.dialect.error(request, 404, self.dialect.no_bucket());
        }
        let mut objects = self.objects.lock();
        let answer = match self.dialect {
            Dialect::S3 | Dialect::Gcs => xml::answer(self.dialect, &mut objects, request, &key, stale),
            Dialect::Azure => azure::answer(&mut objects, request, &key, stale),
        };
        answer.unwrap_or_else(|(status, code)| self.dialect.error(request, status, code))
    }
}

/// An answer, or the status and code of an error.
type Answered = Result<Answer, (u16, &'static str)>;

/// The text of each element of a name, in a document as simple as these are.
fn elements(document: &Bytes, name: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(document).into_owned();
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    text.split(&open)
        .skip(1)
        .filter_map(|rest| rest.split_once(&close))
        .map(|(value, _)| unescaped(value))
        .collect()
}

fn unescaped(text: &str) -> String {
    text.replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
