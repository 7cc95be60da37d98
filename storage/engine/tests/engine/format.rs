//! `docs/format.md` says what the code does.

use heddle_engine::index::{OFFSET_ENTRY_LEN, OffsetEntry, TIME_ENTRY_LEN, TimeEntry};
use heddle_engine::layout::{self, LogName, OFFSET_DIGITS, SegmentFile};
use heddle_engine::{
    CHECKPOINT_HEADER_LEN, CHECKPOINT_MAGIC, CHECKPOINT_VERSION, COMPACTION_HEADER_LEN, COMPACTION_MAGIC,
    COMPACTION_SEGMENT_LEN, COMPACTION_VERSION, FORMAT_VERSION, TOUCHED_MAGIC, TOUCHED_SLOT_LEN, TOUCHED_VERSION,
};
use heddle_record::{
    BatchBuilder, BatchHeader, BatchOptions, HEADER_LEN, LogId, Offset, PartitionIndex, RecordBatch, Timestamp, TopicId,
};

const PAGE: &str = include_str!("../../../../docs/format.md");

/// The rows of the table whose heading starts with these cells.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let start = PAGE.find(heading).unwrap_or_else(|| panic!("no table {heading:?} on the page"));
    PAGE[start..]
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

fn says(text: &str) {
    assert!(PAGE.contains(text), "docs/format.md does not say {text:?}");
}

#[test]
fn versions_and_names() {
    says(&format!("Format version **{FORMAT_VERSION}**"));
    says(&format!("format={FORMAT_VERSION}\n"));
    says(&format!("base offset in {OFFSET_DIGITS} digits"));
    for name in [
        layout::IDENTITY_FILE,
        layout::LOCK_FILE,
        layout::RESERVE_FILE,
        &layout::checkpoint_file(0),
        &layout::touched_file(0),
    ] {
        says(&format!("\n  {name} "));
    }
    says(&format!("\n    {} ", layout::COMPACTION_FILE));
    for suffix in [layout::TEMPORARY_SUFFIX, layout::DELETED_SUFFIX, layout::CLEANED_SUFFIX] {
        says(&format!("`{suffix}`"));
    }
    for file in SegmentFile::ALL {
        says(&format!("\n    {} ", file.name(Offset::ZERO)));
    }
    let id = LogId { topic: TopicId::new([1; 16]), partition: PartitionIndex::new(0) };
    let cut = |length: usize| {
        let directory = LogName { topic: "t".repeat(length), id }.directory().expect("a legal name");
        directory.find('~')
    };
    assert_eq!((cut(213), cut(214)), (None, Some(212)), "names over 213 bytes are cut to 212");
    says("over 213 bytes\n  is cut to 212 and ends in `~`");
}

#[test]
fn the_batch_header() {
    let rows = table("| at | bytes | field |\n|---|---|---|\n| 0 | 8 | base offset");
    let mut at = 0;
    for row in &rows[..rows.len() - 1] {
        assert_eq!(row[0], at.to_string(), "{row:?}");
        at += row[1].parse::<usize>().expect("a number of bytes");
    }
    assert_eq!(rows[rows.len() - 1][0], HEADER_LEN.to_string());
    assert_eq!(at, HEADER_LEN);
    // A field that is named on the page has its value at that place.
    let mut builder = BatchBuilder::new(BatchOptions { base_offset: Offset::new(0x0102), ..BatchOptions::default() });
    builder.push(Timestamp::new(0x0304), None, None, &[]).expect("a small record");
    let mut bytes = Vec::new();
    builder.finish(&mut bytes).expect("a small batch");
    let header: BatchHeader = *RecordBatch::peek(&bytes).expect("a batch").header();
    let place =
        |field: &str| rows.iter().find(|row| row[2].starts_with(field)).expect(field)[0].parse::<usize>().expect(field);
    let number = |field: &str, len: usize| {
        bytes[place(field)..][..len].iter().fold(0i64, |sum, byte| sum << 8 | i64::from(*byte))
    };
    assert_eq!(number("base offset", 8), header.base_offset.get());
    assert_eq!(number("batch length", 4), i64::from(header.batch_length));
    assert_eq!(number("magic", 1), 2);
    assert_eq!(number("CRC-32C", 4), i64::from(header.crc));
    assert_eq!(number("base timestamp", 8), 0x0304);
    assert_eq!(number("max timestamp", 8), 0x0304);
    assert_eq!(number("record count", 4), 1);
}

#[test]
fn index_entries() {
    says(&format!("An entry of `.index` has {OFFSET_ENTRY_LEN} bytes, one of `.timeindex` {TIME_ENTRY_LEN}."));
    let rows = table("| entry of | at | bytes | field |");
    let lengths: Vec<usize> = rows.iter().map(|row| row[2].parse().expect("a number of bytes")).collect();
    assert_eq!(lengths[0] + lengths[1], OFFSET_ENTRY_LEN);
    assert_eq!(lengths[2] + lengths[3], TIME_ENTRY_LEN);
    let base = Offset::new(100);
    let entry = OffsetEntry { last_offset: Offset::new(101), position: 2 }.encode(base);
    assert_eq!(entry, [0, 0, 0, 1, 0, 0, 0, 2]);
    let entry = TimeEntry { timestamp: Timestamp::new(3), last_offset: Offset::new(101) }.encode(base);
    assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1]);
}

#[test]
fn the_checkpoint_header() {
    let rows = table("| at | bytes | field |\n|---|---|---|\n| 0 | 8 | `HEDDLECP`");
    let mut at = 0;
    for row in &rows[..rows.len() - 1] {
        assert_eq!(row[0], at.to_string());
        at += row[1].parse::<usize>().expect("a number of bytes");
    }
    assert_eq!((rows[rows.len() - 1][0], at), (CHECKPOINT_HEADER_LEN.to_string().as_str(), CHECKPOINT_HEADER_LEN));
    says(&format!("`{}`", String::from_utf8_lossy(&CHECKPOINT_MAGIC)));
    says(&format!("version of what follows, {CHECKPOINT_VERSION},"));
    let fixture = include_bytes!("../fixtures/format-2/heddle.checkpoint.0");
    assert_eq!(fixture[..8], CHECKPOINT_MAGIC);
    let number =
        |at: usize, len: usize| fixture[at..][..len].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    assert_eq!(number(8, 4), u64::from(CHECKPOINT_VERSION));
    assert_eq!(number(12, 4), u64::from(heddle_record::checksum::crc32c(&fixture[CHECKPOINT_HEADER_LEN..])));
    assert_eq!(number(16, 8), (fixture.len() - CHECKPOINT_HEADER_LEN) as u64);
}

#[test]
fn what_compaction_has_done() {
    let rows = table("| at | bytes | field |\n|---|---|---|\n| 0 | 8 | `HEDDLECM`");
    let mut at = 0;
    for row in &rows[..rows.len() - 1] {
        assert_eq!(row[0], at.to_string());
        at += row[1].parse::<usize>().expect("a number of bytes");
    }
    assert_eq!((rows[rows.len() - 1][0], at), (COMPACTION_HEADER_LEN.to_string().as_str(), COMPACTION_HEADER_LEN));
    says(&format!("`{}`", String::from_utf8_lossy(&COMPACTION_MAGIC)));
    says(&format!("for each rewritten segment {COMPACTION_SEGMENT_LEN} bytes"));
    let rows = table("| of a segment | at | bytes | field |");
    let bytes: usize = rows.iter().map(|row| row[2].parse::<usize>().expect("a number of bytes")).sum();
    assert_eq!(bytes, COMPACTION_SEGMENT_LEN);
    let fixture = include_bytes!("../fixtures/format-3/table-1.AgICAgICAgICAgICAgICAg/compaction");
    let number =
        |at: usize, len: usize| fixture[at..][..len].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    assert_eq!((&fixture[..8], number(8, 4)), (&COMPACTION_MAGIC[..], u64::from(COMPACTION_VERSION)));
    assert_eq!(number(12, 4), u64::from(heddle_record::checksum::crc32c(&fixture[16..])));
    assert_eq!((fixture.len() - COMPACTION_HEADER_LEN) % COMPACTION_SEGMENT_LEN, 0);
    assert_eq!(number(COMPACTION_HEADER_LEN, 8), 0, "the first segment's base offset");
}

#[test]
fn the_notes_of_touched_logs() {
    says(&format!("A header of {TOUCHED_SLOT_LEN} bytes, then slots of {TOUCHED_SLOT_LEN} bytes"));
    says(&format!("`{}`", String::from_utf8_lossy(&TOUCHED_MAGIC)));
    says(&format!("version of the file, {TOUCHED_VERSION} |"));
    let rows = table("| of | at | bytes | field |");
    let slot = rows.iter().position(|row| row[0] == "slot").expect("a row that begins the slot");
    for part in [&rows[..slot], &rows[slot..]] {
        let mut at = 0;
        for row in part {
            assert_eq!(row[1], at.to_string(), "{row:?}");
            at += row[2].parse::<usize>().expect("a number of bytes");
        }
        assert_eq!(at, TOUCHED_SLOT_LEN);
    }
    let fixture = include_bytes!("../fixtures/format-2/heddle.touched.0");
    let (header, slot) = fixture.split_at(TOUCHED_SLOT_LEN);
    let check = |bytes: &[u8], at: usize| {
        let mut zeroed = bytes.to_vec();
        zeroed[at..at + 4].fill(0);
        assert_eq!(bytes[at..at + 4], heddle_record::checksum::crc32c(&zeroed).to_le_bytes());
    };
    assert_eq!((&header[..8], header[8]), (&TOUCHED_MAGIC[..], TOUCHED_VERSION as u8));
    check(header, 12);
    check(&slot[..TOUCHED_SLOT_LEN], 0);
    assert_eq!((&slot[4..8], &slot[8..24]), (&[0; 4][..], &[1; 16][..]), "the partition and the topic of the fixture");
}
