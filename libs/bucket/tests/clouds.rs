//! The bucket over the protocols of S3, Google Cloud Storage and Azure, with what goes wrong there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::life::{blocks, life_of_a_block, race};
use common::{block, clock, entry, id, in_pieces, small_entry, tenant, writer};
use koios_bucket::{Bucket, Error, Rejection, RetryPolicy};
use koios_model::{Matchers, TenantId, TimeRange};
use koios_runtime::RngHandle;
use koios_testkit::cloud::{Cloud, Dialect, Fault, When};

/// The key of 32 bytes that objects are encrypted with.
const KEY: &str = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
const OTHER_KEY: &str = "YWJjZGVmZ2hpamFiY2RlZmdoaWphYmNkZWZnaGlqMDE=";

/// Patient as the default, but quick to try again.
fn quick() -> RetryPolicy {
    RetryPolicy {
        backoff_min: Duration::from_micros(100),
        backoff_max: Duration::from_millis(5),
        ..RetryPolicy::default()
    }
}

/// Gives up soon.
fn impatient() -> RetryPolicy {
    RetryPolicy {
        attempt_timeout: Duration::from_millis(400),
        deadline: Duration::from_secs(3),
        ..quick()
    }
}

fn open_with(cloud: &Cloud, prefix: &str, seed: u64, changes: &[(&str, &str)]) -> Bucket {
    let mut env = cloud.env();
    for (name, value) in changes {
        env.retain(|(n, _)| n != name);
        env.push(((*name).to_owned(), (*value).to_owned()));
    }
    let bucket = Bucket::open_with_env(&cloud.url(prefix), env, clock(), RngHandle::from_seed(seed));
    bucket.unwrap().with_retry(quick())
}

fn open(cloud: &Cloud, seed: u64) -> Bucket {
    open_with(cloud, "some/prefix", seed, &[])
}

async fn each(test: impl AsyncFn(Cloud, Dialect)) {
    for dialect in Dialect::ALL {
        Box::pin(test(Cloud::start(dialect).await.unwrap(), dialect)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_lives_in_every_cloud() {
    each(async |cloud, _| {
        life_of_a_block(&open(&cloud, 1)).await;
        open(&cloud, 1)
            .upload_block(&tenant(), &in_pieces())
            .await
            .unwrap();
        assert_eq!(cloud.open_uploads(), 0);
        race(|seed| open(&cloud, seed)).await;
        let outside: Vec<_> = cloud
            .objects()
            .into_iter()
            .filter(|o| !o.starts_with("some/prefix/"))
            .collect();
        assert!(outside.is_empty(), "{outside:?}");
    })
    .await;
}

/// S3 compares bodies with what signatures say of them, and refuses what was altered on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i11_s3_is_told_the_hash_of_every_body() {
    // SHA-256 of 16 and of 8 MiB of sevens.
    const HASHES: [(usize, &str); 2] = [
        (
            16 << 20,
            "5838cd2089b2d88ee2d989d9c984b3ffd9ca8cbdf67ab7bf15cc371d58dec692",
        ),
        (
            8 << 20,
            "15d3670274ee9cc36af50fee9e6d49164c9eec2228d48fe29e4f313aa3784a91",
        ),
    ];
    let cloud = Cloud::start(Dialect::S3).await.unwrap();
    let upload = open(&cloud, 1);
    upload.upload_block(&tenant(), &in_pieces()).await.unwrap();
    let mut found = Vec::new();
    for request in cloud.requests().iter().filter(|r| !r.body.is_empty()) {
        let hash = request.header("x-amz-content-sha256").unwrap_or_default();
        assert!(
            hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()),
            "{hash:?}"
        );
        if request.parameter("partNumber").is_some() {
            found.push((request.body.len(), hash.to_owned()));
        }
    }
    found.sort_unstable();
    let [(whole, of_whole), (last, of_last)] = HASHES.map(|(len, hash)| (len, hash.to_owned()));
    let expected = [(last, of_last), (whole, of_whole.clone()), (whole, of_whole)];
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_an_upload_go_in_pieces_and_are_dropped_with_it() {
    each(async |cloud, dialect| {
        let bucket = open(&cloud, 1);
        let bytes: Vec<u8> = (0..20u32 << 20).map(|i| (i % 251) as u8).collect();
        let mut upload = bucket
            .begin_file(&tenant(), id(1), "chunks/000001")
            .await
            .unwrap();
        // A piece that fails is sent again by itself.
        cloud.inject(Fault::Busy, When::NextOf("PUT", 3));
        for part in bytes.chunks(3 << 20) {
            upload.write(part).await.unwrap();
        }
        upload.finish().await.unwrap();
        let size = bucket.file_size(&tenant(), id(1), "chunks/000001").await.unwrap();
        assert_eq!(size, Some(20 << 20));
        let range = (9 << 20) - 5..(9 << 20) + 5;
        let read = bucket
            .file_range(&tenant(), id(1), "chunks/000001", range.start..range.end)
            .await
            .unwrap();
        assert_eq!(&read[..], &bytes[range.start as usize..range.end as usize]);
        let e = bucket
            .file_range(&tenant(), id(1), "chunks/000001", (20 << 20) - 1..(20 << 20) + 1)
            .await
            .unwrap_err();
        assert!(matches!(e, Error::Corrupt { .. }), "{e}");

        let mut dropped = bucket.begin_file(&tenant(), id(1), "index").await.unwrap();
        dropped.write(&bytes[..9 << 20]).await.unwrap();
        assert_eq!(cloud.open_uploads(), 1);
        dropped.abort().await;
        // Azure drops pieces by itself after a week.
        let left = usize::from(dialect == Dialect::Azure);
        assert_eq!(cloud.open_uploads(), left);
        bucket.remove_upload(&tenant(), id(1), None).await.unwrap();
        assert!(cloud.objects().is_empty());
    })
    .await;
}

/// A block in a cloud, with samples to read.
async fn stored(cloud: &Cloud) -> Bucket {
    let bucket = open(cloud, 1);
    let parts = block(1, 3000);
    bucket.upload_block(&tenant(), &parts).await.unwrap();
    let listed = entry(&parts.meta);
    bucket
        .commit(&tenant(), &writer(1), |m| m.add_block(listed.clone()))
        .await
        .unwrap();
    bucket
}

/// Reads the whole block, through caches that know nothing.
async fn read(bucket: &Bucket) -> Result<(), Error> {
    let manifest = bucket.latest(&tenant()).await?;
    let reader = blocks(bucket).open(&tenant(), &manifest.blocks[0]).await?;
    let series = reader.select(&Matchers::default(), TimeRange::ALL).await?;
    let samples = reader.read_samples(&series, TimeRange::ALL).await?;
    assert_eq!((series.len(), samples[2999].values[0]), (3000, 2999.0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i9_reads_survive_bursts_of_failures_and_bodies_that_are_cut_short_or_slow() {
    each(async |cloud, _| {
        let bucket = stored(&cloud).await;
        for fault in [
            Fault::Busy,
            Fault::Closes,
            Fault::CutShort,
            Fault::LostAnswer,
            Fault::Slow(Duration::from_millis(20)),
        ] {
            cloud.inject(fault, When::Next(6));
            read(&bucket).await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
            assert!(cloud.faults_done() >= 5, "{fault:?}: {}", cloud.faults_done());
            cloud.heal();
        }
        // A request that hangs is given up, and the next one is answered.
        cloud.inject(Fault::Hangs, When::Next(2));
        let soon = RetryPolicy {
            attempt_timeout: Duration::from_secs(2),
            ..quick()
        };
        read(&bucket.with_retry(soon)).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i9_a_storage_that_stays_away_is_unavailable_within_the_deadline_and_answers_again() {
    each(async |cloud, _| {
        let bucket = stored(&cloud).await;
        let impatient = bucket.clone().with_retry(impatient());
        for fault in [Fault::Busy, Fault::Closes, Fault::CutShort, Fault::Hangs] {
            cloud.inject(fault, When::Always);
            let e = read(&impatient).await.unwrap_err();
            assert!(
                matches!(e, Error::Unavailable { attempts: 2.., .. }),
                "{fault:?}: {e}"
            );
            assert!(e.is_transient(), "{fault:?}: {e}");
            cloud.heal();
            read(&bucket).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i10_commits_happen_once_each_whatever_the_storage_does() {
    each(async |cloud, _| {
        // Each fault on its own, and all of them at once.
        let faults = [
            Fault::Busy,
            Fault::Closes,
            Fault::LostAnswer,
            Fault::CutShort,
            Fault::Conflict,
            Fault::Stale,
        ];
        let mut faults_done = 0;
        for (round, together) in faults.chunks(1).chain([&faults[..]]).enumerate() {
            for (i, fault) in together.iter().enumerate() {
                let one_in = 4 * together.len() as u64;
                cloud.inject(*fault, When::OneIn(one_in, (round * 10 + i) as u64));
            }
            let racing = TenantId::new(&format!("racing-{round}")).unwrap();
            let tasks = (0..4u64).map(|n| {
                let (bucket, racing) = (open(&cloud, 100 + n), racing.clone());
                tokio::task::JoinSet::from_iter([async move {
                    for k in 0..3 {
                        let entry = small_entry(10 * n + k);
                        let writer = writer(1);
                        let commit = bucket.commit(&racing, &writer, |m| m.add_block(entry.clone()));
                        commit.await.unwrap();
                    }
                }])
                .join_all()
            });
            futures::future::join_all(tasks).await;
            faults_done += cloud.faults_done();
            cloud.heal();
            let manifest = open(&cloud, 1).latest(&racing).await.unwrap();
            assert_eq!(
                (manifest.version, manifest.blocks.len()),
                (12, 12),
                "{together:?}"
            );
        }
        assert!(faults_done > 50, "{faults_done}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_refused_is_told_what_to_change_and_no_secret() {
    use Rejection::*;
    let stranger = |dialect| match dialect {
        Dialect::S3 => ("AWS_ACCESS_KEY_ID", "hush-id"),
        Dialect::Gcs => ("GOOGLE_BEARER_TOKEN", "hush-token"),
        Dialect::Azure => ("AZURE_STORAGE_ACCOUNT_KEY", "aHVzaC1henVyZQ=="),
    };
    each(async |cloud, dialect| {
        let check = async |bucket: &Bucket, want: Rejection, part: &str| {
            for error in [
                bucket.self_test(false).await.unwrap_err(),
                bucket.latest(&tenant()).await.unwrap_err(),
                bucket.tenants().await.unwrap_err(),
            ] {
                let Error::Rejected {
                    rejection, attempts, ..
                } = &error
                else {
                    panic!("{dialect:?}: {error}")
                };
                assert_eq!((*rejection, *attempts), (want, 1), "{error}");
                assert!(error.is_transient());
                assert!(error.to_string().contains(part), "{error}");
                for text in [error.to_string(), format!("{error:?}")] {
                    assert!(!text.contains("hush") && !text.contains("StringToSign"), "{text}");
                    assert!(!text.contains('\n'), "{text}");
                }
            }
        };
        let wrong_credentials = match dialect {
            // Azure's are checked by the account's name in this fake.
            Dialect::Azure => {
                cloud.refuse(403, "AuthenticationFailed");
                open(&cloud, 1)
            }
            _ => open_with(&cloud, "p", 1, &[stranger(dialect)]),
        };
        check(&wrong_credentials, Credentials, "check the credentials").await;
        cloud.heal();
        let url = cloud.url("p").replace(Cloud::BUCKET, "nowhere");
        let no_bucket = Bucket::open_with_env(&url, cloud.env(), clock(), RngHandle::from_seed(1)).unwrap();
        check(&no_bucket, NoBucket, "nowhere/p").await;
        check(&no_bucket, NoBucket, "create the bucket").await;
        let code = match dialect {
            Dialect::Azure => "AuthorizationPermissionMismatch",
            _ => "AccessDenied",
        };
        cloud.refuse(403, code);
        check(&open(&cloud, 1), Permission, "allow these credentials").await;
        cloud.heal();
        // Google's archive is read at once.
        let archived = match dialect {
            Dialect::S3 => Some((403, "InvalidObjectState")),
            Dialect::Azure => Some((409, "BlobArchived")),
            Dialect::Gcs => None,
        };
        if let Some((status, code)) = archived {
            cloud.refuse(status, code);
            let error = open(&cloud, 1).latest(&tenant()).await.unwrap_err();
            let Error::Rejected {
                rejection, attempts, ..
            } = &error
            else {
                panic!("{dialect:?}: {error}")
            };
            assert_eq!((*rejection, *attempts), (Archived, 1), "{error}");
            assert!(
                error.to_string().contains("bring it back from the archive"),
                "{error}"
            );
            cloud.heal();
        }
        if dialect == Dialect::S3 {
            let elsewhere = open_with(&cloud, "p", 1, &[("AWS_REGION", "eu-west-1")]);
            check(&elsewhere, Region, "set the region").await;
        }
        cloud.refuse(501, "NotImplemented");
        let error = open(&cloud, 1).self_test(false).await.unwrap_err();
        assert!(matches!(error, Error::Unsafe { .. }), "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_credentials_and_metadata_service_it_says_so() {
    let nobody = Cloud::start(Dialect::S3).await.unwrap();
    nobody.inject(Fault::Closes, When::Always);
    let metadata = format!("http://{}", nobody.addr());
    let cloud = Cloud::start(Dialect::S3).await.unwrap();
    let changes = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_METADATA_ENDPOINT", &metadata),
    ];
    // One attempt, with time enough to hear that nobody is there on a busy machine, too.
    let bucket = open_with(&cloud, "p", 1, &changes).with_retry(RetryPolicy {
        attempt_timeout: Duration::from_secs(10),
        deadline: Duration::from_secs(10),
        backoff_min: Duration::from_secs(20),
        backoff_max: Duration::from_secs(20),
    });
    let e = bucket.self_test(false).await.unwrap_err();
    assert!(matches!(e, Error::Unavailable { .. }), "{e}");
    assert!(e.to_string().contains("no credentials are set"), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_encrypted_as_the_settings_say() {
    const SSE: &str = "x-amz-server-side-encryption";
    let cloud = Cloud::start(Dialect::S3).await.unwrap();
    for (kind, settings) in [
        ("AES256", &[][..]),
        (
            "aws:kms",
            &[
                ("AWS_SSE_KMS_KEY_ID", "key-1"),
                ("AWS_SSE_BUCKET_KEY_ENABLED", "true"),
            ],
        ),
        ("aws:kms:dsse", &[("AWS_SSE_KMS_KEY_ID", "key-1")]),
    ] {
        let mut changes = settings.to_vec();
        changes.push(("AWS_SERVER_SIDE_ENCRYPTION", kind));
        cloud.requests();
        life_of_a_block(&open_with(&cloud, kind, 1, &changes)).await;
        let writes: Vec<_> = cloud
            .requests()
            .into_iter()
            .filter(|r| r.method == "PUT")
            .collect();
        assert!(!writes.is_empty());
        for request in writes {
            assert_eq!(request.header(SSE), Some(kind), "{}", request.path);
            let key = request.header("x-amz-server-side-encryption-aws-kms-key-id");
            assert_eq!(key.is_some(), !settings.is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_with_a_key_of_ones_own_are_read_with_it_only() {
    for (dialect, variable) in [
        (Dialect::S3, "AWS_SSE_CUSTOMER_KEY_BASE64"),
        (Dialect::Azure, "AZURE_STORAGE_ENCRYPTION_KEY"),
    ] {
        let cloud = Cloud::start(dialect).await.unwrap();
        let with = |key| {
            let changes = [("AWS_SERVER_SIDE_ENCRYPTION", "sse-c"), (variable, key)];
            open_with(&cloud, "p", 1, &changes)
        };
        let bucket = with(KEY);
        life_of_a_block(&bucket).await;
        let mut upload = bucket.begin_file(&tenant(), id(3), "index").await.unwrap();
        upload.write(&[1; 17 << 20]).await.unwrap();
        upload.finish().await.unwrap();
        let last = |bucket: Bucket| async move {
            let end = 17 << 20;
            bucket.file_range(&tenant(), id(3), "index", end - 1..end).await
        };
        assert_eq!(last(bucket).await.unwrap(), Bytes::from_static(&[1]));
        for stranger in [with(OTHER_KEY), open_with(&cloud, "p", 1, &[])] {
            let e = last(stranger).await.unwrap_err();
            assert!(matches!(e, Error::Rejected { .. }), "{e}");
            assert!(!e.to_string().contains(KEY), "{e}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_neighbouring_prefixes_and_tenants_do_not_see_each_other() {
    each(async |cloud, _| {
        let (a, ab) = (open_with(&cloud, "a", 1, &[]), open_with(&cloud, "a-b", 2, &[]));
        let (team, team_b) = (TenantId::new("team").unwrap(), TenantId::new("team-b").unwrap());
        for (bucket, tenant) in [(&a, &team), (&a, &team_b), (&ab, &team)] {
            bucket
                .commit(tenant, &writer(1), |m| m.add_block(small_entry(1)))
                .await
                .unwrap();
            bucket.upload_block(tenant, &block(1, 3)).await.unwrap();
        }
        ab.put_file(
            &team,
            id(7),
            "../../../a/team/manifest/latest",
            &Bytes::from_static(b"9"),
        )
        .await
        .unwrap();
        assert_eq!(a.tenants().await.unwrap(), [team.clone(), team_b.clone()]);
        assert_eq!(ab.tenants().await.unwrap(), std::slice::from_ref(&team));
        for object in cloud.objects() {
            let own = ["a/team/", "a/team-b/", "a-b/team/"];
            assert!(own.iter().any(|prefix| object.starts_with(prefix)), "{object}");
        }
        assert_eq!(a.latest(&team).await.unwrap().version, 1);
        a.delete_parts(&team, id(1), &["series.parquet".to_owned()])
            .await
            .unwrap();
        assert_eq!(a.uploaded_blocks(&team_b).await.unwrap()[0].1.len(), 4);
        assert_eq!(a.uploaded_blocks(&team).await.unwrap()[0].1.len(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i9_tenants_are_listed_page_by_page_and_what_fails_costs_one() {
    each(async |cloud, dialect| {
        let bucket = open(&cloud, 1);
        let tenants: Vec<_> = (0..60)
            .map(|n| TenantId::new(&format!("team-{n:03}")).unwrap())
            .collect();
        for tenant in &tenants {
            let state = Bytes::from_static(b"{}");
            bucket
                .put_file(tenant, id(1), "state.json", &state)
                .await
                .unwrap();
        }
        assert_eq!(bucket.tenants().await.unwrap(), tenants, "{dialect:?}");
        // All at once would not get through: every page would have to, one after the other.
        cloud.inject(Fault::Busy, When::OneIn(2, 7));
        assert_eq!(bucket.tenants().await.unwrap(), tenants, "{dialect:?}");
        cloud.heal();
        assert_eq!(
            open_with(&cloud, "some/other", 1, &[]).tenants().await.unwrap(),
            []
        );
    })
    .await;
}
