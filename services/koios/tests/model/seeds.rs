//! Many seeds, or one, told in full.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use koios_runtime::RngHandle;
use koios_testkit::sim_bucket::BucketFaults;
use parking_lot::Mutex;

use crate::scripts::simulate;
use crate::steps::{Selection, Step};
use crate::world::{Setup, World};

/// Seeds of an ordinary run.
const SEEDS: u64 = 60;
/// Every so many seeds are run twice, to compare the runs.
const TWICE_EVERY: u64 = 10;
/// Longest that a step is waited for; whoever asked is gone then.
const PATIENCE: Duration = Duration::from_secs(300);

/// What came of a seed.
struct Outcome {
    lines: Vec<String>,
    violation: Option<String>,
    hash: u64,
    steps: u64,
    deaths: u64,
}

fn setup(rng: &RngHandle) -> Setup {
    let hour = Duration::from_secs(3600);
    Setup {
        members: [1, 1, 3][rng.below(3) as usize],
        is_rich: rng.below(2) == 0,
        head_keep: [Duration::ZERO, 20 * hour, 900 * hour][rng.below(3) as usize],
        downsampling: rng.below(2) == 0,
        segment_bytes: [256, 4 << 10, 64 << 10][rng.below(3) as usize],
        retention: [0, 0, 30, 72].map(|hours| hours * hour)[rng.below(4) as usize],
        is_own_retention: rng.below(2) == 0,
        is_rebuilt: rng.below(4) == 0,
        piece_bytes: [700, 16 << 20][rng.below(2) as usize],
        ..Setup::default()
    }
}

fn selection(rng: &RngHandle) -> Selection {
    let first = rng.below(5) as i64;
    Selection {
        metric: (rng.below(4) > 0).then(|| rng.below(3) as u32),
        hours: first..first + 1 + rng.below(4) as i64,
    }
}

fn step(world: &World) -> Step {
    let rng = &world.rng;
    let member = rng.below(world.setup.members as u64) as usize;
    match rng.below(20) {
        0..6 => Step::Push {
            hour: rng.below(6) as i64,
            variant: rng.below(3) as u32,
        },
        6..9 => Step::Cut(member),
        9..12 => Step::Compact(rng.below(8) as usize / 7),
        // Which batches the blocks of a rebuilt manifest hold is not known: what a deletion covers then is not as the model has it.
        12..17 if world.setup.is_rebuilt => Step::Restart(member),
        12..15 => Step::Delete(selection(rng)),
        15 => Step::Undelete,
        16 => match rng.below(3) {
            0 => Step::DeleteTenant,
            _ => Step::Clean,
        },
        17 => match rng.below(4) {
            0 | 1 => Step::Restart(member),
            2 => Step::CutOther(member),
            _ => Step::Read,
        },
        _ => Step::Wait([5, 301, 3700, 2 * 3600, 26 * 3600][rng.below(5) as usize]),
    }
}

impl World {
    /// Does a few things at once, under faults, and looks at what is there.
    async fn live(&self) -> Result<u64, String> {
        let mut deaths = 0;
        self.change_weather();
        for _ in 0..6 + self.rng.below(10) {
            if self.setup.is_rebuilt && self.rng.below(6) == 0 {
                self.rebuild_alone().await?;
                self.check_read("after the manifest was rebuilt").await?;
            }
            if self.rng.below(6) == 0 {
                self.change_weather();
            }
            self.threaten();
            let at_once: Vec<Step> = (0..1 + self.rng.below(5) / 3).map(|_| step(self)).collect();
            let all = at_once.iter().map(|step| Box::pin(self.try_once(step)));
            futures::future::join_all(all).await;
            for actor in self.actors() {
                if self.handle(actor).is_dead() {
                    deaths += 1;
                    self.note(format!("{actor:?} has died"));
                    self.start(actor).await;
                }
            }
            self.check_read(&format!("after {at_once:?}")).await?;
        }
        Ok(deaths)
    }

    async fn try_once(&self, step: &Step) {
        if let Step::Restart(_) = step {
            // What ends is ended by hand.
            let _ = self.perform(step).await;
            return;
        }
        tokio::select! {
            biased;
            _ = self.somebody_died() => self.note(format!("somebody dies during {step:?}")),
            done = self.clock.timeout(PATIENCE + self.longest(step), self.perform(step)) => {
                self.note(format!("{step:?}: {done:?}"));
            }
        }
    }

    fn longest(&self, step: &Step) -> Duration {
        match step {
            Step::Wait(seconds) => Duration::from_secs(*seconds),
            _ => Duration::ZERO,
        }
    }

    fn change_weather(&self) {
        let faults = match self.rng.below(3) {
            0 => BucketFaults::NONE,
            _ => BucketFaults::random(&self.rng),
        };
        let altered = match self.setup.is_rebuilt {
            // Of what was uploaded and never listed a rebuilt manifest cannot tell whether it was.
            true => 0,
            false => faults.altered,
        };
        let faults = BucketFaults { altered, ..faults };
        self.note(format!("{faults:?}"));
        *self.faults.lock() = faults;
        for handle in self.handles.lock().values() {
            handle.set_faults(faults);
        }
    }

    /// Somebody may die soon.
    fn threaten(&self) {
        if self.rng.below(3) == 0 {
            let actors = self.actors();
            let actor = actors[self.rng.below(actors.len() as u64) as usize];
            let handle = self.handle(actor);
            let at = handle.operations() + self.rng.below(30);
            handle.die_at(at, self.rng.below(2) == 0);
        }
    }
}

fn run(seed: u64) -> Outcome {
    simulate(async {
        let rng = RngHandle::from_seed(seed);
        let world = World::new(rng.u64(), setup(&rng)).await;
        world.note(format!("{:?}", world.setup));
        let done = async {
            let deaths = Box::pin(world.live()).await?;
            Box::pin(world.settle()).await?;
            Ok::<u64, String>(deaths)
        };
        let done = done.await;
        let names = world.bucket.names().await;
        let mut lines = world.trace.lock().clone();
        if let Err(violation) = &done {
            lines.extend(world.journal_of(violation));
        }
        let mut hasher = DefaultHasher::new();
        (&lines, &names).hash(&mut hasher);
        Outcome {
            hash: hasher.finish(),
            steps: lines.len() as u64,
            lines,
            deaths: *done.as_ref().unwrap_or(&0),
            violation: done.err(),
        }
    })
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().expect("a number"))
}

fn replay_with(seed: u64) -> String {
    format!("replay: cargo xtask sim-bucket --seed {seed}")
}

fn judged(seed: u64, outcome: &Outcome) -> Option<String> {
    if let Some(violation) = &outcome.violation {
        return Some(format!("seed {seed}: {violation}; {}", replay_with(seed)));
    }
    if !seed.is_multiple_of(TWICE_EVERY) {
        return None;
    }
    let again = std::thread::scope(|scope| scope.spawn(|| run(seed)).join().unwrap());
    let differs = outcome.lines.iter().zip(&again.lines).position(|(a, b)| a != b);
    (again.hash != outcome.hash).then(|| {
        format!(
            "seed {seed}: two runs differ from line {differs:?} on (I15); {}",
            replay_with(seed)
        )
    })
}

#[test]
fn i2_i4_i9_i10_i14_hold_under_every_seed_and_i15_one_seed_is_one_run() {
    if let Some(seed) = number("KOIOS_MODEL_SEED") {
        let outcome = run(seed);
        outcome.lines.iter().for_each(|line| println!("{line}"));
        assert_eq!(outcome.violation, None, "seed {seed}");
        return;
    }
    let from = number("KOIOS_MODEL_FROM").unwrap_or(0);
    let seeds = number("KOIOS_MODEL_SEEDS").unwrap_or(SEEDS);
    let (next, steps, deaths) = (AtomicU64::new(from), AtomicU64::new(0), AtomicU64::new(0));
    let failures = Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds {
                return;
            }
            let outcome = run(seed);
            steps.fetch_add(outcome.steps, Ordering::Relaxed);
            deaths.fetch_add(outcome.deaths, Ordering::Relaxed);
            if let Some(failure) = judged(seed, &outcome) {
                println!("{failure}");
                failures.lock().push(failure);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner();
    println!(
        "{seeds} seeds, {} deaths, {} violations",
        deaths.into_inner(),
        failures.len()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
