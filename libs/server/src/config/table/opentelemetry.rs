//! What becomes of OTLP.

use koios_wire::otlp::TranslationStrategy;

use super::{Setting, WRITE};

const HEADING: &str = "OpenTelemetry";

pub(super) const SETTINGS: &[Setting] = &[
    setting!(
        "limits.otlp-translation-strategy",
        TranslationStrategy,
        limits.otlp.translation_strategy,
        WRITE,
        "What becomes of the names of metrics and attributes; as Prometheus' otlp.translation_strategy, and so on below"
    ),
    names!(
        "limits.otlp-promote-resource-attributes",
        limits.otlp.promote_resource_attributes,
        WRITE,
        "Resource attributes that become labels of every series"
    ),
    setting!(
        "limits.otlp-promote-all-resource-attributes",
        bool,
        limits.otlp.promote_all_resource_attributes,
        WRITE,
        "Whether all resource attributes become labels of every series"
    ),
    names!(
        "limits.otlp-ignore-resource-attributes",
        limits.otlp.ignore_resource_attributes,
        WRITE,
        "Resource attributes that do not, when all others do"
    ),
    setting!(
        "limits.otlp-keep-identifying-resource-attributes",
        bool,
        limits.otlp.keep_identifying_resource_attributes,
        WRITE,
        "Whether target_info also has service.name, service.namespace and service.instance.id"
    ),
    setting!(
        "limits.otlp-convert-histograms-to-nhcb",
        bool,
        limits.otlp.convert_histograms_to_nhcb,
        WRITE,
        "Whether explicit histograms become native ones with custom buckets instead of classic ones"
    ),
    setting!(
        "limits.otlp-promote-scope-metadata",
        bool,
        limits.otlp.promote_scope_metadata,
        WRITE,
        "Whether name, version, schema and attributes of the scope become labels otel_scope_…"
    ),
    setting!(
        "limits.otlp-label-name-underscore-sanitization",
        bool,
        limits.otlp.label_name_underscore_sanitization,
        WRITE,
        "Whether label names that begin with one underscore get `key` before it, where names are escaped"
    ),
    setting!(
        "limits.otlp-label-name-preserve-multiple-underscores",
        bool,
        limits.otlp.label_name_preserve_multiple_underscores,
        WRITE,
        "Whether several underscores in a row stay in label names, where names are escaped"
    ),
];
