//! The parts that pages are made of: text made safe, tables, figures, images, and the page around them. A page is one
//! file that loads nothing, runs no script, and reads in light, in dark, on paper and aloud.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::table::Table;
use keel_engine::program::escape;

/// A file's bytes as an address that needs no file.
pub(super) fn data_address(kind: &str, bytes: &[u8]) -> String {
    format!("data:{kind};base64,{}", STANDARD.encode(bytes))
}

/// A table whose first column names its rows.
pub(super) fn table(caption: &str, table: &Table) -> String {
    let mut html = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table><caption>{0}</caption>\n",
        escape(caption)
    );
    for (index, row) in table.rows.iter().enumerate() {
        html += if index == 0 { "<thead><tr>" } else { "<tr>" };
        for (column, cell) in row.iter().enumerate() {
            let cell = escape(cell);
            let _ = match (index, column) {
                (0, _) => write!(html, "<th scope=\"col\">{cell}</th>"),
                (_, 0) => write!(html, "<th scope=\"row\">{cell}</th>"),
                _ => write!(html, "<td>{cell}</td>"),
            };
        }
        html += if index == 0 {
            "</tr></thead><tbody>\n"
        } else {
            "</tr>\n"
        };
    }
    html + "</tbody></table></div>\n"
}

/// What opens on a click.
pub(super) fn details(summary: &str, inside: &str) -> String {
    format!(
        "<details><summary>{}</summary>\n{inside}</details>\n",
        escape(summary)
    )
}

/// A section of a page.
pub(super) struct Section {
    /// Its place in addresses.
    pub id: &'static str,
    /// Its heading.
    pub title: String,
    /// HTML.
    pub body: String,
}

/// The whole page. `lead` is HTML under the title.
pub(super) fn page(title: &str, lead: &str, sections: &[Section]) -> String {
    let title = escape(title);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">Skip to the content</a>\n<header><h1>{title}</h1>\n{lead}\n\
         <nav aria-label=\"Sections\"><ul>"
    );
    for section in sections {
        let name = escape(&section.title);
        let _ = write!(html, "<li><a href=\"#{}\">{name}</a></li>", section.id);
    }
    html += "</ul></nav></header>\n<main id=\"main\">\n";
    for Section { id, title, body } in sections {
        let title = escape(title);
        let _ = writeln!(
            html,
            "<section id=\"{id}\" aria-labelledby=\"{id}-title\">\n<h2 id=\"{id}-title\">{title}</h2>\n{body}</section>"
        );
    }
    html + "</main>\n</body>\n</html>\n"
}

const STYLE: &str = include_str!("style.css");
