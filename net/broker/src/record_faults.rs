//! Words for records that a topic does not take: Kafka's own, which producers' logs are searched for.
//!
//! Owns the texts. Never decides what is wrong: the engine does.

use std::fmt::Display;

use heddle_engine::{InvalidRecords, RecordFault};

/// How many records the text about all of them repeats.
const SHOWN_MAX: usize = 3;

/// The records that are named, by their index in the batch, and what is wrong with each. `log` is a topic and a partition
/// as in `orders-0`.
pub(crate) fn records(invalid: &InvalidRecords, log: impl Display) -> Vec<(i32, String)> {
    invalid.first.iter().map(|(index, fault)| (*index, text(fault, &log))).collect()
}

fn text(fault: &RecordFault, log: &impl Display) -> String {
    match fault {
        RecordFault::NoKey => format!("Compacted topic cannot accept message without key in topic partition {log}"),
        RecordFault::OutOfRange { offset, timestamp, earliest, latest } => format!(
            "Timestamp {timestamp} of message with offset {offset} is out of range. The timestamp should be within \
             [{earliest}, {latest}]"
        ),
        RecordFault::LogAppendTime { offset } => format!(
            "Invalid timestamp type in message with offset {offset}. Producer should not set timestamp type to \
             LogAppendTime."
        ),
    }
}

/// What is said of all of them; `records` are those that are named.
pub(crate) fn summary(invalid: &InvalidRecords, records: &[(i32, String)]) -> String {
    if invalid.untimely {
        return "One or more records have been rejected due to invalid timestamp".to_owned();
    }
    let shown = records.iter().take(SHOWN_MAX);
    let shown: Vec<String> =
        shown.map(|(index, text)| format!("RecordError(batchIndex={index}, message='{text}')")).collect();
    format!(
        "One or more records have been rejected due to {} record errors in total, and only showing the first three \
         errors at most: [{}]",
        invalid.count,
        shown.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_producer_reads_which_records_and_how_many() {
        let first = (0..5).map(|index| (index * 2, RecordFault::NoKey)).collect();
        let invalid = InvalidRecords { first, count: 70_000, untimely: false };
        let records = records(&invalid, "orders-0");
        assert_eq!(records.len(), 5);
        let told = summary(&invalid, &records);
        assert!(told.contains("due to 70000 record errors in total"), "{told}");
        assert_eq!(told.matches("RecordError(batchIndex=").count(), SHOWN_MAX, "{told}");
        assert!(told.contains("batchIndex=4, message='Compacted topic"), "{told}");
    }
}
