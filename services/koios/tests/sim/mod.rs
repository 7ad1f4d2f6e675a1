//! A simulated cluster: hosts, faults, a writer and a reader.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use koios::{Node, NodeOptions};
use koios_model::{Labels, Sample};
use koios_runtime::{ClockHandle, Cpu, DiskHandle, MemoryWatch, RngHandle, Runtime, TokioClock};
use koios_server::Settings;
use koios_server::config::Target;
use koios_testkit::http::HttpClient;
use koios_testkit::oracle::Oracle;
use koios_testkit::sim_disk::SimDisk;
use koios_testkit::sim_net::SimNet;
use koios_testkit::{query, remote_write};
use koios_wire::grpc::RpcSettings;
use object_store::memory::InMemory;

/// Wall time when a run starts.
const EPOCH_MS: i64 = 1_700_000_000_000;
/// Faults happen until then, then everything heals.
const CHAOS: Duration = Duration::from_secs(30);
/// One turn of every host.
const TICK: Duration = Duration::from_millis(10);
/// How long the healed cluster may take to answer completely.
const HEALING: Duration = Duration::from_secs(60);
const HTTP_PORT: u16 = 9009;
const GRPC_PORT: u16 = 9095;
const TENANT: &str = "team-a";
const SERIES: u32 = 4;

const VOTERS: [&str; 3] = ["control-1", "control-2", "control-3"];
const INGESTERS: [&str; 3] = ["ingester-a", "ingester-b", "ingester-c"];

/// What happened, in order.
type Trace = Rc<RefCell<Vec<String>>>;

/// What the driver's client and the fault schedule share.
#[derive(Default)]
struct Progress {
    oracle: Oracle,
    acknowledged: u64,
    read: u64,
    healed: bool,
    verified: bool,
}

/// One run.
pub(crate) struct Simulation {
    seed: u64,
    rng: RngHandle,
    trace: Trace,
    disks: BTreeMap<&'static str, SimDisk>,
    progress: Rc<RefCell<Progress>>,
}

fn hosts() -> Vec<(&'static str, Target)> {
    let mut hosts: Vec<_> = VOTERS.iter().map(|n| (*n, Target::Control)).collect();
    hosts.extend(INGESTERS.iter().map(|n| (*n, Target::Ingester)));
    hosts.extend([
        ("distributor", Target::Distributor),
        ("querier", Target::Querier),
        ("store", Target::Store),
    ]);
    hosts
}

fn settings(name: &str) -> Settings {
    let mut s = Settings {
        data_dir: format!("/{name}").into(),
        bucket: "memory".to_owned(),
        ..Settings::default()
    };
    s.node.name = name.to_owned();
    s.http.listen = format!("{name}:{HTTP_PORT}");
    s.grpc.listen = format!("{name}:{GRPC_PORT}");
    s.zone = name.rsplit('-').next().unwrap_or(name).to_owned();
    s.control.voters = VOTERS.iter().map(|v| format!("{v}={v}:{GRPC_PORT}")).collect();
    s
}

fn clock() -> ClockHandle {
    let elapsed = i64::try_from(turmoil::sim_elapsed().unwrap_or_default().as_millis()).unwrap_or(0);
    Arc::new(TokioClock::starting_at(EPOCH_MS + elapsed))
}

impl Simulation {
    /// Runs a seed and returns its trace.
    ///
    /// # Panics
    /// When a promise is broken; the message holds the seed.
    pub(crate) fn run(seed: u64) -> Vec<String> {
        let rng = RngHandle::from_seed(seed);
        let disks = hosts()
            .into_iter()
            .map(|(n, _)| (n, SimDisk::new(rng.fork())))
            .collect();
        let this = Self {
            seed,
            rng,
            trace: Trace::default(),
            disks,
            progress: Rc::default(),
        };
        this.simulate();
        this.trace.borrow().clone()
    }

    fn note(&self, at: Duration, what: impl AsRef<str>) {
        self.trace
            .borrow_mut()
            .push(format!("{:>7} ms {}", at.as_millis(), what.as_ref()));
    }

    fn simulate(&self) {
        let mut sim = turmoil::Builder::new()
            .rng_seed(self.seed)
            .simulation_duration(CHAOS + HEALING + Duration::from_secs(60))
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(20))
            .tcp_capacity(4096)
            .build();
        let bucket: Arc<InMemory> = Arc::default();
        for (name, target) in hosts() {
            self.add_host(&mut sim, name, target, &bucket);
        }
        self.add_writer(&mut sim);
        self.add_reader(&mut sim);
        let mut faults = Faults::new(self.rng.fork());
        loop {
            let done = sim.step().unwrap_or_else(|e| panic!("seed {}: {e}", self.seed));
            let at = sim.elapsed();
            if at < CHAOS {
                faults.step(self, &mut sim, at);
            } else if !self.progress.borrow().healed {
                faults.heal(self, &mut sim, at);
                self.progress.borrow_mut().healed = true;
            }
            if done {
                break;
            }
        }
        let progress = self.progress.borrow();
        assert!(
            progress.verified,
            "seed {}: the run ended before everything was verified",
            self.seed
        );
        self.note(
            sim.elapsed(),
            format!(
                "end: {} pushes acknowledged, {} reads",
                progress.acknowledged, progress.read
            ),
        );
    }

    fn add_host(
        &self,
        sim: &mut turmoil::Sim<'_>,
        name: &'static str,
        target: Target,
        bucket: &Arc<InMemory>,
    ) {
        let (disk, bucket) = (self.disks[name].clone(), Arc::clone(bucket));
        let boots = self.rng.fork();
        sim.host(name, move || {
            let (disk, bucket, rng) = (disk.clone(), Arc::clone(&bucket), boots.fork());
            async move {
                let runtime = Runtime {
                    clock: clock(),
                    rng,
                    disk: DiskHandle::inline(Arc::new(disk)),
                    cpu: Cpu::inline(),
                    net: Arc::new(SimNet),
                    memory: MemoryWatch::default(),
                };
                let rpc = RpcSettings {
                    deadline: Duration::from_secs(2),
                    stream_idle: Duration::from_secs(2),
                };
                let options = NodeOptions {
                    object_store: Some(bucket),
                    rpc,
                };
                let node = Node::start(target, settings(name), runtime, options).await?;
                node.failed().await;
                Ok(node.stop().await?)
            }
        });
    }

    fn add_writer(&self, sim: &mut turmoil::Sim<'_>) {
        let (progress, trace) = (Rc::clone(&self.progress), Rc::clone(&self.trace));
        let seed = self.seed;
        sim.client("writer", async move {
            let clock = clock();
            let client = HttpClient::new(Arc::new(SimNet), Arc::clone(&clock), Duration::from_secs(5));
            for step in 0.. {
                if progress.borrow().healed && progress.borrow().verified {
                    return Ok(());
                }
                let batch = batch(step);
                progress.borrow_mut().oracle.sent(&batch);
                let answer =
                    remote_write::push(&client, &format!("distributor:{HTTP_PORT}"), TENANT, &batch).await;
                let outcome = match &answer {
                    Ok(a) if a.status < 300 => {
                        let mut progress = progress.borrow_mut();
                        progress.oracle.acknowledged(&batch);
                        progress.acknowledged += 1;
                        "acknowledged".to_owned()
                    }
                    Ok(a) => {
                        assert!(
                            a.status >= 500 || a.status == 429,
                            "seed {seed}: push {step}: {} {}",
                            a.status,
                            a.text()
                        );
                        format!("refused with {}", a.status)
                    }
                    Err(_) => "not answered".to_owned(),
                };
                let at = turmoil::sim_elapsed().unwrap_or_default().as_millis();
                trace
                    .borrow_mut()
                    .push(format!("{at:>7} ms push {step} {outcome}"));
                clock.sleep(Duration::from_millis(400)).await;
            }
            Ok(())
        });
    }

    fn add_reader(&self, sim: &mut turmoil::Sim<'_>) {
        let (progress, trace) = (Rc::clone(&self.progress), Rc::clone(&self.trace));
        let seed = self.seed;
        sim.client("reader", async move {
            let clock = clock();
            let client = HttpClient::new(Arc::new(SimNet), Arc::clone(&clock), Duration::from_secs(10));
            loop {
                clock.sleep(Duration::from_millis(900)).await;
                // Judged by what was acknowledged before the question (I5) and sent before the answer (I3).
                let acknowledged_before = progress.borrow().oracle.clone();
                let Some((start, end)) = acknowledged_before.range() else {
                    continue;
                };
                let expr = format!("sim_total[{}s]", (end - start) / 1000 + 100);
                let healed = progress.borrow().healed;
                let answer = query::instant(
                    &client,
                    &format!("querier:{HTTP_PORT}"),
                    TENANT,
                    &expr,
                    end + 60_000,
                )
                .await;
                let at = turmoil::sim_elapsed().unwrap_or_default();
                let outcome = match answer {
                    Ok(got) => {
                        let samples: usize = got.values().map(Vec::len).sum();
                        let sent = progress.borrow().oracle.clone();
                        let judged = acknowledged_before
                            .check_complete(&got)
                            .and_then(|()| sent.check_genuine(&got));
                        judged.unwrap_or_else(|e| {
                            panic!("seed {seed} at {at:?}: {e}; replay: cargo xtask sim --seed {seed}")
                        });
                        progress.borrow_mut().read += 1;
                        if healed {
                            progress.borrow_mut().verified = true;
                        }
                        format!("returned {samples} samples")
                    }
                    Err(_) if healed && at > CHAOS + HEALING => {
                        panic!("seed {seed}: no complete answer {HEALING:?} after healing")
                    }
                    Err(_) => "failed".to_owned(),
                };
                trace
                    .borrow_mut()
                    .push(format!("{:>7} ms read {outcome}", at.as_millis()));
                if progress.borrow().verified {
                    return Ok(());
                }
            }
        });
    }
}

fn batch(step: i64) -> Vec<(Labels, Vec<Sample>)> {
    (0..SERIES)
        .map(|i| {
            let labels = Labels::from_pairs([("__name__", "sim_total"), ("series", &i.to_string())]);
            (
                labels,
                vec![Sample {
                    t: EPOCH_MS + step * 400,
                    v: step as f64 + f64::from(i) / 10.0,
                }],
            )
        })
        .collect()
}

/// The seeded schedule of faults. At most one ingester is away at a time, as I7 allows; voters and the rest come and go
/// as they like.
struct Faults {
    rng: RngHandle,
    next: Duration,
    down: BTreeMap<&'static str, Duration>,
    parted: Vec<(&'static str, &'static str)>,
    wiped: bool,
}

impl Faults {
    fn new(rng: RngHandle) -> Self {
        let down = BTreeMap::new();
        Self {
            rng,
            next: Duration::from_secs(6),
            down,
            parted: Vec::new(),
            wiped: false,
        }
    }

    fn step(&mut self, run: &Simulation, sim: &mut turmoil::Sim<'_>, at: Duration) {
        let due: Vec<_> = self
            .down
            .iter()
            .filter(|(_, until)| **until <= at)
            .map(|(n, _)| *n)
            .collect();
        for name in due {
            self.bring_up(run, sim, name, at);
        }
        if at < self.next {
            return;
        }
        self.next = at + Duration::from_millis(500 + self.rng.below(3000));
        match self.rng.below(10) {
            0..5 => self.crash(run, sim, at),
            5..7 => self.part(run, sim, at),
            _ => self.mend(run, sim, at),
        }
    }

    fn pick<'a>(&self, from: &[&'a str]) -> &'a str {
        from[self.rng.below(from.len() as u64) as usize]
    }

    fn crash(&mut self, run: &Simulation, sim: &mut turmoil::Sim<'_>, at: Duration) {
        let all: Vec<&'static str> = hosts().into_iter().map(|(n, _)| n).collect();
        let name = self.pick(&all);
        let ingester_away = self.down.keys().any(|n| INGESTERS.contains(n)) || !self.parted.is_empty();
        if self.down.contains_key(name) || (INGESTERS.contains(&name) && ingester_away) {
            return;
        }
        sim.crash(name);
        let wipe = !self.wiped && INGESTERS.contains(&name) && self.rng.below(3) == 0;
        if wipe {
            self.wiped = true;
            run.disks[name].wipe();
        } else if self.rng.below(2) == 0 {
            run.disks[name].crash();
        } else {
            run.disks[name].kill();
        }
        // A wiped member is gone for good until it has copied: nothing else may happen to ingesters meanwhile.
        let away = if wipe {
            CHAOS
        } else {
            Duration::from_millis(500 + self.rng.below(6000))
        };
        run.note(
            at,
            format!("crash {name}{}", if wipe { " and wipe its disk" } else { "" }),
        );
        self.down
            .insert(name, at + if wipe { Duration::from_millis(800) } else { away });
        if wipe {
            self.parted.push(("", ""));
        }
    }

    fn bring_up(&mut self, run: &Simulation, sim: &mut turmoil::Sim<'_>, name: &'static str, at: Duration) {
        self.down.remove(name);
        sim.bounce(name);
        run.note(at, format!("start {name}"));
    }

    fn part(&mut self, run: &Simulation, sim: &turmoil::Sim<'_>, at: Duration) {
        if self.down.keys().any(|n| INGESTERS.contains(n)) || !self.parted.is_empty() {
            return;
        }
        let ingester = self.pick(&INGESTERS);
        for (other, _) in hosts().into_iter().filter(|(n, _)| *n != ingester) {
            sim.partition(ingester, other);
            self.parted.push((ingester, other));
        }
        run.note(at, format!("part {ingester} from all"));
    }

    fn mend(&mut self, run: &Simulation, sim: &turmoil::Sim<'_>, at: Duration) {
        if self.parted.iter().any(|(a, _)| a.is_empty()) {
            return;
        }
        for (a, b) in self.parted.drain(..) {
            sim.repair(a, b);
            if b == "store" {
                run.note(at, format!("mend {a}"));
            }
        }
    }

    fn heal(&mut self, run: &Simulation, sim: &mut turmoil::Sim<'_>, at: Duration) {
        self.parted.retain(|(a, _)| !a.is_empty());
        self.mend(run, sim, at);
        for name in self.down.keys().copied().collect::<Vec<_>>() {
            self.bring_up(run, sim, name, at);
        }
        run.note(at, "healed");
    }
}
