//! What a storage's failure means: whether trying again can help, and if not, what an operator must do.

use std::error::Error as _;
use std::iter::successors;
use std::{fmt, io};

/// Longest text of a storage that goes into an error.
const REASON_CHARS_MAX: usize = 400;
/// What the object store calls a local folder in its errors.
pub(crate) const FOLDER_STORE: &str = "LocalFileSystem";

/// Why a storage refuses what it is asked, however often. Its text says what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// There is no such bucket or container.
    NoBucket,
    /// The storage does not know who asks, or the proof of it is wrong or too old.
    Credentials,
    /// It knows who asks, and this is not allowed.
    Permission,
    /// The object lies in an archive of the storage, or is on its way back.
    Archived,
    /// The bucket is in another region.
    Region,
    /// Objects cannot be encrypted or decrypted as the settings say.
    Encryption,
    /// The storage cannot do it at all.
    Unsupported,
    /// The request is wrong in the storage's eyes.
    Request,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoBucket => "create the bucket, or correct its name in the URL",
            Self::Credentials => {
                "check the credentials in the settings, the environment or the machine's role, and the machine's clock"
            }
            Self::Permission => "allow these credentials to read, write, list and delete under the bucket's prefix",
            Self::Archived => {
                "bring it back from the archive, to a storage class or tier that is read at once, and let no rule of the storage move what is \
                 under the bucket's prefix"
            }
            Self::Region => "set the region that the bucket is in",
            Self::Encryption => {
                "check the encryption settings, and that the credentials may use the key; all objects need the same key of one's own"
            }
            Self::Unsupported => "use a storage that can do this, or another setting",
            Self::Request => "check the bucket's URL, endpoint and settings",
        })
    }
}

/// What follows of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The object does not exist.
    NotFound,
    /// The object ends before the range that was asked for.
    TooShort,
    /// Repeating it changes nothing.
    Rejected(Rejection),
    /// It may pass.
    Again,
}

/// A failure, read.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) verdict: Verdict,
    /// What the storage said, in one line. Of an answer only status, code and message: the rest may quote a request with its
    /// session token.
    pub(crate) reason: String,
    /// Whether it is the storage's answer, as opposed to none.
    pub(crate) answered: bool,
}

/// Reads a failure of the object store. Its types keep status and code of an answer to themselves, so they are taken from
/// its text.
pub(crate) fn read(e: &object_store::Error) -> Failure {
    let text = e.to_string();
    let answer = Answer::of(&text);
    Failure {
        verdict: verdict(e, &text, &answer),
        reason: answer.reason(&text),
        answered: answer.status.is_some(),
    }
}

/// Whether a creation failed only because another request for the same object was under way.
pub(crate) fn is_creation_under_way(e: &object_store::Error) -> bool {
    let text = e.to_string();
    matches!(
        Answer::of(&text).code,
        Some("ConditionalRequestConflict" | "OperationAborted")
    )
}

/// What a storage answered, as far as its client's text shows it.
#[derive(Debug, Default)]
struct Answer<'a> {
    status: Option<u16>,
    /// With its name, as in `403 Forbidden`.
    status_text: &'a str,
    code: Option<&'a str>,
    message: Option<&'a str>,
}

impl<'a> Answer<'a> {
    fn of(text: &'a str) -> Self {
        let Some((_, after)) = text.split_once("status code: ") else {
            return Self {
                code: element(text, "Code"),
                message: element(text, "Message"),
                ..Self::default()
            };
        };
        let (status_text, body) = after.split_once(": ").unwrap_or((after, ""));
        let digits = status_text.split(' ').next().unwrap_or_default();
        Self {
            status: digits.parse().ok(),
            status_text,
            code: element(body, "Code"),
            message: element(body, "Message").or_else(|| field(body, "error_description")),
        }
    }

    fn reason(&self, text: &str) -> String {
        let Some(status) = self.status else {
            return shortened(text);
        };
        let mut reason = match self.status_text.is_empty() {
            true => status.to_string(),
            false => self.status_text.to_owned(),
        };
        for more in [self.code, self.message].into_iter().flatten() {
            reason.push_str(": ");
            reason.push_str(more);
        }
        shortened(&reason)
    }
}

/// The text of the first XML element of a name.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = after.split_once(&format!("</{name}>"))?;
    Some(text.trim())
}

/// The text of a field of JSON, as token services answer.
fn field<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = body.split_once(&format!("\"{name}\""))?;
    let (_, value) = after.split_once('"')?;
    let (value, _) = value.split_once('"')?;
    Some(value)
}

/// In one line, and not longer than an error should be.
fn shortened(text: &str) -> String {
    let line: Vec<&str> = text.split_whitespace().collect();
    let line = line.join(" ");
    match line.char_indices().nth(REASON_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn verdict(e: &object_store::Error, text: &str, answer: &Answer<'_>) -> Verdict {
    use object_store::Error as E;
    if let Some(verdict) = answer.code.and_then(by_code) {
        return verdict;
    }
    match e {
        E::NotFound { .. } => Verdict::NotFound,
        E::PermissionDenied { .. } => Verdict::Rejected(Rejection::Permission),
        E::Unauthenticated { .. } => Verdict::Rejected(Rejection::Credentials),
        E::NotSupported { .. } | E::NotImplemented { .. } => Verdict::Rejected(Rejection::Unsupported),
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => Verdict::Rejected(Rejection::Request),
        // Where nobody sets a condition, another request for the object is in the way.
        E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => Verdict::Again,
        _ => match answer.status {
            Some(status) => by_status(status, text),
            None if is_denied_by_system(e) => Verdict::Rejected(Rejection::Permission),
            None => by_text(text),
        },
    }
}

/// By the storages' own codes, which say more than the status.
fn by_code(code: &str) -> Option<Verdict> {
    let rejection = match code {
        "NoSuchBucket"
        | "InvalidBucketName"
        | "ContainerNotFound"
        | "ContainerBeingDeleted"
        | "ContainerDisabled"
        | "AllAccessDisabled" => Rejection::NoBucket,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidToken"
        | "InvalidIdentityToken"
        | "TokenRefreshRequired"
        | "RequestTimeTooSkewed"
        | "AuthenticationRequired"
        | "AuthenticationFailed"
        | "InvalidAuthenticationInfo"
        | "NoAuthenticationInformation" => Rejection::Credentials,
        // S3 and Azure: which of their classes and tiers are no archive they know best.
        "InvalidObjectState" | "BlobArchived" | "BlobBeingRehydrated" => Rejection::Archived,
        "AuthorizationHeaderMalformed"
        | "PermanentRedirect"
        | "TemporaryRedirect"
        | "IllegalLocationConstraintException" => Rejection::Region,
        "ServerSideEncryptionConfigurationNotFoundError"
        | "BlobUsesCustomerSpecifiedEncryption"
        | "BlobDoesNotUseCustomerSpecifiedEncryption"
        | "CustomerEncryptionKeyIsIncorrect" => Rejection::Encryption,
        kms if kms.starts_with("KMS.") || kms.starts_with("Kms") => Rejection::Encryption,
        "NotImplemented" => Rejection::Unsupported,
        // S3 says 400 when the connection was too slow, and 404 when an upload in pieces was dropped meanwhile.
        "RequestTimeout"
        | "NoSuchUpload"
        | "InvalidPart"
        | "OperationAborted"
        | "ConditionalRequestConflict"
        | "SlowDown"
        | "ServerBusy"
        | "InternalError" => {
            return Some(Verdict::Again);
        }
        "InvalidRange" => return Some(Verdict::TooShort),
        _ => return None,
    };
    Some(Verdict::Rejected(rejection))
}

fn by_status(status: u16, text: &str) -> Verdict {
    let rejection = match status {
        301 | 302 | 307 | 308 => Rejection::Region,
        401 => Rejection::Credentials,
        400 | 403 | 404 if is_about_credentials(text) => Rejection::Credentials,
        403 => Rejection::Permission,
        416 => return Verdict::TooShort,
        408 | 409 | 423 | 425 | 429 => return Verdict::Again,
        501 => Rejection::Unsupported,
        400 if text.contains("ncrypt") => Rejection::Encryption,
        400..=499 => Rejection::Request,
        _ => return Verdict::Again,
    };
    Verdict::Rejected(rejection)
}

/// Failures without an answer pass, with few exceptions.
fn by_text(text: &str) -> Verdict {
    const TOO_SHORT: [&str; 3] = [
        "Wanted range starting at",
        "Requested range was invalid",
        "Out of range of file",
    ];
    if TOO_SHORT.iter().any(|words| text.contains(words)) {
        return Verdict::TooShort;
    }
    if let Some(verdict) = code_at_end(text).and_then(|code| by_code_at_end(code, text)) {
        return verdict;
    }
    if text.contains("incorrectly configured region") {
        return Verdict::Rejected(Rejection::Region);
    }
    Verdict::Again
}

/// What a storage said of one object among several that were to be deleted, or of the request for that: S3 its own code, Azure a status.
fn code_at_end(text: &str) -> Option<&str> {
    let (_, code) = text.trim_end().strip_suffix(')')?.rsplit_once("(code: ")?;
    Some(code)
}

fn by_code_at_end(code: &str, text: &str) -> Option<Verdict> {
    match code.parse() {
        Ok(status) => Some(by_status(status, text)),
        Err(_) if code == "AccessDenied" => Some(Verdict::Rejected(Rejection::Permission)),
        Err(_) => by_code(code),
    }
}

/// Whether this machine does not let the process at a file of a local folder. Of a connection the same may pass.
fn is_denied_by_system(e: &object_store::Error) -> bool {
    if !matches!(e, object_store::Error::Generic { store, .. } if *store == FOLDER_STORE) {
        return false;
    }
    let causes = successors(e.source(), |cause| (*cause).source());
    let mut io = causes.filter_map(|cause| cause.downcast_ref::<io::Error>());
    io.any(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether it was not the storage that was asked, but whoever hands out credentials for it.
pub(crate) fn is_about_credentials(text: &str) -> bool {
    const SOURCES: [&str; 6] = [
        "token request",
        "CreateSession",
        "http://169.254.",
        "/latest/api/token",
        "computeMetadata",
        "/metadata/identity",
    ];
    SOURCES.iter().any(|source| text.contains(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic {
            store: "test",
            source: text.into(),
        }
    }

    fn answered(status: &str, body: &str) -> object_store::Error {
        generic(&format!(
            "Error performing PUT https://b/o in 1ms - Server returned non-2xx status code: {status}: {body}"
        ))
    }

    #[test]
    fn what_passes_is_told_from_what_an_operator_must_change() {
        use Rejection::*;
        for (status, code, want) in [
            ("503 Service Unavailable", "SlowDown", Verdict::Again),
            ("429 Too Many Requests", "rateLimitExceeded", Verdict::Again),
            ("500 Internal Server Error", "", Verdict::Again),
            ("400 Bad Request", "RequestTimeout", Verdict::Again),
            ("409 Conflict", "OperationAborted", Verdict::Again),
            ("404 Not Found", "NoSuchUpload", Verdict::Again),
            ("404 Not Found", "NoSuchBucket", Verdict::Rejected(NoBucket)),
            ("404 Not Found", "ContainerNotFound", Verdict::Rejected(NoBucket)),
            (
                "403 Forbidden",
                "SignatureDoesNotMatch",
                Verdict::Rejected(Credentials),
            ),
            ("400 Bad Request", "ExpiredToken", Verdict::Rejected(Credentials)),
            (
                "403 Forbidden",
                "AuthenticationFailed",
                Verdict::Rejected(Credentials),
            ),
            ("403 Forbidden", "AccessDenied", Verdict::Rejected(Permission)),
            (
                "400 Bad Request",
                "AuthorizationHeaderMalformed",
                Verdict::Rejected(Region),
            ),
            (
                "301 Moved Permanently",
                "PermanentRedirect",
                Verdict::Rejected(Region),
            ),
            (
                "400 Bad Request",
                "KMS.DisabledException",
                Verdict::Rejected(Encryption),
            ),
            (
                "409 Conflict",
                "BlobUsesCustomerSpecifiedEncryption",
                Verdict::Rejected(Encryption),
            ),
            ("403 Forbidden", "InvalidObjectState", Verdict::Rejected(Archived)),
            ("409 Conflict", "BlobArchived", Verdict::Rejected(Archived)),
            ("409 Conflict", "BlobBeingRehydrated", Verdict::Rejected(Archived)),
            (
                "501 Not Implemented",
                "NotImplemented",
                Verdict::Rejected(Unsupported),
            ),
            (
                "405 Method Not Allowed",
                "MethodNotAllowed",
                Verdict::Rejected(Request),
            ),
            ("416 Range Not Satisfiable", "InvalidRange", Verdict::TooShort),
        ] {
            let failure = read(&answered(status, &format!("<Error><Code>{code}</Code></Error>")));
            assert_eq!(failure.verdict, want, "{status} {code}");
        }
    }

    #[test]
    fn what_is_said_of_one_of_several_objects_counts_like_an_answer() {
        use Rejection::*;
        for (text, want) in [
            (
                "DeleteObjects request failed for key p/o: Access Denied (code: AccessDenied)",
                Verdict::Rejected(Permission),
            ),
            (
                "DeleteObjects request failed for key p/(code: 403)/o: We encountered an internal error (code: InternalError)",
                Verdict::Again,
            ),
            (
                "DeleteObjects request failed for key p/o: no (code: InvalidAccessKeyId)",
                Verdict::Rejected(Credentials),
            ),
            (
                "DeleteObjects request failed for key p/o: of a code that nobody knows (code: Unheard)",
                Verdict::Again,
            ),
            (
                "Bulk delete request failed for key p/o: Forbidden (code: 403)",
                Verdict::Rejected(Permission),
            ),
            (
                "Bulk delete request failed for key p/o: Conflict (code: 409)",
                Verdict::Again,
            ),
            (
                "Bulk delete request failed for key p/o: Server busy (code: 503)",
                Verdict::Again,
            ),
            (
                "Bulk delete request failed due to invalid input: Bad Request (code: 400)",
                Verdict::Rejected(Request),
            ),
        ] {
            assert_eq!(read(&generic(text)).verdict, want, "{text}");
        }
    }

    /// As the object store tells of files of a folder.
    #[derive(Debug, thiserror::Error)]
    #[error("Unable to delete file /folder/o: {source}")]
    struct UnableToDelete {
        source: io::Error,
    }

    #[test]
    fn a_folder_that_this_process_may_not_use_is_refused() {
        let failed = |store, kind| {
            let source = io::Error::from(kind);
            let source = Box::new(UnableToDelete { source });
            read(&object_store::Error::Generic { store, source }).verdict
        };
        let denied = io::ErrorKind::PermissionDenied;
        assert_eq!(
            failed(FOLDER_STORE, denied),
            Verdict::Rejected(Rejection::Permission)
        );
        assert_eq!(failed(FOLDER_STORE, io::ErrorKind::StorageFull), Verdict::Again);
        // A connection that a firewall does not let through, for now.
        assert_eq!(failed("S3", denied), Verdict::Again);
    }

    #[test]
    fn of_an_answer_only_status_code_and_message_are_kept() {
        let e = answered(
            "403 Forbidden",
            "<?xml?>\n<Error><Code>SignatureDoesNotMatch</Code><Message>Check\n it.</Message>\
             <CanonicalRequest>x-amz-security-token:hush</CanonicalRequest></Error>",
        );
        let failure = read(&e);
        assert_eq!(failure.reason, "403 Forbidden: SignatureDoesNotMatch: Check it.");
        assert!(failure.answered);
        let e = generic(
            "Error performing token request: Error performing POST https://login in 1s - Server returned non-2xx status \
             code: 401 Unauthorized: {\"error\":\"invalid_client\",\"error_description\":\"AADSTS1: no\",\"x\":\"hush\"}",
        );
        let failure = read(&e);
        assert_eq!(failure.verdict, Verdict::Rejected(Rejection::Credentials));
        assert_eq!(failure.reason, "401 Unauthorized: AADSTS1: no");
    }

    #[test]
    fn failures_without_an_answer_pass() {
        let e = generic(
            "Error performing GET http://169.254.169.254/latest in 1s - HTTP error: error sending request",
        );
        let failure = read(&e);
        assert_eq!(failure.verdict, Verdict::Again);
        assert!(is_about_credentials(&failure.reason) && !failure.answered);
        assert!(read(&generic(&"long ".repeat(1000))).reason.chars().count() <= REASON_CHARS_MAX + 1);
    }
}
