//! Azure Blob Storage.

use std::fmt::Write as _;

use percent_encoding::percent_decode_str;

use super::objects::Objects;
use super::request::{Answer, LAST_MODIFIED, Request};
use super::{Answered, Cloud, USER, elements, escaped};

const ENCRYPTION_KEY: &str = "x-ms-encryption-key";

pub(super) fn answer(objects: &mut Objects, request: &Request, key: &str, stale: bool) -> Answered {
    match (request.method.as_str(), request.parameter("comp")) {
        ("GET", Some("list")) => Ok(list(objects, request)),
        ("POST", Some("batch")) => batch(objects, request),
        ("GET" | "HEAD", None) => get(objects, request, key, stale),
        ("PUT", Some("block")) => {
            let block = request
                .parameter("blockid")
                .ok_or((400, "InvalidQueryParameterValue"))?;
            objects.put_block(key, encryption_key(request), block, request.body.clone());
            Ok(Answer::new(201))
        }
        ("PUT", Some("blocklist")) => {
            let blocks = elements(&request.body, "Uncommitted");
            let etag = objects
                .complete(key, &blocks, 0)
                .ok_or((400, "InvalidBlockList"))?;
            Ok(Answer::new(201).header("etag", etag))
        }
        ("PUT", None) => put(objects, request, key),
        _ => Err((405, "UnsupportedHttpVerb")),
    }
}

fn encryption_key(request: &Request) -> Option<String> {
    request.header(ENCRYPTION_KEY).map(str::to_owned)
}

fn get(objects: &Objects, request: &Request, key: &str, stale: bool) -> Answered {
    let object = objects.get(key, stale).ok_or((404, "BlobNotFound"))?;
    if object.key != encryption_key(request) {
        return Err((409, "BlobUsesCustomerSpecifiedEncryption"));
    }
    let answer = |status| {
        Answer::new(status)
            .header("etag", object.etag.clone())
            .header("last-modified", LAST_MODIFIED)
            .header("x-ms-blob-type", "BlockBlob")
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

fn put(objects: &mut Objects, request: &Request, key: &str) -> Answered {
    if request.header("x-ms-blob-type") != Some("BlockBlob") {
        return Err((400, "MissingRequiredHeader"));
    }
    if request.header("if-none-match") == Some("*") && objects.get(key, false).is_some() {
        return Err((409, "BlobAlreadyExists"));
    }
    let etag = objects.put(key, request.body.clone(), encryption_key(request));
    Ok(Answer::new(201).header("etag", etag))
}

fn list(objects: &Objects, request: &Request) -> Answer {
    let page = objects.list(
        request.parameter("prefix").unwrap_or_default(),
        request.parameter("delimiter"),
        request.parameter("marker"),
    );
    let mut body = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults><Blobs>");
    for (key, object) in &page.objects {
        let _ = write!(
            body,
            "<Blob><Name>{}</Name><Properties><Last-Modified>{LAST_MODIFIED}</Last-Modified><Etag>{}</Etag>\
             <Content-Length>{}</Content-Length><Content-Type>application/octet-stream</Content-Type></Properties></Blob>",
            escaped(key),
            object.etag,
            object.bytes.len()
        );
    }
    for folder in &page.folders {
        let _ = write!(body, "<BlobPrefix><Name>{}</Name></BlobPrefix>", escaped(folder));
    }
    let next = page.next.as_deref().map(escaped).unwrap_or_default();
    let _ = write!(
        body,
        "</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"
    );
    Answer::new(200).body(body)
}

/// Deletions, each a request of its own in a body of several parts.
fn batch(objects: &mut Objects, request: &Request) -> Answered {
    let text = String::from_utf8_lossy(&request.body);
    let start = format!("DELETE /{USER}/{}/", Cloud::BUCKET);
    let targets = text.lines().filter_map(|line| {
        let path = line.strip_prefix(&start)?.split(' ').next()?;
        Some(percent_decode_str(path).decode_utf8_lossy().into_owned())
    });
    let mut body = String::new();
    for (i, target) in targets.enumerate() {
        let status = match objects.delete(&target) {
            true => "202 Accepted",
            false => "404 The specified blob does not exist.",
        };
        let _ = write!(
            body,
            "--batchresponse\r\nContent-Type: application/http\r\nContent-ID: {i}\r\n\r\nHTTP/1.1 {status}\r\n\
             x-ms-request-id: {i}\r\nServer: fake\r\n\r\n"
        );
    }
    if body.is_empty() {
        return Err((400, "InvalidInput"));
    }
    body.push_str("--batchresponse--\r\n");
    Ok(Answer::new(202)
        .header("content-type", "multipart/mixed; boundary=batchresponse")
        .body(body))
}
