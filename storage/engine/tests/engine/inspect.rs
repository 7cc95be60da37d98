//! Looking at logs that no process has open.

use crate::harness::*;
use heddle_engine::EngineConfig;
use heddle_engine::inspect::find_logs;
use heddle_record::{Compression, Offset};

#[test]
fn a_clean_directory_is_sound_and_counted() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        for partition in 0..2 {
            let log = engine.open_log(name("orders", partition), small_segments()).await.unwrap();
            for codec in [Compression::None, Compression::Zstd] {
                for _ in 0..20 {
                    commit(&log, batch_at(&[1000, 2000, 3000], codec)).await;
                }
            }
        }
        engine.close().await.unwrap();
        let logs = find_logs(&io, home.path()).await.unwrap();
        assert_eq!(logs.len(), 2);
        let mut shown = 0;
        for log in &logs {
            let reports = log.check(&io).await.unwrap();
            assert!(reports.len() > 2);
            assert_eq!(reports.iter().map(|(_, report)| report.records).sum::<u64>(), 120);
            for (segment, report) in &reports {
                assert_eq!(report.damage, []);
                assert_eq!(report.torn_tail, None);
                assert!(report.index_entries.iter().all(Option::is_some), "index files are there after a clean stop");
                segment
                    .walk(&io, &mut |batch| shown += batch.batch.records_in(batch.body.unwrap()).count())
                    .await
                    .unwrap();
            }
        }
        assert_eq!(shown, 240);
        // The same by the log's directory and by a single file.
        assert_eq!(find_logs(&io, &logs[0].path).await.unwrap()[0].segments.len(), logs[0].segments.len());
        let file = &logs[1].segments[1];
        let one = find_logs(&io, &file.path).await.unwrap();
        assert_eq!((one[0].segments.len(), one[0].segments[0].base_offset), (1, file.base_offset));
        assert!(find_logs(&io, std::path::Path::new("/etc")).await.is_err());
    });
}

#[test]
fn damage_is_found_wherever_it_is_and_torn_tails_are_told_apart() {
    run(|io| async move {
        for kind in ["batch", "index", "time index", "missing", "tail"] {
            let home = home();
            {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
                for number in 0..20 {
                    commit(&log, batch_at(&[1000 + number], Compression::None)).await;
                    commit(&log, batch(1, 200)).await;
                }
                engine.close().await.unwrap();
            }
            settle(&io).await;
            let of = |suffix| files(home.path(), &name("orders", 0), suffix);
            let flip = |path: &std::path::Path, position: usize| {
                let mut bytes = std::fs::read(path).unwrap();
                bytes[position] ^= 1;
                std::fs::write(path, bytes).unwrap();
            };
            match kind {
                "batch" => flip(&of(".log")[0], 100),
                "index" => flip(&of(".index")[0], 7),
                "time index" => flip(&of(".timeindex")[0], 6),
                "missing" => std::fs::remove_file(of(".log").last().unwrap()).unwrap(),
                _ => {
                    let last = of(".log").pop().unwrap();
                    let mut bytes = std::fs::read(&last).unwrap();
                    bytes.extend_from_slice(&batch(1, 10)[..50]);
                    std::fs::write(&last, bytes).unwrap();
                }
            }
            let logs = find_logs(&io, home.path()).await.unwrap();
            let reports = logs[0].check(&io).await.unwrap();
            let damaged: usize = reports.iter().map(|(_, report)| report.damage.len()).sum();
            let torn = reports.iter().filter(|(_, report)| report.torn_tail.is_some()).count();
            let expected = if kind == "tail" { (0, 1) } else { (1, 0) };
            assert_eq!((damaged, torn), expected, "{kind}: {reports:?}");
        }
    });
}

#[test]
fn zeros_behind_the_end_are_room_not_damage() {
    run(|io| async move {
        let home = home();
        let directory = home.path().join("made-by-kafka-0");
        std::fs::create_dir(&directory).unwrap();
        let mut bytes = batch(3, 10).to_vec();
        bytes.extend_from_slice(&[0; 5000]);
        std::fs::write(directory.join("00000000000000000000.log"), &bytes).unwrap();
        std::fs::write(directory.join("00000000000000000000.index"), [0; 800]).unwrap();
        let logs = find_logs(&io, home.path()).await.unwrap();
        let reports = logs[0].check(&io).await.unwrap();
        assert!(reports[0].1.is_sound(), "{reports:?}");
        assert_eq!(reports[0].1.last_offset, Some(Offset::new(2)));
    });
}
