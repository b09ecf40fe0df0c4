//! What a load measures.

use std::time::Duration;

use anyhow::{Context, ensure};

/// One of the figures of a measurement. Values are in bytes, seconds, and numbers of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantity {
    /// Bytes, transactions, datagrams or connections per second.
    Rate,
    /// Median of the time of a transaction.
    Median,
    /// 99th percentile of the time of a transaction.
    Tail,
    /// Part of the datagrams that were lost.
    Lost,
    /// Processor time of the program under test, for a byte, transaction, datagram or connection.
    Cost,
    /// Resident memory of the program under test.
    Memory,
}

impl Quantity {
    pub(crate) const ALL: [(&str, Self); 6] = [
        ("rate", Self::Rate),
        ("p50", Self::Median),
        ("p99", Self::Tail),
        ("lost", Self::Lost),
        ("cost", Self::Cost),
        ("memory", Self::Memory),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, quantity)| *quantity == self).map_or("", |(name, _)| name)
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, quantity)| *quantity)
    }
}

/// The result of one measurement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample(pub(crate) Vec<(Quantity, f64)>);

impl Sample {
    /// A result with the median and the 99th percentile of `times`, unless there are none.
    pub(crate) fn with_times(rate: f64, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let mut figures = vec![(Quantity::Rate, rate)];
        for (quantity, percent) in [(Quantity::Median, 50), (Quantity::Tail, 99)] {
            figures.extend(times.get(times.len() * percent / 100).map(|time| (quantity, time.as_secs_f64())));
        }
        Self(figures)
    }

    pub(crate) fn get(&self, wanted: Quantity) -> Option<f64> {
        self.0.iter().find(|(quantity, _)| *quantity == wanted).map(|(_, value)| *value)
    }

    /// The rate, then each other quantity with its name.
    pub(super) fn to_line(&self) -> String {
        let words = self.0.iter().map(|(quantity, value)| match quantity {
            Quantity::Rate => format!("{value:.0}"),
            _ => format!(" {} {value:.9}", quantity.name()),
        });
        words.collect()
    }

    /// Parses the line of a load.
    pub(crate) fn parse(line: &str) -> anyhow::Result<Self> {
        let mut words = line.split_whitespace();
        let rate = words.next().context("no rate")?;
        let mut figures =
            vec![(Quantity::Rate, rate.parse::<f64>().with_context(|| format!("not a rate: {rate}"))?)];
        while let Some(name) = words.next() {
            let quantity = Quantity::from_name(name).with_context(|| format!("no such quantity: {name}"))?;
            figures.push((quantity, words.next().with_context(|| format!("{name} has no value"))?.parse()?));
        }
        ensure!(figures.iter().all(|(_, value)| value.is_finite()), "not a number: {line}");
        Ok(Self(figures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let times = (1..=200).rev().map(Duration::from_micros).collect();
        let sample = Sample::with_times(5.0, times);
        assert_eq!(sample.get(Quantity::Median), Some(101e-6));
        assert_eq!(sample.get(Quantity::Tail), Some(199e-6));
        assert_eq!(Sample::with_times(5.0, Vec::new()), Sample(vec![(Quantity::Rate, 5.0)]));
    }

    #[test]
    fn a_line_is_parsed_as_it_was_written() {
        let sample =
            Sample(vec![(Quantity::Rate, 12_345.0), (Quantity::Median, 0.000_071), (Quantity::Lost, 0.5)]);
        assert_eq!(sample.to_line(), "12345 p50 0.000071000 lost 0.500000000");
        assert_eq!(Sample::parse(&sample.to_line()).unwrap(), sample);
        assert_eq!(Sample::parse("7").unwrap(), Sample(vec![(Quantity::Rate, 7.0)]));
        for wrong in ["", "x", "1 p50", "1 p51 3", "NaN", "1 p99 inf"] {
            assert!(Sample::parse(wrong).is_err(), "{wrong}");
        }
    }
}
