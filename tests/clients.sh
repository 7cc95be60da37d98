#!/usr/bin/env bash
# tests/clients.sh [SUITE..]   Real clients against a fresh `heddle serve`: kcat rskafka confluent kafkajs javascript java cli
#                              kafka_python (all by default).
#   HEDDLE_BIN      the binary (default: builds target/release/heddle)
#   HEDDLE_CLIENTS  the folder of the client suites (default: ../shared/clients; without it nothing is run, and that is said)
#   KAFKA_PEER      a folder with Kafka's jars in libs/ (default: one beside the suites)
#   VERSIONS        the Kafka releases that kafka-python plays a client of (default: all that its suite knows)
# Each suite prints a line for every test. The run fails when a test fails that is not in tests/compat/clients.list, and when one
# in that list does not.
set -euo pipefail
cd "$(dirname "$0")/.."
root="$PWD"

suites="${HEDDLE_CLIENTS:-$root/../shared/clients}"
if [ ! -d "$suites" ]; then
  echo "tests/clients.sh: no client suites at $suites (set HEDDLE_CLIENTS): real clients were NOT run"
  exit 0
fi
if [ -z "${HEDDLE_BIN:-}" ]; then
  cargo build --release --package heddle-cli
  HEDDLE_BIN="$root/target/release/heddle"
fi

work="$(mktemp -d)"
broker=''
finish() { [ -z "$broker" ] || kill "$broker" 2> /dev/null || true; rm -rf "$work"; }
trap finish EXIT

# The suites install what they need beside themselves; a copy keeps a read-only folder as it is.
export CLIENTS_CACHE="${CLIENTS_CACHE:-$root/target/clients-cache}"
mkdir -p "$CLIENTS_CACHE"
cp -r "$suites" "$work/clients"; chmod -R u+w "$work/clients"
suites="$work/clients"

# Kafka's jars are fetched once and kept.
peer() {
  if [ -z "${KAFKA_PEER:-}" ]; then
    export KAFKA_PEER="$CLIENTS_CACHE/kafka-peer"
    if [ ! -d "$KAFKA_PEER/libs" ]; then
      mkdir -p "$KAFKA_PEER"
      cp "${HEDDLE_KAFKA_PEER:-$root/../shared/kafka-peer}"/* "$KAFKA_PEER/"; chmod -R u+w "$KAFKA_PEER"
      bash "$KAFKA_PEER/fetch.sh" >&2
    fi
  fi
}

port=$((20000 + RANDOM % 10000))
data="$work/data"
start() {
  "$HEDDLE_BIN" serve --data-dir "$data" --listen "127.0.0.1:$port" \
    --set num.partitions=4 --set group.initial.rebalance.delay.ms=0 \
    --set "advertised.listeners=PLAINTEXT://127.0.0.1:$port" > "$work/heddle.log" 2>&1 & broker=$!
  for _ in $(seq 100); do
    (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null && return
    kill -0 "$broker" 2> /dev/null || break
    sleep 0.05
  done
  echo 'the broker did not start:'; cat "$work/heddle.log"; exit 1
}
stop() { kill -TERM "$broker"; wait "$broker" || { echo "the broker stopped with status $?"; tail -20 "$work/heddle.log"; exit 1; }; broker=''; }

# What is not served yet, by the suites' own tags. Single tests stand in the list of exceptions.
skip=transactions,groups848,migration,share,quotas,scram
b="127.0.0.1:$port"
run_kcat() { "$suites/kcat.sh" "$b" --skip "$skip"; }
run_rskafka() { "$suites/rskafka.sh" "$b"; }
run_confluent() { python3 "$suites/confluent_kafka_suite.py" "$b" --skip "$skip"; }
run_kafkajs() { node "$suites/kafkajs_suite.js" "$b" --skip "$skip"; }
run_javascript() { node "$suites/confluent_javascript_suite.js" "$b" --skip "$skip"; }
run_java() { peer; "$suites/java.sh" "$b" --skip "$skip"; }
run_cli() { peer; DATA_DIR="$data" "$suites/cli.sh" "$b" --skip "$skip"; }
run_kafka_python() { "$suites/kafka_python.sh" "$b"; }

# Holds what a suite printed to the list of exceptions: SUITE OUTPUT. The names of tests that failed are the third word of a line
# `FAIL  tag name (3 s)`, or the last of a line `4.3.0: FAILED file::name - why`.
expected="$root/tests/compat/clients.list"
judge() {
  local failed known name verdict=0
  failed=$(sed -nE 's/^FAIL +[a-z0-9]+ ([A-Za-z0-9_]+).*/\1/p; s/^([0-9.]+): (FAILED|ERROR) [^ ]*::([A-Za-z0-9_]+).*/\3@\1/p' "$2" | sort -u)
  known=$(sed -nE "s/^$1 +\| +([^ |]+) +\|.*/\1/p" "$expected" | sort -u)
  for name in $(comm -23 <(echo "$failed") <(echo "$known")); do echo "$1: $name failed, and is no known exception"; verdict=1; done
  for name in $(comm -13 <(echo "$failed") <(echo "$known")); do
    case " ${VERSIONS:-${name##*@}} " in *" ${name##*@} "*) ;; *) continue ;; esac
    echo "$1: $name passes now: strike it from tests/compat/clients.list"; verdict=1
  done
  # A suite that ends without its closing line has not run.
  grep -qE '^[a-z-]+: [0-9]+ passed, ' "$2" || { echo "$1: did not finish"; verdict=1; }
  return "$verdict"
}

# After a clean stop every segment is a Kafka segment, indexes included.
dump_after_stop() {
  peer
  local file out
  for file in $(find "$data" -name '*.log' -size +0c | head -8); do
    out=$("$KAFKA_PEER/kafka.sh" kafka-dump-log --files "$file,${file%.log}.index,${file%.log}.timeindex" 2>&1) || { echo "$out" | tail -5; return 1; }
    if grep -qE 'isvalid: false|Found (timestamp|inconsistent)|Exception|mismatch' <<< "$out"; then echo "$file:"; grep -E 'isvalid: false|Found|Exception|mismatch' <<< "$out" | head -5; return 1; fi
  done
}

start
failed=0
for suite in ${*:-kcat rskafka confluent kafkajs javascript java cli kafka_python}; do
  echo "-- $suite"
  "run_$suite" 2>&1 | tee "$work/$suite.log" || true
  judge "$suite" "$work/$suite.log" || { failed=1; echo "the broker's last lines:"; tail -5 "$work/heddle.log"; }
done
stop
case " ${*:-cli} " in *' cli '*) echo '-- kafka-dump-log after a clean stop'; dump_after_stop || failed=1 ;; esac
exit "$failed"
