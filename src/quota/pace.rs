//! The pace itself: a token bucket whose rate adapts. Knows no tasks and no clock; it is told what time it is.
//!
//! After a throttled attempt the rate falls to [`BACKOFF`] of what it was, comes back quickly to a little below it,
//! lingers there, and then probes ever faster: the curve of TCP's CUBIC, stretched to [`RETURN`]. It is preferred to
//! a straight line because the level at which others leave room is found again in the same time whether the rate is 1
//! or 1000 a second, and because the lingering is what keeps the throttled share low: with a straight line, a fleet
//! spends its time on the steepest part. Since a faster sender meets throttling more often, a fleet evens out.
//!
//! The curve advances with what is let through, not with the clock: a rate that nobody uses says nothing about what
//! Cognito would take.

use std::time::Duration;

use tokio::time::Instant;

/// What is left of the rate after a throttled attempt.
const BACKOFF: f64 = 0.7;
/// Seconds of full use until the rate is back where it was throttled.
const RETURN: f64 = 15.0;
/// A cold start begins with this part of the limit...
const COLD: f64 = 0.1;
/// ... and reaches the limit after so many seconds of full use.
const RAMP: f64 = 10.0;
/// The rate never falls below this part of the limit, so that the end of throttling is noticed.
const FLOOR: f64 = 0.01;
/// The bucket holds what the limit gives in so many seconds: no burst is longer.
const BURST: f64 = 0.1;

/// A token bucket whose rate adapts.
#[derive(Debug)]
pub(super) struct Pace {
    /// The most a second.
    limit: f64,
    curve: Curve,
    /// Seconds of full use on the curve.
    used: f64,
    tokens: f64,
    /// When `tokens` was true.
    at: Instant,
    /// What was let through before this cannot tell anything new.
    slowed: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Curve {
    /// Never throttled.
    Ramp,
    /// Throttled at that rate.
    Cubic { ceiling: f64 },
}

impl Pace {
    /// A cold start, of at most `limit` a second.
    pub(super) fn new(limit: f64, now: Instant) -> Self {
        Self { limit, curve: Curve::Ramp, used: 0.0, tokens: 1.0, at: now, slowed: now }
    }

    /// The most a second.
    pub(super) fn limit(&self) -> f64 {
        self.limit
    }

    /// How many a second now.
    pub(super) fn rate(&self) -> f64 {
        let rate = match self.curve {
            Curve::Ramp => self.limit * (COLD + (1.0 - COLD) * self.used / RAMP),
            Curve::Cubic { ceiling } => {
                ceiling + ceiling * (1.0 - BACKOFF) * (self.used / RETURN - 1.0).powi(3)
            }
        };
        rate.clamp(self.limit * FLOOR, self.limit)
    }

    /// The most that the bucket holds. A small limit still has to let one through.
    pub(super) fn capacity(&self) -> f64 {
        (self.limit * BURST).max(1.0)
    }

    fn refill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * self.rate()).min(self.capacity());
        self.at = self.at.max(now);
    }

    /// Tells how long it takes until the bucket holds `level` tokens; nothing if it does.
    pub(super) fn until(&mut self, level: f64, now: Instant) -> Duration {
        self.refill(now);
        let missing = level.min(self.capacity()) - self.tokens;
        // Less than a nanosecond's worth is nothing: a wait for it would end at once, and never end.
        if missing * 1e9 > self.rate() {
            Duration::from_secs_f64(missing / self.rate())
        } else {
            Duration::ZERO
        }
    }

    /// Takes a token if the bucket holds `level` of them, else tells how long it takes until then.
    pub(super) fn take(&mut self, level: f64, now: Instant) -> Result<(), Duration> {
        let wait = self.until(level, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.tokens -= 1.0;
        self.used += 1.0 / self.rate();
        Ok(())
    }

    /// How long until a token is there after `ahead` others, at the present rate.
    pub(super) fn wait(&mut self, ahead: usize, now: Instant) -> Duration {
        self.refill(now);
        #[expect(clippy::cast_precision_loss, reason = "a queue is far shorter than 2^52")]
        let missing = (ahead as f64 + 1.0 - self.tokens).max(0.0);
        Duration::try_from_secs_f64(missing / self.rate()).unwrap_or(Duration::MAX)
    }

    /// Gives a token back that was not used.
    pub(super) fn refund(&mut self) {
        self.tokens = (self.tokens + 1.0).min(self.capacity());
    }

    /// Is told that an attempt that was let through at `taken` was throttled. Whether the rate falls: attempts that
    /// were under way together meet the same trouble, and count once.
    pub(super) fn throttled(&mut self, taken: Instant, now: Instant) -> bool {
        if taken < self.slowed {
            return false;
        }
        self.refill(now);
        self.curve = Curve::Cubic { ceiling: self.rate().max(self.limit * FLOOR) };
        self.used = 0.0;
        self.tokens = self.tokens.min(1.0);
        self.slowed = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is let through in so many seconds when all is wanted that can be had.
    fn drain(pace: &mut Pace, from: Instant, seconds: u64) -> Vec<Instant> {
        let (mut now, end) = (from, from + Duration::from_secs(seconds));
        let mut taken = Vec::new();
        while now < end {
            match pace.take(1.0, now) {
                Ok(()) => taken.push(now),
                Err(wait) => now += wait + Duration::from_nanos(1),
            }
        }
        taken
    }

    #[test]
    fn a_cold_start_ramps_up() {
        let start = Instant::now();
        let taken = drain(&mut Pace::new(100.0, start), start, 20);
        let in_second = |n: u64| {
            let (from, to) = (start + Duration::from_secs(n), start + Duration::from_secs(n + 1));
            taken.iter().filter(|at| (from..to).contains(at)).count()
        };
        assert!((10..=17).contains(&in_second(0)), "{}", in_second(0));
        assert!((40..=60).contains(&in_second(4)), "{}", in_second(4));
        assert!((98..=101).contains(&in_second(15)), "{}", in_second(15));
    }

    #[test]
    fn no_window_holds_more_than_the_rate_and_a_tenth_of_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(250.0, start);
        let end = drain(&mut pace, start, 15).last().copied().unwrap();
        // A rest, after which the bucket is as full as it gets.
        let taken = drain(&mut pace, end + Duration::from_secs(60), 3);
        for (index, from) in taken.iter().enumerate() {
            let within = taken[index..].iter().take_while(|at| **at < *from + Duration::from_secs(1)).count();
            assert!(within <= 250 + 25 + 1, "{within}");
        }
        let burst = taken.iter().filter(|at| **at == taken[0]).count();
        assert!((24..=25).contains(&burst), "{burst}");
    }

    #[test]
    fn throttling_slows_and_use_brings_the_rate_back() {
        let start = Instant::now();
        let mut pace = Pace::new(100.0, start);
        let warm = drain(&mut pace, start, 15).last().copied().unwrap();
        assert_eq!(pace.rate(), 100.0);

        assert!(pace.throttled(warm, warm));
        assert!((69.9..70.1).contains(&pace.rate()));
        // The clock alone brings nothing back.
        let later = warm + Duration::from_secs(100);
        assert!((69.9..70.1).contains(&pace.rate()));

        drain(&mut pace, later, 7);
        assert!((90.0..99.0).contains(&pace.rate()), "{}", pace.rate());
        drain(&mut pace, later + Duration::from_secs(7), 9);
        assert!(pace.rate() >= 99.9, "{}", pace.rate());
    }

    #[test]
    fn attempts_that_were_under_way_together_count_once() {
        let start = Instant::now();
        let mut pace = Pace::new(100.0, start);
        let warm = drain(&mut pace, start, 15).last().copied().unwrap();
        let later = warm + Duration::from_millis(50);
        assert!(pace.throttled(warm, later));
        assert!(!pace.throttled(warm + Duration::from_millis(10), later));
        assert!(pace.throttled(later, later + Duration::from_millis(50)));
    }

    #[test]
    fn the_rate_comes_back_from_the_floor_too() {
        let start = Instant::now();
        let mut pace = Pace::new(25.0, start);
        let mut now = start;
        for _ in 0..100 {
            now += Duration::from_secs(1);
            pace.throttled(now, now);
        }
        assert!((0.2..0.3).contains(&pace.rate()), "{}", pace.rate());
        drain(&mut pace, now, 180);
        assert_eq!(pace.rate(), 25.0);
    }
}
