//! A run: ask, compare, explain, count.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use anyhow::Result;
use futures::stream::{self, StreamExt};

use super::answer::Answer;
use super::known::{KNOWN, TIES, chooses, known};
use super::peers::{Peers, in_our_words};
use super::site::{Site, as_site, is_ordered, sites, smaller};
use crate::query_gen::{Asked, Times};

/// How many queries are under way at once.
const AT_ONCE: usize = 4;
/// How many smaller expressions are tried before a wrong one is reported as it is.
const SHRINK_TRIES: usize = 400;

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many queries were asked.
    pub queries: usize,
    /// How many of Prometheus' answers held samples.
    pub telling: usize,
    /// How many queries both refused or failed at.
    pub failed_alike: usize,
    /// How many queries differed by known differences alone.
    pub excused: usize,
    /// How often each known difference explained one.
    pub by_known: BTreeMap<&'static str, usize>,
    /// Everything else.
    pub wrong: Vec<Wrong>,
}

/// A difference that nothing explains.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// The query it was found in.
    pub found_in: Asked,
    /// The smallest part that shows it; none when asking again shows no difference.
    pub site: Option<Box<Site>>,
}

/// What became of one query.
#[derive(Clone, Debug)]
enum Outcome {
    Same {
        telling: bool,
        failed: bool,
    },
    Different {
        known: Vec<&'static str>,
        wrong: Vec<Wrong>,
    },
}

/// Asks queries until there are none left, or until `go_on`, which is told how things stand, says no.
///
/// # Errors
/// When one side gives no answer that is one.
pub async fn run(
    peers: &Peers,
    queries: impl Iterator<Item = Asked>,
    mut go_on: impl FnMut(&Report) -> bool,
) -> Result<Report> {
    let mut report = Report::default();
    let mut outcomes = stream::iter(queries)
        .map(|asked| outcome(peers, asked))
        .buffered(AT_ONCE);
    while let Some(outcome) = outcomes.next().await {
        report.add(outcome?);
        if !go_on(&report) {
            break;
        }
    }
    Ok(report)
}

/// Asks a single query.
///
/// # Errors
/// When one side gives no answer that is one.
pub async fn judge(peers: &Peers, asked: Asked) -> Result<Report> {
    run(peers, std::iter::once(asked), |_| true).await
}

async fn outcome(peers: &Peers, asked: Asked) -> Result<Outcome> {
    let (prometheus, koios) = peers.ask(&asked).await?;
    let expr = koios_promql::parse(&in_our_words(&asked.query)).ok();
    let ordered = expr.as_ref().is_some_and(|e| is_ordered(e.unwrap_parens()));
    if Answer::difference(&prometheus, &koios, ordered).is_none() {
        return Ok(Outcome::Same {
            telling: prometheus.success().is_some_and(super::Success::is_telling),
            failed: prometheus.failure().is_some(),
        });
    }
    let (mut names, mut wrong) = (Vec::new(), Vec::new());
    let found = sites(peers, &asked).await?;
    if found.is_empty() && expr.as_ref().is_some_and(chooses) {
        // Prometheus chose differently this time.
        names.push(TIES);
    } else if found.is_empty() {
        wrong.push(Wrong {
            found_in: asked.clone(),
            site: None,
        });
    }
    for site in found {
        match known(&site) {
            Some(known) => names.push(known.name),
            None => wrong.push(Wrong {
                found_in: asked.clone(),
                site: Some(Box::new(smallest(peers, site).await?)),
            }),
        }
    }
    Ok(Outcome::Different { known: names, wrong })
}

/// The smallest expression found that still differs, by itself and for no known reason.
async fn smallest(peers: &Peers, mut site: Site) -> Result<Site> {
    let mut tried: HashSet<Asked> = HashSet::new();
    'smaller: loop {
        let mut candidates: Vec<String> = site
            .expr
            .iter()
            .flat_map(smaller)
            .map(|e| e.to_string())
            .collect();
        candidates.retain(|query| query.len() < site.asked.query.len());
        candidates.sort_by_key(String::len);
        for query in candidates {
            let asked = Asked {
                query,
                times: site.asked.times,
            };
            if tried.len() >= SHRINK_TRIES || !tried.insert(asked.clone()) {
                continue;
            }
            if let Some(less) = as_site(peers, asked).await?
                && less.expr.is_some()
                && known(&less).is_none()
            {
                site = less;
                continue 'smaller;
            }
        }
        return Ok(site);
    }
}

impl Report {
    fn add(&mut self, outcome: Outcome) {
        self.queries += 1;
        match outcome {
            Outcome::Same { telling, failed } => {
                self.telling += usize::from(telling);
                self.failed_alike += usize::from(failed);
            }
            Outcome::Different { known, wrong } => {
                self.excused += usize::from(wrong.is_empty());
                for name in known {
                    *self.by_known.entry(name).or_default() += 1;
                }
                self.wrong.extend(wrong);
            }
        }
    }

    /// Adds what another run found.
    pub fn merge(&mut self, other: Self) {
        self.queries += other.queries;
        self.telling += other.telling;
        self.failed_alike += other.failed_alike;
        self.excused += other.excused;
        for (name, count) in other.by_known {
            *self.by_known.entry(name).or_default() += count;
        }
        self.wrong.extend(other.wrong);
    }

    /// How things stand, in a line.
    pub fn summary(&self) -> String {
        format!(
            "{} queries: {} telling answers, {} failed alike, {} excused, {} wrong",
            self.queries,
            self.telling,
            self.failed_alike,
            self.excused,
            self.wrong.len()
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())?;
        for known in KNOWN {
            if let Some(count) = self.by_known.get(known.name) {
                write!(f, "\n  {count:>6} excused: {} ({})", known.name, known.reason)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.site {
            Some(site) => {
                writeln!(f, "  query:      {}", site.asked.query)?;
                writeln!(f, "  at:         {}", Spelled(site.asked.times))?;
                writeln!(f, "  difference: {}", site.difference)?;
                writeln!(f, "  Prometheus: {}", site.prometheus)?;
                writeln!(f, "  Koios:      {}", site.koios)?;
                for operand in &site.operands {
                    writeln!(
                        f,
                        "  operand:    {} = {}",
                        operand.asked.query, operand.prometheus
                    )?;
                }
            }
            None => writeln!(f, "  asked again, the difference is gone")?,
        }
        write!(
            f,
            "  found in:   {} at {}",
            self.found_in.query,
            Spelled(self.found_in.times)
        )
    }
}

/// Times as the command line takes them.
#[derive(Clone, Copy, Debug)]
pub struct Spelled(pub Times);

impl fmt::Display for Spelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Times::At(t) => write!(f, "{t}"),
            Times::Range { start, end, step } => write!(f, "{start}..{end}/{step}"),
        }
    }
}
