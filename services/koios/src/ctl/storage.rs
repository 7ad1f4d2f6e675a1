//! The bucket that a command works on, without any running process.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::{Arg, ArgMatches};
use koios_bucket::Bucket;
use koios_model::TenantId;
use koios_runtime::Runtime;

/// Most tenants that a message names.
const NAMES_MAX: usize = 20;

/// `--bucket-url`.
pub(super) fn bucket_arg() -> Arg {
    Arg::new("bucket-url")
        .long("bucket-url")
        .value_name("URL")
        .env("KOIOS_BUCKET")
        .required(true)
        .help("The cluster's bucket: s3://name/prefix, gs://name/prefix, az://container/prefix or file:///absolute/folder")
        .long_help(
            "The cluster's bucket: s3://name/prefix, gs://name/prefix, az://container/prefix or file:///absolute/folder.\n\nOf an all-in-one process that was not told \
             another one it is file:///…/koios-data/bucket. Endpoint, region, credentials and \
             encryption come from the clouds' own variables: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY; \
             and so on.",
        )
}

/// `--tenant`.
pub(super) fn tenant_arg() -> Arg {
    Arg::new("tenant").long("tenant").value_name("TENANT")
}

/// What a command works with.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) runtime: Runtime,
    pub(super) bucket: Bucket,
}

impl Storage {
    /// The bucket, of which a mistyped folder is not made.
    pub(super) fn open_existing(matches: &ArgMatches) -> Result<Self> {
        let runtime = Runtime::real().context("start threads")?;
        let bucket = Bucket::open_existing(url(matches), Arc::clone(&runtime.clock), runtime.rng.fork())?;
        Ok(Self { runtime, bucket })
    }

    /// The tenant that was named, or all that have something in the bucket.
    pub(super) async fn tenants(&self, matches: &ArgMatches) -> Result<Vec<TenantId>> {
        let all = self.bucket.tenants().await?;
        let Some(named) = matches.get_one::<String>("tenant") else {
            return Ok(all);
        };
        let named = TenantId::new(named)?;
        ensure!(
            all.contains(&named),
            "the bucket has no tenant {named} ({}): nothing of it is at this URL. Is the name right, and do the processes run with this \
             URL, prefix included? If its folder was moved or deleted, bring it back. If that cannot be, and errors say that version N \
             is needed or was announced: end all processes of the cluster, write the number N to the object {named}/manifest/latest \
             below the URL, which tells the newest version, and run `koios ctl manifest rebuild --tenant {named} --write`. Queries \
             work again then, without what was in the bucket",
            some_names(&all)
        );
        Ok(vec![named])
    }
}

fn url(matches: &ArgMatches) -> &str {
    matches.get_one::<String>("bucket-url").map_or("", String::as_str)
}

/// Whose objects there are, for messages.
fn some_names(tenants: &[TenantId]) -> String {
    let names: Vec<&str> = tenants.iter().take(NAMES_MAX).map(TenantId::as_str).collect();
    match tenants.len() {
        0 => "it has nothing of any tenant".to_owned(),
        n if n > NAMES_MAX => format!("tenants: {} and {} more", names.join(", "), n - NAMES_MAX),
        _ => format!("tenants: {}", names.join(", ")),
    }
}
