//! Commands that work on a bucket without a server, and what a server makes of their work.

mod support;

use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use koios_bucket::{Bucket, Manifest, Nonce, Tombstone, Writer};
use koios_model::{Labels, Matchers, TenantId, TimeRange};
use koios_runtime::Runtime;
use koios_testkit::query;
use koios_testkit::tsdb::TsdbContent;
use support::{all_in_one, client, eventually, now_ms, program};

const HOUR: i64 = 3_600_000;

fn koios(args: &[&str]) -> Result<Output> {
    Ok(std::process::Command::new(program()).args(args).output()?)
}

/// Standard output of a command that ends with a code.
fn run(code: i32, args: &[&str]) -> Result<String> {
    let done = koios(args)?;
    let (out, err) = (String::from_utf8(done.stdout)?, String::from_utf8(done.stderr)?);
    ensure!(
        done.status.code() == Some(code),
        "{args:?} ended with {}: {out}{err}",
        done.status
    );
    Ok(out + &err)
}

fn import<'a>(url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["ctl", "import", "--bucket-url", url][..], more].concat()
}

/// The URL of an empty bucket below a folder.
fn new_bucket(dir: &Path) -> Result<String> {
    std::fs::create_dir(dir.join("bucket"))?;
    Ok(format!("file://{}/bucket", dir.display()))
}

/// Two blocks of a day each, of two series.
fn tsdb(dir: &Path, from: i64) -> Result<()> {
    for (n, ulid) in ["01BKGTZQ1SYQJTR4PB43C8PD98", "01BKGTZQ1SYQJTR4PB43C8PD99"]
        .iter()
        .enumerate()
    {
        let mut content = TsdbContent {
            ulid: (*ulid).to_owned(),
            ..TsdbContent::default()
        };
        for job in ["a", "b"] {
            let samples: Vec<(i64, f64)> = (0..24 * 60)
                .map(|i| (from + n as i64 * 24 * HOUR + i * 60_000, i as f64))
                .collect();
            let labels = Labels::from_pairs([("__name__", "imported"), ("job", job)]);
            content = content.with_floats(labels, &samples, 120);
        }
        content.write_to(dir)?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_imported_is_answered_at_once_and_repeating_it_adds_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let koios = all_in_one(
        dir.path(),
        &["--store.compaction-interval=1s", "--blocks.manifest-max-age=1s"],
    )
    .await?;
    let from = now_ms() / (24 * HOUR) * 24 * HOUR - 10 * 24 * HOUR;
    let data = dir.path().join("tsdb");
    tsdb(&data, from)?;
    let url = format!("file://{}/bucket", koios.data_dir.display());
    let data = data.display().to_string();
    let import = ["ctl", "import", "--bucket-url", &url, "--tenant", "team-a", &data];
    let dry = run(0, &[&import[..], &["--dry-run"]].concat())?;
    ensure!(
        dry.contains("2 blocks would be imported") && dry.contains("5760 samples"),
        "{dry}"
    );
    let done = run(0, &import)?;
    ensure!(done.contains("2 blocks imported, 0 known"), "{done}");
    let (client, http) = (client(), &koios.http);
    let client = &client;
    eventually("imported samples are counted", || async move {
        let at = from + 48 * HOUR - 1;
        let text = "count_over_time(imported[48h])";
        let found = query::instant(client, http, "team-a", text, at).await?;
        let counts: Vec<f64> = found.values().flatten().map(|s| s.v).collect();
        ensure!(counts == [2880.0, 2880.0], "{counts:?}");
        let other = query::instant(client, http, "team-b", text, at).await?;
        ensure!(other.is_empty(), "another tenant sees them");
        Ok(())
    })
    .await?;
    let again = run(0, &import)?;
    ensure!(again.contains("0 blocks imported, 2 known"), "{again}");

    // What was deleted is imported again when that is asked for, and of a tenant that was deleted by itself.
    let counted = |expected: &'static [f64]| async move {
        let at = from + 48 * HOUR - 1;
        let found = query::instant(client, http, "team-a", "count_over_time(imported[48h])", at).await?;
        let counts: Vec<f64> = found.values().flatten().map(|s| s.v).collect();
        ensure!(counts == expected, "{counts:?}");
        Ok(())
    };
    let delete = "/api/v1/admin/tsdb/delete_series?match[]=imported";
    let of_team = [("x-scope-orgid", "team-a")];
    let answer = client
        .send("POST", http, delete, &of_team, Default::default())
        .await?;
    ensure!(answer.status == 204, "{}", answer.text());
    counted(&[]).await?;
    let again = run(0, &[&import[..], &["--again"]].concat())?;
    ensure!(again.contains("2 blocks imported, 0 known"), "{again}");
    eventually("they are there again", || counted(&[2880.0, 2880.0])).await?;
    let delete = "/api/v1/admin/tenants/team-a/delete";
    let answer = client.send("POST", http, delete, &[], Default::default()).await?;
    ensure!(answer.status == 204, "{}", answer.text());
    counted(&[]).await?;
    let again = run(0, &import)?;
    ensure!(again.contains("2 blocks imported, 0 known"), "{again}");
    eventually("they are there after all", || counted(&[2880.0, 2880.0])).await
}

/// As mimirtool does it.
async fn upload(http: &str, tenant: &str, folder: &Path) -> Result<()> {
    let client = client();
    let ulid = folder.file_name().and_then(|n| n.to_str()).context("a name")?;
    let base = format!("/api/v1/upload/block/{ulid}");
    // As `--id` and `--key` set them.
    let headers = [
        ("x-scope-orgid", tenant),
        ("authorization", "Basic dGVhbS1hOmtleQ=="),
    ];
    let send = |path: String, body: Vec<u8>| {
        let (client, headers) = (&client, &headers);
        async move { client.send("POST", http, &path, headers, body.into()).await }
    };
    let mut files = vec!["index".to_owned()];
    for chunks in std::fs::read_dir(folder.join("chunks"))? {
        files.push(format!("chunks/{}", chunks?.file_name().to_string_lossy()));
    }
    let answer = send(format!("{base}/start"), mimirtools_meta(folder, &files)?).await?;
    ensure!(answer.status == 200, "start: {} {}", answer.status, answer.text());
    for file in files {
        let path = format!("{base}/files?path={}", file.replace('/', "%2F"));
        let answer = send(path, std::fs::read(folder.join(&file))?).await?;
        ensure!(
            answer.status == 200,
            "{file}: {} {}",
            answer.status,
            answer.text()
        );
    }
    let answer = send(format!("{base}/finish"), Vec::new()).await?;
    ensure!(
        answer.status == 200,
        "finish: {} {}",
        answer.status,
        answer.text()
    );
    Ok(())
}

/// The block's `meta.json` as mimirtool writes it anew: with a part of Thanos, whose labels are null where there are none.
fn mimirtools_meta(folder: &Path, files: &[String]) -> Result<Vec<u8>> {
    let mut meta: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("meta.json"))?)?;
    let mut listed = vec![serde_json::json!({"rel_path": "meta.json"})];
    for file in files {
        let bytes = std::fs::metadata(folder.join(file))?.len();
        listed.push(serde_json::json!({"rel_path": file, "size_bytes": bytes}));
    }
    meta["thanos"] = serde_json::json!({
        "labels": meta["thanos"]["labels"].clone(),
        "downsample": {"resolution": 0},
        "source": "",
        "files": listed,
    });
    Ok(format!("{meta}\n").into_bytes())
}

async fn uploaded(http: &str, tenant: &str, ulid: &str) -> Result<(u16, String)> {
    let path = format!("/api/v1/upload/block/{ulid}/check");
    let answer = client()
        .send(
            "GET",
            http,
            &path,
            &[("x-scope-orgid", tenant)],
            Default::default(),
        )
        .await?;
    Ok((answer.status, answer.text()))
}

#[tokio::test]
async fn blocks_are_uploaded_as_mimirtool_does_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut koios = all_in_one(dir.path(), &[]).await?;
    let from = now_ms() / (24 * HOUR) * 24 * HOUR - 10 * 24 * HOUR;
    let data = dir.path().join("tsdb");
    tsdb(&data, from)?;
    let (first, second) = ("01BKGTZQ1SYQJTR4PB43C8PD98", "01BKGTZQ1SYQJTR4PB43C8PD99");
    ensure!(
        uploaded(&koios.http, "team-a", first).await?.0 == 404,
        "nothing was begun"
    );
    upload(&koios.http, "team-a", &data.join(first)).await?;
    // Killed at any moment after a block was finished, the next process imports it.
    upload(&koios.http, "team-a", &data.join(second)).await?;
    koios.process.kill();
    koios.process.restart()?;
    koios.ready(&client()).await?;
    let http = &koios.http;
    for ulid in [first, second] {
        eventually("it is imported", || async move {
            let (status, text) = uploaded(http, "team-a", ulid).await?;
            ensure!(
                status == 200 && text == r#"{"result":"complete"}"#,
                "{status} {text}"
            );
            Ok(())
        })
        .await?;
        ensure!(
            uploaded(http, "team-b", ulid).await?.0 == 404,
            "another tenant sees it"
        );
    }
    let again = upload(http, "team-a", &data.join(first))
        .await
        .unwrap_err()
        .to_string();
    ensure!(again.starts_with("start: 409 "), "{again}");
    let client = client();
    let client = &client;
    eventually("uploaded samples are counted", || async move {
        let at = from + 48 * HOUR - 1;
        let found = query::instant(client, http, "team-a", "count_over_time(imported[48h])", at).await?;
        let counts: Vec<f64> = found.values().flatten().map(|s| s.v).collect();
        ensure!(counts == [2880.0, 2880.0], "{counts:?}");
        Ok(())
    })
    .await?;
    for (method, path, status) in [
        ("POST", format!("/api/v1/upload/block/{second}0/start"), 400),
        (
            "POST",
            format!("/api/v1/upload/block/{second}/files?path=index"),
            409,
        ),
        (
            "POST",
            "/api/v1/upload/block/01BKGTZQ1SYQJTR4PB43C8PD97/files?path=index".to_owned(),
            404,
        ),
        (
            "POST",
            "/api/v1/upload/block/01BKGTZQ1SYQJTR4PB43C8PD97/files?path=meta.json".to_owned(),
            400,
        ),
        (
            "POST",
            "/api/v1/upload/block/01BKGTZQ1SYQJTR4PB43C8PD97/finish".to_owned(),
            404,
        ),
        (
            "GET",
            "/api/v1/upload/block/01BKGTZQ1SYQJTR4PB43C8PD97/check".to_owned(),
            404,
        ),
    ] {
        let headers = [("x-scope-orgid", "team-a")];
        let answer = client.send(method, http, &path, &headers, "x".into()).await?;
        ensure!(
            answer.status == status,
            "{path}: {} {}",
            answer.status,
            answer.text()
        );
    }
    Ok(())
}

/// A bucket with the blocks of a server's data, imported for team-a.
fn imported() -> Result<(tempfile::TempDir, String)> {
    let dir = tempfile::tempdir()?;
    let url = new_bucket(dir.path())?;
    let data = dir.path().join("tsdb");
    tsdb(&data, now_ms() - 72 * HOUR)?;
    run(
        0,
        &import(&url, &["--tenant", "team-a", &data.display().to_string()]),
    )?;
    Ok((dir, url))
}

#[test]
fn blocks_are_listed_looked_into_verified_and_their_manifest_rebuilt() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let from = now_ms() / (24 * HOUR) * 24 * HOUR - 10 * 24 * HOUR;
    let data = dir.path().join("tsdb");
    tsdb(&data, from)?;
    let bucket = dir.path().join("bucket");
    std::fs::create_dir(&bucket)?;
    let url = format!("file://{}", bucket.display());
    let data = data.display().to_string();
    run(
        0,
        &["ctl", "import", "--bucket-url", &url, "--tenant", "team-a", &data],
    )?;

    let table = run(0, &["ctl", "blocks", "list", "--bucket-url", &url])?;
    ensure!(table.lines().count() == 3 && table.contains("team-a"), "{table}");
    let json = run(
        0,
        &[
            "ctl",
            "blocks",
            "list",
            "--bucket-url",
            &url,
            "--tenant",
            "team-a",
            "--json",
        ],
    )?;
    let blocks: Vec<serde_json::Value> = json.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(
        blocks.iter().all(|b| b["samples"] == 2880 && b["series"] == 2),
        "{json}"
    );
    let block = blocks[0]["block"].as_str().context("a name")?;
    let shown = run(0, &["ctl", "blocks", "inspect", "--bucket-url", &url, block])?;
    for part in [
        "samples.parquet: ",
        "2880 rows in 1 row groups",
        "DELTA_BINARY_PACKED",
        "job ",
        "2 series",
    ] {
        ensure!(shown.contains(part), "{part} is not in {shown}");
    }
    let json = run(
        0,
        &["ctl", "blocks", "inspect", "--bucket-url", &url, "--json", block],
    )?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    ensure!(
        json["labels"]["job"] == 2 && json["meta"]["samples"] == 2880,
        "{json}"
    );

    let verify = ["ctl", "blocks", "verify", "--bucket-url", &url];
    let clean = run(0, &verify)?;
    ensure!(
        clean.contains("2 blocks") && clean.contains("0 findings"),
        "{clean}"
    );
    let samples = bucket.join(format!("team-a/blocks/{block}/samples.parquet"));
    let mut bytes = std::fs::read(&samples)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&samples, &bytes)?;
    let found = run(1, &verify)?;
    ensure!(
        found.contains("failed its checksum") && found.contains("1 findings"),
        "{found}"
    );
    bytes[middle] ^= 1;
    std::fs::write(&samples, &bytes)?;
    let series = bucket.join(format!("team-a/blocks/{block}/series.parquet"));
    let aside = std::fs::read(&series)?;
    std::fs::remove_file(&series)?;
    let found = run(1, &verify)?;
    ensure!(found.contains("series.parquet is missing"), "{found}");
    std::fs::write(&series, aside)?;

    let rebuild = [
        "ctl",
        "manifest",
        "rebuild",
        "--bucket-url",
        &url,
        "--tenant",
        "team-a",
    ];
    let refused = run(1, &rebuild)?;
    ensure!(refused.contains("nothing has to be rebuilt"), "{refused}");
    for version in std::fs::read_dir(bucket.join("team-a/manifest"))? {
        std::fs::write(version?.path(), "lost")?;
    }
    let found = run(1, &verify)?;
    ensure!(
        found.contains("see `koios ctl manifest rebuild --help`"),
        "{found}"
    );
    let dry = run(0, &rebuild)?;
    ensure!(
        dry.contains("will list 2 blocks with 5760 samples") && dry.contains("nothing is written"),
        "{dry}"
    );
    run(1, &verify)?;
    let refused = run(1, &[&rebuild[..], &["--write"]].concat())?;
    ensure!(refused.contains("say --forget-deletions"), "{refused}");
    run(1, &verify)?;
    run(0, &[&rebuild[..], &["--write", "--forget-deletions"]].concat())?;
    ensure!(
        run(0, &verify)?.contains("2 blocks"),
        "the blocks are listed again"
    );
    Ok(())
}

#[test]
fn what_is_mistyped_is_not_made_up() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let bucket = dir.path().join("bucket");
    let url = format!("file://{}", bucket.display());
    let data = dir.path().join("tsdb");
    tsdb(&data, now_ms() - 72 * HOUR)?;
    let data = data.display().to_string();
    for more in [&[][..], &["--dry-run"]] {
        let text = run(1, &import(&url, &[&["--tenant", "team-a", &data], more].concat()))?;
        ensure!(text.contains("no such bucket folder"), "{text}");
    }
    let commands: [&[&str]; 5] = [
        &["blocks", "list"],
        &["blocks", "verify"],
        &["blocks", "inspect", "01BKGTZQ1SYQJTR4PB43C8PD98"],
        &["blocks", "delete", "01BKGTZQ1SYQJTR4PB43C8PD98"],
        &["manifest", "rebuild", "--write", "--forget-deletions"],
    ];
    let ctl = |command: &[&str]| {
        let args = [&["ctl"], command, &["--bucket-url", &url, "--tenant", "team-b"]];
        run(1, &args.concat())
    };
    for command in commands {
        let text = ctl(command)?;
        ensure!(text.contains("no such bucket folder"), "{text}");
    }
    ensure!(!bucket.exists(), "the folder was made");
    std::fs::create_dir(&bucket)?;
    run(0, &import(&url, &["--tenant", "team-a", &data]))?;
    for command in commands {
        let text = ctl(command)?;
        ensure!(text.contains("no tenant team-b (tenants: team-a)"), "{text}");
    }
    ensure!(!bucket.join("team-b").exists(), "the tenant was made");
    Ok(())
}

#[test]
fn a_lost_manifest_is_found_and_rebuilt_above_what_was_announced() -> Result<()> {
    let (dir, url) = imported()?;
    let versions = dir.path().join("bucket/team-a/manifest");
    for version in std::fs::read_dir(&versions)? {
        let path = version?.path();
        if path.extension().is_some() {
            std::fs::remove_file(path)?;
        }
    }
    let verify = ["ctl", "blocks", "verify", "--bucket-url", &url];
    let found = run(1, &verify)?;
    ensure!(
        found.contains("versions are lost") && found.contains("see `koios ctl manifest rebuild --help`"),
        "{found}"
    );
    let rebuild = [
        "ctl",
        "manifest",
        "rebuild",
        "--bucket-url",
        &url,
        "--tenant",
        "team-a",
    ];
    let args = ["--write", "--forget-deletions", "--at-least-version", "1200"];
    let text = run(0, &[&rebuild[..], &args].concat())?;
    ensure!(
        text.contains("versions are lost: version 0 is the newest that is there, version 1200 was announced")
            && text.contains("version 2200 of the manifest"),
        "{text}"
    );
    ensure!(run(0, &verify)?.contains("0 findings"), "all is well again");
    Ok(())
}

#[test]
fn a_tenant_that_is_gone_from_the_bucket_can_be_gone_on_without() -> Result<()> {
    let (dir, url) = imported()?;
    std::fs::remove_dir_all(dir.path().join("bucket/team-a"))?;
    let rebuild = [
        "ctl",
        "manifest",
        "rebuild",
        "--bucket-url",
        &url,
        "--tenant",
        "team-a",
        "--write",
    ];
    let text = run(1, &[&rebuild[..], &["--at-least-version", "112"]].concat())?;
    for part in [
        "no tenant team-a",
        "nothing of it is at this URL",
        "write the number N to ",
    ] {
        ensure!(text.contains(part), "{part}: {text}");
    }
    // As the message says.
    let hint = dir.path().join("bucket/team-a/manifest/latest");
    ensure!(text.contains("team-a/manifest/latest"), "{text}");
    std::fs::create_dir_all(hint.parent().context("its folder")?)?;
    std::fs::write(&hint, "112\n")?;
    let text = run(0, &rebuild)?;
    ensure!(text.contains("version 1112 of the manifest"), "{text}");
    let verify = ["ctl", "blocks", "verify", "--bucket-url", &url];
    ensure!(run(0, &verify)?.contains("0 findings"), "all is well again");
    Ok(())
}

#[test]
fn deletions_that_were_lost_with_the_newest_version_are_named_whether_it_is_damaged_or_gone() -> Result<()> {
    let (dir, url) = imported()?;
    let versions = dir.path().join("bucket/team-a/manifest");
    let newest = std::fs::read_dir(&versions)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some())
        .max()
        .context("a version")?;
    let rebuild = [
        "ctl",
        "manifest",
        "rebuild",
        "--bucket-url",
        &url,
        "--tenant",
        "team-a",
    ];
    std::fs::write(&newest, "cut short")?;
    let damaged = run(0, &rebuild)?;
    std::fs::remove_file(&newest)?;
    let gone = run(0, &rebuild)?;
    for text in [damaged, gone] {
        ensure!(
            text.contains("deletions that were asked for after version ") && text.contains("are lost"),
            "{text}"
        );
    }
    Ok(())
}

#[test]
fn a_rebuild_leaves_out_what_is_lost_only_when_told_to() -> Result<()> {
    let (dir, url) = imported()?;
    let tenant = dir.path().join("bucket/team-a");
    for version in std::fs::read_dir(tenant.join("manifest"))? {
        std::fs::write(version?.path(), "lost")?;
    }
    let blocks = std::fs::read_dir(tenant.join("blocks"))?.map(|entry| Ok(entry?.path()));
    let block = blocks.collect::<Result<Vec<_>>>()?.pop().context("a block")?;
    let name = block.file_name().and_then(|n| n.to_str()).context("its name")?;
    std::fs::write(block.join("meta.json"), "no JSON")?;
    let rebuild = [
        "ctl",
        "manifest",
        "rebuild",
        "--bucket-url",
        &url,
        "--tenant",
        "team-a",
        "--write",
        "--forget-deletions",
    ];
    let refused = run(1, &rebuild)?;
    ensure!(
        refused.contains(&format!("lost: {name} is left out")) && refused.contains("else say --without-lost"),
        "{refused}"
    );
    let written = run(0, &[&rebuild[..], &["--without-lost"]].concat())?;
    ensure!(written.contains("is written"), "{written}");
    Ok(())
}

#[tokio::test]
async fn i10_what_was_lost_while_deletions_became_complete_is_listed_only_when_told_to() -> Result<()> {
    let (dir, url) = imported()?;
    let tenant = dir.path().join("bucket/team-a");
    for version in std::fs::read_dir(tenant.join("manifest"))? {
        std::fs::write(version?.path(), "lost")?;
    }
    let blocks = std::fs::read_dir(tenant.join("blocks"))?.map(|entry| Ok(entry?.path()));
    let block = blocks.collect::<Result<Vec<_>>>()?.pop().context("a block")?;
    let name = block.file_name().and_then(|n| n.to_str()).context("its name")?;
    let part = block.join("series.parquet");
    let aside = std::fs::read(&part)?;
    std::fs::remove_file(&part)?;
    let rebuild = [
        "ctl",
        "manifest",
        "rebuild",
        "--bucket-url",
        &url,
        "--tenant",
        "team-a",
        "--write",
    ];
    let flags = ["--forget-deletions", "--without-lost"];
    let written = run(0, &[&rebuild[..], &flags].concat())?;
    ensure!(
        written.contains(&format!("lost: {name} is left out")),
        "{written}"
    );
    // What is deleted now no block that is listed has, so that nobody keeps the deletion.
    let runtime = Runtime::real()?;
    let bucket = Bucket::open_existing(&url, Arc::clone(&runtime.clock), runtime.rng.fork())?;
    let (team, writer) = (TenantId::new("team-a")?, Writer::rebuild("test"));
    let deletion = Tombstone::new(Nonce(7), &Matchers::default(), TimeRange::ALL);
    let add = |m: &mut Manifest| {
        m.add_tombstone(deletion.clone());
        Ok(())
    };
    bucket.commit(&team, &writer, add).await?;
    let forget = |m: &mut Manifest| {
        m.tombstones.clear();
        Ok(())
    };
    bucket.commit(&team, &writer, forget).await?;
    std::fs::write(&part, aside)?;
    let again = [&rebuild[..], &["--force"]].concat();
    let refused = run(1, &again)?;
    for part in [
        &format!("undeleted: {name} was not listed"),
        "say --forget-deletions",
    ] {
        ensure!(refused.contains(part), "{part}: {refused}");
    }
    let written = run(0, &[&again[..], &["--forget-deletions"]].concat())?;
    ensure!(written.contains("blocks with 5760 samples"), "{written}");
    Ok(())
}

#[test]
fn who_has_seen_enough_of_the_output_changes_nothing() -> Result<()> {
    let (dir, url) = imported()?;
    let unread = |command: &[&str]| -> Result<(Option<i32>, String)> {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let args = [&["ctl"], command, &["--bucket-url", &url, "--tenant", "team-a"]].concat();
        let child = std::process::Command::new(program())
            .args(args)
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .spawn()?;
        let done = child.wait_with_output()?;
        Ok((done.status.code(), String::from_utf8(done.stderr)?))
    };
    let versions =
        || -> Result<usize> { Ok(std::fs::read_dir(dir.path().join("bucket/team-a/manifest"))?.count()) };
    let before = versions()?;
    for command in [
        &["blocks", "list"][..],
        &["blocks", "verify"],
        &["retention", "show"],
        &["manifest", "rebuild", "--force", "--write"],
    ] {
        let ended = unread(command)?;
        ensure!(ended == (Some(0), String::new()), "{command:?}: {ended:?}");
    }
    ensure!(versions()? == before + 1, "the version is written all the same");
    Ok(())
}

#[tokio::test]
async fn what_a_cluster_refuses_is_said_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let koios = all_in_one(dir.path(), &[]).await?;
    let text = run(
        1,
        &["ctl", "partition", "accept-loss", "4711", "--addr", &koios.grpc],
    )?;
    ensure!(
        text.matches("partition 4711 does not exist").count() == 1,
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn no_loss_is_accepted_of_a_partition_that_is_readable() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let koios = all_in_one(dir.path(), &[]).await?;
    let version = || run(0, &["ctl", "status", "--version-only", "--addr", &koios.grpc]);
    let before = version()?;
    for which in ["0", "all"] {
        let text = run(
            0,
            &["ctl", "partition", "accept-loss", which, "--addr", &koios.grpc],
        )?;
        ensure!(text.contains("readable: nothing to accept"), "{which}: {text}");
    }
    ensure!(version()? == before, "the state has changed");
    Ok(())
}

#[test]
fn a_folder_with_nothing_of_koios_is_not_verified() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let url = new_bucket(dir.path())?;
    let verify = ["ctl", "blocks", "verify", "--bucket-url", &url];
    // A folder that is called like a tenant makes no bucket.
    std::fs::create_dir_all(dir.path().join("bucket/apt/sources"))?;
    let text = run(1, &verify)?;
    ensure!(text.contains(&format!("nothing of Koios is at {url}")), "{text}");
    ensure!(!text.contains("findings"), "{text}");
    // A cluster without tenants has something of its own.
    std::fs::create_dir_all(dir.path().join("bucket/__cluster/control"))?;
    let text = run(0, &verify)?;
    ensure!(text.contains("0 blocks") && text.contains("0 findings"), "{text}");
    Ok(())
}

#[test]
fn commands_that_cannot_work_say_why() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let url = new_bucket(dir.path())?;
    let here = dir.path().display().to_string();
    run(2, &import(&url, &["--tenant", "team-a"]))?;
    let text = run(2, &import(&url, &["--tenant", "../etc", &here]))?;
    ensure!(text.contains("--tenant: "), "{text}");
    let text = run(1, &import(&url, &["--tenant", "team-a", &here]))?;
    ensure!(text.contains("is no block and has none in it"), "{text}");
    tsdb(dir.path(), now_ms() - 48 * HOUR)?;
    let mark = dir.path().join("01BKGTZQ1SYQJTR4PB43C8PD98/deletion-mark.json");
    std::fs::write(&mark, "{}")?;
    let text = run(0, &import(&url, &["--tenant", "team-b", &here]))?;
    ensure!(
        text.contains("PD98: marked for deletion, left out") && text.contains("1 blocks imported"),
        "{text}"
    );
    std::fs::remove_file(mark)?;
    let index = dir.path().join("01BKGTZQ1SYQJTR4PB43C8PD98/index");
    let mut bytes = std::fs::read(&index)?;
    let at = bytes.len() - 3;
    bytes[at] ^= 1;
    std::fs::write(index, bytes)?;
    let text = run(1, &import(&url, &["--tenant", "team-a", &here]))?;
    ensure!(
        text.contains("index is corrupt at byte")
            && text.contains("1 blocks imported, 0 known, 0 with nothing to import, 1 failed"),
        "{text}"
    );
    Ok(())
}

#[test]
fn the_commands_of_the_documentation_do_what_it_says() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let url = new_bucket(dir.path())?;
    let data = dir.path().join("tsdb");
    tsdb(&data, now_ms() - 72 * HOUR)?;
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md"))?;
    let mut commands: Vec<&str> = text.lines().filter(|l| l.contains("--bucket-url")).collect();
    // What is imported is there for the others.
    commands.sort_by_key(|line| !line.starts_with("koios ctl import"));
    ensure!(commands.len() >= 3, "{commands:?}");
    for line in commands {
        let line = line
            .replace("file:///var/lib/koios/bucket", &url)
            .replace("/var/lib/prometheus/data", &data.display().to_string());
        let args: Vec<&str> = line.split_whitespace().skip(1).collect();
        // A manifest that can be read is not rebuilt, and a block that is not there is not deleted.
        let code = i32::from(args.contains(&"rebuild") || args.contains(&"delete"));
        run(code, &args)?;
    }
    Ok(())
}

#[test]
fn a_block_of_which_nobody_can_say_whether_it_was_listed_is_told_of_and_deleted_when_that_is_said()
-> Result<()> {
    let (dir, url) = imported()?;
    let blocks = dir.path().join("bucket/team-a/blocks");
    let (old, unknown) = ("01BKGTZQ1SYQJTR4PB43C8PD98", "01BKGTZQ1SYQJTR4PB43C8PD99");
    let listed = std::fs::read_dir(&blocks)?.next().context("no block")??.path();
    for block in [old, unknown] {
        std::fs::create_dir(blocks.join(block))?;
        for part in std::fs::read_dir(&listed)? {
            let part = part?;
            std::fs::copy(part.path(), blocks.join(block).join(part.file_name()))?;
        }
    }
    // An upload that never came to its end.
    std::fs::remove_file(blocks.join(old).join("meta.json"))?;
    let verify = ["ctl", "blocks", "verify", "--bucket-url", &url];
    let found = run(1, &verify)?;
    ensure!(
        found.contains(&format!("koios ctl blocks delete --tenant team-a {unknown}"))
            && found.contains("it was never listed, and a store deletes it")
            && found.contains("2 findings"),
        "{found}"
    );
    let delete = |code, block: &str| {
        let args = [
            "ctl",
            "blocks",
            "delete",
            "--bucket-url",
            &url,
            "--tenant",
            "team-a",
        ];
        run(code, &[&args[..], &[block]].concat())
    };
    let name = listed.file_name().and_then(|n| n.to_str()).context("a name")?;
    let refused = delete(1, name)?;
    ensure!(refused.contains("is listed"), "{refused}");
    let refused = delete(1, "nonsense")?;
    ensure!(refused.contains("is no name of a block"), "{refused}");
    let done = delete(0, unknown)?;
    ensure!(done.contains("1 blocks of tenant team-a are dead"), "{done}");
    delete(0, old)?;
    ensure!(run(0, &verify)?.contains("0 findings"), "all is told");
    Ok(())
}
