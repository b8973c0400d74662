//! Which page of the documentation is about a place of the configuration file: for hints only, so a
//! guess from the lines above it is enough where the file itself cannot be read.

/// About the file as a whole.
pub const OF_ALL: &str = "docs/poll.md";

/// The page about the table of this name.
pub fn of_section(name: &str) -> &'static str {
    match name {
        "custom_tool" => "docs/custom-tools.md",
        "memory" => "docs/memory.md",
        "skills" => "docs/skills.md",
        "stage" => "docs/staging.md",
        _ => OF_ALL,
    }
}

/// The page about `line` of `text`, from 1.
pub fn of_line(text: &str, line: usize) -> &'static str {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = |text: &str| -> String {
        text.trim_start_matches(['[', ' ', '"']).chars().take_while(|c| plain(*c)).collect()
    };
    let above: Vec<&str> = text.lines().take(line).map(str::trim_start).collect();
    let header = above.iter().rev().find(|line| line.starts_with('['));
    of_section(&name(header.or(above.last()).copied().unwrap_or_default()))
}
