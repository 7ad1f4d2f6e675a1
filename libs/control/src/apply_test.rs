//! The state machine's rules, one claim per test.

use koios_model::PartitionId;
use proptest::prelude::*;

use crate::*;

fn created(settings: Settings) -> ClusterState {
    let mut state = ClusterState::default();
    let first = ClusterState {
        version: 1,
        cluster_id: Some(ClusterId(7)),
        secret: Secret(vec![1; 32]),
        settings,
        ..ClusterState::default()
    };
    state.apply(&Command::Create { state: first.into() }).unwrap();
    state
}

fn three_by(partitions: u32) -> Settings {
    Settings {
        replication_factor: 3,
        partitions,
        ingesters_per_zone: 1,
    }
}

fn ingester(zone: u8, number: u8, incarnation: u128) -> Member {
    Member {
        name: format!("ingester-{zone}-{number}"),
        role: Role::Ingester,
        zone: format!("zone-{zone}"),
        grpc_addr: format!("10.0.{zone}.{number}:9095"),
        http_addr: format!("10.0.{zone}.{number}:9009"),
        incarnation: Incarnation(incarnation),
        version: "0.1.0".to_owned(),
    }
}

fn register(state: &mut ClusterState, member: Member) -> Result<Outcome, Rejection> {
    state.apply(&Command::Register {
        member,
        cluster_id: Some(ClusterId(7)),
    })
}

fn formed(partitions: u32) -> ClusterState {
    let mut state = created(three_by(partitions));
    for zone in 0..3 {
        register(&mut state, ingester(zone, 0, 1)).unwrap();
    }
    state
}

fn count(epoch: u64, zone: u8, incarnation: u128) -> Command {
    Command::SetCounting {
        partition: PartitionId(0),
        epoch,
        member: format!("ingester-{zone}-0"),
        incarnation: Incarnation(incarnation),
    }
}

fn counting(state: &ClusterState) -> usize {
    state.partitions[&PartitionId(0)].counting().count()
}

fn accept_loss(id: u128) -> Command {
    Command::AcceptLoss {
        partition: PartitionId(0),
        note: "both disks are gone".to_owned(),
        id: LossId(id),
    }
}

#[test]
fn nothing_is_applied_before_the_cluster_exists() {
    let mut state = ClusterState::default();
    assert_eq!(
        register(&mut state, ingester(0, 0, 1)),
        Err(Rejection::NotCreated)
    );
    assert_eq!(state, ClusterState::default());
}

#[test]
fn a_cluster_is_created_once() {
    let mut state = created(Settings::default());
    let before = state.clone();
    let again = Command::Create {
        state: Box::new(state.clone()),
    };
    assert!(!state.apply(&again).unwrap().changed);
    let other = ClusterState {
        cluster_id: Some(ClusterId(8)),
        ..state.clone()
    };
    let refused = state.apply(&Command::Create { state: other.into() });
    assert!(matches!(refused, Err(Rejection::OtherCluster { .. })));
    assert_eq!(state, before);
}

#[test]
fn a_data_directory_of_another_cluster_is_refused() {
    let mut state = created(Settings::default());
    let refused = state.apply(&Command::Register {
        member: ingester(0, 0, 1),
        cluster_id: Some(ClusterId(9)),
    });
    assert!(matches!(refused, Err(Rejection::OtherCluster { .. })));
}

#[test]
fn one_process_forms_its_partition_at_once() {
    let mut state = created(Settings::default());
    let all = Member {
        role: Role::All,
        ..ingester(0, 0, 1)
    };
    register(&mut state, all).unwrap();
    let partition = &state.partitions[&PartitionId(0)];
    assert_eq!((partition.epoch, partition.replicas.len()), (1, 1));
    assert!(partition.is_readable());
}

#[test]
fn partitions_form_when_all_zones_have_enough_ingesters_and_spread_over_them() {
    let mut state = created(Settings {
        ingesters_per_zone: 2,
        ..three_by(4)
    });
    for (zone, number) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)] {
        register(&mut state, ingester(zone, number, 1)).unwrap();
        assert!(state.partitions.is_empty());
    }
    register(&mut state, ingester(2, 1, 1)).unwrap();
    assert_eq!(state.partitions.len(), 4);
    for partition in state.partitions.values() {
        let mut zones: Vec<_> = partition.replicas.iter().map(|r| r.zone.as_str()).collect();
        zones.sort_unstable();
        assert_eq!(zones, ["zone-0", "zone-1", "zone-2"]);
        assert_eq!(partition.counting().count(), 3);
        assert_eq!(partition.formed_at_version, state.version);
    }
    for member in state.members.values() {
        assert_eq!(state.partitions_of(&member.name).count(), 2, "{}", member.name);
    }
}

#[test]
fn registering_again_changes_nothing_and_a_new_address_does_not_fence() {
    let mut state = formed(2);
    let before = state.clone();
    assert!(!register(&mut state, ingester(0, 0, 1)).unwrap().changed);
    assert_eq!(state, before);
    let moved = Member {
        grpc_addr: "10.9.9.9:9095".to_owned(),
        ..ingester(0, 0, 1)
    };
    assert_eq!(register(&mut state, moved).unwrap().version, before.version + 1);
    assert_eq!(state.partitions, before.partitions);
}

#[test]
fn i14_a_wiped_data_directory_stops_counting_and_fences_its_partitions() {
    let mut state = formed(2);
    register(&mut state, ingester(0, 0, 2)).unwrap();
    for partition in state.partitions.values() {
        assert_eq!(partition.epoch, 2);
        assert!(!partition.counts("ingester-0-0", Incarnation(1)));
        assert!(!partition.counts("ingester-0-0", Incarnation(2)));
        assert!(partition.is_readable());
    }
}

#[test]
fn i14_counting_is_fenced_by_epoch_and_incarnation() {
    let mut state = formed(1);
    register(&mut state, ingester(0, 0, 2)).unwrap();
    let fenced = state.apply(&count(1, 0, 2)).unwrap_err();
    assert_eq!(fenced.to_string(), "FENCED epoch 1<2 of partition 0");
    assert!(matches!(
        state.apply(&count(2, 0, 1)),
        Err(Rejection::OtherIncarnation { .. })
    ));
    assert!(matches!(
        state.apply(&count(3, 0, 2)),
        Err(Rejection::Invalid { .. })
    ));
    let done = state.apply(&count(2, 0, 2)).unwrap();
    assert_eq!((done.changed, done.epoch, counting(&state)), (true, 2, 3));
    assert!(!state.apply(&count(2, 0, 2)).unwrap().changed);
}

#[test]
fn without_a_read_quorum_only_an_operator_makes_replicas_count() {
    let mut state = formed(1);
    register(&mut state, ingester(0, 0, 2)).unwrap();
    register(&mut state, ingester(1, 0, 2)).unwrap();
    assert!(!state.partitions[&PartitionId(0)].is_readable());
    assert!(matches!(
        state.apply(&count(3, 0, 2)),
        Err(Rejection::NoQuorum {
            counting: 1,
            needed: 2,
            ..
        })
    ));
    let accepted = state.apply(&accept_loss(1)).unwrap();
    assert_eq!((accepted.epoch, counting(&state)), (4, 3));
    let recorded = &state.accepted_losses[0];
    assert_eq!((recorded.lost.len(), recorded.at_version), (2, state.version));
    assert!(!state.apply(&accept_loss(1)).unwrap().changed);
}

#[test]
fn an_operator_accepts_each_loss_once_though_all_replicas_count() {
    // As for logs that are damaged: the state knows nothing of it.
    let mut state = formed(1);
    for (id, epoch) in [(1, 2), (2, 3)] {
        let accepted = state.apply(&accept_loss(id)).unwrap();
        assert_eq!((accepted.changed, accepted.epoch), (true, epoch));
        let again = state.apply(&accept_loss(id)).unwrap();
        assert_eq!((again.changed, again.epoch), (false, epoch));
    }
    // Heard late, after another one.
    assert!(!state.apply(&accept_loss(1)).unwrap().changed);
    let ids: Vec<LossId> = state.accepted_losses.iter().map(|l| l.id).collect();
    assert_eq!(ids, [LossId(1), LossId(2)]);
}

#[test]
fn an_acceptance_without_an_id_means_what_it_meant_to_the_version_that_logged_it() {
    let old = r#"{"accept_loss":{"partition":0,"note":"both disks are gone"}}"#;
    let old: Command = serde_json::from_str(old).unwrap();
    assert_eq!(old, accept_loss(0));
    let mut state = formed(1);
    assert!(!state.apply(&old).unwrap().changed, "nothing is lost");
    register(&mut state, ingester(0, 0, 2)).unwrap();
    assert!(state.apply(&old).unwrap().changed);
    assert!(!state.apply(&old).unwrap().changed);
    let text = serde_json::to_value(&state.accepted_losses).unwrap();
    assert_eq!(text[0].get("id"), None, "as that version wrote it");
    let read: Vec<AcceptedLoss> = serde_json::from_value(text).unwrap();
    assert_eq!(read, state.accepted_losses);
}

#[test]
fn a_replica_moves_only_while_a_read_quorum_can_be_copied_from() {
    let mut state = formed(1);
    for (zone, number) in [(0, 1), (1, 1)] {
        register(&mut state, ingester(zone, number, 1)).unwrap();
    }
    let replace = |epoch, zone, to: &str| Command::ReplaceReplica {
        partition: PartitionId(0),
        epoch,
        member: format!("ingester-{zone}-0"),
        with: to.to_owned(),
    };
    let crowded = state.apply(&replace(1, 1, "ingester-0-1")).unwrap_err();
    assert!(crowded.to_string().contains("in its zone zone-0"), "{crowded}");
    let moved = state.apply(&replace(1, 0, "ingester-0-1")).unwrap();
    assert_eq!((moved.epoch, counting(&state)), (2, 2));
    assert!(!state.apply(&replace(1, 0, "ingester-0-1")).unwrap().changed);
    assert!(matches!(
        state.apply(&replace(2, 1, "ingester-1-1")),
        Err(Rejection::InUse { .. })
    ));
}

#[test]
fn members_with_replicas_stay() {
    let mut state = formed(1);
    let remove = |name: &str| Command::Remove {
        member: name.to_owned(),
    };
    assert!(matches!(
        state.apply(&remove("ingester-0-0")),
        Err(Rejection::InUse { .. })
    ));
    let elsewhere = Member {
        zone: "zone-9".to_owned(),
        ..ingester(0, 0, 1)
    };
    assert!(matches!(
        register(&mut state, elsewhere),
        Err(Rejection::InUse { .. })
    ));
    register(&mut state, ingester(0, 1, 1)).unwrap();
    assert!(state.apply(&remove("ingester-0-1")).unwrap().changed);
    assert!(!state.apply(&remove("ingester-0-1")).unwrap().changed);
}

#[test]
fn i14_a_task_has_one_holder_per_epoch() {
    let mut state = created(Settings::default());
    let assign = |holder: &str, epoch| Command::Assign {
        task: "compact/a".to_owned(),
        holder: holder.to_owned(),
        epoch,
    };
    assert_eq!(state.apply(&assign("x", 0)).unwrap().epoch, 1);
    assert!(!state.apply(&assign("x", 0)).unwrap().changed);
    assert!(matches!(
        state.apply(&assign("y", 0)),
        Err(Rejection::Fenced { .. })
    ));
    assert_eq!(state.apply(&assign("y", 1)).unwrap().epoch, 2);
    assert!(matches!(
        state.apply(&assign("x", 1)),
        Err(Rejection::Fenced { .. })
    ));
}

#[test]
fn a_task_ends_only_under_the_epoch_that_the_caller_saw() {
    let mut state = created(Settings::default());
    let assign = |holder: &str, epoch| Command::Assign {
        task: "ha/a/eu".to_owned(),
        holder: holder.to_owned(),
        epoch,
    };
    let unassign = |epoch| Command::Unassign {
        task: "ha/a/eu".to_owned(),
        epoch,
    };
    assert!(!state.apply(&unassign(1)).unwrap().changed);
    state.apply(&assign("x", 0)).unwrap();
    state.apply(&assign("y", 1)).unwrap();
    assert!(matches!(state.apply(&unassign(1)), Err(Rejection::Fenced { .. })));
    let version = state.version;
    assert!(state.apply(&unassign(2)).unwrap().changed);
    assert_eq!((state.version, state.assignments.len()), (version + 1, 0));
    assert!(!state.apply(&unassign(2)).unwrap().changed);
    assert_eq!(state.apply(&assign("x", 0)).unwrap().epoch, 1);
}

#[test]
fn names_are_bounded() {
    let mut state = created(Settings::default());
    for name in ["", "a\nb", &"x".repeat(254)] {
        let member = Member {
            name: name.to_owned(),
            ..ingester(0, 0, 1)
        };
        assert!(matches!(
            register(&mut state, member),
            Err(Rejection::Invalid { .. })
        ));
    }
}

#[test]
fn states_and_commands_survive_json() {
    let mut state = formed(3);
    register(&mut state, ingester(0, 0, 2)).unwrap();
    state.apply(&accept_loss(1)).unwrap();
    let text = serde_json::to_vec(&state).unwrap();
    assert_eq!(serde_json::from_slice::<ClusterState>(&text).unwrap(), state);
    let command = Command::Create {
        state: Box::new(state.restored()),
    };
    let text = serde_json::to_vec(&command).unwrap();
    assert_eq!(serde_json::from_slice::<Command>(&text).unwrap(), command);
}

#[derive(Clone, Debug)]
enum Step {
    Register(u8, u8, u128),
    Count(u8, u64, u128),
    AcceptLoss(u128),
    Replace(u8, u64, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_u8, 0..2_u8, 0..5_u128).prop_map(|(z, n, i)| Step::Register(z, n, i)),
        (0..4_u8, 0..6_u64, 0..5_u128).prop_map(|(z, e, i)| Step::Count(z, e, i)),
        (0..4_u128).prop_map(Step::AcceptLoss),
        (0..4_u8, 0..6_u64, 0..4_u8).prop_map(|(z, e, to)| Step::Replace(z, e, to)),
    ]
}

fn command(state: &ClusterState, step: &Step) -> Command {
    let epoch = |back: u64| {
        state
            .partitions
            .get(&PartitionId(0))
            .map_or(0, |p| p.epoch.saturating_sub(back / 2))
    };
    match *step {
        Step::Register(zone, number, incarnation) => Command::Register {
            member: ingester(zone, number, incarnation),
            cluster_id: None,
        },
        Step::Count(zone, back, incarnation) => count(epoch(back), zone, incarnation),
        Step::AcceptLoss(id) => accept_loss(id),
        Step::Replace(zone, back, to) => Command::ReplaceReplica {
            partition: PartitionId(0),
            epoch: epoch(back),
            member: format!("ingester-{zone}-0"),
            with: format!("ingester-{to}-1"),
        },
    }
}

fn check_step(before: &ClusterState, after: &ClusterState, command: &Command) -> Result<(), TestCaseError> {
    for (id, old) in &before.partitions {
        let new = &after.partitions[id];
        prop_assert!(new.epoch >= old.epoch, "epochs never go back");
        prop_assert_eq!(new.replicas.len(), 3);
        for replica in &new.replicas {
            let was = old.replica(&replica.member);
            let same = was.is_some_and(|w| w.incarnation == replica.incarnation);
            prop_assert!(
                same || new.epoch > old.epoch,
                "another data directory means a higher epoch"
            );
            let began = replica.counts && !(same && was.is_some_and(|w| w.counts));
            let allowed = match command {
                Command::SetCounting { .. } => same && old.counting().count() >= old.read_quorum(),
                Command::AcceptLoss { .. } => true,
                _ => false,
            };
            prop_assert!(!began || allowed, "nothing counts without a copy or an operator");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn i14_epochs_are_monotone_and_counting_is_earned(steps in prop::collection::vec(step(), 0..60)) {
        let mut state = formed(2);
        for step in &steps {
            let (before, command) = (state.clone(), command(&state, step));
            let result = state.apply(&command);
            let changed = result.as_ref().is_ok_and(|o| o.changed);
            prop_assert_eq!(changed, state != before, "a refused or repeated command changes nothing");
            prop_assert_eq!(state.version, before.version + u64::from(changed));
            check_step(&before, &state, &command)?;
            if let Ok(outcome) = result {
                let again = state.clone().apply(&command);
                prop_assert!(again.is_ok_and(|o| !o.changed && o.version == outcome.version));
            }
        }
    }
}
