//! Medians and quartiles.

use std::{cell::RefCell, fmt, time::Duration};

/// Measurements of one thing.
#[derive(Default, Clone)]
pub(crate) struct Sample(RefCell<Vec<f64>>);

impl Sample {
    pub(crate) fn push(&self, value: f64) {
        self.0.borrow_mut().push(value);
    }

    /// The value below which this share of the measurements lies, between neighbours by straight line.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.borrow().clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let position = share * last as f64;
        let below = position.floor() as usize;
        let above = sorted[(below + 1).min(last)];
        sorted[below] + (above - sorted[below]) * position.fract()
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The distance of the quartiles, as a share of the median.
    pub(crate) fn spread(&self) -> f64 {
        (self.quantile(0.75) - self.quantile(0.25)) / self.median()
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(RefCell::new(values.into_iter().collect()))
    }
}

/// Prints one figure.
pub(crate) fn figure(name: &str, value: impl fmt::Display) {
    println!("{name}={value}");
}

/// Prints a median and its quartiles.
pub(crate) fn figures(name: &str, sample: &Sample) {
    figure(name, round(sample.median()));
    figure(&format!("{name}_q1"), round(sample.quantile(0.25)));
    figure(&format!("{name}_q3"), round(sample.quantile(0.75)));
}

/// Three figures that count are more than any of this can bear.
pub(crate) fn round(value: f64) -> f64 {
    let digits = if value.abs() < 1.0 {
        1000.0
    } else if value.abs() < 10.0 {
        100.0
    } else if value.abs() < 1000.0 {
        10.0
    } else {
        1.0
    };
    (value * digits).round() / digits
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
