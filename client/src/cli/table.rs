//! Aligned columns.

use std::fmt::Write;

use owo_colors::Style;

use super::screen::Screen;

/// Spaces between two columns.
const GAP: usize = 2;

/// A piece of text in a row, with its style.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

/// Rows of cells; columns are as wide as their widest cell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    /// Columns whose numbers are set flush right.
    right: Vec<usize>,
    rows: Vec<Vec<Cell>>,
    indent: usize,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), style: Style::new() }
    }
}

impl Cell {
    /// The cell in another style.
    pub(crate) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl Table {
    /// An empty table, `indent` spaces from the edge, whose columns `right` are set flush right.
    pub(crate) fn new(indent: usize, right: &[usize]) -> Self {
        Self { right: right.to_vec(), rows: Vec::new(), indent }
    }

    /// Adds the names of the columns.
    pub(crate) fn head(&mut self, names: &[&str]) {
        self.rows.push(names.iter().map(|name| Cell::styled(*name, Style::new().dimmed())).collect());
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Adds a row of a name and what it is.
    pub(crate) fn fact(&mut self, name: &str, value: impl Into<Cell>) {
        self.row([Cell::styled(name, Style::new().dimmed()), value.into()]);
    }

    /// The lines, without one at the end.
    pub(crate) fn render(&self, screen: &Screen) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |text: &str| text.chars().count();
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| width(&cell.text)).max().unwrap_or(0)
            })
            .collect();
        let mut lines = Vec::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            for (column, cell) in row.iter().enumerate() {
                let space = " ".repeat(widths[column] - width(&cell.text));
                let gap = if column == 0 { 0 } else { GAP };
                let painted = screen.paint(&cell.text, cell.style);
                let (before, behind) =
                    if self.right.contains(&column) { (space, String::new()) } else { (String::new(), space) };
                // Writing to a string cannot fail.
                let _ = write!(line, "{:gap$}{before}{painted}{behind}", "");
            }
            lines.push(line.trim_end().to_string());
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::Options;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let mut table = Table::new(2, &[1]);
        table.head(&["node", "bytes", ""]);
        table.row(["aé".into(), "5".into(), "x".into()]);
        table.row(["bcdef".into(), "1000".into(), "".into()]);
        // Tests have no terminal: no colour.
        let text = table.render(&Screen::real(Options::default()));
        assert_eq!(text, "  node   bytes\n  aé         5  x\n  bcdef   1000");
    }
}
