//! The settings of object storage, as the variables that its clients know.

use std::collections::BTreeMap;
use std::ffi::OsString;

use koios_server::Settings;

/// Variables that would be taken in place of a setting, or that belong to another value than the setting's.
const DISPLACED: [(&str, &[&str]); 5] = [
    ("AWS_ENDPOINT_URL", &["AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"]),
    ("AWS_ACCESS_KEY_ID", &["AWS_SESSION_TOKEN", "AWS_TOKEN"]),
    ("GOOGLE_BASE_URL", &["STORAGE_EMULATOR_HOST"]),
    (
        "GOOGLE_APPLICATION_CREDENTIALS",
        &[
            "GOOGLE_SERVICE_ACCOUNT",
            "GOOGLE_SERVICE_ACCOUNT_PATH",
            "GOOGLE_SERVICE_ACCOUNT_KEY",
            "GOOGLE_BEARER_TOKEN",
        ],
    ),
    ("AZURE_STORAGE_ACCOUNT_KEY", &["AZURE_STORAGE_TOKEN"]),
];

/// The environment, with the settings in place of the variables that they stand for.
pub(super) fn of(
    settings: &Settings,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<String, String> {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let mut variables: BTreeMap<String, String> = environment.filter_map(text).collect();
    let (s3, gcs, azure) = (&settings.s3, &settings.gcs, &settings.azure);
    let bucket_key = if s3.bucket_key { "true" } else { "" };
    for (name, value) in [
        ("AWS_ENDPOINT_URL", s3.endpoint.as_str()),
        ("AWS_REGION", &s3.region),
        ("AWS_ACCESS_KEY_ID", &s3.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", &s3.secret_access_key),
        ("AWS_SERVER_SIDE_ENCRYPTION", &s3.encryption),
        ("AWS_SSE_KMS_KEY_ID", &s3.kms_key_id),
        ("AWS_SSE_BUCKET_KEY_ENABLED", bucket_key),
        ("AWS_SSE_CUSTOMER_KEY_BASE64", &s3.customer_key),
        ("GOOGLE_BASE_URL", &gcs.endpoint),
        ("GOOGLE_APPLICATION_CREDENTIALS", &gcs.credentials_file),
        ("AZURE_STORAGE_ACCOUNT_NAME", &azure.account),
        ("AZURE_STORAGE_ACCOUNT_KEY", &azure.account_key),
        ("AZURE_STORAGE_ENDPOINT", &azure.endpoint),
        ("AZURE_STORAGE_ENCRYPTION_KEY", &azure.customer_key),
    ] {
        if value.is_empty() {
            continue;
        }
        let displaced = DISPLACED.iter().filter(|(setting, _)| *setting == name);
        for other in displaced.flat_map(|(_, others)| *others) {
            variables.remove(*other);
        }
        variables.insert(name.to_owned(), value.to_owned());
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_win_over_the_environment() {
        let mut settings = Settings::default();
        let environment = [
            ("AWS_REGION", "a"),
            ("AWS_SESSION_TOKEN", "t"),
            ("GOOGLE_SERVICE_ACCOUNT", "f"),
            ("HOME", "/"),
        ];
        let environment = || environment.into_iter().map(|(n, v)| (n.into(), v.into()));
        let untouched = of(&settings, environment());
        assert_eq!(untouched.len(), 4);
        assert_eq!(untouched["AWS_REGION"], "a");

        settings.s3.region = "b".to_owned();
        settings.s3.access_key_id = "id".to_owned();
        settings.s3.bucket_key = true;
        settings.gcs.credentials_file = "g".to_owned();
        settings.azure.account = "c".to_owned();
        let env = of(&settings, environment());
        assert_eq!(env["AWS_REGION"], "b");
        assert_eq!(env["AWS_SSE_BUCKET_KEY_ENABLED"], "true");
        assert_eq!(env["GOOGLE_APPLICATION_CREDENTIALS"], "g");
        assert_eq!(env["AZURE_STORAGE_ACCOUNT_NAME"], "c");
        for gone in [
            "AWS_SESSION_TOKEN",
            "GOOGLE_SERVICE_ACCOUNT",
            "AWS_SERVER_SIDE_ENCRYPTION",
        ] {
            assert!(!env.contains_key(gone), "{gone}");
        }
    }
}
