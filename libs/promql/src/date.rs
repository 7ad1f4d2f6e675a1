//! Calendar dates in UTC from seconds since the Unix epoch.

/// A UTC date and time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Date {
    pub(crate) year: i64,
    /// From 1.
    pub(crate) month: u8,
    /// From 1.
    pub(crate) day: u8,
    /// From 1.
    pub(crate) day_of_year: u16,
    /// Sunday is 0.
    pub(crate) weekday: u8,
    pub(crate) hour: u8,
    pub(crate) minute: u8,
    pub(crate) second: u8,
}

const DAY_SECONDS: i64 = 86_400;
/// Days of 400 years, after which the calendar repeats.
const ERA_DAYS: i64 = 146_097;

impl Date {
    /// The date of a number of seconds since the epoch; any number has one.
    pub(crate) fn from_unix(seconds: i64) -> Self {
        let days = seconds.div_euclid(DAY_SECONDS);
        let of_day = seconds.rem_euclid(DAY_SECONDS);
        // Years start in March here, so that the leap day is the last one (Howard Hinnant's civil_from_days).
        let shifted = days + 719_468;
        let era = shifted.div_euclid(ERA_DAYS);
        let of_era = shifted.rem_euclid(ERA_DAYS);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let before: i64 = (1..month as u8).map(|m| i64::from(days_in_month(year, m))).sum();
        Self {
            year,
            month: month as u8,
            day: day as u8,
            day_of_year: (before + day) as u16,
            weekday: (days + 4).rem_euclid(7) as u8,
            hour: (of_day / 3_600) as u8,
            minute: (of_day % 3_600 / 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// How many days its month has.
    pub(crate) fn days_in_month(self) -> u8 {
        days_in_month(self.year, self.month)
    }
}

fn days_in_month(year: i64, month: u8) -> u8 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// `1970-01-01T00:00:00Z`; milliseconds are cut off.
pub(crate) fn format_rfc3339(ms: i64) -> String {
    let d = Date::from_unix(ms / 1_000);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        d.year, d.month, d.day, d.hour, d.minute, d.second
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_230_768_000, "2009-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            let d = Date::from_unix(seconds);
            let got = format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
                d.year, d.month, d.day, d.hour, d.minute, d.second
            );
            assert_eq!(got, text);
        }
        let leap_end = Date::from_unix(1_735_603_200);
        assert_eq!(
            (leap_end.day_of_year, leap_end.weekday, leap_end.days_in_month()),
            (366, 2, 31)
        );
    }

    #[test]
    fn no_number_of_seconds_panics() {
        for s in [i64::MIN, i64::MAX, -62_135_596_800] {
            let _ = Date::from_unix(s);
        }
    }
}
