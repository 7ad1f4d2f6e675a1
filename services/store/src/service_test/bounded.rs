//! Claims about what an answer may hold, and what is not read for it.

use super::*;
use crate::bounds::LabelsInWait;

impl World {
    /// Deletes samples of series with a value of `i`; returns the version that says so.
    async fn delete(&self, value: &str, range: TimeRange) -> u64 {
        let matchers = Matchers(vec![Matcher::equal("i", value)]);
        let deletion = koios_bucket::Tombstone::new(koios_bucket::Nonce(1), &matchers, range);
        let delete = |m: &mut koios_bucket::Manifest| {
            m.add_tombstone(deletion.clone());
            Ok(())
        };
        let writer = Self::writer();
        let commit = self.manifests.commit(&self.tenant, &writer, delete);
        commit.await.unwrap().version
    }

    fn lookup(&self, version: u64, name: &str, limit: u64) -> StoreLabelsRequest {
        StoreLabelsRequest {
            tenant: self.tenant.clone(),
            manifest_version: version,
            blocks: Vec::new(),
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            name: name.to_owned(),
            limit,
        }
    }
}

#[tokio::test]
async fn i12_names_and_values_of_labels_are_bounded() {
    let mut world = World::new();
    world.upload(&data(0..300, 0..10)).await;
    let whole = world.upload(&data(200..500, 0..10)).await.1;
    let masked = world.delete("0000", TimeRange::new(0, 4)).await;
    let mut store = world.store();
    for version in [whole, masked] {
        store.bounds.names_bytes = 4_000;
        let e = store
            .label_values(world.lookup(version, "i", 0))
            .await
            .unwrap_err();
        assert_eq!(e.code, ServiceErrorCode::ResourceExhausted);
        let text = "the values of label \"i\" in blocks exceed 4000 bytes: add matchers or a limit";
        assert!(e.message.starts_with(text), "{e}");
        // The first ones of all blocks, however many there are.
        let found = store.label_values(world.lookup(version, "i", 203)).await.unwrap();
        let expected: Vec<String> = (0..203).map(|i| format!("{i:04}")).collect();
        assert_eq!(found, expected);
        assert_eq!(
            store.label_names(world.lookup(version, "", 0)).await.unwrap(),
            ["__name__", "i"]
        );
        store.bounds.names_bytes = 10;
        let e = store.label_names(world.lookup(version, "", 0)).await.unwrap_err();
        assert!(
            e.message
                .starts_with("the names of labels in blocks exceed 10 bytes"),
            "{e}"
        );
    }
}

#[tokio::test]
async fn i12_labels_that_wait_for_all_reads_together_are_bounded() {
    let mut world = World::new();
    let mut version = 0;
    for _ in 0..10 {
        version = world.upload(&data(0..100, 0..2)).await.1;
    }
    let mut store = world.store();
    store.labels_in_wait = LabelsInWait::within(1 << 20);
    // Given other reads that have nearly all of it.
    let take = |_| {
        let mut other = store.labels_in_wait.of_read();
        assert!(other.hold(other.bytes_max()));
        other
    };
    let others: Vec<_> = (0..20).map(take).collect();
    // Then it is not the read's fault, which may come again.
    let e = read(&store, world.request(version, &[])).await.unwrap_err();
    assert_eq!(e.code, ServiceErrorCode::Unavailable, "{e}");
    drop(others);
    let found = read(&store, world.request(version, &[])).await.unwrap();
    assert_eq!(found, data(0..100, 0..2));
    assert_eq!(
        store.labels_in_wait.of_read().bytes_max(),
        1 << 19,
        "all is given back"
    );
}

#[tokio::test]
async fn i10_a_summary_goes_with_a_deletion_that_the_query_does_not_reach() {
    const MINUTE: i64 = 60_000;
    let mut world = World::new();
    world.next += 1;
    let id = BlockId::new(1_000, world.next);
    let mut options = BlockOptions::new(id, world.tenant.clone(), TimeRange::new(0, 120 * MINUTE));
    options.resolution_ms = 60 * MINUTE;
    let mut writer = BlockWriter::new(options).unwrap();
    let samples: Vec<_> = (0..120)
        .map(|i| koios_model::Sample {
            t: i * MINUTE + 15_000,
            v: i as f64,
        })
        .collect();
    let kept = koios_model::summary::downsample(&samples, &[], 60 * MINUTE);
    for i in 0..2 {
        writer.push_downsampled(&labels(i), None, &kept).unwrap();
    }
    let parts = writer.finish().unwrap().unwrap();
    let bucket = world.manifests.bucket();
    bucket.upload_block(&world.tenant, &parts).await.unwrap();
    let entry = ManifestBlock::new(&parts.meta, BTreeMap::new());
    let writer = World::writer();
    let commit = world
        .manifests
        .commit(&world.tenant, &writer, |m| m.add_block(entry.clone()));
    commit.await.unwrap();
    // When the first half hour of a series is deleted.
    let version = world.delete("0000", TimeRange::new(0, 30 * MINUTE)).await;
    // Then a query that begins after it sees nothing of the summary that speaks for it, and the other one's.
    let found = async |from: i64, to: i64| {
        let mut request = world.request(version, &[id]);
        request.range = TimeRange::new(from, to);
        let mut stream = world.store().select(request).await.unwrap();
        let mut found = BTreeMap::<String, Vec<i64>>::new();
        while let Some(Ok(StoreItem::Series(batch))) = stream.next().await {
            for series in batch {
                let mut summaries = Vec::new();
                for run in &series.runs {
                    run.decode_summaries(TimeRange::new(from, to), &mut summaries)
                        .unwrap();
                }
                let value = series.labels.get("i").unwrap().to_owned();
                found.insert(value, summaries.iter().map(|s| s.first_t).collect());
            }
        }
        found
    };
    let of = |all: &[(&str, Vec<i64>)]| -> BTreeMap<String, Vec<i64>> {
        all.iter()
            .map(|(value, t)| ((*value).to_owned(), t.clone()))
            .collect()
    };
    let inside = found(35 * MINUTE + 1, 40 * MINUTE).await;
    assert_eq!(inside.get("0000").map_or(&[][..], Vec::as_slice), [0_i64; 0]);
    assert_eq!(inside.get("0001"), Some(&vec![15_000]));
    let second = 60 * MINUTE + 15_000;
    assert_eq!(
        found(70 * MINUTE, 80 * MINUTE).await,
        of(&[("0000", vec![second]), ("0001", vec![second])])
    );
}

#[tokio::test]
async fn blocks_without_exemplars_are_not_opened_for_them() {
    let mut world = World::new();
    let (block, version) = world.upload(&data(0..2, 0..10)).await;
    let path = world.parts_of(block, "meta.json").await;
    world.objects.delete(&path).await.unwrap();
    let store = world.store();
    assert!(read(&store, world.request(version, &[block])).await.is_err());
    assert_eq!(store.exemplars(world.lookup(version, "", 0)).await.unwrap(), []);
}
