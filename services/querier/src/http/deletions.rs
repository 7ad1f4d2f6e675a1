//! Prometheus' API for deletions, and how they stand: `delete_series`, `clean_tombstones`, and `tombstones` to list them and
//! to take one back.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http::{HeaderMap, Request, StatusCode};
use koios_bucket::{
    Error as BucketError, Manifest, Nonce, TenantManifests, Tombstone, TombstoneState, Writer,
};
use koios_import::remove_uploads;
use koios_model::{Matchers, TenantId, TimeRange};
use koios_runtime::{ClockHandle, RngHandle};
use koios_server::ErrorType;
use koios_tenancy::tenant_of_write;

use super::envelope::{Notes, whole};
use super::error::ApiError;
use super::json::{write_array, write_string};
use super::params::Params;
use crate::cluster::Cluster;

/// Most deletions that a tenant's manifest lists: every reader of a block looks at those that mask it.
const DELETIONS_MAX: usize = 1000;
/// Most bytes of matchers in a tenant's manifest: it is read and kept whole, and its patterns are compiled.
const MATCHER_BYTES_MAX: usize = 256 << 10;
/// Most selectors in a request: each is a deletion of its own, applied one after the other.
const SELECTORS_MAX: usize = 64;
/// Who asked, as a gateway tells.
const USER_HEADER: &str = "X-Forwarded-User";
/// Most of that which is kept.
const USER_BYTES_MAX: usize = 128;

/// Deletions by tenants of their own samples.
#[derive(Debug)]
pub struct DeletionsApi {
    cluster: Arc<Cluster>,
    manifests: TenantManifests,
    clock: ClockHandle,
    rng: RngHandle,
    /// This process, for manifests.
    member: String,
}

/// Who asks, of whose samples.
struct Asker {
    tenant: TenantId,
    user: String,
}

impl Asker {
    fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let tenant = tenant_of_write(headers).map_err(|e| ApiError::bad_data(e.to_string()))?;
        let user = headers.get(USER_HEADER).and_then(|v| v.to_str().ok());
        let user: String = user.unwrap_or("").chars().take(USER_BYTES_MAX).collect();
        Ok(Self { tenant, user })
    }

    /// Notes what was done, or was tried.
    fn audit(&self, action: &'static str, what: &str, result: Result<&(), &ApiError>) {
        let (tenant, user) = (&self.tenant, &self.user);
        match result {
            Ok(()) => {
                tracing::info!(target: "koios::audit", %tenant, ?user, action, ?what, outcome = "done", "audit");
            }
            Err(error) => {
                let outcome = &error.message;
                tracing::warn!(target: "koios::audit", %tenant, ?user, action, ?what, ?outcome, "audit");
            }
        }
    }
}

/// What a deletion is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Series of a tenant: it can be taken back for a while.
    Series,
    /// All that a tenant has, and what of it is still to be imported.
    Tenant,
}

impl Scope {
    fn state(self) -> TombstoneState {
        match self {
            Self::Series => TombstoneState::Masked,
            Self::Tenant => TombstoneState::Final,
        }
    }
}

impl DeletionsApi {
    /// Deletes through `manifests` what `cluster` reads. `member` names this process.
    pub fn new(
        cluster: Arc<Cluster>,
        manifests: TenantManifests,
        clock: ClockHandle,
        rng: RngHandle,
        member: String,
    ) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            manifests,
            clock,
            rng,
            member,
        })
    }

    /// The endpoints, at `/` and under `/prometheus`.
    pub fn router(self: &Arc<Self>) -> Router {
        let routes = Router::new()
            .route("/api/v1/admin/tsdb/delete_series", post(delete).put(delete))
            .route("/api/v1/admin/tsdb/clean_tombstones", post(clean).put(clean))
            .route("/api/v1/admin/tsdb/tombstones", get(list))
            .route(
                "/api/v1/admin/tsdb/tombstones/{id}",
                post(take_back).delete(take_back),
            )
            .with_state(Arc::clone(self));
        Router::new().merge(routes.clone()).nest("/prometheus", routes)
    }

    /// The endpoints that are for operators.
    pub fn operators_router(self: &Arc<Self>) -> Router {
        let path = "/api/v1/admin/tenants/{tenant}/delete";
        let delete = post(delete_tenant).put(delete_tenant);
        Router::new().route(path, delete).with_state(Arc::clone(self))
    }

    async fn commit(
        &self,
        tenant: &TenantId,
        change: impl FnMut(&mut Manifest) -> Result<(), BucketError> + Send,
    ) -> Result<Arc<Manifest>, ApiError> {
        let writer = Writer {
            name: self.member.clone(),
            resource: "deletions".to_owned(),
            // Nobody owns it: each change is whole, whoever makes it.
            epoch: 0,
        };
        let committed = self.manifests.commit(tenant, &writer, change).await;
        committed.map_err(|e| from_bucket(&e))
    }

    /// A manifest to commit to: not one that shows less than members tell of. They would take what is committed to it for what they have
    /// applied, and the lost versions would be hidden.
    async fn at_least(&self, tenant: &TenantId, announced: u64) -> Result<Arc<Manifest>, ApiError> {
        let found = self.manifests.at_least(tenant, announced).await;
        found.map_err(|e| from_bucket(&e))
    }

    async fn delete(
        &self,
        asker: &Asker,
        selectors: &[Matchers],
        range: TimeRange,
        scope: Scope,
    ) -> Result<(), ApiError> {
        let tenant = &asker.tenant;
        let bucket = self.manifests.bucket();
        // What was acknowledged before is covered; a sample that comes meanwhile may be or not.
        let held = self.cluster.held_batches(tenant).await?;
        let covers = held.batches;
        let known = self.at_least(tenant, held.announced).await?;
        if covers.is_empty() && known.version == 0 {
            let waiting = match scope {
                Scope::Series => Vec::new(),
                Scope::Tenant => bucket.uploads(tenant).await.map_err(|e| from_bucket(&e))?,
            };
            if waiting.is_empty() {
                return Ok(());
            }
        }
        let at_ms = self.clock.now_ms();
        let deletion = |matchers: &Matchers| Tombstone {
            covers: covers.clone(),
            at_ms,
            by: asker.user.clone(),
            state: scope.state(),
            ..Tombstone::new(Nonce(self.rng.u128()), matchers, range)
        };
        let deletions: Vec<Tombstone> = selectors.iter().map(deletion).collect();
        let add = |m: &mut Manifest| {
            let bytes: usize = m.tombstones.iter().chain(&deletions).map(matcher_bytes).sum();
            if bytes > MATCHER_BYTES_MAX {
                let reason = format!(
                    "the matchers of the deletions that are listed and of those asked for have {bytes} bytes, limit {MATCHER_BYTES_MAX}: \
                     use shorter ones, or wait until earlier ones are complete"
                );
                let tenant = m.tenant.clone();
                return Err(BucketError::Refused { tenant, reason });
            }
            if m.tombstones.len() + deletions.len() > DELETIONS_MAX {
                let reason = format!(
                    "{} deletions are listed and {} more were asked for, limit {DELETIONS_MAX}: use fewer with wider selectors, or \
                     wait until earlier ones are complete",
                    m.tombstones.len(),
                    deletions.len()
                );
                let tenant = m.tenant.clone();
                return Err(BucketError::Refused { tenant, reason });
            }
            deletions.iter().for_each(|t| m.add_tombstone(t.clone()));
            if scope == Scope::Tenant {
                // What was imported may be once more.
                m.forget_imports();
            }
            Ok(())
        };
        let version = self.commit(tenant, add).await?.version;
        if scope == Scope::Tenant {
            let removed = remove_uploads(bucket, tenant, version).await;
            removed.map_err(|e| from_bucket(&e))?;
        }
        self.apply(tenant, version, "the deletion").await
    }

    async fn take_back(&self, asker: &Asker, id: Nonce) -> Result<(), ApiError> {
        let tenant = &asker.tenant;
        let announced = self.cluster.announced_version(tenant).await?;
        self.at_least(tenant, announced).await?;
        let mut refusal = None;
        let undo = |m: &mut Manifest| {
            refusal = match m.tombstone(id).map(|t| t.state) {
                None => Some(ApiError::new(
                    ErrorType::NotFound,
                    format!("no deletion {id} is listed: it never was, or its samples are gone"),
                )),
                Some(TombstoneState::Final) => Some(ApiError::bad_data(format!(
                    "deletion {id} is final: its samples are being removed from the bucket and cannot be brought back"
                ))),
                Some(TombstoneState::Masked | TombstoneState::Undone) => {
                    m.set_tombstone_state(id, TombstoneState::Undone);
                    None
                }
            };
            match refusal {
                None => Ok(()),
                Some(_) => Err(BucketError::Refused {
                    tenant: m.tenant.clone(),
                    reason: String::new(),
                }),
            }
        };
        let committed = self.commit(tenant, undo).await;
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let version = committed?.version;
        self.apply(tenant, version, "that it is taken back").await
    }

    /// Returns once every later query knows.
    async fn apply(&self, tenant: &TenantId, version: u64, what: &str) -> Result<(), ApiError> {
        let applied = self.cluster.apply_deletions(tenant, version).await;
        applied.map_err(|e| {
            let e = ApiError::from(e);
            let text = format!(
                "{what} is listed in manifest version {version}, but not all partitions have applied it yet: ask again; {}",
                e.message
            );
            ApiError::new(e.kind, text)
        })
    }
}

fn matcher_bytes(t: &Tombstone) -> usize {
    t.matchers.iter().map(|m| m.name.len() + m.value.len()).sum()
}

/// Refuses what every reader of the tenant's data would have to bear for days.
fn check_selectors(selectors: &[Matchers]) -> Result<(), ApiError> {
    if selectors.len() > SELECTORS_MAX {
        return Err(ApiError::bad_data(format!(
            "{} selectors, limit {SELECTORS_MAX}: use several requests, or wider selectors",
            selectors.len()
        )));
    }
    if let Some(large) = selectors.iter().flat_map(|s| s.iter()).find(|m| m.is_large()) {
        return Err(ApiError::bad_data(format!(
            "the pattern of {} is too large for a deletion: use several requests with shorter ones",
            large.name()
        )));
    }
    Ok(())
}

fn from_bucket(e: &BucketError) -> ApiError {
    let kind = match e {
        BucketError::Refused { .. } => ErrorType::Execution,
        BucketError::Corrupt { .. } | BucketError::Lost { .. } => ErrorType::Internal,
        _ => ErrorType::Unavailable,
    };
    ApiError::new(kind, e.to_string())
}

/// `POST|PUT /api/v1/admin/tsdb/delete_series`.
async fn delete(
    State(api): State<Arc<DeletionsApi>>,
    request: Request<Body>,
) -> Result<StatusCode, ApiError> {
    let (headers, params) = Params::read(request).await?;
    let asker = Asker::of(&headers)?;
    if !params.has_selectors() {
        return Err(ApiError::bad_data("no match[] parameter provided"));
    }
    let (selectors, range) = (params.selectors()?, params.range()?);
    check_selectors(&selectors)?;
    let what = params.all("match[]").collect::<Vec<_>>().join(" ");
    let what = format!("{what} from {} to {} ms", range.min, range.max);
    let deleted = api.delete(&asker, &selectors, range, Scope::Series).await;
    asker.audit("delete_series", &what, deleted.as_ref());
    deleted.map(|()| StatusCode::NO_CONTENT)
}

/// `POST|PUT /api/v1/admin/tenants/<tenant>/delete`: all that a tenant has goes, and cannot be taken back. What it writes
/// afterwards is a beginning.
async fn delete_tenant(
    State(api): State<Arc<DeletionsApi>>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let asker = Asker {
        tenant: TenantId::new(&tenant).map_err(|e| ApiError::bad_data(e.to_string()))?,
        ..Asker::of(&headers)?
    };
    let everything = [Matchers::default()];
    let deleted = api.delete(&asker, &everything, TimeRange::ALL, Scope::Tenant);
    let deleted = deleted.await;
    asker.audit("delete_tenant", "", deleted.as_ref());
    deleted.map(|()| StatusCode::NO_CONTENT)
}

/// `POST|PUT /api/v1/admin/tsdb/clean_tombstones`: from now on no deletion can be taken back, and compaction removes what
/// they delete.
async fn clean(State(api): State<Arc<DeletionsApi>>, request: Request<Body>) -> Result<StatusCode, ApiError> {
    let (headers, _) = Params::read(request).await?;
    let asker = Asker::of(&headers)?;
    let known = api
        .manifests
        .probe(&asker.tenant)
        .await
        .map_err(|e| from_bucket(&e))?;
    let is_masked = |t: &&Tombstone| t.state == TombstoneState::Masked;
    if known.tombstones.iter().any(|t| is_masked(&t)) {
        let announced = api.cluster.announced_version(&asker.tenant).await?;
        api.at_least(&asker.tenant, announced).await?;
        let finish = |m: &mut Manifest| {
            let masked: Vec<Nonce> = m.tombstones.iter().filter(is_masked).map(|t| t.id).collect();
            for id in masked {
                m.set_tombstone_state(id, TombstoneState::Final);
            }
            Ok(())
        };
        let cleaned = api.commit(&asker.tenant, finish).await.map(drop);
        asker.audit("clean_tombstones", "", cleaned.as_ref());
        cleaned?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /api/v1/admin/tsdb/tombstones`.
async fn list(State(api): State<Arc<DeletionsApi>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let asker = Asker::of(&headers)?;
    let manifest = api
        .manifests
        .probe(&asker.tenant)
        .await
        .map_err(|e| from_bucket(&e))?;
    let write =
        |out: &mut Vec<u8>| write_array(out, &manifest.tombstones, |out, t| write_one(out, &manifest, t));
    Ok(whole(write, &Notes::default()))
}

fn write_one(out: &mut Vec<u8>, manifest: &Manifest, t: &Tombstone) {
    let matchers = t
        .matchers()
        .map(|m| m.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
    let is_left = manifest.blocks.iter().any(|b| t.masks(b));
    let state = match (t.state, is_left) {
        (TombstoneState::Masked, _) => "masked",
        (TombstoneState::Final, true) => "removing",
        (TombstoneState::Final, false) => "removed",
        (TombstoneState::Undone, _) => "undone",
    };
    let fields = [
        ("id", t.id.to_string()),
        ("matchers", format!("{{{}}}", matchers.unwrap_or_default())),
        ("by", t.by.clone()),
        ("state", state.to_owned()),
    ];
    out.push(b'{');
    for (name, value) in fields {
        write_string(out, name);
        out.push(b':');
        write_string(out, &value);
        out.push(b',');
    }
    let times = format!(
        r#""minTime":{},"maxTime":{},"time":{},"blocks":{}}}"#,
        t.range.min,
        t.range.max,
        t.at_ms,
        manifest.blocks.iter().filter(|b| t.masks(b)).count()
    );
    out.extend_from_slice(times.as_bytes());
}

/// `POST|DELETE /api/v1/admin/tsdb/tombstones/<id>`.
async fn take_back(
    State(api): State<Arc<DeletionsApi>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asker = Asker::of(&headers)?;
    let parsed = u128::from_str_radix(&id, 16).ok().filter(|_| id.len() == 32);
    let Some(parsed) = parsed else {
        return Err(ApiError::bad_data(format!(
            "{id:?} is no deletion: 32 hex digits, as /api/v1/admin/tsdb/tombstones lists them"
        )));
    };
    let undone = api.take_back(&asker, Nonce(parsed)).await;
    asker.audit("undelete", &id, undone.as_ref());
    undone.map(|()| StatusCode::NO_CONTENT.into_response())
}
