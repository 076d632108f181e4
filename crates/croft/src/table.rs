//! Tables for people.

use std::fmt::Write;

/// Rows of texts, each column as wide as its widest.
pub fn columns<const N: usize>(rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = rows.collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    let mut table = String::new();
    for row in &rows {
        let mut line = String::new();
        for (width, text) in widths.iter().zip(row) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{text:<width$}  ");
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["a", "b"], ["long", ""], ["x", "y"]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(rows.into_iter()), "a     b\nlong\nx     y\n");
    }
}
