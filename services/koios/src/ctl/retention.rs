//! `koios ctl retention`: how long what is kept, as manifests note it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{ArgMatches, Command};
use koios_bucket::{Manifest, RetentionOrigin, RetentionPolicy, RetentionRecord};
use koios_model::TenantId;
use koios_server::config::format_duration;

use super::report::time;
use super::storage::{Storage, bucket_arg, tenant_arg};

const SHOW_LONG: &str = "\
Shows how long samples and summaries of tenants are kept: what is in force, since when, and as of when readers leave out what is older.

That is what the store that looks after a tenant has noted in the bucket, by the limits and overrides that it was told last. What a tenant's \
overrides said stays in force while they do not say it any more. Tenants of which nothing is noted have the defaults.";

pub(super) fn command() -> Command {
    let show = Command::new("show")
        .about("Shows how long samples and summaries of tenants are kept, and rules")
        .long_about(SHOW_LONG)
        .arg(bucket_arg())
        .arg(tenant_arg().help("Only this tenant; without it, all"));
    Command::new("retention")
        .about("How long what is kept; no server has to run")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(show)
}

pub(super) async fn run(matches: &ArgMatches) -> Result<ExitCode> {
    match matches.subcommand() {
        Some(("show", m)) => show(m).await.map(|()| ExitCode::SUCCESS),
        _ => bail!("unknown command, see `koios ctl retention --help`"),
    }
}

async fn show(matches: &ArgMatches) -> Result<()> {
    let storage = Storage::open_existing(matches)?;
    for tenant in storage.tenants(matches).await? {
        let manifest = storage.bucket.latest(&tenant).await?;
        for line in lines(&tenant, &manifest) {
            say!("{line}");
        }
    }
    Ok(())
}

fn lines(tenant: &TenantId, manifest: &Manifest) -> Vec<String> {
    let Some(record) = &manifest.retention else {
        return vec![format!(
            "tenant {tenant}: nothing is noted, the defaults are in force"
        )];
    };
    let RetentionRecord {
        policy,
        since_ms,
        horizon_ms,
        ..
    } = record;
    let by = |origin| match origin {
        RetentionOrigin::BuiltIn => "the defaults",
        RetentionOrigin::Process => "the settings of stores",
        RetentionOrigin::Limits => "the limits of all tenants",
        RetentionOrigin::Tenant => "its overrides",
    };
    let (origin, since) = (by(policy.origin()), time(*since_ms));
    let mut lines = vec![format!("tenant {tenant}: by {origin}, since {since}")];
    let cut = |kept_ms: Option<i64>, masked: bool| match kept_ms.filter(|_| masked) {
        Some(kept) => format!(", nothing before {}", time(horizon_ms.saturating_sub(kept))),
        None => String::new(),
    };
    for rule in &policy.rules {
        let kept = rule.kept_ms;
        lines.push(format!(
            "  {}: {}{}",
            rule.selector(),
            words(kept),
            cut(kept, true)
        ));
    }
    let rest = policy.samples_ms;
    let what = if policy.rules.is_empty() {
        "samples"
    } else {
        "all other samples"
    };
    lines.push(format!(
        "  {what}: {}{}",
        words(rest),
        cut(rest, policy.masks_rest)
    ));
    lines.extend(summary_lines(policy));
    lines
}

fn summary_lines(policy: &RetentionPolicy) -> impl Iterator<Item = String> + '_ {
    policy.summaries.iter().map(|s| {
        let resolution = format_duration(Duration::from_millis(s.resolution_ms.unsigned_abs()));
        format!("  summaries of {resolution}: {}", words(s.kept_ms))
    })
}

fn words(kept_ms: Option<i64>) -> String {
    kept_ms.map_or_else(
        || "for ever".to_owned(),
        |ms| format_duration(Duration::from_millis(ms.unsigned_abs())),
    )
}

#[cfg(test)]
mod tests {
    use koios_bucket::{ListedRule, SummaryRetention};
    use koios_model::{Matcher, Matchers, RetentionRule};

    use super::*;

    #[test]
    fn what_is_in_force_is_shown_with_what_it_cuts_off() {
        let tenant = TenantId::new("team-a").unwrap();
        let mut manifest = Manifest::empty(tenant.clone());
        assert_eq!(
            lines(&tenant, &manifest),
            ["tenant team-a: nothing is noted, the defaults are in force"]
        );
        let rule = RetentionRule {
            matchers: Matchers(vec![Matcher::equal("job", "debug")]),
            kept_ms: Some(86_400_000),
        };
        let policy = RetentionPolicy {
            rules_origin: RetentionOrigin::Tenant,
            samples_origin: RetentionOrigin::BuiltIn,
            samples_ms: Some(30 * 86_400_000),
            summaries: vec![SummaryRetention {
                resolution_ms: 300_000,
                kept_ms: None,
                kept_origin: RetentionOrigin::BuiltIn,
                after_ms: None,
                after_origin: RetentionOrigin::BuiltIn,
            }],
            rules: vec![ListedRule::new(&rule)],
            masks_rest: false,
        };
        let day = 86_400_000;
        manifest.retention = Some(RetentionRecord::new(policy, None, 10 * day, 11 * day));
        assert_eq!(
            lines(&tenant, &manifest),
            [
                format!("tenant team-a: by its overrides, since {}", time(10 * day)),
                format!("  {{job=\"debug\"}}: 1d, nothing before {}", time(10 * day)),
                "  all other samples: 30d".to_owned(),
                "  summaries of 5m: for ever".to_owned(),
            ]
        );
    }
}
