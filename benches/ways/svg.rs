//! Bars and lines as SVG, drawn by a few lines of our own. Text and lines take the reader's
//! colours, light or dark; fills are of a middle lightness that stands out on both.

use std::fmt::Write as _;

use crate::statistics::Summary;

const WIDTH: f64 = 860.0;
const NAMES_WIDTH: f64 = 290.0;
const FIGURES_WIDTH: f64 = 70.0;
const BAR: f64 = 16.0;
const ROW: f64 = 26.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 44.0;
/// Fills, in the order of parts or lines: told apart by colour-blind readers too (Okabe and Ito's
/// palette: blue, orange, green, purple).
const FILLS: [&str; 4] = ["#2f8fcf", "#e08a1e", "#1b9e77", "#b565a7"];
const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#24292f}\
    .small{font-size:11px}.title{font-size:15px;font-weight:600}\
    .axis{stroke:#8c959f;stroke-width:1}.grid{stroke:#8c959f;stroke-opacity:.3}\
    .spread{stroke:#24292f;stroke-width:1.5;fill:none}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.spread{stroke:#e6edf3}}";

/// One bar: parts that add up, and the spread of the whole.
pub struct Bar {
    pub name: String,
    pub parts: Vec<f64>,
    pub whole: Summary,
    /// The first part's fill, of [`FILLS`].
    pub fill: usize,
}

/// Horizontal bars from 0, with what each part is.
pub fn bars(title: &str, unit: &str, parts: &[&str], bars: &[Bar]) -> String {
    let height = TOP + ROW * bars.len() as f64 + BOTTOM;
    let most = bars.iter().map(|bar| bar.whole.most).fold(0.0, f64::max);
    let ticks = ticks(most);
    let scale = (WIDTH - NAMES_WIDTH - FIGURES_WIDTH) / ticks.last().copied().unwrap_or(1.0);
    let mut svg = open(title, height);
    legend(&mut svg, parts);
    let bottom = TOP + ROW * bars.len() as f64;
    for tick in &ticks {
        let x = NAMES_WIDTH + tick * scale;
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>\
             <text class=\"small\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 16.0,
            number(*tick)
        );
    }
    for (n, bar) in bars.iter().enumerate() {
        let (y, mut x) = (TOP + ROW * n as f64 + (ROW - BAR) / 2.0, NAMES_WIDTH);
        let middle = y + BAR / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            NAMES_WIDTH - 8.0,
            middle + 4.5,
            escaped(&bar.name)
        );
        for (part, fill) in bar.parts.iter().zip(FILLS.iter().cycle().skip(bar.fill)) {
            let width = part * scale;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" \
                 fill=\"{fill}\"/>"
            );
            x += width;
        }
        let Summary { median, least, most } = bar.whole;
        let [from, to] = [least, most].map(|figure| NAMES_WIDTH + figure * scale);
        let (up, down) = (middle - 4.0, middle + 4.0);
        let _ = writeln!(
            svg,
            "<path class=\"spread\" d=\"M{from:.1} {up:.1}V{down:.1}M{from:.1} {middle:.1}H{to:.1}\
             M{to:.1} {up:.1}V{down:.1}\"/><text class=\"small\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            to + 6.0,
            middle + 4.0,
            format_args!("{median:.2}")
        );
    }
    close(svg, unit, bottom + 34.0)
}

/// One line: `x`, figure.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, Summary)>,
}

/// Lines over a doubling axis; from 0 upwards.
pub fn lines(title: &str, x_unit: &str, unit: &str, lines: &[Line]) -> String {
    let (height, left, right) = (380.0, 64.0, WIDTH - 24.0);
    let bottom = height - 58.0;
    let points = || lines.iter().flat_map(|line| &line.points);
    let mut xs: Vec<f64> = points().map(|(x, _)| *x).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let (first, last) = (xs.first().copied().unwrap_or(1.0), xs.last().copied().unwrap_or(2.0));
    let width = (last.log2() - first.log2()).max(1.0);
    let place = |x: f64| left + 12.0 + (x.log2() - first.log2()) / width * (right - left - 24.0);
    let ticks = ticks(points().map(|(_, summary)| summary.most).fold(0.0, f64::max));
    let highest = ticks.last().copied().unwrap_or(1.0);
    let rise = |figure: f64| bottom - figure / highest * (bottom - TOP);
    let mut svg = open(title, height);
    legend(&mut svg, &lines.iter().map(|line| line.name.as_str()).collect::<Vec<_>>());
    for tick in &ticks {
        let y = rise(*tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>\
             <text class=\"small\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            y + 4.0,
            number(*tick)
        );
    }
    for x in &xs {
        let _ = writeln!(
            svg,
            "<text class=\"small\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            place(*x),
            bottom + 18.0,
            number(*x)
        );
    }
    for (line, fill) in lines.iter().zip(FILLS.iter().cycle()) {
        let mut path = String::new();
        for (x, Summary { median, least, most }) in &line.points {
            let (x, y) = (place(*x), rise(*median));
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
            let _ = writeln!(
                svg,
                "<line class=\"spread\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>\
                 <circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{fill}\"/>",
                rise(*least),
                rise(*most)
            );
        }
        let stroke = "fill=\"none\" stroke-width=\"2\"";
        let _ = writeln!(svg, "<path d=\"{path}\" {stroke} stroke=\"{fill}\"/>");
    }
    close(svg, &format!("{unit}; below: {x_unit}"), bottom + 44.0)
}

fn open(title: &str, height: f64) -> String {
    let title = escaped(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"{title}\">\n<style>{STYLE}</style>\n\
         <text class=\"title\" x=\"12\" y=\"22\">{title}</text>\n"
    )
}

fn close(mut svg: String, unit: &str, y: f64) -> String {
    let _ = writeln!(
        svg,
        "<text class=\"small\" x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>\n</svg>",
        WIDTH - 24.0,
        escaped(unit)
    );
    svg
}

fn legend(svg: &mut String, names: &[&str]) {
    let mut x = 12.0;
    for (name, fill) in names.iter().zip(FILLS.iter().cycle()) {
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"34\" width=\"11\" height=\"11\" fill=\"{fill}\"/>\
             <text class=\"small\" x=\"{:.1}\" y=\"44\">{}</text>",
            x + 16.0,
            escaped(name)
        );
        x += 34.0 + 6.4 * name.chars().count() as f64;
    }
}

/// Round figures from 0 to at least `most`, about six of them.
fn ticks(most: f64) -> Vec<f64> {
    let most = if most > 0.0 { most } else { 1.0 };
    let rough = most / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    (0..=(most / step).ceil() as u32).map(|n| f64::from(n) * step).collect()
}

fn number(figure: f64) -> String {
    let text = format!("{figure:.2}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(median: f64) -> Summary {
        Summary { median, least: median * 0.9, most: median * 1.2 }
    }

    /// Every tag that opens closes, in order, and attributes are quoted.
    fn assert_well_formed(svg: &str) {
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').expect("a tag ends");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let name = tag.trim_matches('/').split_whitespace().next().unwrap();
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) => assert_eq!(open.pop(), Some(name)),
                (_, true) => {}
                _ => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn bars_are_drawn_to_scale_and_with_their_spread() {
        let bar = |name: &str, whole: f64| Bar {
            name: name.to_owned(),
            parts: vec![whole / 2.0, whole / 2.0],
            whole: summary(whole),
            fill: 0,
        };
        let svg = bars("a < b", "s", &["one", "two"], &[bar("x & y", 2.0), bar("z", 4.0)]);
        assert_well_formed(&svg);
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| line.starts_with("<rect") && line.contains("height=\"16\""))
            .map(|line| line.split("width=\"").nth(1).unwrap().split('"').next().unwrap())
            .map(|width| width.parse().unwrap())
            .collect();
        assert!(widths.len() == 4 && (widths[2] / widths[0] - 2.0).abs() < 0.01, "{widths:?}");
        assert!(svg.contains("x &amp; y") && svg.contains("a &lt; b"));
        assert!(svg.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn lines_rise_with_their_figures() {
        let points = vec![(1.0, summary(1.0)), (2.0, summary(2.0)), (4.0, summary(4.0))];
        let svg = lines("t", "lanes", "GB/s", &[Line { name: "n".to_owned(), points }]);
        assert_well_formed(&svg);
        let heights: Vec<f64> = svg
            .split("cy=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
            .collect();
        assert!(heights[0] > heights[1] && heights[1] > heights[2], "{heights:?}");
    }

    #[test]
    fn nothing_is_drawn_without_dividing_by_it() {
        assert_well_formed(&bars("t", "s", &[], &[]));
        assert_well_formed(&lines("t", "x", "y", &[]));
        assert_eq!(ticks(9.3), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(number(10.0), "10");
        assert_eq!(number(0.25), "0.25");
    }
}
