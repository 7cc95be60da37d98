//! What a connection may do, and when it is cut.

use std::time::Duration;

use heddle_protocol::ApiKey;
use heddle_protocol::messages::api_versions::{ApiVersionsRequest, ApiVersionsResponse};
use heddle_protocol::messages::incremental_alter_configs::{
    AlterConfigsResource, AlterableConfig, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};
use heddle_protocol::messages::list_offsets::{ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic};
use heddle_protocol::messages::metadata::MetadataRequest;

use super::world::{World, batch, create_topic, produce, produced};

fn latest(topic: &str) -> ListOffsetsRequest<'_> {
    let partition = ListOffsetsPartition { partition_index: 0, timestamp: -1, ..Default::default() };
    let topic = ListOffsetsTopic { name: topic, partitions: vec![partition].into() };
    ListOffsetsRequest { replica_id: -1, topics: vec![topic].into(), ..Default::default() }
}

#[test]
fn api_versions_of_the_future_are_told_their_own_versions() {
    let world = World::new(1, 1, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        // Key 18, version 99, correlation id 7, and what this broker cannot read.
        connection.send_bytes(vec![0, 0, 0, 10, 0, 18, 0, 99, 0, 0, 0, 7, 0xde, 0xad]).await;
        let answer = connection.answer(ApiKey::ApiVersions, 0).await;
        assert_eq!(answer.correlation_id(), 7);
        let response: ApiVersionsResponse<'_> = answer.decode();
        assert_eq!(response.error_code, 35);
        let told: Vec<_> =
            response.api_keys.iter().map(|key| (key.api_key, key.min_version, key.max_version)).collect();
        assert_eq!(told, [(18, 0, 4)], "which versions to ask in");
        let request = ApiVersionsRequest { client_software_name: "test", client_software_version: "1" };
        let answer = connection.call(3, &request).await;
        let response: ApiVersionsResponse<'_> = answer.decode();
        assert_eq!(response.error_code, 0, "the connection goes on");
        let produce = response.api_keys.iter().find(|key| key.api_key == 0).expect("Produce is served");
        assert_eq!((produce.min_version, produce.max_version), (0, 13), "old clients look for old versions");
    });
}

#[test]
fn what_is_not_served_closes_the_connection() {
    let world = World::new(2, 1, &[]);
    let (io, address) = (world.io.clone(), world.address);
    let cases: [(&str, Vec<u8>); 6] = [
        ("produce 2", vec![0, 0, 0, 10, 0, 0, 0, 2, 0, 0, 0, 1, 0xff, 0xff]),
        ("key 999", vec![0, 0, 0, 10, 3, 231, 0, 0, 0, 0, 0, 1, 0xff, 0xff]),
        ("a body that ends early", vec![0, 0, 0, 12, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0, 0]),
        ("a negative length", vec![0xff, 0xff, 0xff, 0xff]),
        ("a length over the limit", vec![0x7f, 0xff, 0xff, 0xff]),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ];
    world.run(async move {
        for (name, bytes) in cases {
            let mut connection = World::connect(io.clone(), address).await;
            connection.send_bytes(bytes).await;
            assert!(connection.is_closed().await, "{name}");
        }
    });
}

/// Produces that follow each other overlap; whatever comes between them keeps its place.
#[test]
fn answers_come_in_the_order_of_the_requests() {
    for seed in 0..5 {
        let world = World::new(seed, 3, &[("num.partitions", "4")]);
        let (io, address) = (world.io.clone(), world.address);
        world.run(async move {
            let mut connection = World::connect(io, address).await;
            create_topic(&mut connection, "loom").await;
            let records = batch(&["a", "b"]);
            let mut sent = Vec::new();
            for round in 0..20 {
                sent.push((ApiKey::Produce, 7, connection.send(7, &produce("loom", round % 4, -1, &records)).await));
                if round % 5 == 4 {
                    sent.push((ApiKey::ListOffsets, 5, connection.send(5, &latest("loom")).await));
                    let metadata = MetadataRequest { topics: Some(Vec::new().into()), ..Default::default() };
                    sent.push((ApiKey::Metadata, 9, connection.send(9, &metadata).await));
                }
            }
            let mut ends = [0; 4];
            let mut partitions = (0..4).cycle();
            for (key, version, correlation_id) in sent {
                let answer = connection.answer(key, version).await;
                assert_eq!(answer.correlation_id(), correlation_id);
                if key == ApiKey::Produce {
                    let partition: usize = partitions.next().expect("endless");
                    assert_eq!(produced(&answer), (0, ends[partition]), "batches of a partition keep their order");
                    ends[partition] += 2;
                }
            }
        });
    }
}

#[test]
fn acks_0_is_silent_until_something_fails() {
    let world = World::new(3, 2, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        create_topic(&mut connection, "loom").await;
        let records = batch(&["a"]);
        connection.send(7, &produce("loom", 0, 0, &records)).await;
        let answer = connection.call(7, &produce("loom", 0, -1, &records)).await;
        assert_eq!(produced(&answer), (0, 1), "the silent batch came first");
        connection.send(7, &produce("loom", 77, 0, &records)).await;
        assert!(connection.is_closed().await, "a failure is told by closing");
    });
}

#[test]
fn a_request_that_never_ends_is_cut() {
    let world = World::new(4, 1, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io.clone(), address).await;
        let began = io.now();
        connection.send_bytes(vec![0, 0, 1, 0, 0, 3]).await;
        assert!(connection.is_closed().await);
        let took = io.now().since(began);
        assert!(took > Duration::from_secs(29) && took < Duration::from_secs(33), "cut after {took:?}");
    });
}

/// The clock runs for a request that began in the bytes behind another one, too.
#[test]
fn a_request_that_began_behind_another_is_cut() {
    let world = World::new(9, 1, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io.clone(), address).await;
        let whole = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff];
        connection.send_bytes([&whole[..], &[0, 0, 1, 0, 0]].concat()).await;
        assert_eq!(connection.answer(ApiKey::ApiVersions, 0).await.correlation_id(), 7);
        let began = io.now();
        assert!(connection.is_closed().await);
        let took = io.now().since(began);
        assert!(took > Duration::from_secs(29) && took < Duration::from_secs(33), "cut after {took:?}");
    });
}

#[test]
fn an_idle_connection_is_closed() {
    let world = World::new(5, 1, &[("connections.max.idle.ms", "60000")]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io.clone(), address).await;
        io.sleep(Duration::from_secs(50)).await;
        create_topic(&mut connection, "loom").await;
        let began = io.now();
        assert!(connection.is_closed().await);
        let took = io.now().since(began);
        assert!(took > Duration::from_secs(59) && took < Duration::from_secs(63), "closed after {took:?}");
    });
}

/// Case 80, and the limits themselves.
#[test]
fn connections_are_counted_in_and_out() {
    let world = World::new(6, 3, &[("max.connections", "5"), ("max.connections.per.ip", "5")]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let request = ApiVersionsRequest { client_software_name: "test", client_software_version: "1" };
        for _ in 0..3 {
            let mut open = Vec::new();
            for _ in 0..5 {
                let mut connection = World::connect(io.clone(), address).await;
                connection.call(3, &request).await;
                open.push(connection);
            }
            let mut refused = World::connect(io.clone(), address).await;
            assert!(refused.is_closed().await, "the sixth is one too many");
            drop(open);
            io.sleep(Duration::from_secs(1)).await;
        }
    });
}

/// The limit for one address is that address's own: another one is let in, and so is the first once somebody of it has left.
#[test]
fn connections_of_one_address_have_a_limit_of_their_own() {
    for cores in [1, 3] {
        let world = World::new(10, cores, &[("max.connections.per.ip", "2")]);
        let (one, address) = (world.io.clone(), world.address);
        let two = world.simulator.host("another client").start_core();
        world.run(async move {
            let request = ApiVersionsRequest { client_software_name: "test", client_software_version: "1" };
            let mut open = Vec::new();
            for io in [&one, &one, &two, &two] {
                let mut connection = World::connect(io.clone(), address).await;
                connection.call(3, &request).await;
                open.push(connection);
            }
            for io in [&one, &two] {
                assert!(World::connect(io.clone(), address).await.is_closed().await, "a third one of an address");
            }
            for connection in &mut open {
                connection.call(3, &request).await;
            }
            drop(open.remove(0));
            one.sleep(Duration::from_secs(1)).await;
            let mut connection = World::connect(one.clone(), address).await;
            connection.call(3, &request).await;
            assert!(World::connect(one, address).await.is_closed().await, "again one too many");
            assert!(World::connect(two, address).await.is_closed().await, "nobody of this address has left");
        });
    }
}

/// A limit that is changed while the broker runs counts for whoever comes next, also after a restart.
#[test]
fn a_limit_that_changes_counts_at_once() {
    let mut world = World::new(8, 2, &[]);
    let (io, address) = (world.io.clone(), world.address);
    let refused = world.run(async move {
        let mut connection = World::connect(io.clone(), address).await;
        let change = AlterableConfig { name: "max.connections", config_operation: 0, value: Some("1") };
        let resource = AlterConfigsResource { resource_type: 4, resource_name: "", configs: vec![change].into() };
        let request = IncrementalAlterConfigsRequest { resources: vec![resource].into(), validate_only: false };
        let answer = connection.call(1, &request).await;
        let response: IncrementalAlterConfigsResponse<'_> = answer.decode();
        assert_eq!(response.responses.first().map(|resource| resource.error_code), Some(0));
        World::connect(io, address).await.is_closed().await
    });
    assert!(refused, "one connection is open: the second is one too many");
    world.broker.power_cut();
    world.broker.restart();
    world.start(2, &[]);
    let (io, address) = (world.io.clone(), world.address);
    let refused = world.run(async move {
        let _first = World::connect(io.clone(), address).await;
        World::connect(io, address).await.is_closed().await
    });
    assert!(refused, "the limit was kept");
}

/// A client that sends and never reads holds up nobody, and is cut.
#[test]
fn a_client_that_takes_nothing_is_cut() {
    let world = World::new(7, 1, &[("num.partitions", "200")]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut other = World::connect(io.clone(), address).await;
        create_topic(&mut other, "loom").await;
        let mut deaf = World::connect(io.clone(), address).await;
        let everything = MetadataRequest { topics: None, ..Default::default() };
        let mut writer = heddle_protocol::Writer::new();
        for id in 0..20_000 {
            heddle_protocol::frame::encode_request(&mut writer, 9, id, None, &everything).expect("it can be said");
        }
        let bytes = heddle_io::Lease::from_vec(writer.into_bytes());
        let flood = io.spawn({
            let (io, socket) = (io.clone(), deaf.socket.clone());
            async move { io.send(&socket, vec![bytes]).await }
        });
        for _ in 0..20 {
            io.sleep(Duration::from_secs(1)).await;
            let answer = other.call(9, &everything).await;
            assert!(answer.correlation_id() > 0, "others are served meanwhile");
        }
        io.sleep(Duration::from_secs(20)).await;
        flood.cancel();
        let mut answers = 0;
        while deaf.receive().await.is_some() {
            answers += 1;
        }
        assert!(answers < 2_000, "{answers} answers were kept for a client that takes none");
    });
}

#[test]
fn stopping_answers_what_was_taken() {
    let world = World::new(8, 2, &[]);
    let (io, address) = (world.io.clone(), world.address);
    let client = world.io.spawn({
        let io = io.clone();
        async move {
            let mut connection = World::connect(io, address).await;
            create_topic(&mut connection, "loom").await;
            let fetch = super::data::fetch("loom", &[0], 0, 1, 600_000);
            let id = connection.send(11, &fetch).await;
            let answer = connection.answer(ApiKey::Fetch, 11).await;
            assert_eq!(answer.correlation_id(), id, "a long poll is answered with what there is");
            assert!(connection.is_closed().await);
        }
    });
    world.simulator.run_for(Duration::from_secs(5));
    assert!(!client.is_finished(), "the poll waits");
    world.stop().expect("a clean stop");
    world.simulator.run_for(Duration::from_secs(1));
    assert!(client.is_finished());
}
