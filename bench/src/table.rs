//! Results as Markdown.

use std::fmt::Write;

use crate::case::{Case, Layout, Results, Target};

/// A case's heading, text and tables. `place` is a further sentence about
/// where it was.
pub fn render(case: &Case<'_>, place: &str, results: &[Results]) -> String {
    let mut text = format!("### {}\n\n{}", case.title, case.about);
    if !place.is_empty() {
        text = text + "\n" + place;
    }
    text += "\n";
    text += &match case.layout {
        Layout::Contestants => by_contestants(case, results),
        Layout::Figures => by_figures(case, results),
    };
    for (contestant, results) in case.contestants.iter().zip(results) {
        if let Some(problem) = &results.problem {
            let problem = problem.lines().next().unwrap_or_default();
            text += &format!("\n{} failed: {problem}.\n", contestant.name);
        }
    }
    text
}

fn by_contestants(case: &Case<'_>, results: &[Results]) -> String {
    let mut text = String::new();
    for (index, figure) in case.figures.iter().enumerate() {
        let heading = match (figure.name.as_str(), figure.unit) {
            ("", unit) => unit.to_owned(),
            (name, "") => name.to_owned(),
            (name, unit) => format!("{name}, {unit}"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\n| {heading} | median | least | most | runs | first row / this |\n|---|--:|--:|--:|--:|--:|"
        );
        for (number, (contestant, of)) in case.contestants.iter().zip(results).enumerate() {
            let name = &contestant.name;
            let digits = figure.digits;
            let _ = match (of.median(index), of.extremes(index)) {
                (Some(median), Some((least, most))) => {
                    let runs = of.values.get(index).map_or(0, Vec::len);
                    let ratio = ratio(case, results, index, number);
                    writeln!(
                        text,
                        "| {name} | {median:.digits$} | {least:.digits$} | {most:.digits$} | {runs} | {ratio} |"
                    )
                }
                _ => writeln!(text, "| {name} | – | – | – | 0 | – |"),
            };
        }
        if let Some(target) = figure.target {
            let what = match target {
                Target::Share(peer, most) => {
                    let peer = case.contestants.get(peer);
                    let peer = peer.map_or("?", |peer| peer.name.as_str());
                    format!("at most {most:.2} of {peer}")
                }
                Target::Value(most) => format!("at most {most} {}", figure.unit),
            };
            let _ = writeln!(
                text,
                "\nTarget: {what}; {}.",
                verdict(target, results, index)
            );
        }
    }
    text
}

fn by_figures(case: &Case<'_>, results: &[Results]) -> String {
    let mut heading = "\n| |".to_owned();
    let mut rule = "|---|".to_owned();
    for contestant in &case.contestants {
        heading += &format!(" {} |", contestant.name);
        rule += "--:|";
    }
    let mut contestants = case.contestants.iter();
    let croft = contestants.next().map_or("", |croft| croft.name.as_str());
    for other in contestants {
        heading += &format!(" {croft} / {} |", other.name);
        rule += "--:|";
    }
    let mut text = format!("{heading} target | |\n{rule}--:|---|\n");
    for (index, figure) in case.figures.iter().enumerate() {
        text += &format!("| {}, {} |", figure.name, figure.unit);
        for of in results {
            let digits = figure.digits;
            text += &match of.median(index) {
                Some(median) => format!(" {median:.digits$} |"),
                None => " – |".to_owned(),
            };
        }
        for number in 1..results.len() {
            text += &format!(" {} |", ratio(case, results, index, number));
        }
        text += &match figure.target {
            Some(target @ (Target::Share(_, most) | Target::Value(most))) => {
                format!(" {most:.2} | {} |\n", verdict(target, results, index))
            }
            None => " | |\n".to_owned(),
        };
    }
    let spread = results.iter().map(|of| {
        let figures = 0..case.figures.len();
        let widest = figures.filter_map(|index| {
            let (least, most) = of.extremes(index)?;
            Some((most - least) / of.median(index)? * 100.0)
        });
        widest.fold(0.0, f64::max)
    });
    let spread: Vec<String> = spread.map(|spread| format!("{spread:.0} %")).collect();
    let runs = results.iter().filter_map(|of| of.values.first());
    let runs = runs.map(Vec::len).min().unwrap_or(0);
    let _ = writeln!(
        text,
        "\nRuns of each: {runs}. From the least to the most of a line's runs there was at most, \
         in the order of the columns, {} of the median.",
        spread.join(", ")
    );
    text
}

/// Croft's share of what a contestant takes.
fn share(results: &[Results], figure: usize, contestant: usize) -> Option<f64> {
    let croft = results.first()?.median(figure)?;
    let other = results.get(contestant)?.median(figure)?;
    (other > 0.0).then(|| croft / other)
}

/// Croft's share, in bold where Croft is behind a rival.
fn ratio(case: &Case<'_>, results: &[Results], figure: usize, contestant: usize) -> String {
    let Some(share) = share(results, figure, contestant) else {
        return "–".to_owned();
    };
    let rival = case.contestants.get(contestant);
    if rival.is_some_and(|rival| rival.rival) && share > 1.0 {
        format!("**{share:.2}**")
    } else {
        format!("{share:.2}")
    }
}

fn verdict(target: Target, results: &[Results], figure: usize) -> &'static str {
    let (reached, most) = match target {
        Target::Share(peer, most) => (share(results, figure, peer), most),
        Target::Value(most) => (results.first().and_then(|croft| croft.median(figure)), most),
    };
    match reached {
        Some(reached) if reached <= most => "met",
        Some(_) => "**missed**",
        None => "not measured",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Contestant, Figure, Place};

    fn case(layout: Layout) -> (Case<'static>, Vec<Results>) {
        let figure = |name: &str, target| Figure {
            name: name.to_owned(),
            unit: "s",
            digits: 1,
            target,
        };
        let contestant = |name: &str| Contestant {
            name: name.to_owned(),
            rival: name != "croft",
            run: Box::new(|| Ok(vec![])),
        };
        let case = Case {
            key: "case",
            title: "A case".to_owned(),
            about: "About it.",
            figures: vec![
                figure("fast", Some(Target::Share(1, 0.5))),
                figure("slow", Some(Target::Value(5.0))),
            ],
            contestants: ["croft", "peer"].map(contestant).into(),
            layout,
            place: Place::Here,
        };
        let mut results = vec![Results::default(), Results::default()];
        results[0].add(&[1.0, 6.0]);
        results[1].add(&[4.0, 3.0]);
        (case, results)
    }

    #[test]
    fn a_table_for_each_figure() {
        let (case, results) = case(Layout::Contestants);
        let text = render(&case, "Somewhere.", &results);
        for line in [
            "### A case",
            "Somewhere.",
            "| peer | 4.0 | 4.0 | 4.0 | 1 | 0.25 |",
            "Target: at most 0.50 of peer; met.",
            "| peer | 3.0 | 3.0 | 3.0 | 1 | **2.00** |",
            "Target: at most 5 s; **missed**.",
        ] {
            assert!(text.lines().any(|each| each == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn a_row_for_each_figure() {
        let (case, mut results) = case(Layout::Figures);
        let text = render(&case, "", &results);
        for line in [
            "| | croft | peer | croft / peer | target | |",
            "| fast, s | 1.0 | 4.0 | 0.25 | 0.50 | met |",
            "| slow, s | 6.0 | 3.0 | **2.00** | 5.00 | **missed** |",
        ] {
            assert!(text.lines().any(|each| each == line), "{line} in\n{text}");
        }
        results[1] = Results::default();
        let text = render(&case, "", &results);
        let line = "| fast, s | 1.0 | – | – | 0.50 | not measured |";
        assert!(text.lines().any(|each| each == line), "{line} in\n{text}");
    }
}
