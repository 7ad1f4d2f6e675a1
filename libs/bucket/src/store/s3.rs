//! S3 and what speaks its protocol.

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};

use super::{Env, check_key, client_options, no_retries, wrong};
use crate::Result;

const CUSTOMER_KEY: &str = "AWS_SSE_CUSTOMER_KEY_BASE64";

pub(super) fn open(url: &str, bucket: &str, env: &Env) -> Result<AmazonS3> {
    if bucket.is_empty() {
        return Err(wrong(url, "the bucket's name is missing: s3://bucket/prefix"));
    }
    if let Some(key) = env.get(CUSTOMER_KEY) {
        check_key(url, CUSTOMER_KEY, key)?;
    }
    let settings = configured(AmazonS3Builder::new(), env);
    let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
        .iter()
        .find_map(|key| settings.get_config_value(key));
    let options = client_options(endpoint.as_deref());
    configured(AmazonS3Builder::new().with_client_options(options), env)
        .with_retry(no_retries())
        .with_bucket_name(bucket)
        .build()
        .map_err(|e| wrong(url, e))
}

/// `builder` with the settings in `env`.
fn configured(builder: AmazonS3Builder, env: &Env) -> AmazonS3Builder {
    let settings = env
        .iter()
        .filter_map(|(name, value)| Some((config_key(name)?, value)));
    settings.fold(builder, |builder, (key, value)| builder.with_config(key, value))
}

/// The setting that an `AWS_*` variable names, if it is one.
fn config_key(name: &str) -> Option<AmazonS3ConfigKey> {
    name.starts_with("AWS_")
        .then(|| name.to_ascii_lowercase().parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(env: &[(&str, &str)]) -> Option<String> {
        let env = env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        configured(AmazonS3Builder::new(), &env).get_config_value(&AmazonS3ConfigKey::Region)
    }

    #[test]
    fn the_default_region_counts_where_no_other_is_named() {
        let (default, named) = (("AWS_DEFAULT_REGION", "eu-west-1"), ("AWS_REGION", "eu-north-1"));
        assert_eq!(region(&[default]).as_deref(), Some("eu-west-1"));
        assert_eq!(region(&[default, named]).as_deref(), Some("eu-north-1"));
        assert_eq!(region(&[]), None);
    }
}
