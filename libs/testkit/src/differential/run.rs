//! A run: ask, compare, explain, count.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use anyhow::{Result, ensure};
use futures::stream::{self, StreamExt};

use super::known::{KNOWN, TIES, chooses, known};
use super::peers::{Peers, in_our_words};
use super::shrink::smaller;
use super::site::{Site, as_site, difference, sites};
use crate::query_gen::Asked;

/// How many queries are under way at once.
const AT_ONCE: usize = 4;
/// How many smaller expressions are tried before a wrong one is reported as it is.
const SHRINK_TRIES: usize = 400;

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many queries were asked.
    pub queries: usize,
    /// How many of Prometheus' answers held samples or a text.
    pub telling: usize,
    /// How many queries both refused or failed at alike.
    pub failed_alike: usize,
    /// How many queries differed by known differences alone.
    pub excused: usize,
    /// How many queries each known difference had a part in.
    pub by_known: BTreeMap<&'static str, usize>,
    /// How many parts of queries that differ were not looked at because there were too many.
    pub left: usize,
    /// Everything else.
    pub wrong: Vec<Wrong>,
}

/// A difference that nothing explains.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// The query it was found in.
    found_in: Asked,
    /// The smallest part that shows it; none when asking again shows no difference.
    site: Option<Box<Site>>,
}

/// What became of one query.
#[derive(Clone, Debug, Default)]
struct Outcome {
    telling: bool,
    failed_alike: bool,
    known: BTreeSet<&'static str>,
    left: usize,
    wrong: Vec<Wrong>,
}

/// Asks queries until there are none left, or until `go_on`, which is told how things stand, says no.
///
/// # Errors
/// When a side gives no answer that is one, as after a crash: names all queries that were under way then.
pub async fn run(
    peers: &Peers,
    queries: impl Iterator<Item = Asked>,
    mut go_on: impl FnMut(&Report) -> bool,
) -> Result<Report> {
    let mut report = Report::default();
    let failed = Cell::new(false);
    let mut failures = Vec::new();
    let mut outcomes = stream::iter(queries.take_while(|_| !failed.get()))
        .map(|asked| outcome(peers, asked))
        .buffered(AT_ONCE);
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(outcome) => report.add(outcome),
            Err(e) => {
                failed.set(true);
                failures.push(format!("{e:#}"));
            }
        }
        if !failed.get() && !go_on(&report) {
            break;
        }
    }
    ensure!(failures.is_empty(), "no answer:\n{}", failures.join("\n"));
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
    let ast = koios_promql::parse(&in_our_words(&asked.query)).ok();
    let differs = difference(&prometheus, &koios, ast.as_ref()).is_some();
    let mut outcome = Outcome {
        telling: prometheus.success().is_some_and(super::Success::is_telling),
        failed_alike: !differs && prometheus.failure().is_some(),
        ..Outcome::default()
    };
    if !differs {
        return Ok(outcome);
    }
    let sites = sites(peers, &asked).await?;
    outcome.left = sites.left;
    if sites.found.is_empty() && ast.as_ref().is_some_and(chooses) {
        // Prometheus chose differently this time.
        outcome.known.insert(TIES);
    } else if sites.found.is_empty() {
        outcome.wrong.push(Wrong {
            found_in: asked.clone(),
            site: None,
        });
    }
    // What differs at many times is told once.
    let mut told = HashSet::new();
    for site in sites.found {
        if let Some(known) = known(&site) {
            outcome.known.insert(known.name);
        } else if told.insert(site.asked.query.clone()) {
            outcome.wrong.push(Wrong {
                found_in: asked.clone(),
                site: Some(Box::new(smallest(peers, site).await?)),
            });
        }
    }
    Ok(outcome)
}

/// The smallest expression found that still differs, by itself and for no known reason.
async fn smallest(peers: &Peers, mut site: Site) -> Result<Site> {
    let mut tried: HashSet<Asked> = HashSet::new();
    'smaller: loop {
        let mut candidates: Vec<String> = site.ast.iter().flat_map(smaller).map(|e| e.to_string()).collect();
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
                && less.ast.is_some()
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
        self.telling += usize::from(outcome.telling);
        self.failed_alike += usize::from(outcome.failed_alike);
        self.excused += usize::from(outcome.wrong.is_empty() && !outcome.known.is_empty());
        for name in outcome.known {
            *self.by_known.entry(name).or_default() += 1;
        }
        self.left += outcome.left;
        self.wrong.extend(outcome.wrong);
    }

    /// Whether a run shows that both agree: nothing is wrong, much was compared, and little was excused.
    ///
    /// # Errors
    /// Which of these it is not.
    pub fn check(&self) -> Result<()> {
        let wrong: Vec<String> = self.wrong.iter().map(ToString::to_string).collect();
        ensure!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
        ensure!(
            self.telling * 3 > self.queries,
            "too few answers hold samples: {self}"
        );
        ensure!(self.excused * 10 < self.queries, "too much is excused: {self}");
        ensure!(
            self.left * 10 <= self.queries,
            "too much was not looked at: {self}"
        );
        Ok(())
    }

    /// Adds what another run found.
    pub fn merge(&mut self, other: Self) {
        self.queries += other.queries;
        self.telling += other.telling;
        self.failed_alike += other.failed_alike;
        self.excused += other.excused;
        self.left += other.left;
        for (name, count) in other.by_known {
            *self.by_known.entry(name).or_default() += count;
        }
        self.wrong.extend(other.wrong);
    }

    /// How things stand, in a line.
    pub fn summary(&self) -> String {
        format!(
            "{} queries: {} telling answers, {} failed alike, {} excused, {} parts not looked at, {} wrong",
            self.queries,
            self.telling,
            self.failed_alike,
            self.excused,
            self.left,
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

impl Wrong {
    /// The smallest query that shows it.
    pub fn smallest(&self) -> &Asked {
        self.site.as_ref().map_or(&self.found_in, |site| &site.asked)
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.site {
            Some(site) => {
                writeln!(f, "  query:      {}", site.asked.query)?;
                writeln!(f, "  at:         {}", site.asked.times)?;
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
        write!(f, "  found in:   {}", self.found_in)
    }
}
