//! What a started process prints: where to point things, as text to copy.

use koios_server::config::Target;

use crate::Node;

/// The text for a started node.
pub(crate) fn text(node: &Node) -> String {
    let (http, grpc) = (node.http_addr(), node.grpc_addr());
    let data = node.settings().data_dir.display().to_string();
    if node.target() != Target::All {
        return format!(
            "koios {} {} is up: HTTP on {http}, gRPC on {grpc}, data in {data}",
            node.target().as_str(),
            node.name()
        );
    }
    format!(
        "\
Koios is up: HTTP on {http}, gRPC on {grpc}, data in {data}

  Prometheus, in prometheus.yml:
    remote_write:
    - url: http://{http}/api/v1/push

  Grafana, data source of type Prometheus, URL:
    http://{http}

  Browser or curl:
    http://{http}/api/v1/query?query=koios_build_info

  Tenants by the header X-Scope-OrgID; without it the tenant is \"anonymous\". Ctrl-C stops."
    )
}
