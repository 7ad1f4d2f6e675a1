//! The reference page, rendered from the table.

use std::fmt::Write as _;

use super::table::{Setting, all_settings};
use crate::settings::Settings;

const HEAD: &str = "# Configuration

Generated from the table in `libs/server/src/config/table`; do not edit. After a change of the table run\n`KOIOS_WRITE_DOCS=1 cargo nextest run -p koios-server reference_page`.

Koios needs no configuration to start. Whatever is set comes from, later wins: the defaults below, the YAML file named by
`--config`, environment variables, command-line flags. The setting `http.listen` is the flag `--http.listen`, the variable
`KOIOS_HTTP_LISTEN` and, in the file, the key `listen` in the section `http`:

```yaml
data-dir: /var/lib/koios
http:
  listen: 0.0.0.0:9009
limits:
  out-of-order-time-window: 6h
overrides:        # exceptions by tenant, from the same keys as limits
  team-a:
    max-labels-per-series: 100
    retention: 2y
    retention-rules: # docs/retention.md
      - match: '{__name__=~\"debug_.*\"}'
        retention: 7d
```

An unknown key or a wrong value stops the start with exit code 2 and names file, line and the nearest key. A misspelt environment
variable is warned of in the log. Durations are
written `30s`, `15m`, `6h`, `150d`; sizes `64MiB`, `2GB` or plain bytes; lists are separated by commas, or YAML lists.
One file may serve every process of a cluster: each reads what concerns it.

At `SIGHUP` a process reads all of it again, and takes over `limits` and `overrides`; whatever else has changed holds from its next start on. What cannot be
read is logged, and all stays as it was.
";

/// The page `docs/configuration.md`.
pub fn reference_page() -> String {
    let defaults = Settings::default();
    let mut out = HEAD.to_owned();
    let mut group = "";
    for s in all_settings() {
        if s.group != group {
            group = s.group;
            let _ = write!(
                out,
                "\n## {group}\n\n| Setting | Variable | Value | Default | Meaning | Read by |\n|---|---|---|---|---|---|\n"
            );
        }
        row(&mut out, s, &defaults);
    }
    out
}

fn row(out: &mut String, s: &Setting, defaults: &Settings) {
    let default = match s.value_in(defaults) {
        empty if empty.is_empty() => String::new(),
        value => format!("`{value}`"),
    };
    let targets = if s.targets.is_empty() {
        "all".to_owned()
    } else {
        let names: Vec<_> = s.targets.iter().map(|t| t.as_str()).collect();
        names.join(", ")
    };
    let _ = writeln!(
        out,
        "| `{}` | `{}` | {} | {default} | {}. | {targets} |",
        s.key,
        s.variable(),
        s.kind.replace('|', "\\|"),
        s.help
    );
}
