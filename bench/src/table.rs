//! Results as Markdown.

use std::fmt::Write;

use crate::case::{Case, Results};

/// A case's heading, text and table.
pub fn render(case: &Case<'_>, results: &[Results]) -> String {
    let mut text = format!("### {}\n\n{}\n", case.title, case.about);
    for (index, figure) in case.figures.iter().enumerate() {
        let croft = results.first().and_then(|results| results.median(index));
        let heading = match figure.name {
            "" => figure.unit.to_owned(),
            name => format!("{name}, {}", figure.unit),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\n| {heading} | median | least | most | runs | first row / this |\n|---|--:|--:|--:|--:|--:|"
        );
        for (contestant, results) in case.contestants.iter().zip(results) {
            let name = &contestant.name;
            let digits = figure.digits;
            let _ = match (results.median(index), results.extremes(index)) {
                (Some(median), Some((least, most))) => {
                    let runs = results.values.get(index).map_or(0, Vec::len);
                    let ratio = match croft {
                        Some(croft) if median > 0.0 => format!("{:.2}", croft / median),
                        _ => "–".to_owned(),
                    };
                    writeln!(
                        text,
                        "| {name} | {median:.digits$} | {least:.digits$} | {most:.digits$} | {runs} | {ratio} |"
                    )
                }
                _ => writeln!(text, "| {name} | – | – | – | 0 | – |"),
            };
        }
    }
    for (contestant, results) in case.contestants.iter().zip(results) {
        if let Some(problem) = &results.problem {
            let problem = problem.lines().next().unwrap_or_default();
            let _ = writeln!(text, "\n{} failed: {problem}.", contestant.name);
        }
    }
    text
}
