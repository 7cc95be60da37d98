//! The data directory: whose it is, who may open it, what is refused and left as it was.

use std::path::Path;

use crate::harness::*;
use heddle_engine::{DataDir, EngineConfig, Error, LogConfig, WantedIdentity};
use heddle_record::BrokerId;

fn everything_in(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_new_directory_gets_an_identity_that_stays() {
    run(|io| async move {
        let home = home();
        let path = home.path().join("deep/er");
        let wanted = WantedIdentity { cluster_id: None, broker_id: Some(BrokerId::new(7)) };
        let identity = DataDir::open(&io, &path, &wanted).await.unwrap().identity().clone();
        assert_eq!(identity.cluster_id.len(), 22);
        assert_eq!(identity.broker_id, BrokerId::new(7));
        let again = DataDir::open(&io, &path, &WantedIdentity::default()).await.unwrap();
        assert_eq!(*again.identity(), identity);
        drop(again);
        for wanted in [
            WantedIdentity { broker_id: Some(BrokerId::new(8)), ..WantedIdentity::default() },
            WantedIdentity { cluster_id: Some("other".into()), ..WantedIdentity::default() },
        ] {
            let error = DataDir::open(&io, &path, &wanted).await.unwrap_err();
            assert!(matches!(error, Error::OtherIdentity { .. }), "{error}");
        }
    });
}

#[test]
fn a_directory_in_use_names_its_process() {
    run(|io| async move {
        let home = home();
        let first = DataDir::open(&io, home.path(), &WantedIdentity::default()).await.unwrap();
        let error = DataDir::open(&io, home.path(), &WantedIdentity::default()).await.unwrap_err();
        assert!(matches!(error, Error::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
        assert!(error.to_string().contains(&std::process::id().to_string()));
        drop(first);
        DataDir::open(&io, home.path(), &WantedIdentity::default()).await.unwrap();
    });
}

#[test]
fn foreign_directories_are_left_alone() {
    run(|io| async move {
        let home = home();
        std::fs::write(home.path().join("thesis.tex"), b"years of work").unwrap();
        let error = DataDir::open(&io, home.path(), &WantedIdentity::default()).await.unwrap_err();
        assert!(matches!(&error, Error::Foreign { found, .. } if found == "thesis.tex"), "{error}");
        assert_eq!(everything_in(home.path()), ["thesis.tex"], "nothing changed");
    });
}

#[test]
fn an_empty_file_system_is_no_foreign_directory() {
    run(|io| async move {
        let home = home();
        std::fs::create_dir(home.path().join("lost+found")).unwrap();
        // A first start that was interrupted.
        std::fs::write(home.path().join("heddle.lock"), b"").unwrap();
        std::fs::write(home.path().join("heddle.identity.tmp"), b"half").unwrap();
        let dir = DataDir::open(&io, home.path(), &WantedIdentity::default()).await.unwrap();
        drop(dir);
        open_engine(&io, home.path(), EngineConfig::default()).await;
    });
}

#[test]
fn newer_and_damaged_directories_are_refused_unchanged() {
    run(|io| async move {
        let home = home();
        drop(DataDir::open(&io, home.path(), &WantedIdentity::default()).await.unwrap());
        let file = home.path().join("heddle.identity");
        let text = std::fs::read_to_string(&file).unwrap();
        let newer = "heddle data directory\nformat=4\nsomething.new=1\n";
        std::fs::write(&file, newer).unwrap();
        let error = DataDir::open(&io, home.path(), &WantedIdentity::default()).await.unwrap_err();
        assert!(matches!(error, Error::NewerFormat { found: 4, known: 3, .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), newer);
        for damaged in ["", "x", &text[..text.len() - 4], &text.replace("broker.id=1", "broker.id=2")] {
            std::fs::write(&file, damaged).unwrap();
            let error = DataDir::open(&io, home.path(), &WantedIdentity::default()).await.unwrap_err();
            assert!(matches!(error, Error::DamagedIdentity { .. }), "{damaged:?}: {error}");
        }
        std::fs::write(&file, text).unwrap();
        DataDir::open(&io, home.path(), &WantedIdentity::default()).await.unwrap();
    });
}

#[test]
fn ten_thousand_logs_need_few_descriptors() {
    run(|io| async move {
        let home = home();
        let config = EngineConfig { open_files_max: 16, ..EngineConfig::default() };
        let engine = open_engine(&io, home.path(), config).await;
        let mut logs = Vec::new();
        for partition in 0..300 {
            let log = engine.open_log(name("wide", partition), LogConfig::default()).await.unwrap();
            commit(&log, batch(1, 10)).await;
            logs.push(log);
        }
        for log in &logs {
            assert_eq!(read_all(&io, log).await, [(0, 0)]);
            commit(log, batch(1, 10)).await;
            assert!(engine.open_files() <= 17, "{}", engine.open_files());
        }
        // A relaxed topic may not hold a file open for ever either.
        for log in &logs {
            log.set_config(LogConfig { flush_messages: u64::MAX, ..LogConfig::default() });
            let appended = append(log, batch(1, 10)).await.unwrap();
            log.written(appended.last_offset).await.unwrap();
            while engine.open_files() > 40 {
                io.yield_now().await;
            }
        }
        engine.close().await.unwrap();
    });
}
