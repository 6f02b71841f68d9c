//! Numbers as people read them.

use std::time::Duration;

/// With a comma between thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A share as percent, with two digits that count.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.;
    let decimals =
        if percent >= 10. || percent == 0. { 0 } else { (1. - percent.log10().floor()).clamp(0., 6.) as usize };
    let text = format!("{percent:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} %")
}

/// To a second; shorter ones to a millisecond.
pub(super) fn time(time: Duration) -> String {
    let rounded = match time {
        time if time >= Duration::from_secs(10) => Duration::from_secs(time.as_secs()),
        time if time >= Duration::from_millis(1) => Duration::from_millis(time.as_millis() as u64),
        time => time,
    };
    humantime::format_duration(rounded).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(0., "0 %")]
    #[case(0.01, "1 %")]
    #[case(0.0321, "3.2 %")]
    #[case(0.000_5, "0.05 %")]
    #[case(0.123_4, "12 %")]
    #[case(1., "100 %")]
    #[case(0.5, "50 %")]
    fn a_share_has_two_digits_that_count(#[case] share: f64, #[case] text: &str) {
        assert_eq!(percent(share), text);
    }

    #[test]
    fn the_rest_is_as_people_write_it() {
        assert_eq!([grouped(7), grouped(1204), grouped(1_234_567)], ["7", "1,204", "1,234,567"]);
        assert_eq!(
            [time(Duration::from_millis(61_204)), time(Duration::from_micros(1_500_300))],
            ["1m 1s", "1s 500ms"]
        );
    }
}
