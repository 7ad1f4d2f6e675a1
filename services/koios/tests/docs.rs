//! The commands of the documentation are run as they are written, on other ports and folders.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use koios_testkit::process::{Process, free_port};
use support::{PATIENCE, Writer, all_in_one, client, eventually, now_ms, program};

fn document(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The lines of all `sh` blocks, indentation removed.
fn shell_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside && !line.is_empty() => lines.push(line.to_owned()),
            _ => {}
        }
    }
    lines
}

#[tokio::test]
async fn the_first_query_of_readme_and_quick_start_answers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let koios = all_in_one(dir.path(), &[]).await?;
    let client = client();
    let mut asked = 0;
    for name in ["README.md", "docs/quick-start.md"] {
        for line in shell_lines(&document(name)?) {
            let Some(start) = line.find("http://127.0.0.1:9009") else {
                continue;
            };
            let path = line[start..]
                .trim_start_matches("http://127.0.0.1:9009")
                .trim_end_matches(['\'', '`']);
            let method = if line.contains("-X POST") { "POST" } else { "GET" };
            let (client, http) = (&client, &koios.http);
            eventually(&line, || async move {
                let answer = client.send(method, http, path, &[], Default::default()).await?;
                ensure!(answer.status < 300, "{}: {}", answer.status, answer.text());
                ensure!(
                    method == "POST" || answer.text().contains("koios_build_info"),
                    "{}",
                    answer.text()
                );
                Ok(())
            })
            .await?;
            asked += 1;
        }
    }
    assert!(asked >= 2, "the documents hold {asked} commands to try");
    Ok(())
}

/// The first block of some language.
fn first_block<'t>(text: &'t str, language: &str) -> Result<&'t str> {
    let (_, rest) = text
        .split_once(&format!("```{language}\n"))
        .context("no such block")?;
    Ok(rest.split_once("```").context("it has no end")?.0)
}

#[tokio::test]
async fn the_rules_of_the_documentation_come_into_force() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let text = document("docs/retention.md")?;
    let config = dir.path().join("koios.yaml");
    std::fs::write(&config, first_block(&text, "yaml")?)?;
    let config = format!("--config={}", config.display());
    let koios = all_in_one(dir.path(), &[&config, "--store.compaction-interval=200ms"]).await?;
    let client = client();
    Writer::new(&client, &koios.http, "team-a", 3, now_ms() - 60_000)
        .push_acked(3)
        .await?;
    let answer = client
        .send(
            "POST",
            &koios.http,
            "/ingester/flush?wait=true",
            &[],
            Default::default(),
        )
        .await?;
    ensure!(answer.status < 300, "{}", answer.text());
    let lines = shell_lines(&text);
    let line = lines.first().context("no command")?;
    let bucket = koios.data_dir.join("bucket").display().to_string();
    let line = line.replace("/var/lib/koios/bucket", &bucket);
    eventually(&line, || async {
        let output = std::process::Command::new(program())
            .args(line.split_whitespace().skip(1))
            .output()?;
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        for wanted in [
            "tenant team-a: by its overrides",
            r#"  {__name__=~"debug_.*",env!="prod"}: 7d"#,
            r#"  {__name__=~"slo:.*"}: for ever"#,
            r#"  {env="dev"}: 30d"#,
            "  all other samples: 400d",
            "  summaries of 5m: 366d",
            "  summaries of 1h: 3650d",
        ] {
            ensure!(shown.contains(wanted), "no {wanted:?} in {shown}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_cluster_of_the_documentation_comes_up() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let text = document("docs/cluster.md")?;
    let block = text
        .split("## The control plane apart")
        .next()
        .context("first part")?;
    let mut lines = shell_lines(block);
    for port in [
        "9001", "9002", "9003", "9004", "9005", "9006", "9101", "9102", "9103", "9104", "9105", "9106",
    ] {
        let free = free_port().to_string();
        for line in &mut lines {
            *line = line.replace(&format!(":{port}"), &format!(":{free}"));
        }
    }
    let mut variables = BTreeMap::new();
    let mut processes = Vec::new();
    for line in &lines {
        if let Some((name, value)) = line
            .split_once('=')
            .filter(|(n, _)| n.chars().all(char::is_uppercase))
        {
            variables.insert(
                format!("${name}"),
                value.replace("/tmp", &dir.path().display().to_string()),
            );
            continue;
        }
        let mut line = line.clone();
        for (name, value) in &variables {
            line = line.replace(name, value);
        }
        let mut args: Vec<String> = line.split_whitespace().skip(1).map(str::to_owned).collect();
        let at = |args: &[String], flag: &str| {
            args.iter()
                .position(|a| a == flag)
                .map(|i| i + 1)
                .context(line.clone())
        };
        let data = at(&args, "--data-dir")?;
        args[data] = dir.path().join(&args[data]).display().to_string();
        let (name, http) = (
            args[at(&args, "--node.name")?].clone(),
            args[at(&args, "--http.listen")?].clone(),
        );
        processes.push((
            name.clone(),
            http,
            Process::start(&name, &program(), &args, dir.path())?,
        ));
    }
    assert_eq!(processes.len(), 6, "{lines:?}");
    let client = client();
    let mut addrs = BTreeMap::new();
    for (name, http, process) in &mut processes {
        process.wait_ready(&client, http, "/ready", PATIENCE).await?;
        addrs.insert(name.clone(), http.clone());
    }
    let mut writer = Writer::new(
        &client,
        &addrs["distributor-1"],
        "anonymous",
        5,
        now_ms() - 60_000,
    );
    writer.push_acked(5).await?;
    writer.check(&addrs["querier-1"]).await?;
    Ok(())
}
