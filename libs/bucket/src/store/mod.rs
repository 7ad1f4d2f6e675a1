//! Opens an object store by URL.

mod azure;
mod folder;
mod gcs;
mod s3;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use koios_runtime::RngHandle;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use crate::{Error, Result};

/// Backstop for requests that our own deadlines do not reach, such as fetching credentials.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an AES-256 key.
const KEY_BYTES: usize = 32;

const FORMS: &str = "expected file:///absolute/folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or \
                     abfss://container@account.dfs.core.windows.net/prefix";

/// A store that hands out lists page by page.
#[derive(Clone)]
pub(crate) struct Pages(pub(crate) Arc<dyn PaginatedListStore>);

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pages")
    }
}

/// What a URL names.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The same, where folders are listed page by page. Without it they come all at once.
    pub(crate) pages: Option<Pages>,
    pub(crate) prefix: Path,
    /// Whether it is reached over a network, where answers may be cut short.
    pub(crate) remote: bool,
}

/// Environment variables.
type Env = BTreeMap<String, String>;

/// Opens what a URL names, with endpoint, region, credentials and encryption from environment variables. A folder that is not there is
/// made, unless it `must_exist`.
pub(crate) fn open(
    url: &str,
    env: impl Iterator<Item = (String, String)>,
    must_exist: bool,
    rng: &RngHandle,
) -> Result<Opened> {
    // A variable that is set to nothing is one that is not set.
    let env: Env = env.filter(|(_, value)| !value.is_empty()).collect();
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(wrong(url, FORMS));
    };
    if scheme == "file" {
        return folder::open(url, rest, must_exist, rng);
    }
    if rest.contains('?') || user_info(rest).is_some_and(|user| user.contains(':')) {
        let reason =
            "it must not hold credentials or parameters: they are settings and environment variables";
        return Err(wrong(url, reason));
    }
    let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = Path::parse(prefix.trim_matches('/')).map_err(|e| wrong(url, e))?;
    match scheme {
        "s3" => Ok(remote(s3::open(url, authority, &env)?, prefix)),
        "gs" | "gcs" => Ok(remote(gcs::open(url, authority, &env)?, prefix)),
        "az" | "azure" | "abfs" | "abfss" => Ok(remote(azure::open(url, authority, &env)?, prefix)),
        _ => Err(wrong(url, FORMS)),
    }
}

fn remote<S: ObjectStore + PaginatedListStore>(store: S, prefix: Path) -> Opened {
    let store = Arc::new(store);
    Opened {
        pages: Some(Pages(Arc::<S>::clone(&store))),
        store,
        prefix,
        remote: true,
    }
}

/// A URL that cannot be used. Secrets in it are left out.
fn wrong(url: &str, reason: impl fmt::Display) -> Error {
    Error::Url {
        url: without_secrets(url),
        reason: reason.to_string(),
    }
}

/// What stands before the `@` of an authority.
fn user_info(rest: &str) -> Option<&str> {
    let authority = rest.split('/').next().unwrap_or(rest);
    authority.rsplit_once('@').map(|(user, _)| user)
}

fn without_secrets(url: &str) -> String {
    let (url, hidden) = match url.split_once('?') {
        Some((url, _)) => (url, "?<hidden>"),
        None => (url, ""),
    };
    let shown = (|| {
        let (scheme, rest) = url.split_once("://")?;
        let user = user_info(rest)?;
        let (name, _) = user.split_once(':')?;
        Some(format!("{scheme}://{name}:<hidden>{}", &rest[user.len()..]))
    })();
    shown.unwrap_or_else(|| url.to_owned()) + hidden
}

fn client_options(endpoint: Option<&str>) -> ClientOptions {
    let options = ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT);
    // Whoever names a plain-text endpoint has decided to use it.
    options.with_allow_http(endpoint.is_some_and(|e| e.starts_with("http://")))
}

fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// Checks a key for objects, before a library that might quote it does.
fn check_key(url: &str, name: &str, key: &str) -> Result<()> {
    match BASE64_STANDARD.decode(key) {
        Ok(key) if key.len() == KEY_BYTES => Ok(()),
        _ => Err(wrong(
            url,
            format!("{name} is not the base64 of a key of {KEY_BYTES} bytes"),
        )),
    }
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
