//! Where blocks are.

use std::time::Duration;

use super::{BUCKET, Setting};
use crate::settings::S3Settings;

const HEADING: &str = "Object storage";

pub(super) const SETTINGS: &[Setting] = &[
    setting!(
        "s3.endpoint",
        String,
        s3.endpoint,
        BUCKET,
        "URL of an S3-compatible server; AWS when empty"
    ),
    setting!("s3.region", String, s3.region, BUCKET, "Region of the bucket"),
    setting!(
        "s3.access-key-id",
        String,
        s3.access_key_id,
        BUCKET,
        "Access key; AWS_ACCESS_KEY_ID or the machine's role when empty"
    ),
    secret!(
        "s3.secret-access-key",
        s3.secret_access_key,
        BUCKET,
        "Secret key of s3.access-key-id; better set by KOIOS_S3_SECRET_ACCESS_KEY than by flag"
    ),
    Setting {
        key: "s3.encryption",
        group: HEADING,
        kind: "KIND",
        help: "How the server encrypts objects: AES256, aws:kms, aws:kms:dsse or sse-c; as the bucket says when empty",
        targets: BUCKET,
        secret: false,
        set: |s, text| {
            let known = S3Settings::ENCRYPTIONS;
            if !text.is_empty() && !known.contains(&text) {
                return Err(format!("must be one of {}", known.join(", ")));
            }
            text.clone_into(&mut s.s3.encryption);
            Ok(())
        },
        show: |s| s.s3.encryption.clone(),
    },
    setting!(
        "s3.kms-key-id",
        String,
        s3.kms_key_id,
        BUCKET,
        "Key of s3.encryption aws:kms and aws:kms:dsse; the account's own when empty"
    ),
    setting!(
        "s3.bucket-key",
        bool,
        s3.bucket_key,
        BUCKET,
        "Whether objects share a key of the bucket's, which asks KMS less often; for aws:kms"
    ),
    secret!(
        "s3.customer-key",
        s3.customer_key,
        BUCKET,
        "Key of s3.encryption sse-c, base64 of 32 bytes. Whoever loses it loses all objects"
    ),
    setting!(
        "gcs.endpoint",
        String,
        gcs.endpoint,
        BUCKET,
        "URL of another server than Google's, such as a private endpoint"
    ),
    setting!(
        "gcs.credentials-file",
        String,
        gcs.credentials_file,
        BUCKET,
        "JSON file with the key of a service account; GOOGLE_APPLICATION_CREDENTIALS or the machine's service account when empty"
    ),
    setting!(
        "azure.account",
        String,
        azure.account,
        BUCKET,
        "Storage account; AZURE_STORAGE_ACCOUNT_NAME, or the one in the bucket's URL, when empty"
    ),
    secret!(
        "azure.account-key",
        azure.account_key,
        BUCKET,
        "Key of the storage account; the environment's credentials or the machine's identity when empty"
    ),
    setting!(
        "azure.endpoint",
        String,
        azure.endpoint,
        BUCKET,
        "URL of another server than the account's own"
    ),
    secret!(
        "azure.customer-key",
        azure.customer_key,
        BUCKET,
        "Key of one's own for all objects, base64 of 32 bytes. Whoever loses it loses all objects"
    ),
    setting!(
        "storage.request-timeout",
        Duration,
        storage.request_timeout,
        BUCKET,
        "When a request that is not answered is given up and sent again; a second more for each MiB it carries"
    ),
    setting!(
        "storage.timeout",
        Duration,
        storage.timeout,
        BUCKET,
        "When an operation is given up, with all requests that it was tried by; two seconds more for each MiB"
    ),
    setting!(
        "storage.backoff-min",
        Duration,
        storage.backoff_min,
        BUCKET,
        "Wait before a request is sent again, doubled each time; a random half of it is left out"
    ),
    setting!(
        "storage.backoff-max",
        Duration,
        storage.backoff_max,
        BUCKET,
        "Longest wait before a request is sent again"
    ),
];
