//! Simulations whose schedules are numbered: which tests run them, and how these are told the seeds.

use std::path::Path;

use anyhow::Result;

use crate::{run, tests_aloud};

/// Which schedules to run.
#[derive(clap::Args)]
pub(crate) struct Seeds {
    /// The seed to replay; what happened is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds to run; as many as every test run does when not given.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Builds with optimisation first: worth it from some hundred seeds on.
    #[arg(long)]
    release: bool,
}

/// The tests that run the schedules of a simulation.
pub(crate) struct Simulation {
    package: &'static str,
    tests: &'static str,
    /// Of these tests those whose name contains this.
    filter: Option<&'static str>,
    /// Beginning of the variables that tell the tests which seeds to run.
    variables: &'static str,
}

/// An ingester on a simulated disk.
pub(crate) const DISK: Simulation = Simulation {
    package: "koios-ingester",
    tests: "sim",
    filter: None,
    variables: "KOIOS_SIM",
};

/// Three ingesters that repair each other.
pub(crate) const MEMBERS: Simulation = Simulation {
    package: "koios-ingester",
    tests: "it",
    filter: Some("under_random_faults"),
    variables: "KOIOS_MEMBERS",
};

/// The life of blocks over a simulated bucket.
pub(crate) const BUCKET: Simulation = Simulation {
    package: "koios",
    tests: "model",
    filter: Some("under_every_seed"),
    variables: "KOIOS_MODEL",
};

impl Simulation {
    /// Runs one seed, or as many as are asked for.
    pub(crate) fn run(&self, root: &Path, seeds: &Seeds) -> Result<()> {
        let mut command = tests_aloud(root, self.package, &[self.tests], seeds.release);
        command.args(self.filter);
        let variable = |name| format!("{}_{name}", self.variables);
        if let Some(seed) = seeds.seed {
            command.env(variable("SEED"), seed.to_string());
        }
        if let Some(count) = seeds.seeds {
            command.env(variable("SEEDS"), count.to_string());
        }
        command.env(variable("FROM"), seeds.from.to_string());
        run(&mut command)
    }
}
