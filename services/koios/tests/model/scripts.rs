//! Small scripts, in each of which every process dies at every operation on the bucket, before and after its effect.

use std::time::Duration;

use crate::steps::{Selection, Step};
use crate::world::{Actor, Setup, World};
use Step::{Clean, Compact, Cut, Delete, DeleteTenant, Push, Rebuild, Restart, Undelete, Wait};

const DAY: u64 = 24 * 3600;

/// Who dies, at which operation, and whether that one takes effect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Death {
    pub(crate) actor: Actor,
    pub(crate) at: u64,
    pub(crate) after_effect: bool,
}

/// Runs on this thread alone, on simulated time.
pub(crate) fn simulate<T>(run: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(run)
}

/// Runs a script, in which somebody may die. Gives all deaths that leave something else behind: a process that has only the
/// bucket leaves nothing of what it only read, and nothing before an operation that it did not after the last change. What
/// has a disk may have written there.
fn run(setup: &Setup, script: &[Step], death: Option<Death>) -> Vec<Death> {
    simulate(async {
        let world = World::new(1, setup.clone()).await;
        if let Some(death) = death {
            world.handle(death.actor).die_at(death.at, death.after_effect);
        }
        let mut deaths = Vec::new();
        let done = async {
            for step in script {
                Box::pin(world.until_done(step)).await?;
            }
            for actor in world.actors() {
                let handle = world.handle(actor);
                let changes = handle.changes();
                for at in 0..handle.operations() {
                    let death = |after_effect| Death {
                        actor,
                        at,
                        after_effect,
                    };
                    if at == 0 || matches!(actor, Actor::Ingester(_)) {
                        deaths.push(death(false));
                    }
                    if changes.contains(&at) {
                        deaths.push(death(true));
                    }
                }
            }
            Box::pin(world.settle()).await
        };
        if let Err(violation) = done.await {
            for line in &*world.trace.lock() {
                println!("{line}");
            }
            if let Some(death) = death {
                let journal = world.handle(death.actor).journal();
                journal.iter().for_each(|line| println!("{line}"));
            }
            panic!("{death:?}: {violation}");
        }
        deaths
    })
}

/// Everybody dies everywhere. `KOIOS_MODEL_DEATH=<n>` runs the n-th of the deaths alone.
fn everywhere(setup: &Setup, script: &[Step]) {
    let deaths = run(setup, script, None);
    assert!(deaths.len() > 40, "the script does nothing: {deaths:?}");
    println!("{} deaths", deaths.len());
    let only: Option<usize> = std::env::var("KOIOS_MODEL_DEATH")
        .ok()
        .map(|n| n.parse().expect("a number"));
    for (n, death) in deaths.iter().enumerate() {
        if only.is_none_or(|only| only == n) {
            println!("death {n}: {death:?}");
            run(setup, script, Some(*death));
        }
    }
}

pub(crate) fn push(hour: i64) -> Step {
    Push { hour, variant: 1 }
}

pub(crate) fn metric(metric: u32, hours: std::ops::Range<i64>) -> Selection {
    Selection {
        metric: Some(metric),
        hours,
    }
}

#[test]
fn i10_cuts_and_merges_lose_and_double_nothing() {
    let script = [
        push(0),
        Cut(0),
        push(1),
        push(2),
        Cut(0),
        Compact(0),
        push(0),
        Cut(0),
        Compact(0),
    ];
    everywhere(&Setup::default(), &script);
}

#[test]
fn i10_what_is_deleted_is_gone_and_what_is_written_later_stays() {
    let again = Push { hour: 0, variant: 0 };
    let script = [
        push(0),
        Cut(0),
        push(2),
        Delete(metric(1, 0..3)),
        again,
        Compact(0),
        Cut(0),
        Wait(2 * 3600),
        Compact(0),
    ];
    everywhere(&Setup::default(), &script);
}

#[test]
fn i10_what_is_taken_back_is_there_again() {
    let again = Push { hour: 0, variant: 0 };
    let script = [
        push(0),
        Cut(0),
        push(2),
        Delete(metric(1, 0..3)),
        again,
        Cut(0),
        Undelete,
        Compact(0),
    ];
    everywhere(&Setup::default(), &script);
}

#[test]
fn i10_deletions_are_cleaned_and_forgotten() {
    let setup = Setup {
        segment_bytes: 256,
        ..Setup::default()
    };
    let script = [
        push(0),
        push(1),
        Delete(metric(2, 0..2)),
        Clean,
        Cut(0),
        Compact(0),
        push(3),
        Cut(0),
        Wait(301),
        Compact(0),
    ];
    everywhere(&setup, &script);
}

#[test]
fn i10_a_tenant_that_is_deleted_begins_anew() {
    let script = [
        push(0),
        Cut(0),
        push(1),
        DeleteTenant,
        push(2),
        Compact(0),
        Cut(0),
        Compact(0),
    ];
    everywhere(&Setup::default(), &script);
}

#[test]
fn i10_summaries_cost_no_samples() {
    let setup = Setup {
        downsampling: true,
        ..Setup::default()
    };
    let script = [
        push(0),
        push(3),
        Cut(0),
        Compact(0),
        Delete(metric(0, 0..1)),
        push(0),
        Clean,
        Cut(0),
        Compact(0),
    ];
    everywhere(&setup, &script);
}

#[test]
fn i10_bytes_go_when_nobody_needs_them() {
    let script = [
        push(0),
        Cut(0),
        push(1),
        Cut(0),
        Compact(0),
        Wait(3601),
        Compact(0),
        Wait(DAY + 60),
        Compact(0),
        Wait(3601),
        Compact(0),
    ];
    everywhere(&Setup::default(), &script);
}

#[test]
fn i10_what_is_old_goes_and_the_rest_stays() {
    let setup = Setup {
        retention: Duration::from_secs(2 * DAY),
        downsampling: true,
        ..Setup::default()
    };
    let script = [
        push(0),
        push(20),
        Cut(0),
        Compact(0),
        Wait(DAY + 20 * 3600),
        push(23),
        Cut(0),
        Compact(0),
        Wait(3601),
        Compact(0),
    ];
    everywhere(&setup, &script);
}

#[test]
fn i10_what_a_tenant_lets_go_is_hidden_and_goes_and_does_not_come_back() {
    let setup = Setup {
        retention: Duration::from_secs(2 * DAY),
        is_own_retention: true,
        ..Setup::default()
    };
    let script = [
        push(0),
        Cut(0),
        Wait(DAY + 6 * 3600),
        Compact(0),
        // Too old when it comes.
        Push { hour: 0, variant: 2 },
        Cut(0),
        Compact(0),
    ];
    everywhere(&setup, &script);
}

#[test]
fn i10_parts_that_go_in_pieces_are_there_whole_or_not_at_all() {
    let setup = Setup {
        piece_bytes: 2000,
        ..Setup::default()
    };
    let script = [push(0), Cut(0), push(1), Cut(0)];
    everywhere(&setup, &script);
}

#[test]
fn i10_histograms_starts_and_exemplars_live_as_floats_do() {
    let setup = Setup {
        is_rich: true,
        ..Setup::default()
    };
    let again = Push { hour: 0, variant: 2 };
    let script = [
        push(0),
        Cut(0),
        again,
        Delete(metric(2, 0..1)),
        Cut(0),
        Compact(0),
    ];
    everywhere(&setup, &script);
}

#[test]
fn i10_a_manifest_is_rebuilt() {
    let script = [
        push(0),
        Cut(0),
        push(1),
        Cut(0),
        Compact(0),
        push(2),
        Cut(0),
        Rebuild,
        push(3),
        Cut(0),
    ];
    everywhere(&Setup::default(), &script);
}

#[test]
fn i10_three_members_delete_alike() {
    let setup = Setup {
        members: 3,
        head_keep: Duration::from_secs(30 * DAY),
        ..Setup::default()
    };
    let script = [
        push(0),
        Cut(1),
        push(1),
        Delete(metric(1, 0..2)),
        Cut(2),
        Restart(1),
        Undelete,
        Cut(0),
    ];
    everywhere(&setup, &script);
}
