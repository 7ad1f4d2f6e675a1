use std::collections::BTreeMap;
use std::time::Duration;

use clap::Command;

use super::*;
use crate::cors::CorsOrigin;
use crate::settings::LogFormat;

fn load_with(args: &[&str], env: &[(&str, &str)], file: &str) -> Result<Settings, ConfigError> {
    load_as(load, args, env, file)
}

fn load_as<T>(
    load: impl FnOnce(&clap::ArgMatches, &Sources<'_>) -> T,
    args: &[&str],
    env: &[(&str, &str)],
    file: &str,
) -> T {
    let matches = Command::new("koios")
        .args(flags(Target::All))
        .try_get_matches_from(std::iter::once("koios").chain(args.iter().copied()))
        .unwrap();
    let env: BTreeMap<String, String> = env
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    load(
        &matches,
        &Sources {
            env: &|name| env.get(name).cloned(),
            read_file: &|_| Ok(file.to_owned()),
        },
    )
}

fn file_error(text: &str) -> String {
    apply_yaml(&mut Settings::default(), "config.yaml", text)
        .unwrap_err()
        .to_string()
}

#[test]
fn without_anything_the_defaults_hold() {
    assert_eq!(load_with(&[], &[], "").unwrap(), Settings::default());
}

#[test]
fn a_flag_beats_a_variable_beats_the_file() {
    let file = "http:\n  listen: 1.1.1.1:1\ngrpc:\n  listen: 1.1.1.1:2\nzone: file\n";
    let env = [("KOIOS_GRPC_LISTEN", "2.2.2.2:2"), ("KOIOS_ZONE", "env")];
    let got = load_with(&["--config", "config.yaml", "--zone=flag"], &env, file).unwrap();
    assert_eq!(got.http.listen, "1.1.1.1:1");
    assert_eq!(got.grpc.listen, "2.2.2.2:2");
    assert_eq!(got.zone, "flag");
}

#[test]
fn scripts_of_any_origin_may_read_unless_told_otherwise() {
    let given = |args: &[&str], file: &str| load_with(args, &[], file).unwrap().http.cors_origin;
    assert_eq!(given(&[], ""), CorsOrigin::Every);
    assert_eq!(given(&["--http.cors-origin="], ""), CorsOrigin::None);
    let file = "http:\n  cors-origin: ''\n";
    assert_eq!(given(&["--config", "config.yaml"], file), CorsOrigin::None);
    let some = "https://.+[.]example[.]com";
    let flag = format!("--http.cors-origin={some}");
    assert_eq!(given(&["--config", "config.yaml", &flag], file).pattern(), some);
}

#[test]
fn every_kind_of_value_can_stand_in_the_file() {
    let mut got = Settings::default();
    let text = "\
# all kinds
data-dir: /var/lib/koios
control:
  voters: [a=1.1.1.1:1, '1.1.1.2:1']
  partitions: 4
log:
  format: json
http.listen: 0.0.0.0:80
limits:
  out-of-order-time-window: 1h30m
  max-request-bytes: 16MiB
overrides:
  team-a:
    max-labels-per-series: 7
";
    apply_yaml(&mut got, "config.yaml", text).unwrap();
    assert_eq!(got.data_dir, PathBuf::from("/var/lib/koios"));
    assert_eq!(got.control.voters, ["a=1.1.1.1:1", "1.1.1.2:1"]);
    assert_eq!(got.control.partitions, 4);
    assert_eq!(got.log.format, LogFormat::Json);
    assert_eq!(got.http.listen, "0.0.0.0:80");
    assert_eq!(got.limits.out_of_order_time_window, Duration::from_secs(5400));
    assert_eq!(got.limits.max_request_bytes, 16 << 20);
    let team = &got.overrides[&TenantId::new("team-a").unwrap()];
    assert_eq!(team.max_labels_per_series, 7);
    assert_eq!(team.max_request_bytes, 16 << 20);
    assert_eq!(got.validate(), Ok(()));
}

#[test]
fn rules_of_retention_can_stand_in_the_file_in_two_forms() {
    let mut got = Settings::default();
    let text = "\
limits:
  retention-rules: '7d {job=\"debug\"}; 0 {__name__=~\"slo:.*\"}'
overrides:
  team-a:
    retention: 2y
    retention-rules:
      - match: '{job=~\"a;b|c,d\"}'
        retention: 30d
      - retention: 0
        match: up
  team-b:
    retention: 0
    retention-rules: []
";
    apply_yaml(&mut got, "config.yaml", text).unwrap();
    assert_eq!(got.validate(), Ok(()));
    let of = |tenant: &str| &got.overrides[&TenantId::new(tenant).unwrap()].retention;
    let kept = |rules: &Option<Vec<koios_model::RetentionRule>>| -> Option<Vec<Option<i64>>> {
        let rules = rules.as_ref()?;
        Some(rules.iter().map(|r| r.kept_ms).collect())
    };
    assert_eq!(
        kept(&got.limits.retention.rules),
        Some(vec![Some(7 * 86_400_000), None])
    );
    assert_eq!(kept(&of("team-a").rules), Some(vec![Some(30 * 86_400_000), None]));
    assert_eq!(
        of("team-a").rules.as_ref().unwrap()[0].matchers.0[0].value(),
        "a;b|c,d"
    );
    let years = Duration::from_secs(2 * 365 * 86_400);
    assert_eq!(of("team-a").samples, Some(years));
    assert_eq!(of("team-b").samples, Some(Duration::ZERO));
    assert_eq!(
        kept(&of("team-b").rules),
        Some(vec![]),
        "it says that there are none"
    );
    assert_eq!(got.limits.retention.samples, None);
    assert!(got.given.contains("limits.retention-rules") && !got.given.contains("retention"));
}

#[test]
fn i10_a_rule_that_earlier_versions_accepted_starts_and_deletes_nothing() {
    let text = "\
limits: {retention: 400d, retention-rules: '7d {job=\"debug\"}; 30d {__name__=~\".+\"}; 1h {env=\"dev\"}'}
overrides:
  team-a: {retention: 10d}
  team-b: {retention: 20d, retention-rules: '0 {__name__!=\"\"}'}
  team-c: {retention: 5d, retention-rules: '1h {job=\"c\"}'}
";
    let refused = load_with(&["--config=x"], &[], text).unwrap_err().to_string();
    assert!(
        refused.contains("rule 2 {__name__=~\".+\"}, must be a selector"),
        "{refused}"
    );
    let (got, disarmed) = load_as(load_at_start, &["--config=x"], &[], text).unwrap();
    let told: Vec<String> = disarmed.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("limits.retention-rules has {__name__=~\".+\"}")
            && told[0].contains("say limits.retention: 2592000s"),
        "{told:?}"
    );
    assert!(
        told[1].starts_with("overrides.team-b.retention-rules has {__name__!=\"\"}")
            && told[1].contains("say overrides.team-b.retention: 0 "),
        "{told:?}"
    );
    let of = |tenant: &str| &got.overrides[&TenantId::new(tenant).unwrap()].retention;
    let rules = |limits: &RetentionLimits| limits.rules.as_ref().map(Vec::len);
    let (all, ever) = (&got.limits.retention, Some(Duration::ZERO));
    assert_eq!((rules(all), all.samples), (Some(1), ever));
    assert_eq!(
        (rules(of("team-a")), of("team-a").samples),
        (None, ever),
        "the rule of all kept its series"
    );
    assert_eq!((rules(of("team-b")), of("team-b").samples), (Some(0), ever));
    let days = Some(Duration::from_secs(5 * 86_400));
    assert_eq!((rules(of("team-c")), of("team-c").samples), (Some(1), days));
    // Whatever else cannot be meant stops the start.
    let wrong = "limits: {retention-rules: '7d {job=~\".*\"}'}";
    assert!(load_as(load_at_start, &["--config=x"], &[], wrong).is_err());
}

#[test]
fn i10_a_tenant_says_of_retention_what_its_overrides_give() {
    let text = "\
limits: {retention: 400d, retention-rules: '7d {job=\"debug\"}', downsampled-retention-1h: 9y}
overrides:
  team-a: {max-labels-per-series: 100}
";
    let got = load_with(&["--config=x"], &[("KOIOS_LIMITS_MAX_QUERY_POINTS", "7")], text).unwrap();
    let team = &got.overrides[&TenantId::new("team-a").unwrap()];
    assert_eq!(team.retention, RetentionLimits::default());
    assert_eq!(team.max_query_points, 7);
    let (own, all) = got.tenant_limits().retention(&TenantId::new("team-a").unwrap());
    assert_eq!(own.or(&all), got.limits.retention);
}

#[test]
fn flags_and_variables_reach_tenants_with_overrides() {
    let text = "limits: {max-query-points: 5}\noverrides:\n  team-a: {max-labels-per-series: 7}\n";
    let args = ["--config=x", "--limits.retention=400d"];
    let got = load_with(&args, &[("KOIOS_LIMITS_MAX_QUERY_POINTS", "6")], text).unwrap();
    let team = &got.overrides[&TenantId::new("team-a").unwrap()];
    assert_eq!((team.max_labels_per_series, team.max_query_points), (7, 6));
    let (own, all) = got.tenant_limits().retention(&TenantId::new("team-a").unwrap());
    assert_eq!(own.or(&all).samples, Some(Duration::from_secs(400 * 86_400)));
    // What a tenant says itself stays above all.
    let args = ["--config=x", "--limits.max-labels-per-series=9"];
    let got = load_with(&args, &[], text).unwrap();
    let team = &got.overrides[&TenantId::new("team-a").unwrap()];
    assert_eq!(
        (team.max_labels_per_series, got.limits.max_labels_per_series),
        (7, 9)
    );
}

#[test]
fn i13_a_wrong_rule_is_named() {
    for (text, want) in [
        (
            "overrides:\n  a:\n    retention:\n",
            "config.yaml:3: invalid value \"\" for limits.retention: empty: write a duration, or leave the key out",
        ),
        (
            "overrides:\n  a:\n    retention-rules:\n",
            "config.yaml:3: invalid value \"\" for limits.retention-rules: empty: write `[]`",
        ),
        (
            "limits:\n  retention-rules: '7d {job=}'\n",
            "config.yaml:2: invalid value \"7d {job=}\" for limits.retention-rules: rule 1 `7d {job=}`: its selector cannot be read",
        ),
        (
            "overrides:\n  a:\n    retention-rules:\n      - match: up\n",
            "config.yaml:",
        ),
    ] {
        let got = file_error(text);
        assert!(got.starts_with(want), "{text:?} gave {got:?}");
    }
    let lacking = file_error("limits:\n  retention-rules:\n    - match: up\n");
    assert!(
        lacking.contains("a rule lacks the key \"retention\""),
        "{lacking}"
    );
    let other = file_error("limits:\n  retention-rules:\n    - matches: up\n");
    assert!(other.contains("unknown key \"matches\" of a rule"), "{other}");
    let mut settings = Settings::default();
    let file = "overrides:\n  a:\n    retention-rules:\n    - {match: up, retention: 1s}\n";
    apply_yaml(&mut settings, "config.yaml", file).unwrap();
    let got = settings.validate().unwrap_err();
    let want =
        "overrides.a: limits.retention-rules is rule 1 {__name__=\"up\"}, must be kept for at least 1m";
    assert!(got.starts_with(want), "{got}");
}

#[test]
fn i10_a_retention_is_read_whole_or_refused_with_its_value() {
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let got = load_with(&["--retention=1y180d", "--limits.retention=2y5d"], &[], "").unwrap();
    assert_eq!(got.retention, days(365 + 180));
    assert_eq!(got.limits.retention.samples, Some(days(2 * 365 + 5)));
    // What follows a duration belongs to no other.
    for value in [
        "1y180",
        "1y 180d",
        "1y180dd",
        "1y,180d",
        "1yd",
        "1y-180d",
        "1y180d 2h",
    ] {
        for key in [
            "retention",
            "limits.retention",
            "limits.downsampled-retention-5m",
            "limits.downsampled-retention-1h",
        ] {
            let flag = load_with(&[&format!("--{key}={value}")], &[], "").unwrap_err();
            let want = format!("--{key}: invalid value {value:?} for {key}: not a duration");
            assert!(flag.to_string().starts_with(&want), "{flag}");
        }
        let file = file_error(&format!("overrides:\n  a:\n    retention: {value}\n"));
        let want = format!("config.yaml:3: invalid value {value:?} for limits.retention: not a duration");
        assert!(file.starts_with(&want), "{file}");
        let rule = file_error(&format!(
            "limits:\n  retention-rules:\n    - match: up\n      retention: {value}\n"
        ));
        let want = format!("the retention {value:?} of a rule is not a duration");
        assert!(rule.starts_with("config.yaml:") && rule.contains(&want), "{rule}");
        let text = file_error(&format!("limits:\n  retention-rules: '{value} {{job=\"a\"}}'\n"));
        assert!(text.contains(&format!("rule 1 `{value} {{job")), "{text}");
    }
    // A second line goes on with the first.
    let file = file_error("retention: 1y\n  180d\n");
    assert!(
        file.starts_with("config.yaml:1: invalid value \"1y 180d\" for retention"),
        "{file}"
    );
    let file = file_error("retention: '1y' 180d\n");
    assert!(file.starts_with("config.yaml:1: "), "{file}");
}

#[test]
fn names_line_and_nearest_key() {
    let text = format!("{}retenion: 1d\n", "# line\n".repeat(11));
    assert_eq!(
        file_error(&text),
        "config.yaml:12: unknown key \"retenion\" (did you mean \"retention\"?)"
    );
    assert_eq!(
        file_error("http:\n  listne: 1.1.1.1:1\n"),
        "config.yaml:2: unknown key \"listne\" (did you mean \"listen\"?) in section \"http\""
    );
    assert_eq!(
        file_error("max-labels-per-serie: 3\n"),
        "config.yaml:1: unknown key \"max-labels-per-serie\" (did you mean \"limits.max-labels-per-series\"?)"
    );
    assert_eq!(file_error("zzzzzz: 3\n"), "config.yaml:1: unknown key \"zzzzzz\"");
    assert_eq!(
        file_error("overrides:\n  a:\n    zone: b\n"),
        "config.yaml:3: unknown key \"zone\" in section \"overrides.a\""
    );
}

#[test]
fn names_the_place_of_a_wrong_value() {
    for (text, want) in [
        (
            "zone: a\nretention: 6hours\n",
            "config.yaml:2: invalid value \"6hours\" for retention: not a duration",
        ),
        (
            "http:\n  listen: here\n",
            "config.yaml:2: invalid value \"here\" for http.listen: not an address",
        ),
        (
            "control:\n  partitions: -1\n",
            "config.yaml:2: invalid value \"-1\" for control.partitions: not a number",
        ),
        (
            "http:\n  cors-origin: https://(a\n",
            "config.yaml:2: invalid value \"https://(a\" for http.cors-origin: regex parse error",
        ),
        ("http: 5\n", "config.yaml:1: "),
        ("zone: a\nzone: b\n", "config.yaml:2: key \"zone\" twice"),
        ("zone: [a\n", "config.yaml:"),
        ("- a\n", "config.yaml:1: "),
        ("zone: {a: b}\n", "config.yaml:1: "),
        (
            "overrides:\n  '../x':\n    max-labels-per-series: 1\n",
            "config.yaml:3: invalid value \"../x\" for overrides: tenant ID",
        ),
    ] {
        let got = file_error(text);
        assert!(got.starts_with(want), "{text:?} gave {got:?}");
    }
    let flag = load_with(&["--retention=1"], &[], "").unwrap_err().to_string();
    assert!(
        flag.starts_with("--retention: invalid value \"1\" for retention"),
        "{flag}"
    );
    let variable = load_with(&[], &[("KOIOS_LOG_FORMAT", "xml")], "")
        .unwrap_err()
        .to_string();
    assert!(
        variable.starts_with("KOIOS_LOG_FORMAT: invalid value \"xml\""),
        "{variable}"
    );
}

#[test]
fn refuses_contradictions_and_missing_secrets() {
    for (args, want) in [
        (&["--s3.access-key-id=a"][..], "s3.secret-access-key is missing"),
        (
            &["--control.replication-factor=2"],
            "control.replication-factor is 2, must be 1 or 3",
        ),
        (
            &["--limits.max-label-set-bytes=10"],
            "limits.max-label-set-bytes is 10",
        ),
        (
            &["--limits.max-request-bytes=1GiB"],
            "http.max-write-bytes-in-flight is 268435456, must be at least",
        ),
        (
            &["--limits.max-request-bytes=33MiB"],
            "http.max-write-bytes-in-flight is 268435456, must be at least 276824064, 8 times limits.max-request-bytes",
        ),
        (&["--blocks.range=0"], "blocks.range is 0ns, must be at least 1s"),
        (
            &["--blocks.manifest-max-age=11m"],
            "blocks.manifest-max-age is 660s, must be at most 600s",
        ),
        (&["--self-metrics.tenant=a/b"], "self-metrics.tenant: tenant ID"),
        (&["--s3.encryption=rot13"], "must be one of AES256, aws:kms"),
        (&["--s3.kms-key-id=k"], "s3.encryption must be aws:kms"),
        (
            &["--s3.encryption=AES256", "--s3.bucket-key=true"],
            "s3.encryption must be aws:kms",
        ),
        (&["--s3.encryption=sse-c"], "s3.customer-key go together"),
        (&["--s3.customer-key=x"], "s3.customer-key go together"),
        (
            &["--storage.request-timeout=2m"],
            "storage.timeout is 60s, must be at least storage.request-timeout",
        ),
        (&["--storage.request-timeout=0"], "must be at least 1s"),
        (&["--storage.backoff-min=0"], "must be at least 1ms"),
        (&["--storage.backoff-max=1m"], "less than storage.timeout"),
    ] {
        let got = load_with(args, &[], "").unwrap_err().to_string();
        assert!(got.contains(want), "{got}");
    }
}

#[test]
fn secrets_are_never_shown() {
    let flags = [
        "--s3.access-key-id=a",
        "--s3.secret-access-key=hush",
        "--s3.encryption=sse-c",
        "--s3.customer-key=hush",
        "--azure.account-key=hush",
        "--azure.customer-key=hush",
    ];
    let settings = load_with(&flags, &[], "").unwrap();
    assert_eq!(settings.s3.secret_access_key, "hush");
    assert_eq!(settings.s3.customer_key, "hush");
    assert_eq!(settings.azure.account_key, "hush");
    assert_eq!(settings.azure.customer_key, "hush");
    assert!(!format!("{settings:?}").contains("hush"));
    assert!(all_settings().all(|s| s.value_in(&settings) != "hush"));
}

#[test]
fn an_unreadable_file_is_named() {
    let matches = Command::new("koios")
        .args(flags(Target::Querier))
        .get_matches_from(["koios", "--config=missing.yaml"]);
    let error = load(
        &matches,
        &Sources {
            env: &|_| None,
            read_file: &|_| Err(std::io::Error::from(std::io::ErrorKind::NotFound)),
        },
    );
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("missing.yaml: cannot read configuration: "),
        "{error}"
    );
}

#[test]
fn the_defaults_read_as_they_are_shown() {
    let defaults = Settings::default();
    let mut again = Settings::default();
    for s in all_settings() {
        let shown = s.value_in(&defaults);
        if !shown.is_empty() {
            (s.set)(&mut again, &shown).unwrap_or_else(|e| panic!("{}: {e}", s.key));
        }
    }
    assert_eq!(again, defaults);
}

#[test]
fn keys_and_variables_are_distinct_and_plain() {
    let keys: std::collections::BTreeSet<_> = all_settings().map(|s| s.key).collect();
    let variables: std::collections::BTreeSet<_> = all_settings().map(Setting::variable).collect();
    assert_eq!(
        (keys.len(), variables.len()),
        (all_settings().count(), all_settings().count())
    );
    assert!(keys.iter().all(|k| {
        k.chars()
            .all(|c| c.is_ascii_lowercase() || "0123456789.-".contains(c))
    }));
}

#[test]
fn help_shows_groups_and_defaults() {
    let help = Command::new("koios")
        .args(flags(Target::Distributor))
        .render_long_help()
        .to_string();
    assert!(
        help.contains("--http.listen <HOST:PORT>") && help.contains("[default: 127.0.0.1:9009]"),
        "{help}"
    );
    assert!(help.contains("Limits on writes:"), "{help}");
    assert!(!help.contains("--blocks.range"), "a distributor cuts no blocks");
}

/// `KOIOS_WRITE_DOCS=1` writes the page anew.
#[test]
fn the_reference_page_is_current() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    if std::env::var_os("KOIOS_WRITE_DOCS").is_some() {
        std::fs::write(&page, reference_page()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&page).unwrap(), reference_page());
}

#[test]
fn i13_a_variable_that_is_nearly_one_is_warned_of() {
    let names = [
        "KOIOS_HTTP_LISTE",
        "KOIOS_HTTP_LISTEN",
        "KOIOS_CONFIG",
        "KOIOS_HTTP_PORT",
        "KOIOS_SERVICE_HOST",
        "HTTP_LISTE",
    ];
    assert_eq!(
        misspelt_variables(names),
        ["the environment variable KOIOS_HTTP_LISTE is not read: did you mean KOIOS_HTTP_LISTEN?"]
    );
}

#[test]
fn i13_a_zone_that_the_control_state_would_refuse_is_told_with_its_setting() {
    for zone in [String::new(), "z".repeat(254), "a\nb".to_owned()] {
        let settings = Settings {
            zone,
            ..Settings::default()
        };
        let got = settings.validate().unwrap_err();
        assert!(
            got.starts_with("zone is \"") && got.contains("1 to 253 bytes"),
            "{got}"
        );
    }
}
