//! How an error is shown: with its causes, on one line.

/// The error and its causes, separated by colons. A cause that its effect already ends with is left out.
pub fn chain(error: impl std::error::Error) -> String {
    let mut next: Option<&dyn std::error::Error> = Some(&error);
    let mut text = String::new();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
        next = error.source();
    }
    printable(&text)
}

/// One line that does nothing to a terminal: what is in an error may come from anywhere.
pub fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\r' | '\t' => " ".to_owned(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}
