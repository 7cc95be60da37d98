//! Values of settings: parsing and checking one text against its row of the table, with Kafka's own words for what is
//! wrong. Knows nothing of where the text came from.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::{Setting, Valid, ValueType};

/// A text that a setting does not take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InvalidValue {
    /// The setting's name.
    pub setting: String,
    /// The text; hidden when the setting is a secret.
    pub value: String,
    /// What it should have been.
    pub expected: String,
}

impl fmt::Display for InvalidValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invalid value {} for configuration {}: {}", self.value, self.setting, self.expected)
    }
}

impl core::error::Error for InvalidValue {}

/// The items of a list, without the blanks around them and without empty ones.
pub fn list_items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

impl Setting {
    /// Checks a text against the setting's type and valid values.
    ///
    /// # Errors
    /// When the setting does not take it.
    pub fn check(&self, text: &str) -> Result<(), InvalidValue> {
        self.expectation(text.trim()).map_err(|expected| InvalidValue {
            setting: self.name.to_owned(),
            value: if self.is_sensitive() { "[hidden]".into() } else { text.to_owned() },
            expected,
        })
    }

    fn expectation(&self, text: &str) -> Result<(), String> {
        match self.value_type {
            ValueType::Boolean => boolean(text).map(|_| ()),
            ValueType::Short => whole(text, "SHORT", i16::MIN.into(), i16::MAX.into()).and_then(|n| self.in_range(n)),
            ValueType::Int => whole(text, "INT", i32::MIN.into(), i32::MAX.into()).and_then(|n| self.in_range(n)),
            ValueType::Long => whole(text, "LONG", i64::MIN, i64::MAX).and_then(|n| self.in_range(n)),
            ValueType::Double => fraction(text).and_then(|number| self.between(number)),
            ValueType::List => self.items(text),
            ValueType::String | ValueType::Class | ValueType::Password => self.word(text),
        }
    }

    fn in_range(&self, number: i64) -> Result<(), String> {
        let Valid::Range { least, most, or } = self.valid else { return Ok(()) };
        let inside = number >= least && most.is_none_or(|most| number <= most);
        if inside || or == Some(number) {
            return Ok(());
        }
        Err(match (most, or) {
            (Some(most), Some(or)) => format!("Value must be between {least} and {most} or equal to {or}"),
            (Some(most), None) if least == i64::MIN => format!("Value must be no more than {most}"),
            (Some(most), None) => format!("Value must be between {least} and {most}"),
            (None, _) => format!("Value must be at least {least}"),
        })
    }

    fn between(&self, number: f64) -> Result<(), String> {
        match self.valid {
            Valid::Between { least, most } if !(least..=most).contains(&number) => {
                Err(format!("Value must be between {least} and {most}"))
            }
            _ => Ok(()),
        }
    }

    fn items(&self, text: &str) -> Result<(), String> {
        let items: Vec<&str> = list_items(text).collect();
        if self.valid == Valid::ThrottledReplicas {
            return throttled_replicas(self.name, &items);
        }
        for (index, item) in items.iter().enumerate() {
            self.word(item)?;
            if items.iter().take(index).any(|earlier| earlier == item) {
                return Err(format!("{item} is listed twice"));
            }
        }
        Ok(())
    }

    fn word(&self, word: &str) -> Result<(), String> {
        match self.valid {
            Valid::ResetStrategy if !is_reset_strategy(word) => Err(format!(
                "Invalid value `{word}` for configuration {}. The value must be either 'earliest', 'latest' or of the \
                 format 'by_duration:<PnDTnHnMn.nS>'.",
                self.name
            )),
            Valid::NonEmpty if word.is_empty() => Err("String must be non-empty".into()),
            Valid::OneOf { words, any_case } => {
                let known = |known: &&str| *known == word || any_case && known.eq_ignore_ascii_case(word);
                if words.iter().any(known) {
                    Ok(())
                } else {
                    Err(format!("String must be one of: {}", words.join(", ")))
                }
            }
            _ => Ok(()),
        }
    }
}

/// Reads `true` or `false` in any letter case.
///
/// # Errors
/// What was expected, in words.
pub fn boolean(text: &str) -> Result<bool, String> {
    if text.eq_ignore_ascii_case("true") {
        Ok(true)
    } else if text.eq_ignore_ascii_case("false") {
        Ok(false)
    } else {
        Err("Expected value to be either true or false".into())
    }
}

fn whole(text: &str, name: &str, least: i64, most: i64) -> Result<i64, String> {
    let number = text.parse::<i64>().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("Not a number of type {name}"))
}

fn fraction(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| "Not a number of type DOUBLE".into())
}

/// `earliest`, `latest`, or `by_duration:` and days, hours, minutes and seconds in the form of ISO 8601.
fn is_reset_strategy(text: &str) -> bool {
    let Some(duration) = text.strip_prefix("by_duration:") else { return matches!(text, "earliest" | "latest") };
    let Some(parts) = duration.strip_prefix(['P', 'p']) else { return false };
    let (days, time) = parts.split_once(['T', 't']).map_or((parts, None), |(days, time)| (days, Some(time)));
    let of_units = |mut text: &str, units: &[char]| {
        let mut units = units.iter();
        while let Some(end) = text.find(|letter: char| letter.is_ascii_alphabetic()) {
            let (number, rest) = text.split_at(end);
            let unit = rest.chars().next().map(|unit| unit.to_ascii_uppercase());
            let is_number = number.starts_with(|digit: char| digit.is_ascii_digit()) && number.parse::<f64>().is_ok();
            if !is_number || !units.any(|known| Some(*known) == unit) {
                return false;
            }
            text = rest.get(1..).unwrap_or_default();
        }
        text.is_empty()
    };
    (!days.is_empty() || time.is_some())
        && of_units(days, &['D'])
        && time.is_none_or(|time| !time.is_empty() && of_units(time, &['H', 'M', 'S']))
}

fn throttled_replicas(name: &str, items: &[&str]) -> Result<(), String> {
    let replica = |item: &&str| {
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        item.split_once(':').is_some_and(|(partition, broker)| digits(partition) && digits(broker))
    };
    if items == ["*"] || items.iter().all(replica) {
        return Ok(());
    }
    Err(format!(
        "{name} must be the literal '*' or a list of replicas in the following format: \
         [partitionId]:[brokerId],[partitionId]:[brokerId],..."
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{broker_setting, topic_setting};
    use super::*;
    use alloc::string::ToString;

    fn topic(name: &str, value: &str) -> Result<(), alloc::string::String> {
        topic_setting(name).unwrap().check(value).map_err(|error| error.to_string())
    }

    #[test]
    fn kafkas_words() {
        let cases = [
            ("retention.ms", "x", "Not a number of type LONG"),
            ("retention.ms", "-5", "Value must be at least -1"),
            ("cleanup.policy", "foo", "String must be one of: compact, delete"),
            ("compression.gzip.level", "0", "Value must be between 1 and 9 or equal to -1"),
            ("max.message.bytes", "99999999999", "Not a number of type INT"),
            ("preallocate", "yes", "Expected value to be either true or false"),
            ("min.cleanable.dirty.ratio", "2", "Value must be between 0 and 1"),
            ("min.cleanable.dirty.ratio", "NaN", "Not a number of type DOUBLE"),
            ("segment.bytes", "10", "Value must be at least 1048576"),
            ("message.timestamp.type", "createtime", "String must be one of: CreateTime, LogAppendTime"),
        ];
        for (name, value, expected) in cases {
            let wanted = alloc::format!("Invalid value {value} for configuration {name}: {expected}");
            assert_eq!(topic(name, value), Err(wanted));
        }
    }

    #[test]
    fn values_that_are_taken() {
        for (name, value) in [
            ("retention.ms", " -1 "),
            ("cleanup.policy", "compact, delete"),
            ("cleanup.policy", ""),
            ("compression.gzip.level", "-1"),
            ("preallocate", "TRUE"),
            ("min.cleanable.dirty.ratio", "0.25"),
            ("follower.replication.throttled.replicas", "*"),
            ("follower.replication.throttled.replicas", "0:1,1:2"),
        ] {
            assert_eq!(topic(name, value), Ok(()), "{name}={value}");
        }
    }

    #[test]
    fn reset_strategies() {
        for good in ["earliest", "latest", "by_duration:PT1H", "by_duration:P1DT2H3M4.5S", "by_duration:P2D"] {
            assert!(is_reset_strategy(good), "{good}");
        }
        for bad in
            ["", "bogus", "by_duration:", "by_duration:P", "by_duration:PT", "by_duration:1H", "by_duration:PT1D"]
        {
            assert!(!is_reset_strategy(bad), "{bad}");
        }
    }

    #[test]
    fn lists_are_checked_by_item() {
        assert!(topic("cleanup.policy", "compact,compact").is_err());
        assert!(topic("follower.replication.throttled.replicas", "0:1,x").is_err());
    }

    #[test]
    fn letter_case_matters_only_where_kafka_says_so() {
        let setting = broker_setting("group.consumer.migration.policy").unwrap();
        assert_eq!(setting.check("Upgrade"), Ok(()));
    }

    #[test]
    fn secrets_stay_out_of_messages() {
        let secret = Setting { valid: Valid::NonEmpty, ..*broker_setting("ssl.key.password").unwrap() };
        assert!(secret.check("").unwrap_err().to_string().contains("[hidden]"), "case 77");
        let secret = Setting { valid: Valid::OneOf { words: &["a"], any_case: false }, ..secret };
        assert!(!secret.check("hunter2").unwrap_err().to_string().contains("hunter2"), "case 77");
    }
}
