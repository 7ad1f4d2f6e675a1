//! What faults are drawn from: a seed that is printed, and how often to draw.

use std::time::Duration;

use anyhow::{Context, Result};
use koios_testkit::random::Random;

/// Names the seed.
const SEED: &str = "KOIOS_FAULTS_SEED";
/// How many faults a test injects.
const ROUNDS: &str = "KOIOS_FAULTS_ROUNDS";

/// Where and when faults happen. Processes run in real time, so a seed brings the same faults at about the same places.
#[derive(Clone, Debug)]
pub struct Chance {
    /// What is drawn.
    pub random: Random,
    /// How many faults to inject.
    pub rounds: u32,
}

impl Chance {
    /// From the environment; the same seed each time and `rounds` where it says nothing.
    #[expect(clippy::print_stdout, reason = "who repeats a failure needs the seed")]
    pub fn new(rounds: u32) -> Result<Self> {
        let seed = number(SEED)?.unwrap_or(1);
        let rounds = match number(ROUNDS)? {
            Some(n) => u32::try_from(n).context(ROUNDS)?,
            None => rounds,
        };
        println!("{SEED}={seed} {ROUNDS}={rounds}");
        Ok(Self {
            random: Random::new(seed),
            rounds,
        })
    }

    /// Another one, drawn from this one.
    pub fn split(&mut self) -> Self {
        Self {
            random: Random::new(self.random.bits()),
            rounds: self.rounds,
        }
    }

    /// A moment up to `most` long.
    pub fn moment(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.random.unit())
    }
}

fn number(variable: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(variable) else {
        return Ok(None);
    };
    let number = text
        .parse()
        .with_context(|| format!("{variable} is {text:?}, not a number"))?;
    Ok(Some(number))
}
