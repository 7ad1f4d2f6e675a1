//! The start-up self-test: commits are only as safe as the storage's conditional writes.

use bytes::Bytes;
use futures::future::join_all;

use crate::bucket::{Bucket, Created};
use crate::layout::SELF_TEST;
use crate::{Error, Rejection, Result};

/// Writers that race for one object.
const RACERS: usize = 8;

impl Bucket {
    /// Checks that what is written is read back, that an object is created once only, also by racing writers, and that
    /// it can be deleted. With `single_writer` a storage that ignores preconditions is accepted: this process then
    /// looks before it writes, and no other may write.
    ///
    /// # Errors
    /// [`Error::Unsafe`] when the storage does not behave, [`Error::Rejected`] when it refuses this process, and
    /// [`Error::Unavailable`] when it does not answer.
    pub async fn self_test(&self, single_writer: bool) -> Result<()> {
        let folder = self
            .layout()
            .cluster(SELF_TEST)
            .join(format!("{:032x}", self.rng().u128()));
        let (lone, raced) = (folder.clone().join("lone"), folder.join("raced"));
        let result = self.check_store(&lone, &raced).await;
        for path in [&lone, &raced] {
            let deleted = self.delete(path).await;
            // What went wrong first is told.
            if matches!(result, Ok(Conditional::Obeyed)) {
                deleted?;
            }
        }
        match result? {
            Conditional::Obeyed => Ok(()),
            Conditional::Ignored(reason) if single_writer => {
                tracing::warn!(
                    bucket = self.url(),
                    reason,
                    "storage ignores preconditions, relying on a single writer"
                );
                self.set_emulate_create(true);
                Ok(())
            }
            Conditional::Ignored(reason) => Err(self.unsafe_because(reason)),
        }
    }

    async fn check_store(
        &self,
        lone: &object_store::path::Path,
        raced: &object_store::path::Path,
    ) -> Result<Conditional> {
        let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
        match self.create(lone, &first).await {
            Ok(_) => {}
            Err(Error::Rejected {
                rejection: Rejection::Unsupported,
                reason,
                ..
            }) => {
                return Ok(Conditional::Ignored(format!(
                    "it cannot create an object only if there is none ({reason})"
                )));
            }
            Err(e) => return Err(e),
        }
        let again = self.create(lone, &second).await?;
        let seen = self.get(lone).await?;
        if seen.is_none() {
            return Err(self.unsafe_because("an object that was written is not there".to_owned()));
        }
        if again != Created::Exists || seen != Some(first) {
            return Ok(Conditional::Ignored("an object was created twice".to_owned()));
        }
        let texts: Vec<Bytes> = (0..RACERS).map(|i| Bytes::from(i.to_string())).collect();
        let mut winners = Vec::new();
        for (text, outcome) in texts
            .iter()
            .zip(join_all(texts.iter().map(|t| self.create(raced, t))).await)
        {
            if outcome? == Created::Yes {
                winners.push(text.clone());
            }
        }
        let seen = self.get(raced).await?;
        // A winner whose answer was lost sees its own object and does not count itself: none is possible, two are not.
        if winners.len() > 1 || (winners.len() == 1 && seen.as_ref() != winners.first()) {
            return Ok(Conditional::Ignored(format!(
                "{} of {RACERS} racing writers created one object",
                winners.len()
            )));
        }
        Ok(Conditional::Obeyed)
    }

    fn unsafe_because(&self, reason: String) -> Error {
        Error::Unsafe {
            bucket: self.url().to_owned(),
            reason,
        }
    }
}

enum Conditional {
    Obeyed,
    Ignored(String),
}
