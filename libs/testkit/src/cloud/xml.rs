//! The XML API that S3 and Google Cloud Storage share but for conditions and encryption.

use std::fmt::Write as _;

use super::objects::Objects;
use super::request::{Answer, LAST_MODIFIED, LAST_MODIFIED_ISO, Request};
use super::{Answered, Dialect, elements, escaped};

/// Smallest piece of an upload that is not its last.
const PIECE_BYTES_MIN: usize = 5 << 20;

const CUSTOMER_KEY: &str = "x-amz-server-side-encryption-customer-key";

pub(super) fn answer(
    dialect: Dialect,
    objects: &mut Objects,
    request: &Request,
    key: &str,
    stale: bool,
) -> Answered {
    let upload = request.parameter("uploadId");
    match (request.method.as_str(), upload) {
        ("GET", None) if key.is_empty() => Ok(list(objects, request)),
        ("GET" | "HEAD", None) => get(objects, request, key, stale),
        ("PUT", None) => put(dialect, objects, request, key),
        ("DELETE", None) => {
            // S3 does not say whether it was there, Google does.
            match objects.delete(key) || dialect == Dialect::S3 {
                true => Ok(Answer::new(204)),
                false => Err((404, "NoSuchKey")),
            }
        }
        ("POST", None) if request.parameter("uploads").is_some() => {
            let id = objects.begin(key, customer_key(request));
            let body = format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            );
            Ok(Answer::new(200).body(body))
        }
        ("POST", None) if request.parameter("delete").is_some() && dialect == Dialect::S3 => {
            let mut body = String::new();
            for key in elements(&request.body, "Key") {
                objects.delete(&key);
                let _ = write!(body, "<Deleted><Key>{}</Key></Deleted>", escaped(&key));
            }
            Ok(Answer::new(200).body(format!("<DeleteResult>{body}</DeleteResult>")))
        }
        ("PUT", Some(upload)) => {
            let number = request.parameter("partNumber").ok_or((400, "InvalidArgument"))?;
            let etag = objects.put_piece(upload, number, request.body.clone());
            let etag = etag.ok_or((404, "NoSuchUpload"))?;
            Ok(Answer::new(200).header("etag", etag))
        }
        ("POST", Some(upload)) => {
            let pieces = elements(&request.body, "PartNumber");
            let etag = objects.complete(upload, &pieces, PIECE_BYTES_MIN);
            let etag = etag.ok_or((400, "InvalidPart"))?;
            let body =
                format!("<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>");
            Ok(Answer::new(200).body(body))
        }
        ("DELETE", Some(upload)) => {
            objects.drop_upload(upload);
            Ok(Answer::new(204))
        }
        _ => Err((405, "MethodNotAllowed")),
    }
}

fn customer_key(request: &Request) -> Option<String> {
    request.header(CUSTOMER_KEY).map(str::to_owned)
}

fn get(objects: &Objects, request: &Request, key: &str, stale: bool) -> Answered {
    let object = objects.get(key, stale).ok_or((404, "NoSuchKey"))?;
    if object.key != customer_key(request) {
        return Err((400, "InvalidRequest"));
    }
    let answer = |status| {
        Answer::new(status)
            .header("etag", object.etag.clone())
            .header("last-modified", LAST_MODIFIED)
    };
    let size = object.bytes.len();
    if request.method == "HEAD" {
        return Ok(answer(200).header("content-length", size.to_string()));
    }
    match request.range() {
        None => Ok(answer(200).body(object.bytes.clone())),
        Some((start, _)) if start >= size => Err((416, "InvalidRange")),
        Some((start, end)) => {
            let end = end.min(size);
            let range = format!("bytes {start}-{}/{size}", end - 1);
            let bytes = object.bytes.slice(start..end);
            Ok(answer(206).header("content-range", range).body(bytes))
        }
    }
}

fn put(dialect: Dialect, objects: &mut Objects, request: &Request, key: &str) -> Answered {
    let condition = match dialect {
        Dialect::Gcs => request.header("x-goog-if-generation-match") == Some("0"),
        _ => request.header("if-none-match") == Some("*"),
    };
    if condition && objects.get(key, false).is_some() {
        return Err((412, "PreconditionFailed"));
    }
    let etag = objects.put(key, request.body.clone(), customer_key(request));
    Ok(Answer::new(200).header("etag", etag))
}

fn list(objects: &Objects, request: &Request) -> Answer {
    let page = objects.list(
        request.parameter("prefix").unwrap_or_default(),
        request.parameter("delimiter"),
        request.parameter("continuation-token"),
    );
    let mut body = String::from("<ListBucketResult>");
    for (key, object) in &page.objects {
        let _ = write!(
            body,
            "<Contents><Key>{}</Key><Size>{}</Size><LastModified>{LAST_MODIFIED_ISO}</LastModified><ETag>{}</ETag></Contents>",
            escaped(key),
            object.bytes.len(),
            object.etag
        );
    }
    for folder in &page.folders {
        let _ = write!(
            body,
            "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>",
            escaped(folder)
        );
    }
    if let Some(next) = &page.next {
        let _ = write!(
            body,
            "<NextContinuationToken>{}</NextContinuationToken>",
            escaped(next)
        );
    }
    body.push_str("</ListBucketResult>");
    Answer::new(200).body(body)
}
