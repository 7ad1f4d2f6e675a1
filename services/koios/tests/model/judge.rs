//! Compares what is read with the model.

use std::sync::Arc;

use koios_promql::QueryError;
use koios_querier::Cluster;

use crate::oracle::About;
use crate::world::{Actor, World};

impl World {
    /// Reads everything as a query does. While actors are dead or the bucket fails a read may fail, but never be wrong.
    pub(crate) async fn check_read(&self, what: &str) -> Result<(), String> {
        self.judge(what).await.map(|_| ())
    }

    /// The same, and nothing may fail any more.
    pub(crate) async fn check_whole(&self, what: &str) -> Result<(), String> {
        match self.judge(what).await? {
            None => Ok(()),
            Some(e) => Err(format!("{what}: a read fails: {e}")),
        }
    }

    /// What is wrong in the middle of a step is wrong for good, however often it is tried.
    pub(crate) fn judged(&self, judged: Result<(), String>) {
        if let Err(violation) = judged {
            self.note(format!("VIOLATION {violation}"));
            self.violation.lock().get_or_insert(violation);
        }
    }

    /// Reads everything with empty caches.
    pub(crate) async fn read_anew(&self) -> Result<(), String> {
        let reader = self.new_reader(&self.handle(Actor::Reader));
        for &about in self.setup.all() {
            let (failed, judged) = self.judge_from(Arc::clone(&reader), about).await;
            self.judged(judged.map_err(|violation| format!("a read that took its time: {violation}")));
            if let Some(e) = failed {
                return Err(e.to_string());
            }
        }
        Ok(())
    }

    async fn judge(&self, what: &str) -> Result<Option<QueryError>, String> {
        for &about in self.setup.all() {
            let (failed, judged) = self.judge_from(self.reader(), about).await;
            if let Some(violation) = self.violation.lock().clone() {
                return Err(violation);
            }
            judged.map_err(|violation| format!("{what}: {violation}"))?;
            if let Some(e) = failed {
                self.note(format!("{what}: a read of {about:?} fails: {e}"));
                return Ok(Some(e));
            }
        }
        Ok(None)
    }

    /// Reads everything from a querier, and judges what it gives, if it does.
    async fn judge_from(
        &self,
        reader: Arc<Cluster>,
        about: About,
    ) -> (Option<QueryError>, Result<(), String>) {
        let moment = self.oracle.lock().moment();
        let found = match about {
            About::Samples => self.samples_from(reader).await,
            About::Exemplars => self.exemplars_from(reader).await,
        };
        self.note_deletions().await;
        let mut oracle = self.oracle.lock();
        if let Some(from) = self.kept_from() {
            oracle.may_be_gone(from, self.setup.hides_old());
        }
        match found {
            Ok(found) => (None, oracle.check(&found, about, moment)),
            Err(e) => (Some(e), Ok(())),
        }
    }
}
