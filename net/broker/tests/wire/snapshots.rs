//! The metadata in one piece: what a start takes of it, and what it does where a file of it is torn, old or gone.

use std::time::Duration;

use heddle_broker::config::PlantedPanic;
use heddle_io::sim::CutPoint;
use heddle_protocol::messages::delete_topics::DeleteTopicsRequest;
use heddle_protocol::{Writer, frame};

use super::controller::{create, creation, logs, topics};
use super::world::World;

/// A snapshot after every round.
const ALWAYS: &[(&str, &str)] = &[("metadata.log.max.record.bytes.between.snapshots", "1")];
const NEVER: &[(&str, &str)] = &[];
const FILES: [&str; 2] = ["/data/heddle.metadata.0", "/data/heddle.metadata.1"];

/// Creates these topics, one round for each.
fn create_all(world: &World, names: Vec<String>) {
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        for name in names {
            assert_eq!(create(&mut connection, &name).await.0, 0, "{name}");
        }
    });
}

fn numbered(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("topic-{number:03}")).collect()
}

fn names(world: &World) -> Vec<String> {
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let found = topics(&mut World::connect(io, address).await).await;
        let mut names: Vec<String> = found.into_iter().map(|(name, _, _)| name).collect();
        names.sort();
        names
    })
}

fn restart(world: &mut World, settings: &[(&str, &str)]) {
    world.broker.power_cut();
    world.broker.restart();
    world.start(2, settings);
}

/// The segment of the metadata log.
fn metadata_log(world: &World) -> std::path::PathBuf {
    let is_it = |path: &std::path::PathBuf| {
        let path = path.to_string_lossy();
        path.contains("__cluster_metadata") && path.ends_with(".log")
    };
    world.broker.files().into_iter().find(is_it).expect("the metadata log has a segment")
}

/// Spoils a byte of the first record of the metadata log that has these bytes.
fn spoil_record(world: &World, bytes: &str) {
    let path = metadata_log(world);
    let content = world.broker.peek(&path).expect("it is there");
    let at = content.windows(bytes.len()).position(|window| window == bytes.as_bytes()).expect("the record is there");
    world.broker.flip_bit(&path, at as u64, 0).expect("it is there");
}

fn spoil(world: &World, file: &str) {
    world.broker.flip_bit(file, 40, 3).expect("the snapshot is there");
}

#[test]
fn a_start_replays_only_what_came_after_the_snapshot() {
    let mut world = World::new(1, 2, ALWAYS);
    create_all(&world, numbered(0..20));
    // Below the snapshot the log is not looked at, so what it says there is no matter.
    spoil_record(&world, "topic-003");
    restart(&mut world, NEVER);
    assert_eq!(names(&world), numbered(0..20));
    // What comes after is.
    create_all(&world, numbered(20..25));
    restart(&mut world, NEVER);
    assert_eq!(names(&world), numbered(0..25));
}

#[test]
fn a_spoiled_snapshot_is_ignored_and_the_other_one_does() {
    for file in FILES {
        let mut world = World::new(2, 2, ALWAYS);
        create_all(&world, numbered(0..11));
        spoil(&world, file);
        restart(&mut world, NEVER);
        assert_eq!(names(&world), numbered(0..11), "{file}");
        assert_eq!(logs(&world).len(), 11 * 4, "nothing was taken for a stray");
        // The spoiled one is the next to be replaced.
        restart(&mut world, ALWAYS);
        create_all(&world, numbered(11..12));
        let other = FILES.into_iter().find(|other| *other != file).expect("there are two");
        spoil(&world, other);
        restart(&mut world, NEVER);
        assert_eq!(names(&world), numbered(0..12), "{file}");
    }
}

#[test]
fn without_any_snapshot_a_trimmed_log_is_refused_in_words() {
    let mut world = World::new(3, 2, ALWAYS);
    create_all(&world, numbered(0..10));
    FILES.iter().for_each(|file| spoil(&world, file));
    let files = world.broker.files();
    world.broker.power_cut();
    world.broker.restart();
    let refused = world.try_start(2, NEVER, PlantedPanic::None).expect_err("most of the metadata is gone");
    let words = refused.to_string();
    assert!(words.contains("heddle.metadata.0"), "{words}");
    assert_eq!(world.broker.files(), files, "nothing was deleted");
}

/// The first snapshot leaves the log whole: if it is lost, all is replayed.
#[test]
fn the_first_snapshot_trims_nothing() {
    let mut world = World::new(4, 2, &[("metadata.log.max.record.bytes.between.snapshots", "3000")]);
    let mut made = 0;
    while !world.broker.files().iter().any(|file| file.ends_with("heddle.metadata.0")) {
        create_all(&world, numbered(made..made + 1));
        made += 1;
    }
    spoil(&world, FILES[0]);
    restart(&mut world, NEVER);
    assert_eq!(names(&world), numbered(0..made));
}

/// A creation, a deletion, a creation, a deletion, one after the other in one piece.
fn creations_and_deletions() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, (new, old)) in (0..).zip([("new-0", "topic-000"), ("new-1", "topic-001")]) {
        let mut writer = Writer::new();
        frame::encode_request(&mut writer, 7, 2 * number, Some("test"), &creation(new)).expect("it can be said");
        bytes.extend(writer.into_bytes());
        let mut writer = Writer::new();
        let deletion = DeleteTopicsRequest { topic_names: vec![old].into(), timeout_ms: 5_000, ..Default::default() };
        frame::encode_request(&mut writer, 5, 2 * number + 1, Some("test"), &deletion).expect("it can be said");
        bytes.extend(writer.into_bytes());
    }
    bytes
}

/// The power is cut at every seventh step of creations and deletions with a snapshot after each: what was answered holds,
/// and no files are left of what is gone.
#[test]
fn snapshots_lose_nothing_when_the_power_is_cut() {
    let mut cuts = 0;
    for step in (0..).step_by(7) {
        let mut world = World::new(step, 2, ALWAYS);
        create_all(&world, numbered(0..2));
        world.broker.cut_at(CutPoint::Step(world.broker.counters().steps + 1 + step));
        let (io, address) = (world.io.clone(), world.address);
        let answered = world.run(async move {
            let mut connection = World::connect(io, address).await;
            connection.send_bytes(creations_and_deletions()).await;
            let mut answered = 0;
            while answered < 4 && connection.receive().await.is_some() {
                answered += 1;
            }
            answered
        });
        let was_cut = !world.broker.is_up();
        // What is removed behind the last answer is not to be cut while somebody looks.
        world.broker.cut_at(CutPoint::Step(u64::MAX));
        if was_cut {
            cuts += 1;
            world.broker.restart();
            world.start(2, ALWAYS);
        }
        let found = names(&world);
        // The files of a deleted log may wait for the names of others to be durable.
        let io = world.io.clone();
        world.run(async move { io.sleep(Duration::from_secs(3)).await });
        for number in 0..2 {
            let (created, deleted) = (answered > 2 * number, answered > 2 * number + 1);
            assert!(!created || found.contains(&format!("new-{number}")), "step {step}: {found:?}");
            assert!(!deleted || !found.contains(&format!("topic-{number:03}")), "step {step}: {found:?}");
        }
        assert_eq!(logs(&world).len(), found.len() * 4, "step {step}: {:?}", logs(&world));
        if !was_cut {
            break;
        }
    }
    assert!(cuts > 10, "only {cuts} cuts");
}
