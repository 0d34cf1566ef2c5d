//! How the cost of a call grows with what there is of everything.

use crate::{
    cognito::Cognito,
    drive::POOL,
    figures::Bench,
    stats::{Sample, figure, round},
};

/// How the cost grows with one thing.
pub(crate) struct Curve {
    pub(crate) of: &'static str,
    pub(crate) points: Vec<Point>,
}

/// The cost where there are so many.
pub(crate) struct Point {
    pub(crate) count: usize,
    pub(crate) cpu_us: f64,
    pub(crate) rss_mb: f64,
}

/// Times that each point is measured; the median counts.
const REPEATED: usize = 3;

/// In flight where that is not what varies.
const IN_FLIGHT: usize = 64;

pub(crate) fn measure(bench: &Bench<'_>) -> Vec<Curve> {
    let in_one = |_| vec![POOL.to_owned()];
    let pools = |count| (0..count).map(|n| format!("eu-central-1_EXAMPLE{n}")).collect();
    let regions = |count| (0..count).map(|n| format!("xx-bench-{n}_EXAMPLE")).collect();
    let load = |in_flight: usize, connections: usize| Load { in_flight, connections };
    vec![
        curve(bench, "in_flight", &[1, 10, 100, 1000, 10_000], |n| load(n, n.div_ceil(100)), in_one),
        curve(bench, "pools", &[1, 10, 100], |_| load(IN_FLIGHT, 1), pools),
        curve(bench, "regions", &[1, 10, 64, 100], |_| load(IN_FLIGHT, 1), regions),
        curve(bench, "connections", &[1, 10, 100, 1000], |n| load(IN_FLIGHT, n), in_one),
    ]
}

struct Load {
    in_flight: usize,
    connections: usize,
}

fn curve(
    bench: &Bench<'_>,
    of: &'static str,
    counts: &[usize],
    load: impl Fn(usize) -> Load,
    pools: impl Fn(usize) -> Vec<String>,
) -> Curve {
    let points = counts.iter().map(|&count| {
        let Load { in_flight, connections } = load(count);
        let calls = if in_flight == 1 { 500 } else { 2000.max(in_flight * 2) };
        // A process for each point: memory that was once taken is not always given back.
        let cognito = Cognito::start(None);
        let sidecar = bench.sidecar(&cognito.url);
        let callers = bench.connect(&sidecar.addresses[0], connections).with_pools(pools(count));
        let cost = || bench.drive(sidecar.process.pid(), calls, callers.run(calls, in_flight)).cpu_us;
        cost();
        let cpu_us = (0..REPEATED).map(|_| cost()).collect::<Sample>().median();
        let rss_mb = sidecar.peak_rss_mb();
        figure(&format!("cpu_us_{of}_{count}"), round(cpu_us));
        figure(&format!("rss_peak_mb_{of}_{count}"), round(rss_mb));
        Point { count, cpu_us, rss_mb }
    });
    Curve { of, points: points.collect() }
}
