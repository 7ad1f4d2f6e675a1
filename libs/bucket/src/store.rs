//! Opens an object store by URL.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use crate::{Error, Result};

/// Backstop for requests that our own deadlines do not reach, such as fetching credentials.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The store and the prefix that a URL names.
pub(crate) fn open(
    url: &str,
    env: impl Iterator<Item = (String, String)>,
) -> Result<(Arc<dyn ObjectStore>, Path)> {
    match url.split_once("://") {
        Some(("file", path)) => Ok((open_folder(url, path)?, Path::default())),
        Some(("s3", rest)) => open_s3(url, rest, env),
        _ => Err(wrong(
            url,
            "expected file:///absolute/folder or s3://bucket/prefix",
        )),
    }
}

fn wrong(url: &str, reason: impl std::fmt::Display) -> Error {
    Error::Url {
        url: url.to_owned(),
        reason: reason.to_string(),
    }
}

fn open_folder(url: &str, path: &str) -> Result<Arc<dyn ObjectStore>> {
    if !path.starts_with('/') {
        return Err(wrong(url, "the folder must be absolute: file:///absolute/folder"));
    }
    // The local backend works on real files only; simulation hands `Bucket::new` a store in memory.
    std::fs::create_dir_all(path).map_err(|e| wrong(url, e))?;
    let store = LocalFileSystem::new_with_prefix(path).map_err(|e| wrong(url, e))?;
    // Off by default there: without it a power loss takes blocks that heads have already forgotten.
    Ok(Arc::new(store.with_fsync(true)))
}

fn open_s3(
    url: &str,
    rest: &str,
    env: impl Iterator<Item = (String, String)>,
) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(wrong(url, "the bucket's name is missing: s3://bucket/prefix"));
    }
    let options = ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT);
    let no_retries = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let mut builder = AmazonS3Builder::new()
        .with_region("us-east-1")
        .with_client_options(options)
        .with_retry(no_retries);
    for (name, value) in env {
        if let Some(key) = aws_key(&name) {
            builder = builder.with_config(key, value);
        }
    }
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    if endpoint.is_some_and(|e| e.starts_with("http://")) {
        // Whoever names a plain-text endpoint has decided to use it.
        builder = builder.with_allow_http(true);
    }
    let store = builder
        .with_bucket_name(bucket)
        .build()
        .map_err(|e| wrong(url, e))?;
    let prefix = Path::parse(prefix.trim_matches('/')).map_err(|e| wrong(url, e))?;
    Ok((Arc::new(store), prefix))
}

/// The setting that an `AWS_*` variable names, if it is one.
fn aws_key(name: &str) -> Option<AmazonS3ConfigKey> {
    if !name.starts_with("AWS_") {
        return None;
    }
    name.to_ascii_lowercase().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> std::iter::Empty<(String, String)> {
        std::iter::empty()
    }

    #[test]
    fn refuses_urls_it_cannot_use_and_says_what_it_expects() {
        for (url, part) in [
            ("/var/lib/koios", "expected file:///"),
            ("gs://b/p", "expected file:///"),
            ("file://relative", "must be absolute"),
            ("s3:///prefix", "name is missing"),
        ] {
            let text = open(url, none()).unwrap_err().to_string();
            assert!(text.contains(part) && text.contains(url), "{text}");
        }
    }

    #[test]
    fn takes_the_prefix_and_the_plain_endpoint() {
        let env = [
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("HOME", "/"),
        ];
        let env = env.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let (_, prefix) = open("s3://bucket/a/b/", env.into_iter()).unwrap();
        assert_eq!(prefix.as_ref(), "a/b");
    }
}
