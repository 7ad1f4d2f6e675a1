//! Blocks of Prometheus come in over HTTP, by Mimir's protocol, and are imported in the background.
//!
//! **Source**: Grafana Mimir's block upload, as mimirtool speaks it: 404 for what was not begun, 409 for what is imported or being
//! imported, 429 for too much at once, 413 for too large.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};
use koios_block::BlockId;
use koios_bucket::FileUpload;
use koios_import::{UploadError, UploadState, Uploads, check_size};
use koios_model::TenantId;
use koios_runtime::{ClockHandle, with_sources};
use koios_tsdb::META_BYTES_MAX;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::CompactionDuty;

/// Files on their way at a time: each has some pieces of 8 MiB in memory.
const FILES_MAX: usize = 8;
/// Longest wait for a sender's next bytes.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How often blocks that were finished here are imported.
const WORK_EVERY: Duration = Duration::from_secs(2);
/// How often all tenants are looked at, for what another process was to import.
const SWEEP_EVERY: Duration = Duration::from_secs(120);
/// The same at the start, when the process may not be registered yet.
const FIRST_SWEEPS_EVERY: Duration = Duration::from_secs(10);
/// How often the latter.
const FIRST_SWEEPS: u32 = 6;
/// What a client is told to wait.
const RETRY_AFTER: &str = "5";

/// Takes uploads and imports them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct UploadService {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    uploads: Uploads,
    clock: ClockHandle,
    files: Semaphore,
    /// Tenants with something to import that this process knows of.
    waiting: Mutex<BTreeSet<TenantId>>,
}

impl UploadService {
    /// Over uploads in a bucket.
    pub fn new(uploads: Uploads, clock: ClockHandle) -> Self {
        Self {
            shared: Arc::new(Shared {
                uploads,
                clock,
                files: Semaphore::new(FILES_MAX),
                waiting: Mutex::default(),
            }),
        }
    }

    /// The endpoints. Their requests may take as long as a file takes; a sender that stops is given up.
    pub fn router(&self) -> Router {
        let of = |what: &str| format!("/api/v1/upload/block/{{block}}/{what}");
        Router::new()
            .route(&of("start"), post(start))
            .route(&of("files"), post(file))
            .route(&of("finish"), post(finish))
            .route(&of("check"), get(check))
            .with_state(self.clone())
    }

    /// Imports what was uploaded, for ever: at once what was finished here, and now and then what is left of tenants that
    /// `duty` gives to this process.
    pub async fn run(self, duty: Arc<dyn CompactionDuty>) {
        let clock = &self.shared.clock;
        let (mut swept, mut sweeps): (Option<Duration>, u32) = (None, 0);
        loop {
            if self.shared.uploads.check_memory().is_err() {
                clock.sleep(WORK_EVERY).await;
                continue;
            }
            let mut tenants = std::mem::take(&mut *self.shared.waiting.lock());
            let now = clock.elapsed();
            let every = match sweeps < FIRST_SWEEPS {
                true => FIRST_SWEEPS_EVERY,
                false => SWEEP_EVERY,
            };
            if swept.is_none_or(|at| now.saturating_sub(at) >= every) {
                (swept, sweeps) = (Some(now), sweeps.saturating_add(1));
                tenants.extend(self.sweep(&*duty).await);
            }
            for tenant in tenants {
                if let Err(error) = self.shared.uploads.work(&tenant).await {
                    let error = with_sources(&error);
                    tracing::warn!(%tenant, error, "uploaded blocks are not imported yet, trying again");
                    self.shared.waiting.lock().insert(tenant);
                }
            }
            clock.sleep(WORK_EVERY).await;
        }
    }

    /// The tenants to look at.
    async fn sweep(&self, duty: &dyn CompactionDuty) -> Vec<TenantId> {
        let listed = match self.shared.uploads.tenants().await {
            Ok(tenants) => tenants,
            Err(error) => {
                tracing::warn!(%error, "tenants cannot be listed for their uploads, trying again");
                return Vec::new();
            }
        };
        let mut own = Vec::new();
        for tenant in listed {
            if duty.epoch(&tenant, false).await.is_some() {
                own.push(tenant);
            }
        }
        own
    }
}

/// A request that was refused.
#[derive(Debug)]
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = (self.0, self.1).into_response();
        if matches!(
            self.0,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            let value = http::HeaderValue::from_static(RETRY_AFTER);
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

impl From<UploadError> for Refused {
    fn from(e: UploadError) -> Self {
        let code = match &e {
            UploadError::NotStarted(_) => StatusCode::NOT_FOUND,
            UploadError::Conflict(..) => StatusCode::CONFLICT,
            UploadError::Bad(_) => StatusCode::BAD_REQUEST,
            UploadError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            UploadError::TooMany(..) => StatusCode::TOO_MANY_REQUESTS,
            UploadError::Memory(_) => StatusCode::SERVICE_UNAVAILABLE,
            UploadError::Bucket(bucket) => {
                tracing::warn!(error = with_sources(bucket), "upload refused");
                let code = match bucket.is_transient() {
                    true => StatusCode::SERVICE_UNAVAILABLE,
                    false => StatusCode::INTERNAL_SERVER_ERROR,
                };
                return Self(code, "object storage does not take it now".to_owned());
            }
        };
        Self(code, e.to_string())
    }
}

fn bad(reason: impl std::fmt::Display) -> Refused {
    Refused(StatusCode::BAD_REQUEST, reason.to_string())
}

/// Whose upload of which block.
fn asked(headers: &HeaderMap, block: &str) -> Result<(TenantId, BlockId), Refused> {
    let tenant = koios_tenancy::tenant_of_write(headers).map_err(bad)?;
    let block = block.parse().map_err(|_| bad(format!("{block:?} is no ULID")))?;
    Ok((tenant, block))
}

#[derive(Debug, serde::Deserialize)]
struct StartParameters {
    /// Whether a block is imported that was imported before.
    #[serde(default)]
    again: bool,
}

async fn start(
    State(service): State<UploadService>,
    Path(block): Path<String>,
    Query(parameters): Query<StartParameters>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refused> {
    let (tenant, block) = asked(&headers, &block)?;
    let shared = &service.shared;
    let limit = usize::try_from(META_BYTES_MAX).unwrap_or(usize::MAX);
    let body = shared
        .clock
        .timeout(IDLE_MAX, axum::body::to_bytes(body, limit))
        .await;
    let body = body.map_err(|_| gone())?;
    let too_large = |_| {
        Refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("meta.json is larger than {META_BYTES_MAX} bytes"),
        )
    };
    shared
        .uploads
        .start(&tenant, block, &body.map_err(too_large)?, parameters.again)
        .await?;
    Ok(StatusCode::OK)
}

fn gone() -> Refused {
    Refused(
        StatusCode::REQUEST_TIMEOUT,
        format!("no bytes came for {IDLE_MAX:?}"),
    )
}

#[derive(Debug, serde::Deserialize)]
struct FileParameters {
    path: Option<String>,
}

async fn file(
    State(service): State<UploadService>,
    Path(block): Path<String>,
    Query(parameters): Query<FileParameters>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refused> {
    let (tenant, block) = asked(&headers, &block)?;
    let Some(path) = parameters.path else {
        return Err(bad(
            "the parameter path is missing: index, or chunks/ and six digits",
        ));
    };
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
    let shared = &service.shared;
    let Ok(_place) = shared.files.try_acquire() else {
        let text = format!("{FILES_MAX} files are being uploaded here: try again later");
        return Err(Refused(StatusCode::TOO_MANY_REQUESTS, text));
    };
    let mut upload = shared.uploads.begin_file(&tenant, block, &path, length).await?;
    match receive(&shared.clock, &mut upload, &path, length, body).await {
        Ok(()) => {
            upload.finish().await.map_err(UploadError::from)?;
            Ok(StatusCode::OK)
        }
        Err(refused) => {
            upload.abort().await;
            Err(refused)
        }
    }
}

/// Passes a body on, piece by piece.
async fn receive(
    clock: &ClockHandle,
    upload: &mut FileUpload,
    path: &str,
    length: Option<u64>,
    body: Body,
) -> Result<(), Refused> {
    let mut body = body.into_data_stream();
    loop {
        let next: Option<Result<Bytes, axum::Error>> =
            clock.timeout(IDLE_MAX, body.next()).await.map_err(|_| gone())?;
        let Some(bytes) = next else { break };
        let bytes = bytes.map_err(|e| bad(format!("{path} was cut short: {e}")))?;
        check_size(path, upload.bytes().saturating_add(bytes.len() as u64))?;
        upload.write(&bytes).await.map_err(UploadError::from)?;
    }
    match (upload.bytes(), length) {
        (0, _) => Err(bad(format!("{path} is empty"))),
        (got, Some(length)) if got != length => Err(bad(format!("{path} has {got} of {length} bytes"))),
        _ => Ok(()),
    }
}

async fn finish(
    State(service): State<UploadService>,
    Path(block): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Refused> {
    let (tenant, block) = asked(&headers, &block)?;
    service.shared.uploads.finish(&tenant, block).await?;
    service.shared.waiting.lock().insert(tenant);
    Ok(StatusCode::OK)
}

#[derive(Debug, serde::Serialize)]
struct Checked {
    result: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

async fn check(
    State(service): State<UploadService>,
    Path(block): Path<String>,
    headers: HeaderMap,
) -> Result<axum::Json<Checked>, Refused> {
    let (tenant, block) = asked(&headers, &block)?;
    let state = service.shared.uploads.state(&tenant, block).await?;
    Ok(axum::Json(Checked {
        result: state.as_str(),
        error: match state {
            UploadState::Failed(why) => why,
            _ => String::new(),
        },
    }))
}

#[cfg(test)]
mod tests {
    use http::Request;
    use koios_bucket::Bucket;
    use koios_import::{ImportSettings, Importer};
    use koios_model::Labels;
    use koios_runtime::{Clock, Cpu, RealClock, RngHandle};
    use koios_testkit::memory::PretendedMemory;
    use koios_testkit::tsdb::TsdbContent;
    use object_store::memory::InMemory;
    use tower::ServiceExt as _;

    use super::*;

    const ULID: &str = "01BKGTZQ1SYQJTR4PB43C8PD98";

    /// A process over a bucket, while so much of its memory is in use.
    fn service(store: &Arc<InMemory>, percent: u64) -> Router {
        let clock: ClockHandle = Arc::new(RealClock::new());
        let memory = PretendedMemory::default();
        memory.use_percent(percent);
        let rng = RngHandle::from_seed(1);
        let importer = Importer {
            bucket: Bucket::new(Arc::<InMemory>::clone(store), "", Arc::clone(&clock), rng.fork()),
            settings: ImportSettings::default(),
            writer: "test".to_owned(),
            clock: Arc::clone(&clock),
            rng,
            cpu: Cpu::inline(),
            memory: memory.watch(),
        };
        UploadService::new(Uploads::new(importer), clock).router()
    }

    /// Status, when to try again, and what is said.
    async fn post_to(service: Router, what: &str, body: &[u8]) -> (u16, Option<String>, String) {
        let uri = format!("/api/v1/upload/block/{ULID}/{what}");
        let request = Request::post(uri).body(Body::from(body.to_vec())).unwrap();
        let (parts, body) = service.oneshot(request).await.unwrap().into_parts();
        let retry_after = parts.headers.get(header::RETRY_AFTER);
        let retry_after = retry_after.map(|v| v.to_str().unwrap().to_owned());
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let said = String::from_utf8_lossy(&body).into_owned();
        (parts.status.as_u16(), retry_after, said)
    }

    #[tokio::test]
    async fn i13_uploads_that_are_refused_while_memory_is_short_may_be_tried_again() {
        let store = Arc::new(InMemory::new());
        let now = RealClock::new().now_ms();
        let content = TsdbContent {
            ulid: ULID.to_owned(),
            ..TsdbContent::default()
        };
        let up = Labels::from_pairs([("__name__", "up")]);
        let files = content.with_floats(up, &[(now - 60_000, 1.0)], 120).files();
        for (what, file) in [("start", "meta.json"), ("files?path=index", "index")] {
            let (status, retry_after, said) = post_to(service(&store, 90), what, &files[file]).await;
            assert_eq!(
                (status, retry_after.as_deref()),
                (503, Some("5")),
                "{what}: {said}"
            );
            assert!(
                said.starts_with("memory is short: 900 of 1000 MiB in use"),
                "{said}"
            );
            assert!(said.contains("try again later"), "{said}");
            let (status, _, said) = post_to(service(&store, 50), what, &files[file]).await;
            assert_eq!(status, 200, "{what}: {said}");
        }
        // What takes no memory is done.
        let (status, _, said) = post_to(service(&store, 90), "finish", &[]).await;
        assert_eq!(status, 200, "{said}");
    }
}
