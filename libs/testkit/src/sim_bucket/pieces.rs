//! An object on its way in pieces, each of which is an operation.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::path::Path;
use object_store::{
    Attributes, Error, MultipartUpload, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use parking_lot::Mutex;

use super::handle::{BucketHandle, sent};

/// Pieces by their place.
type Pieces = Arc<Mutex<BTreeMap<usize, PutPayload>>>;

/// What a process sends of one object.
#[derive(Debug)]
pub(super) struct SimUpload {
    handle: BucketHandle,
    path: Path,
    attributes: Attributes,
    begun: usize,
    arrived: Pieces,
}

impl SimUpload {
    pub(super) fn new(handle: BucketHandle, path: &Path, attributes: Attributes) -> Self {
        Self {
            handle,
            path: path.clone(),
            attributes,
            begun: 0,
            arrived: Pieces::default(),
        }
    }

    /// All pieces, if none is missing.
    fn whole(&self) -> Result<PutPayload> {
        let arrived = self.arrived.lock();
        if arrived.len() < self.begun {
            return Err(Error::Generic {
                store: "simulated",
                source: format!("{} of {} pieces are there", arrived.len(), self.begun).into(),
            });
        }
        Ok(arrived.values().flatten().cloned().collect())
    }
}

#[async_trait]
impl MultipartUpload for SimUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (handle, path) = (self.handle.clone(), self.path.clone());
        let (arrived, place) = (Arc::clone(&self.arrived), self.begun);
        self.begun += 1;
        Box::pin(async move {
            let put = |fate| {
                let piece = sent(&path, data, fate);
                let arrived = &arrived;
                async move {
                    arrived.lock().insert(place, piece);
                    Ok(())
                }
            };
            handle.operate("put piece", &path, put).await
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let this = &*self;
        let put = |_| async move {
            let options = PutOptions::from(this.attributes.clone());
            this.handle.put_now(&this.path, this.whole()?, options).await
        };
        this.handle.operate("put together", &this.path, put).await
    }

    async fn abort(&mut self) -> Result<()> {
        let this = &*self;
        let drop_all = |_| async move {
            this.arrived.lock().clear();
            Ok(())
        };
        this.handle.operate("abort multipart", &this.path, drop_all).await
    }
}
