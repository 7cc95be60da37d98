#!/usr/bin/env bash
# tests/clients.sh [SUITE..]   Real clients against a fresh `heddle serve`: kcat rskafka confluent kafkajs java cli (all by default).
#   HEDDLE_BIN      the binary (default: builds target/release/heddle)
#   HEDDLE_CLIENTS  the folder of the client suites (default: ../shared/clients; without it nothing is run, and that is said)
#   KAFKA_PEER      a folder with Kafka's jars in libs/ (default: one beside the suites)
# Each suite prints a line for every test. The run fails when one test fails.
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
    --set num.partitions=4 --set group.initial.rebalance.delay.ms=0 > "$work/heddle.log" 2>&1 & broker=$!
  for _ in $(seq 100); do
    (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null && return
    kill -0 "$broker" 2> /dev/null || break
    sleep 0.05
  done
  echo 'the broker did not start:'; cat "$work/heddle.log"; exit 1
}
stop() { kill -TERM "$broker"; wait "$broker" || { echo "the broker stopped with status $?"; tail -20 "$work/heddle.log"; exit 1; }; broker=''; }

# What is served: everything but transactions, the group protocol of KIP-848, share groups, quotas, and what the suites
# call admin and configs as a whole. Tests of groups have a twin for the newer protocol, `.._consumer`.
tags=metadata,produce,compression,idempotence,fetch,listoffsets,groups
b="127.0.0.1:$port"
run_kcat() { "$suites/kcat.sh" "$b"; }
run_rskafka() { "$suites/rskafka.sh" "$b"; }
run_confluent() { python3 "$suites/confluent_kafka_suite.py" "$b" --only "$tags"; }
run_kafkajs() { node "$suites/kafkajs_suite.js" "$b" --only "$tags"; }
run_java() { peer; "$suites/java.sh" "$b" --only "$tags"; }
run_cli() { peer; DATA_DIR="$data" "$suites/cli.sh" "$b" --only topics,offsets,dumplog,groups; }

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
for suite in ${*:-kcat rskafka confluent kafkajs java cli}; do
  echo "-- $suite"
  "run_$suite" || { failed=1; echo "the broker's last lines:"; tail -5 "$work/heddle.log"; }
done
stop
case " ${*:-cli} " in *' cli '*) echo '-- kafka-dump-log after a clean stop'; dump_after_stop || failed=1 ;; esac
exit "$failed"
