//! What Apache Kafka 4.3 answered to the same requests, asked byte by byte: odd requests about metadata and settings.

use heddle_protocol::messages::alter_configs::{
    AlterConfigsRequest, AlterConfigsResource, AlterConfigsResponse, AlterableConfig,
};
use heddle_protocol::messages::create_topics::{CreatableTopic, CreateTopicsRequest, CreateTopicsResponse};
use heddle_protocol::messages::describe_configs::{
    DescribeConfigsRequest, DescribeConfigsResource, DescribeConfigsResponse,
};
use heddle_protocol::messages::metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse};
use heddle_protocol::{ErrorCode, Uuid};

use super::controller::create;
use super::world::{Connection, World};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
/// Read, write, create, delete, alter, describe, describe and alter configs.
const ALL_OPERATIONS: i32 = 0xdf8;

#[test]
fn two_new_names_that_collide_with_each_other_are_both_taken() {
    let world = World::new(1, 1, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        let topic = |name| CreatableTopic { name, num_partitions: 1, replication_factor: 1, ..Default::default() };
        let mut codes = Vec::new();
        for names in [vec!["a.b", "a_b"], vec!["p.q"], vec!["p_q"]] {
            let topics = names.into_iter().map(topic).collect();
            let request = CreateTopicsRequest { topics, timeout_ms: 5_000, ..Default::default() };
            let answer = connection.call(4, &request).await;
            codes.extend(answer.decode::<CreateTopicsResponse<'_>>().topics.iter().map(|topic| topic.error_code));
        }
        assert_eq!(codes, [0, 0, 0, ErrorCode::InvalidTopicException.code()]);
    });
}

fn wanted(topics: Vec<MetadataRequestTopic<'_>>) -> MetadataRequest<'_> {
    MetadataRequest {
        topics: Some(topics.into()),
        allow_auto_topic_creation: false,
        include_topic_authorized_operations: true,
        ..Default::default()
    }
}

#[test]
fn operations_are_told_of_names_that_are_not_there_but_not_of_ids() {
    let world = World::new(2, 1, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        let named = |name| MetadataRequestTopic { name: Some(name), ..Default::default() };
        let answer = connection.call(9, &wanted(vec![named("nope"), named("no pe")])).await;
        let response: MetadataResponse<'_> = answer.decode();
        let told: Vec<_> =
            response.topics.iter().map(|topic| (topic.error_code, topic.topic_authorized_operations)).collect();
        assert_eq!(told, [(3, ALL_OPERATIONS), (17, ALL_OPERATIONS)]);
        let by_id = MetadataRequestTopic { topic_id: Uuid([7; 16]), name: None };
        let answer = connection.call(12, &wanted(vec![by_id])).await;
        let response: MetadataResponse<'_> = answer.decode();
        let topic = response.topics.first().expect("the topic that was asked for");
        let expected = (ErrorCode::UnknownTopicId.code(), i32::MIN);
        assert_eq!((topic.error_code, topic.topic_authorized_operations), expected);
    });
}

#[test]
fn a_topic_without_id_and_name_fails_the_whole_answer() {
    let world = World::new(3, 1, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        assert_eq!(create(&mut connection, "plain").await.0, 0);
        let nothing = || MetadataRequestTopic { name: None, ..Default::default() };
        let plain = || MetadataRequestTopic { name: Some("plain"), ..Default::default() };
        for (version, error, asked, names) in [
            (12, -1, vec![nothing()], vec![Some("")]),
            (12, -1, vec![nothing(), plain()], vec![Some(""), Some("plain")]),
            (10, ErrorCode::InvalidRequest.code(), vec![nothing()], vec![Some("")]),
        ] {
            let asked = asked.into_iter().map(|topic| MetadataRequestTopic { name: topic.name, ..topic }).collect();
            let answer = connection.call(version, &wanted(asked)).await;
            let response: MetadataResponse<'_> = answer.decode();
            assert_eq!((response.brokers.len(), response.cluster_id, response.controller_id), (0, None, -1));
            let told: Vec<_> = response.topics.iter().map(|topic| (topic.error_code, topic.name)).collect();
            assert_eq!(told, names.into_iter().map(|name| (error, name)).collect::<Vec<_>>(), "version {version}");
        }
        let answer = connection.call(12, &wanted(vec![plain()])).await;
        let response: MetadataResponse<'_> = answer.decode();
        assert_eq!(response.topics.first().map(|topic| topic.error_code), Some(0), "no id, but a name");
    });
}

/// Value, source and names of synonyms.
async fn described(connection: &mut Connection, name: &str) -> (Option<String>, i8, Vec<String>) {
    let resource = DescribeConfigsResource {
        resource_type: TOPIC,
        resource_name: "plain",
        configuration_keys: Some(vec![name].into()),
    };
    let resources = vec![resource].into();
    let request = DescribeConfigsRequest { resources, include_synonyms: true, ..Default::default() };
    let answer = connection.call(1, &request).await;
    let response: DescribeConfigsResponse<'_> = answer.decode();
    let result = response.results.first().expect("the topic that was asked for");
    let config = result.configs.first().expect("the setting that was asked for");
    let synonyms = config.synonyms.iter().map(|synonym| synonym.name.to_owned()).collect();
    (config.value.map(str::to_owned), config.config_source, synonyms)
}

async fn replace(connection: &mut Connection, kind: i8, name: &str, settings: &[(&str, Option<&str>)]) -> i16 {
    let configs = settings.iter().map(|(name, value)| AlterableConfig { name, value: *value }).collect();
    let resource = AlterConfigsResource { resource_type: kind, resource_name: name, configs };
    let request = AlterConfigsRequest { resources: vec![resource].into(), validate_only: false };
    let answer = connection.call(2, &request).await;
    let response: AlterConfigsResponse<'_> = answer.decode();
    response.responses.first().expect("the resource that was named").error_code
}

#[test]
fn settings_that_the_older_request_does_not_name_are_gone() {
    let world = World::new(4, 1, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        assert_eq!(create(&mut connection, "plain").await.0, 0);
        let both = [("retention.ms", Some("1000")), ("segment.bytes", Some("2000000"))];
        assert_eq!(replace(&mut connection, TOPIC, "plain", &both).await, 0);
        assert_eq!(
            described(&mut connection, "retention.ms").await,
            (Some("1000".into()), 1, vec!["retention.ms".into()])
        );
        assert_eq!(replace(&mut connection, TOPIC, "plain", &[("segment.bytes", Some("3000000"))]).await, 0);
        let synonyms = vec!["segment.bytes".into(), "log.segment.bytes".into()];
        assert_eq!(described(&mut connection, "segment.bytes").await, (Some("3000000".into()), 1, synonyms));
        // The default comes from log.retention.hours, which is not told.
        assert_eq!(described(&mut connection, "retention.ms").await, (Some("604800000".into()), 5, Vec::new()));
        let bad = [("log.cleaner.threads", Some("x"))];
        assert_eq!(replace(&mut connection, BROKER, "1", &bad).await, ErrorCode::InvalidRequest.code());
        let bad = [("retention.ms", Some("abc"))];
        assert_eq!(replace(&mut connection, TOPIC, "plain", &bad).await, ErrorCode::InvalidConfig.code());
        assert_eq!(replace(&mut connection, TOPIC, "plain", &[("retention.ms", None)]).await, 42);
        assert_eq!(replace(&mut connection, TOPIC, "nope", &[]).await, 3);
    });
}
