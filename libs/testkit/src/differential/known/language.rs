//! What can be written.

use super::super::site::{Site, difference};
use super::fails_with;

/// Numbers where durations were, durations where numbers were, and an offset of nothing: written in the old way, it gives
/// what Koios answers.
pub(super) fn durations_are_numbers(site: &Site) -> bool {
    let refused = [
        "expected duration",
        "unexpected duration",
        "missing unit character in duration",
        "duration must be greater than 0",
    ];
    refused
        .iter()
        .any(|message| fails_with(&site.prometheus, message))
        && site
            .respelled
            .as_ref()
            .is_some_and(|answer| difference(answer, &site.koios, site.ast.as_ref()).is_none())
}

/// Label names made by functions and aggregations.
pub(super) fn any_label_name(site: &Site) -> bool {
    let refused = [
        "invalid label name",
        "invalid destination label name",
        "invalid source label name",
    ];
    refused
        .iter()
        .any(|message| fails_with(&site.prometheus, message))
        && site.koios.success().is_some()
}
