//! Two at once: one stands still before an operation on the bucket, and the other does all of its steps; so before every
//! operation.

use std::time::Duration;

use koios_runtime::CancellationToken;

use crate::scripts::{metric, push, simulate};
use crate::steps::{Selection, Step};
use crate::world::{Actor, Setup, World};
use Step::{Clean, Compact, Cut, CutOther, Delete, DeleteTenant, Push, Read, Undelete, Wait};

const DAY: u64 = 24 * 3600;
/// Who waits for longer waits for the one that stands still.
const BLOCKED: Duration = Duration::from_secs(120);

/// Two that meet.
struct Pair<'a> {
    setup: Setup,
    before: &'a [Step],
    /// Who stands still, doing what.
    held: (Actor, Step),
    meanwhile: &'a [Step],
}

impl Pair<'_> {
    /// The operations that the held one does.
    fn operations(&self) -> std::ops::Range<u64> {
        simulate(async {
            let world = World::new(1, self.setup.clone()).await;
            for step in self.before {
                world.until_done(step).await.unwrap();
            }
            let (actor, step) = &self.held;
            let first = world.handle(*actor).operations();
            world.until_done(step).await.unwrap();
            first..world.handle(*actor).operations()
        })
    }

    /// Gives how many deletions were listed when the held one went on.
    fn run(&self, at: u64) -> usize {
        simulate(async {
            let world = World::new(1, self.setup.clone()).await;
            let met = Box::pin(self.meet(&world, at)).await;
            met.unwrap_or_else(|violation| {
                for line in &*world.trace.lock() {
                    println!("{line}");
                }
                let journal = world.handle(self.held.0).journal();
                journal.iter().for_each(|line| println!("{line}"));
                panic!("{:?} before operation {at}: {violation}", self.held);
            })
        })
    }

    async fn meet(&self, world: &World, at: u64) -> Result<usize, String> {
        for step in self.before {
            world.until_done(step).await?;
        }
        let (actor, step) = &self.held;
        let handle = world.handle(*actor);
        handle.stop_before(at);
        let over = CancellationToken::new();
        let held = async {
            let done = world.until_done(step).await;
            over.cancel();
            done
        };
        let meanwhile = async {
            tokio::select! {
                biased;
                () = handle.stopped() => {}
                () = over.cancelled() => {}
            }
            world.note(format!("{actor:?} stands still before operation {at}"));
            let mut blocked = Vec::new();
            for other in self.meanwhile {
                let done = world.until_done(other);
                let patience = match other {
                    Wait(seconds) => BLOCKED + Duration::from_secs(*seconds),
                    _ => BLOCKED,
                };
                match Box::pin(world.clock.timeout(patience, done)).await {
                    Ok(done) => done?,
                    Err(_) => {
                        world.note(format!("{other:?} has to wait"));
                        blocked.push(other);
                    }
                }
            }
            let manifest = world.manifests.probe(&world.tenant).await.unwrap();
            let deletions = manifest.tombstones.len();
            world.note(format!("{actor:?} goes on; {deletions} deletions are listed"));
            handle.release();
            for other in blocked {
                world.until_done(other).await?;
            }
            Ok::<usize, String>(deletions)
        };
        let (held, meanwhile) = futures::join!(Box::pin(held), Box::pin(meanwhile));
        let deletions = meanwhile?;
        held?;
        world.settle().await.map(|()| deletions)
    }

    /// Gives how many deletions were listed each time when the held one went on.
    fn at_every_operation(&self) -> Vec<usize> {
        let operations = self.operations();
        assert!(operations.end > operations.start, "{:?} does nothing", self.held);
        println!("{:?}: {operations:?}", self.held);
        operations.map(|at| self.run(at)).collect()
    }
}

/// Nobody gives up who stands still.
fn patient() -> Setup {
    Setup {
        patience: Duration::from_secs(30 * DAY),
        ..Setup::default()
    }
}

fn pair<'a>(before: &'a [Step], held: (Actor, Step), meanwhile: &'a [Step]) -> Pair<'a> {
    Pair {
        setup: patient(),
        before,
        held,
        meanwhile,
    }
}

/// The same with all that can be sent. Heads do not say in which version what they let go of exemplars is listed, and let go of none
/// here.
fn rich(pair: Pair<'_>) -> Pair<'_> {
    let setup = Setup {
        is_rich: true,
        head_keep: Duration::from_secs(30 * DAY),
        ..pair.setup
    };
    Pair { setup, ..pair }
}

fn compacting() -> (Actor, Step) {
    (Actor::Store(0), Compact(0))
}

fn cutting() -> (Actor, Step) {
    (Actor::Ingester(0), Cut(0))
}

fn two_cuts() -> [Step; 4] {
    [push(0), Cut(0), push(1), Cut(0)]
}

#[test]
fn i10_a_deletion_meets_a_merge() {
    pair(&two_cuts(), compacting(), &[Delete(metric(1, 0..2)), push(0)]).at_every_operation();
}

#[test]
fn i10_a_deletion_that_is_cleaned_meets_a_merge() {
    let meanwhile = [Delete(metric(1, 0..2)), Clean];
    pair(&two_cuts(), compacting(), &meanwhile).at_every_operation();
}

#[test]
fn i10_a_merge_meets_a_deletion() {
    let held = (Actor::Querier, Delete(metric(1, 0..2)));
    pair(&two_cuts(), held, &[Compact(0)]).at_every_operation();
}

#[test]
fn i10_a_merge_meets_what_a_head_backs_up() {
    let before = [push(0), Cut(0), push(1)];
    let held = (Actor::Ingester(0), Delete(metric(1, 0..2)));
    pair(&before, held, &[Compact(0), push(0)]).at_every_operation();
}

#[test]
fn i10_a_cut_meets_a_deletion() {
    let before = [push(0), Cut(0), push(1), push(0)];
    pair(&before, cutting(), &[Delete(metric(1, 0..2)), push(1)]).at_every_operation();
}

#[test]
fn i10_a_cut_meets_a_tenants_deletion() {
    let before = [push(0), Cut(0), push(1)];
    pair(&before, cutting(), &[DeleteTenant, push(2)]).at_every_operation();
}

#[test]
fn i10_a_deletion_meets_a_cut() {
    let before = [push(0), Cut(0), push(1)];
    let held = (Actor::Querier, Delete(metric(1, 0..2)));
    pair(&before, held, &[push(0), Cut(0)]).at_every_operation();
}

#[test]
fn i10_a_tenants_deletion_meets_an_upload() {
    let before = [push(0), Cut(0), push(1)];
    let held = (Actor::Querier, DeleteTenant);
    pair(&before, held, &[push(2), Cut(0), Compact(0)]).at_every_operation();
}

#[test]
fn i10_taking_back_meets_a_merge() {
    let before = [push(0), Cut(0), push(1), Cut(0), Delete(metric(1, 0..2))];
    pair(&before, compacting(), &[Undelete]).at_every_operation();
    pair(&before, (Actor::Querier, Undelete), &[Clean, Compact(0)]).at_every_operation();
}

#[test]
fn i10_a_deletion_meets_summaries() {
    let before = two_cuts();
    let meanwhile = [Delete(metric(1, 0..1)), Clean];
    let summarised = Pair {
        setup: Setup {
            downsampling: true,
            ..patient()
        },
        ..pair(&before, compacting(), &meanwhile)
    };
    summarised.at_every_operation();
}

#[test]
fn i14_a_second_compactor_takes_over_at_any_moment() {
    let before = [push(0), Cut(0), push(1), Cut(0), Delete(metric(1, 0..1)), Clean];
    pair(&before, compacting(), &[Compact(1), push(0), Cut(0), Compact(1)]).at_every_operation();
}

#[test]
fn i10_an_upload_that_slept_for_days_meets_its_burial() {
    let before = [push(0), Cut(0), push(1)];
    let meanwhile = [Wait(DAY + 60), Compact(1), Wait(3601), Compact(1), Wait(7 * 3600)];
    pair(&before, cutting(), &meanwhile).at_every_operation();
    pair(&two_cuts(), compacting(), &meanwhile).at_every_operation();
}

#[test]
fn i10_a_cut_that_slept_brings_nothing_back_that_was_deleted_and_forgotten() {
    let setup = Setup {
        segment_bytes: 256,
        ..patient()
    };
    let before = [push(0), push(1)];
    let late = Push { hour: 5, variant: 1 };
    let everything = Selection {
        metric: None,
        hours: 0..2,
    };
    let meanwhile = [
        Delete(everything),
        Clean,
        late,
        CutOther(0),
        Compact(1),
        Wait(3601),
        Compact(1),
        Wait(301),
        Compact(1),
    ];
    let slept = Pair {
        setup,
        ..pair(&before, cutting(), &meanwhile)
    };
    // The log need not have anything of it any more, but the block on its way does.
    let listed = slept.at_every_operation();
    println!("deletions listed when it goes on: {listed:?}");
    assert!(listed.contains(&1));
}

#[test]
fn i4_a_read_meets_merges_deletions_and_garbage() {
    fn reading<'a>(before: &'a [Step], meanwhile: &'a [Step]) -> Pair<'a> {
        rich(pair(before, (Actor::Reader, Read), meanwhile))
    }
    let meanwhile = [Compact(0), push(2), Cut(0)];
    reading(&two_cuts(), &meanwhile).at_every_operation();
    let meanwhile = [Delete(metric(1, 0..2)), Clean, Compact(0)];
    reading(&two_cuts(), &meanwhile).at_every_operation();
    let before = [push(0), Cut(0), push(1), Delete(metric(1, 0..2))];
    reading(&before, &[Undelete, Cut(0), Compact(0)]).at_every_operation();
    // What is replaced keeps its bytes for longer than any read takes.
    let before = [push(0), Cut(0), push(1), Cut(0), Compact(0), Wait(3590)];
    let meanwhile = [push(0), Cut(0), Compact(0), Wait(20), Compact(0)];
    reading(&before, &meanwhile).at_every_operation();
}
