//! How the cost grows, drawn.

use std::fmt::Write as _;

use crate::growth::Curve;

const PANEL_WIDTH: f64 = 215.0;
const PANEL_HEIGHT: f64 = 150.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 46.0;
const GAP: f64 = 46.0;

/// Two rows of panels, CPU above and memory below; the counts are on a logarithmic scale, the costs begin at 0.
pub(crate) fn svg(curves: &[Curve]) -> String {
    let width = LEFT + curves.len() as f64 * (PANEL_WIDTH + GAP);
    let height = TOP + 2.0 * (PANEL_HEIGHT + GAP) + 6.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\" fill=\"#333\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"18\" font-size=\"14\">What a sign-out costs the sidecar</text>"
    );
    for (row, (title, colour)) in
        [("CPU a call, \u{b5}s", "#1f6f8b"), ("peak memory, MB", "#a6532b")].into_iter().enumerate()
    {
        let value = |point: &crate::growth::Point| if row == 0 { point.cpu_us } else { point.rss_mb };
        let most = curves.iter().flat_map(|curve| &curve.points).map(value).fold(0.0, f64::max) * 1.15;
        let top = TOP + row as f64 * (PANEL_HEIGHT + GAP);
        for (column, curve) in curves.iter().enumerate() {
            let left = LEFT + column as f64 * (PANEL_WIDTH + GAP);
            let bottom = top + PANEL_HEIGHT;
            let decades = curve.points.iter().map(|point| (point.count as f64).log10()).fold(1.0, f64::max);
            let x = |count: usize| left + 14.0 + (count as f64).log10() / decades * (PANEL_WIDTH - 28.0);
            let y = |cost: f64| bottom - cost / most * PANEL_HEIGHT;
            let _ = writeln!(
                svg,
                "<text x=\"{left}\" y=\"{}\">{title}, by {}</text>\n<path d=\"M{left} {top}V{bottom}H{}\" fill=\"none\" \
                 stroke=\"#999\"/>",
                top - 8.0,
                curve.of.replace('_', " "),
                left + PANEL_WIDTH,
            );
            let path: Vec<String> = curve
                .points
                .iter()
                .map(|point| format!("{:.1},{:.1}", x(point.count), y(value(point))))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
            for point in &curve.points {
                let (x, cost) = (x(point.count), value(point));
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/><text x=\"{x:.1}\" y=\"{:.1}\" \
                     text-anchor=\"middle\">{cost:.0}</text><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" \
                     fill=\"#777\">{}</text>",
                    y(cost),
                    y(cost) - 8.0,
                    bottom + 14.0,
                    point.count,
                );
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}
