//! Where less is allowed than on a developer's machine: io_uring forbidden by a filter of system calls, as containers do it,
//! and a user without rights who may lock 8 MiB of memory.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use heddle_tests::process::{Broker, heddle, refused_under};

/// The numbers of these two are the same on every architecture.
const IO_URING_SETUP: &str = "425";
const IO_URING_ENTER: &str = "426";

/// The program that forbids system calls, built by the C compiler that building heddle needs anyway.
fn deny(folder: &Path) -> String {
    let source = heddle_tests::repository::root().join("tests/harness/deny.c");
    let program = folder.join("deny");
    let built = Command::new("cc").arg("-o").arg(&program).arg(source).status().expect("cc runs");
    assert!(built.success(), "deny.c could not be built");
    program.to_str().expect("a temporary folder has a plain name").to_owned()
}

fn run(broker: &Broker, words: &[&str], input: &str) -> Output {
    let mut command = Command::new(heddle());
    command.args(words).env("HEDDLE_BOOTSTRAP", &broker.address);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("heddle starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("heddle reads");
    child.wait_with_output().expect("heddle ends")
}

/// Produces and consumes, and stops the broker; gives everything that it said.
fn works(broker: Broker) -> String {
    for words in [vec!["topic", "create", "hello"], vec!["produce", "hello"]] {
        let done = run(&broker, &words, "one\ntwo\n");
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let read = run(&broker, &["consume", "hello", "--from", "beginning", "--count", "2"], "");
    assert_eq!(String::from_utf8_lossy(&read.stdout), "one\ntwo\n", "{}", String::from_utf8_lossy(&read.stderr));
    broker.stop()
}

#[test]
fn where_io_uring_is_forbidden_it_says_so_and_works_without() {
    for (forbidden, what) in [(IO_URING_SETUP, "the set-up"), (IO_URING_ENTER, "the use")] {
        let home = tempfile::tempdir().expect("a temporary folder");
        let wrapper = [deny(home.path()), forbidden.to_owned(), "--".to_owned()];
        let said = works(Broker::start_under(&wrapper, &home.path().join("data"), &[]));
        let about: Vec<&str> = said.lines().filter(|line| line.contains("no io_uring here")).collect();
        assert_eq!(about.len(), 1, "{what}; it said:\n{said}");
        assert!(about[0].contains("on blocking") && about[0].contains("forbidden"), "{what}: {}", about[0]);

        let fresh = home.path().join("fresh");
        let output = refused_under(&wrapper, &fresh, &["--io", "uring"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{what}; it said:\n{said}");
        let about = said.lines().filter(|line| line.contains("io_uring") && line.contains("forbidden")).count();
        assert_eq!((about, said.contains("panicked")), (1, false), "{what}; it said:\n{said}");
        assert!(!fresh.exists(), "a refused start leaves nothing behind");
    }
}

/// The line that says which backend was chosen.
fn backend(said: &str) -> Option<&str> {
    said.lines().find_map(|line| line.split_once("core on ").or(line.split_once("cores on "))).map(|(_, rest)| rest)
}

#[test]
fn a_user_without_rights_and_with_little_locked_memory_gets_the_same_broker() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let limited = |wrapper: &[&str]| -> Vec<String> {
        let limit = ["prlimit", "--memlock=8388608:8388608", "--"];
        limit.iter().chain(wrapper).map(|word| (*word).to_owned()).collect()
    };
    let as_we_are = works(Broker::start_under(&limited(&[]), &home.path().join("own"), &[]));
    let may_change = Command::new("setpriv").args(["--reuid=65534", "true"]).output();
    if !may_change.is_ok_and(|output| output.status.success()) {
        println!("NOT RUN: only root can become another user here; this user has had the limit alone");
        return;
    }
    // Where another user may go: into the folder, and to a copy of the binary in it.
    let allow = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    allow(home.path(), 0o777);
    let binary = home.path().join("heddle");
    fs::copy(heddle(), &binary).expect("there is room for a copy");
    allow(&binary, 0o755);
    let wrapper = limited(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    let as_nobody = works(Broker::start_copy_under(&wrapper, &binary, &home.path().join("data"), &[]));
    assert!(backend(&as_nobody).is_some(), "it said:\n{as_nobody}");
    assert_eq!(backend(&as_nobody), backend(&as_we_are), "it said:\n{as_nobody}");
}
