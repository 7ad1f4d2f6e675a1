//! Compares what is read with the model.

use koios_promql::QueryError;

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
        let moment = self.oracle.lock().moment();
        let found = self.read_from(reader).await;
        self.note_deletions().await;
        let found = found.map_err(|e| e.to_string())?;
        let judged = self.oracle.lock().check(&found, moment);
        self.judged(judged.map_err(|violation| format!("a read that took its time: {violation}")));
        Ok(())
    }

    async fn judge(&self, what: &str) -> Result<Option<QueryError>, String> {
        let moment = self.oracle.lock().moment();
        let found = self.read().await;
        self.note_deletions().await;
        if let Some(violation) = self.violation.lock().clone() {
            return Err(violation);
        }
        match found {
            Ok(found) => {
                let judged = self.oracle.lock().check(&found, moment);
                judged.map_err(|violation| format!("{what}: {violation}"))?;
                Ok(None)
            }
            Err(e) => {
                self.note(format!("{what}: a read fails: {e}"));
                Ok(Some(e))
            }
        }
    }
}
