//! The drawings. Their colours are plain, for whoever takes one out of the page; the style sheet replaces
//! them in the dark.

use crate::bench::{Operation, Row};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

const INK: RGBColor = RGBColor(0x1b, 0x1f, 0x24);
const FAINT: RGBColor = RGBColor(0x6e, 0x77, 0x81);
const GRID: RGBColor = RGBColor(0xd0, 0xd7, 0xde);

const fn colour(operation: Operation) -> RGBColor {
    match operation {
        Operation::Read => RGBColor(0x3b, 0x82, 0xb6),
        Operation::Write => RGBColor(0x2a, 0x8f, 0x5b),
        Operation::Exclusive => RGBColor(0x8e, 0x5b, 0xb5),
        Operation::Classical => RGBColor(0xc7, 0x7b, 0x22),
    }
}

/// As wide as a phone: pages with more room put several side by side.
const WIDTH: i32 = 380;

/// Microseconds for people.
pub(super) fn time(us: f64) -> String {
    match us {
        us if us < 10.0 => format!("{us:.1} µs"),
        us if us < 1_000.0 => format!("{us:.0} µs"),
        us if us < 10_000.0 => format!("{:.1} ms", us / 1e3),
        us if us < 1e6 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    }
}

fn draw(height: i32, paint: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Drawn) -> String {
    let mut svg = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut svg, (WIDTH.unsigned_abs(), height.unsigned_abs()))
            .into_drawing_area();
        paint(&area).and_then(|()| area.present())
    };
    match drawn {
        Ok(()) => svg,
        // Only an area that is too small for its margins comes here, and ours is not.
        Err(error) => format!("<svg ><text>{error}</text></svg>"),
    }
}

fn text(size: i32, colour: RGBColor, at: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour).pos(Pos::new(at, VPos::Center))
}

/// Each operation's p50 as a bar, on to p99 as a line, and the floor as a mark.
pub(super) fn bars(rows: &[&Row]) -> String {
    const LEFT: i32 = 70;
    const ROW: i32 = 44;
    let height = rows.len() as i32 * ROW + 8;
    // The longest p99 would make everything else a dot.
    let longest = rows.iter().map(|row| row.p99_us.min(row.p50_us * 6.0)).fold(1.0, f64::max);
    let x = |us: f64| LEFT + (us.min(longest) / longest * f64::from(WIDTH - LEFT - 12)) as i32;
    draw(height, |area| {
        for (index, row) in rows.iter().enumerate() {
            let y = index as i32 * ROW + 6;
            let colour = colour(row.operation);
            area.draw(&Text::new(row.operation.name(), (LEFT - 8, y + 8), text(13, INK, HPos::Right)))?;
            area.draw(&PathElement::new([(LEFT, y + 8), (x(row.p99_us), y + 8)], colour.stroke_width(2)))?;
            if row.p99_us <= longest {
                area.draw(&PathElement::new(
                    [(x(row.p99_us), y + 4), (x(row.p99_us), y + 12)],
                    colour.stroke_width(2),
                ))?;
            }
            area.draw(&Rectangle::new([(LEFT, y), (x(row.p50_us), y + 16)], colour.filled()))?;
            if let Some(floor) = row.floor_us {
                area.draw(&PathElement::new([(x(floor), y - 4), (x(floor), y + 20)], INK.stroke_width(3)))?;
            }
            area.draw(&Text::new(words(row), (LEFT, y + 27), text(12, FAINT, HPos::Left)))?;
        }
        Ok(())
    })
}

fn words(row: &Row) -> String {
    let mut words = format!("p50 {}, p99 {}", time(row.p50_us), time(row.p99_us));
    if let Some(ratio) = row.vs_floor {
        words.push_str(&format!(" · {ratio:.2} × by hand"));
    }
    if let Some(ratio) = row.vs_classical.filter(|_| row.operation != Operation::Classical) {
        words.push_str(&format!(" · {ratio:.2} × classical"));
    }
    words
}

/// Time by percentile, both so that the rare is as visible as the usual.
pub(super) fn curves(rows: &[&Row]) -> String {
    const HEIGHT: i32 = 250;
    /// Where a percentile is on the axis: each nine takes as much room.
    fn nines(percentile: f64) -> f64 {
        -((100.0 - percentile) / 100.0).log10()
    }
    let times = || rows.iter().flat_map(|row| row.curve.iter().map(|(_, us)| *us));
    let (low, high) = (times().fold(f64::MAX, f64::min), times().fold(1.0, f64::max));
    let end =
        rows.iter().flat_map(|row| &row.curve).map(|(percentile, _)| nines(*percentile)).fold(2.0, f64::max);
    draw(HEIGHT, |area| {
        let (low, high) = (low.min(high) * 0.8, high * 1.4);
        let mut chart = ChartBuilder::on(area)
            .margin_right(14)
            .margin_top(26)
            .x_label_area_size(26)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..end, (low..high).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(FAINT)
            .x_labels(end.ceil() as usize + 1)
            .y_labels(5)
            .x_label_formatter(&|nines| match nines.round() as i32 {
                0 => "fastest".to_owned(),
                1 => "p90".to_owned(),
                2 => "p99".to_owned(),
                3 => "p99.9".to_owned(),
                _ => "p99.99".to_owned(),
            })
            .y_label_formatter(&|us| time(*us))
            .label_style(("sans-serif", 11).into_font().color(&FAINT))
            .draw()?;
        for (index, row) in rows.iter().enumerate() {
            let colour = colour(row.operation);
            let points = row.curve.iter().map(|(percentile, us)| (nines(*percentile), *us));
            chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
            let x = 60 + index as i32 * 80;
            area.draw(&PathElement::new([(x, 10), (x + 14, 10)], colour.stroke_width(3)))?;
            area.draw(&Text::new(row.operation.name(), (x + 18, 10), text(12, INK, HPos::Left)))?;
        }
        Ok(())
    })
}
