//! Patterns of ssh_config(5): `*` stands for any characters, `?` for one.

/// Whether `text` matches `pattern`, byte for byte. Takes time proportional to the product of their lengths at worst.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // The last star, and how much of the text it stands for as far as is known.
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                None => return false,
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_and_question_marks_match() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("**", "x"),
            ("10.*.3", "10.1.2.3"),
            ("a?c", "abc"),
            ("*b*b", "abab"),
            ("LC_*", "LC_ALL"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("", "x"), ("?", ""), ("a?", "a"), ("10.*.3", "10.1.2.4"), ("LC_*", "LC"), ("A", "a")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_matches_itself_with_parts_replaced(text in "[a-c]{0,12}", at in 0usize..12, pattern in "[a-c*?]{0,12}") {
            let at = at.min(text.len());
            let starred = format!("{}*{}", &text[..at], &text[at..]);
            prop_assert!(matches(&starred, &text));
            // Must end, whatever it says.
            matches(&pattern, &text);
        }
    }
}
