//! Google Cloud Storage, by its XML API.

use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey};

use super::{Env, client_options, no_retries, wrong};
use crate::Result;

/// Where Google's own clients look for an emulator; they then send no credentials.
const EMULATOR: &str = "STORAGE_EMULATOR_HOST";

pub(super) fn open(url: &str, bucket: &str, env: &Env) -> Result<GoogleCloudStorage> {
    if bucket.is_empty() {
        return Err(wrong(url, "the bucket's name is missing: gs://bucket/prefix"));
    }
    let emulator = env.get(EMULATOR).map(|host| match host.contains("://") {
        true => host.clone(),
        false => format!("http://{host}"),
    });
    let settings = configured(GoogleCloudStorageBuilder::new(), env);
    let endpoint = emulator
        .clone()
        .or_else(|| settings.get_config_value(&GoogleConfigKey::BaseUrl));
    let options = client_options(endpoint.as_deref());
    let mut builder = configured(GoogleCloudStorageBuilder::new().with_client_options(options), env);
    if let Some(endpoint) = &endpoint {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    if emulator.is_some() {
        builder = builder.with_bearer_token("emulator");
    }
    builder
        .with_retry(no_retries())
        .with_bucket_name(bucket)
        .build()
        .map_err(|e| wrong(url, without_key(&e)))
}

/// `builder` with the settings in `env`.
fn configured(builder: GoogleCloudStorageBuilder, env: &Env) -> GoogleCloudStorageBuilder {
    let settings = env
        .iter()
        .filter_map(|(name, value)| Some((config_key(name)?, value)));
    settings.fold(builder, |builder, (key, value)| builder.with_config(key, value))
}

/// The setting that a `GOOGLE_*` variable names, if it is one.
fn config_key(name: &str) -> Option<GoogleConfigKey> {
    name.starts_with("GOOGLE_")
        .then(|| name.to_ascii_lowercase().parse().ok())?
}

/// What is wrong, without the words of a key that was not understood.
fn without_key(e: &object_store::Error) -> String {
    let text = e.to_string();
    if text.contains("decode service account") {
        return "the credentials are neither a service account's key nor those of a user (JSON of the type service_account or \
                authorized_user); other types, such as external_account, are not supported"
            .to_owned();
    }
    if text.contains("pem") || text.contains("RSA") {
        return "the private_key of the service account is not a key in PEM".to_owned();
    }
    text
}
