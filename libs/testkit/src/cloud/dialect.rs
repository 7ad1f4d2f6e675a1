//! What tells the providers apart beside their objects: names, places, credentials, errors.

use super::request::{Answer, Request};
use super::{REGION, USER};

/// Whose protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Amazon S3.
    S3,
    /// Google Cloud Storage, XML API.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::S3, Self::Gcs, Self::Azure];

    pub(super) fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }

    pub(super) fn env(self, addr: &str) -> Vec<(String, String)> {
        let endpoint = format!("http://{addr}");
        let pairs = match self {
            Self::S3 => vec![
                ("AWS_ENDPOINT_URL", endpoint),
                ("AWS_REGION", REGION.to_owned()),
                ("AWS_ACCESS_KEY_ID", USER.to_owned()),
                ("AWS_SECRET_ACCESS_KEY", "hush-s3".to_owned()),
            ],
            Self::Gcs => vec![
                ("GOOGLE_BASE_URL", endpoint),
                ("GOOGLE_BEARER_TOKEN", USER.to_owned()),
            ],
            Self::Azure => vec![
                ("AZURE_STORAGE_ENDPOINT", format!("{endpoint}/{USER}")),
                ("AZURE_STORAGE_ACCOUNT_NAME", USER.to_owned()),
                ("AZURE_STORAGE_ACCOUNT_KEY", "aHVzaC1henVyZQ==".to_owned()),
            ],
        };
        pairs.into_iter().map(|(n, v)| (n.to_owned(), v)).collect()
    }

    /// The bucket and the object, which is empty for the bucket itself.
    pub(super) fn place(self, request: &Request) -> Option<(String, String)> {
        let path = request.path.strip_prefix('/')?;
        let path = match self {
            Self::Azure => path.strip_prefix(USER)?.strip_prefix('/')?,
            Self::S3 | Self::Gcs => path,
        };
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        Some((bucket.to_owned(), key.to_owned()))
    }

    /// Why a request is refused for the credentials it brings.
    pub(super) fn stranger(self, request: &Request) -> Option<(u16, &'static str)> {
        let proof = request.header("authorization").unwrap_or_default();
        match self {
            Self::S3 if !proof.contains(&format!("Credential={USER}/")) => Some((403, "InvalidAccessKeyId")),
            Self::S3 if !proof.contains(&format!("/{REGION}/s3/")) => {
                Some((400, "AuthorizationHeaderMalformed"))
            }
            Self::Gcs if proof != format!("Bearer {USER}") => Some((401, "AuthenticationRequired")),
            Self::Azure if !proof.starts_with(&format!("SharedKey {USER}:")) => {
                Some((403, "AuthenticationFailed"))
            }
            _ => None,
        }
    }

    pub(super) fn no_bucket(self) -> &'static str {
        match self {
            Self::S3 | Self::Gcs => "NoSuchBucket",
            Self::Azure => "ContainerNotFound",
        }
    }

    pub(super) fn busy(self) -> &'static str {
        match self {
            Self::S3 => "SlowDown",
            Self::Gcs => "ServiceUnavailable",
            Self::Azure => "ServerBusy",
        }
    }

    /// An error as the provider words it. Answers to HEAD have no body.
    pub(super) fn error(self, request: &Request, status: u16, code: &str) -> Answer {
        let secret = request.header("authorization").unwrap_or_default();
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<Error><Code>{code}</Code><Message>{code}, says the fake.\n\
             RequestId:1</Message><StringToSign>{secret}</StringToSign></Error>"
        );
        let answer = Answer::new(status).header("content-type", "application/xml");
        match request.method.as_str() {
            "HEAD" => answer,
            _ => answer.body(body),
        }
    }
}
