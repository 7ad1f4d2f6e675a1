//! Names and addresses: what a process is called and where others reach it.

use koios_control::{Voters, parse_voters};
use koios_runtime::{Listener, Runtime};
use koios_server::Settings;
use koios_server::config::Target;
use serde::Deserialize;

use super::NodeError;

/// Why a process that is a part of a cluster does not start without its voters: it would be a cluster by itself, and take over the one
/// whose bucket it is given.
pub(super) fn no_voters(target: Target) -> String {
    format!(
        "control.voters is empty, and `koios {}` is only a part of a cluster: list the voters of the cluster (its ingesters, or some \
         of them), as all of its processes do, a voter itself, too; `koios all` is a cluster by itself",
        target.as_str()
    )
}

/// The listed voters by name. One listed without a name is called by its address.
pub(super) fn voters(listed: &[String]) -> Result<Voters, NodeError> {
    Ok(parse_voters(&listed.join(","))?)
}

/// `host:port` for others: what the operator advertises, else the listener's own, with the machine's name in place of
/// an unspecified host.
pub(super) fn reachable(listen: &str, listener: &dyn Listener, advertise: &str) -> Result<String, NodeError> {
    if !advertise.is_empty() {
        return Ok(advertise.to_owned());
    }
    let wrong = |why: String| NodeError::Settings(format!("cannot tell the address of {listen}: {why}"));
    let bound = listener.local_addr().map_err(|e| wrong(e.to_string()))?;
    let (host, _) = listen
        .rsplit_once(':')
        .ok_or_else(|| wrong("it has no port".to_owned()))?;
    let host = match host.trim_matches(['[', ']']) {
        "" | "0.0.0.0" | "::" => machine_name(),
        host => host.to_owned(),
    };
    Ok(if host.contains(':') {
        format!("[{host}]:{}", bound.port())
    } else {
        format!("{host}:{}", bound.port())
    })
}

fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

/// What the process is called: as set; else as the voter at its address; else as its data directory says; else a new
/// name from its target.
pub(super) async fn node_name(
    target: Target,
    settings: &Settings,
    voters: &Voters,
    grpc_addr: &str,
    runtime: &Runtime,
) -> Result<String, NodeError> {
    let voter = voters
        .iter()
        .find(|(_, addr)| addr.as_str() == grpc_addr)
        .map(|(name, _)| name.clone());
    if !settings.node.name.is_empty() {
        return match voter {
            Some(voter) if voter != settings.node.name => Err(NodeError::Settings(format!(
                "control.voters lists this process' address as {voter}={grpc_addr}, node.name is {}: \
                 write {}={grpc_addr} in control.voters of every process",
                settings.node.name, settings.node.name
            ))),
            _ => Ok(settings.node.name.clone()),
        };
    }
    if let Some(voter) = voter {
        return Ok(voter);
    }
    if let Some(kept) = kept_name(settings, runtime).await {
        return Ok(kept);
    }
    Ok(match target {
        Target::All => "koios".to_owned(),
        other => format!("{}-{:06x}", other.as_str(), runtime.rng.u64() & 0xff_ffff),
    })
}

/// The name in the data directory. Whatever is wrong with the file is reported by who opens it in earnest.
async fn kept_name(settings: &Settings, runtime: &Runtime) -> Option<String> {
    #[derive(Deserialize)]
    struct Kept {
        node: String,
    }
    let path = settings.data_dir.join("identity.json");
    let bytes = runtime.disk.run(move |disk| disk.read(&path)).await.ok()?;
    serde_json::from_slice::<Kept>(&bytes).ok().map(|kept| kept.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voters_may_be_listed_without_names() {
        let listed = ["a=h1:1,127.0.0.1:9102".to_owned(), "c=h3:3".to_owned()];
        let names: Vec<_> = voters(&listed).unwrap().into_keys().collect();
        assert_eq!(names, ["127-0-0-1-9102", "a", "c"]);
        assert!(voters(&["a=b".to_owned()]).is_err());
    }
}
