//! What may happen.

use std::sync::Arc;

use axum::body::Body;
use http::{Request, StatusCode};
use koios_model::{TenantId, TenantSeed};
use koios_testkit::query::encode;
use koios_wire::{Batch, BatchHeader, FlushRequest, IngesterService};
use tower::ServiceExt;

use crate::content::{columns, samples};
use crate::oracle::BatchName;
use crate::world::{Actor, HOUR, PARTITION, T0, World};

/// Visits of a compactor that finds no end.
const VISITS_MAX: usize = 40;

/// What is deleted: a metric, or all, of some hours of the day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) metric: Option<u32>,
    pub(crate) hours: std::ops::Range<i64>,
}

/// A step of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Three metrics of an hour of the day are sent, in a variant of their values: the largest wins.
    Push {
        hour: i64,
        variant: u32,
    },
    /// A member cuts all that it holds.
    Cut(usize),
    /// A member cuts another tenant, and lets go of what its log need not have.
    CutOther(usize),
    /// A store does what is due.
    Compact(usize),
    Delete(Selection),
    /// The last deletion is taken back.
    Undelete,
    /// No deletion can be taken back any more.
    Clean,
    DeleteTenant,
    /// Everything is read by whoever has not read before.
    Read,
    /// Seconds pass.
    Wait(u64),
    /// A member loses its power or is killed.
    Restart(usize),
    /// The newest version of the manifest is damaged and made anew.
    Rebuild,
}

impl World {
    /// Does a step once. An error means that it is to be done again.
    pub(crate) async fn perform(&self, step: &Step) -> Result<(), String> {
        match step {
            Step::Push { hour, variant } => {
                self.prepare(*hour, *variant);
                self.push_unanswered().await
            }
            Step::Cut(i) => self.cut(*i, &self.tenant).await,
            Step::CutOther(i) => self.cut(*i, &TenantId::anonymous()).await,
            Step::Compact(i) => Box::pin(self.compact(*i)).await,
            Step::Delete(selection) => {
                let name = self.name_of_deletion(step);
                let path = format!("/api/v1/admin/tsdb/delete_series?{}", in_words(selection));
                self.delete(&name, &path, true).await
            }
            Step::DeleteTenant => {
                let name = self.name_of_deletion(step);
                let path = format!("/api/v1/admin/tenants/{}/delete", self.tenant);
                self.delete(&name, &path, false).await
            }
            Step::Undelete => self.take_back().await,
            Step::Clean => {
                let path = "/api/v1/admin/tsdb/clean_tombstones";
                let status = self.ask("clean", path, true).await?;
                self.note_deletions().await;
                expect(status, StatusCode::NO_CONTENT)
            }
            Step::Read => self.read_anew().await,
            Step::Wait(seconds) => {
                self.sleep(*seconds).await;
                Ok(())
            }
            Step::Restart(i) => {
                self.start(Actor::Ingester(*i)).await;
                Ok(())
            }
            Step::Rebuild => self.rebuild().await,
        }
    }

    /// Makes a batch, to be sent until it is acknowledged.
    pub(crate) fn prepare(&self, hour: i64, variant: u32) {
        let seed = TenantSeed::new(b"", &self.tenant);
        let is_rich = self.setup.is_rich;
        let columns = columns(seed, hour, variant, is_rich);
        let mut sequence = self.sequence.lock();
        let header = BatchHeader {
            tenant: self.tenant.clone(),
            stream: self.stream,
            sequence: *sequence,
            settled_below: 0,
            partition: PARTITION,
            epoch: 1,
            admission_ms: self.clock.now_ms(),
        };
        let name: BatchName = (PARTITION, self.stream, *sequence);
        self.oracle.lock().sent(name, &samples(hour, variant, is_rich));
        let batch = Arc::new(Batch::new(header, columns));
        self.unanswered.lock().push((*sequence, batch));
        *sequence += 1;
    }

    /// Sends what is not acknowledged to all members that run; a majority is enough.
    pub(crate) async fn push_unanswered(&self) -> Result<(), String> {
        let all = self.unanswered.lock().clone();
        for (sequence, batch) in all {
            let up = self.network.directory.all();
            let pushes = up.iter().map(|ingester| ingester.push(Arc::clone(&batch)));
            let answers = futures::future::join_all(pushes).await;
            let taken = answers.iter().filter(|a| a.is_ok()).count();
            if taken <= self.setup.members / 2 {
                return Err(format!("{taken} members took batch {sequence}: {answers:?}"));
            }
            self.unanswered.lock().retain(|(s, _)| *s != sequence);
            self.oracle
                .lock()
                .acknowledged((PARTITION, self.stream, sequence));
        }
        Ok(())
    }

    async fn cut(&self, i: usize, tenant: &TenantId) -> Result<(), String> {
        let request = FlushRequest {
            tenant: Some(tenant.clone()),
            wait: true,
        };
        let flushed = self.ingester(i).flush(request).await;
        flushed.map(|_| ()).map_err(|e| e.to_string())
    }

    async fn compact(&self, i: usize) -> Result<(), String> {
        let mut compactor = self.stores[i].lock().await;
        let compactor = compactor.as_mut().ok_or("the store does not run")?;
        for _ in 0..VISITS_MAX {
            if !compactor.visit_all().await {
                return Ok(());
            }
        }
        Err("compaction finds no end".to_owned())
    }

    /// One name for all tries of a deletion.
    fn name_of_deletion(&self, step: &Step) -> String {
        format!("{step:?} {}", self.deletions.lock())
    }

    async fn delete(&self, name: &str, path: &str, by_tenant: bool) -> Result<(), String> {
        self.oracle.lock().asked(name);
        let status = self.ask(name, path, by_tenant).await?;
        self.note_deletions().await;
        expect(status, StatusCode::NO_CONTENT)?;
        *self.deletions.lock() += 1;
        self.oracle.lock().answered(name);
        Ok(())
    }

    async fn take_back(&self) -> Result<(), String> {
        self.note_deletions().await;
        let last = self.oracle.lock().last_masked();
        let Some(last) = last else { return Ok(()) };
        let path = format!("/api/v1/admin/tsdb/tombstones/{last}");
        let status = self.ask("undelete", &path, true).await?;
        self.note_deletions().await;
        match status {
            StatusCode::NO_CONTENT => self.oracle.lock().taken_back(last),
            // It became final, or is gone.
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => {}
            other => return expect(other, StatusCode::NO_CONTENT),
        }
        Ok(())
    }

    /// Asks the API as a client does.
    async fn ask(&self, user: &str, path: &str, by_tenant: bool) -> Result<StatusCode, String> {
        let api = self.querier.lock().as_ref().map(|q| Arc::clone(&q.api));
        let api = api.ok_or("the querier does not run")?;
        let router = match by_tenant {
            true => api.router(),
            false => api.operators_router(),
        };
        let request = Request::post(path)
            .header("x-scope-orgid", self.tenant.as_str())
            .header("x-forwarded-user", user)
            .body(Body::empty());
        let answer = router.oneshot(request.unwrap()).await;
        let answer = answer.unwrap_or_else(|never| match never {});
        if answer.status().is_server_error() {
            let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
            return Err(String::from_utf8_lossy(&body).into_owned());
        }
        Ok(answer.status())
    }

    /// Learns which deletions are listed, in every version.
    pub(crate) async fn note_deletions(&self) {
        let newest = self.manifests.probe(&self.tenant).await;
        let newest = newest.expect("nothing happens to the tester's view");
        let mut noted = self.noted.lock().to_owned();
        while noted < newest.version {
            noted += 1;
            // One whose content was damaged or dropped tells nothing.
            let version = self.manifests.bucket().manifest(&self.tenant, noted).await;
            if let Ok(Some(manifest)) = version {
                self.oracle.lock().note(&manifest);
            }
        }
        *self.noted.lock() = noted;
        self.oracle.lock().note(&newest);
    }
}

fn expect(got: StatusCode, wanted: StatusCode) -> Result<(), String> {
    match got == wanted {
        true => Ok(()),
        false => Err(format!("answered {got}")),
    }
}

fn in_words(selection: &Selection) -> String {
    let selector = match selection.metric {
        Some(metric) => format!("{{__name__=\"m{metric}\"}}"),
        None => "{job=\"model\"}".to_owned(),
    };
    let (start, end) = (
        T0 + selection.hours.start * HOUR,
        T0 + selection.hours.end * HOUR - 1,
    );
    let seconds = |ms: i64| format!("{}.{:03}", ms / 1000, ms % 1000);
    format!(
        "match[]={}&start={}&end={}",
        encode(&selector),
        seconds(start),
        seconds(end)
    )
}
