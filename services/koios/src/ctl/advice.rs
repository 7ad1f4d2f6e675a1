//! What an operator can do about a process that does not answer as one of Koios does.

use anyhow::{Error, anyhow};
use koios_runtime::with_sources;

/// The error, with what to do about it where that is known.
pub(super) fn with_advice(error: Error) -> Error {
    let said = with_sources(error.as_ref());
    match advice(&said) {
        Some(advice) => anyhow!("{said}: {advice}"),
        None => error,
    }
}

/// By the words of an answer: those of the libraries that speak gRPC come without kinds.
fn advice(said: &str) -> Option<&'static str> {
    let is = |words: &str| said.contains(words);
    if is("nothing is decided unless a majority") {
        // It says what to do, and names the last of several processes that were asked.
        return None;
    }
    if is("invalid compression flag") || is("frame with invalid size") {
        return Some("is this a gRPC port (grpc.listen, 9095 by default)? Give it with --addr");
    }
    if is("mapped from HTTP status code 404") || is("(unimplemented)") {
        return Some(
            "this process does not take the command: give with --addr an ingester, or a process that runs everything; `koios ctl \
             status` names the members and their addresses",
        );
    }
    if is("Connection refused") {
        return Some(
            "nothing listens there: does the process run, and is this its grpc.listen (9095 by default)? Give it with --addr",
        );
    }
    if is("no answer within") || is("did not answer within") || is("deadline of") {
        return Some("does the process hang, or has it too much to do? See its log");
    }
    is("invalid socket address").then_some("give host:port with --addr")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libraries_say_comes_with_what_to_do_about_it() {
        for (said, wanted) in [
            (
                "127.0.0.1:9009: protocol error: received message with invalid compression flag: 123 (internal)",
                "is this a gRPC port (grpc.listen",
            ),
            (
                "127.0.0.1:9095: grpc-status header missing, mapped from HTTP status code 404 (unimplemented)",
                "an ingester, or a process that runs everything",
            ),
            (
                "control peer 127.0.0.1:9999: Connection refused (os error 111)",
                "does the process run",
            ),
            (
                "127.0.0.1:9095: no answer within 20s (unavailable)",
                "does the process hang",
            ),
            ("control peer 127.0.0.1: invalid socket address", "give host:port"),
        ] {
            let told = with_advice(anyhow!(said)).to_string();
            assert!(told.starts_with(said) && told.contains(wanted), "{told}");
        }
        let told = with_advice(anyhow!("partition 4711 does not exist")).to_string();
        assert_eq!(told, "partition 4711 does not exist");
    }
}
