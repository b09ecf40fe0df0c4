//! Rates in bits per second, and their text.

use core::{fmt, str::FromStr, time::Duration};

use thiserror::Error;

/// A rate between [`Rate::MIN`] and [`Rate::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

/// The reason why a text is not a rate.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidRate {
    /// It is not a number.
    #[error("not a number of bits per second, such as 500k, 20M or 1.5G")]
    NotANumber,
    /// It is below the minimum.
    #[error("less than {}, in bits per second; is a suffix k, M or G missing?", Rate::MIN)]
    TooLow,
    /// It is above the maximum.
    #[error("more than {}, in bits per second", Rate::MAX)]
    TooHigh,
}

impl Rate {
    /// The lowest rate. A lower rate is probably a mistake.
    pub const MIN: Self = Self(1_000);
    /// The highest rate.
    pub const MAX: Self = Self(1_000_000_000_000);

    /// The rate in bits per second.
    #[must_use]
    pub const fn bits_per_second(self) -> u64 {
        self.0
    }

    /// The number of bytes that the rate allows in this time.
    pub(super) fn bytes_in(self, time: Duration) -> u64 {
        let bits = u128::from(self.0) * time.as_micros() / 1_000_000;
        u64::try_from(bits / 8).unwrap_or(u64::MAX)
    }
}

/// The suffixes and their factors, the largest first.
const SUFFIXES: [(char, u64); 3] = [('G', 1_000_000_000), ('M', 1_000_000), ('k', 1_000)];

/// Parses a decimal number of bits per second. A decimal point and a suffix `k`, `M` or `G` are allowed: 20M, 1.5G.
impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let suffix = SUFFIXES.iter().find_map(|&(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)));
        let (number, factor) = suffix.unwrap_or((text, 1));
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        if [whole, part].iter().any(|digits| digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()))
        {
            return Err(InvalidRate::NotANumber);
        }
        let whole = whole.parse::<u64>().map_err(|_| InvalidRate::TooHigh)?.saturating_mul(factor);
        let (part, _) = part.bytes().fold((0, factor), |(sum, unit), digit| {
            let unit = unit / 10;
            (sum + u64::from(digit - b'0') * unit, unit)
        });
        match Self(whole.saturating_add(part)) {
            rate if rate < Self::MIN => Err(InvalidRate::TooLow),
            rate if rate > Self::MAX => Err(InvalidRate::TooHigh),
            rate => Ok(rate),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = SUFFIXES.iter().find(|(_, factor)| self.0.is_multiple_of(*factor));
        match suffix {
            Some((suffix, factor)) => write!(f, "{}{suffix}", self.0 / factor),
            None => self.0.fmt(f),
        }
    }
}
