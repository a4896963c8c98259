//! The words of a shell command, as far as they can be told without a shell (POSIX, Shell Command Language, 2.2 and 2.6).

/// A simple command.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::init) struct Words<'a> {
    /// Without their quotes. Only right where no expansion has its part in them.
    pub(super) words: Vec<Vec<u8>>,
    /// The command after its first word.
    pub(super) after_first: &'a [u8],
    /// Whether a shell would put something else in the place of some words: `*`, `~`, `$HOME`.
    pub(super) has_expansions: bool,
}

/// Splits `command`; `None` if it is more than one simple command, or not one at all.
pub(super) fn split(command: &[u8]) -> Option<Words<'_>> {
    let mut scanner = Scanner { rest: command, has_expansions: false };
    let mut words = Vec::new();
    let mut after_first: &[u8] = &[];
    while let Some(word) = scanner.word()? {
        words.push(word);
        if words.len() == 1 {
            after_first = scanner.rest;
        }
    }
    Some(Words { words, after_first, has_expansions: scanner.has_expansions })
}

struct Scanner<'a> {
    rest: &'a [u8],
    has_expansions: bool,
}

impl Scanner<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    /// The next word: `Some(None)` at the end, `None` at what makes this something else than a simple command.
    #[expect(clippy::option_option, reason = "the outer one is for the question mark")]
    fn word(&mut self) -> Option<Option<Vec<u8>>> {
        while let Some(b' ' | b'\t') = self.rest.first() {
            self.next();
        }
        if self.rest.is_empty() {
            return Some(None);
        }
        let mut word = Vec::new();
        let mut at_start = true;
        while let Some(&byte) = self.rest.first() {
            if matches!(byte, b' ' | b'\t') {
                break;
            }
            self.next();
            match byte {
                b'\'' => self.single_quoted(&mut word)?,
                b'"' => self.double_quoted(&mut word)?,
                // A line that goes on is no character at all.
                b'\\' => word.extend(Some(self.next()?).filter(|&byte| byte != b'\n')),
                b';' | b'&' | b'|' | b'<' | b'>' | b'(' | b')' | b'\n' => return None,
                _ => {
                    let special = matches!(byte, b'*' | b'?' | b'[' | b'{' | b'$' | b'`');
                    self.has_expansions |= special || (at_start && matches!(byte, b'~' | b'#'));
                    word.push(byte);
                }
            }
            at_start = false;
        }
        Some(Some(word))
    }

    fn single_quoted(&mut self, word: &mut Vec<u8>) -> Option<()> {
        loop {
            match self.next()? {
                b'\'' => return Some(()),
                byte => word.push(byte),
            }
        }
    }

    fn double_quoted(&mut self, word: &mut Vec<u8>) -> Option<()> {
        loop {
            match self.next()? {
                b'"' => return Some(()),
                b'\\' => match self.next()? {
                    b'\n' => {}
                    byte @ (b'"' | b'\\' | b'$' | b'`') => word.push(byte),
                    byte => word.extend([b'\\', byte]),
                },
                byte => {
                    self.has_expansions |= matches!(byte, b'$' | b'`');
                    word.push(byte);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn words(command: &str) -> Option<Vec<String>> {
        let words = split(command.as_bytes())?.words;
        Some(words.into_iter().map(|word| String::from_utf8(word).unwrap()).collect())
    }

    #[test]
    fn quotes_make_words() {
        for (command, expected) in [
            ("scp -t /tmp/x", &["scp", "-t", "/tmp/x"][..]),
            ("  a\t b  ", &["a", "b"]),
            ("", &[]),
            ("''", &[""]),
            ("a'b c'd", &["ab cd"]),
            ("'it'\\''s'", &["it's"]),
            ("a\\ b \\'", &["a b", "'"]),
            ("\"a b\\\"c\\d\\\\\"", &["a b\"c\\d\\"]),
            ("\"it's\" '\"'", &["it's", "\""]),
            ("a\\\nb", &["ab"]),
            ("'a\nb' x#y a~", &["a\nb", "x#y", "a~"]),
            ("ü 'ö'", &["ü", "ö"]),
        ] {
            assert_eq!(words(command), Some(expected.iter().map(ToString::to_string).collect()), "{command:?}");
            assert!(!split(command.as_bytes()).unwrap().has_expansions, "{command:?}");
        }
    }

    #[test]
    fn what_only_a_shell_knows_is_left_to_it() {
        for command in
            ["a *", "a ?", "a [b]", "~", "a ~root", "$HOME", "a \"$b\"", "`date`", "\"`date`\"", "{a,b}", "a #b"]
        {
            assert!(split(command.as_bytes()).unwrap().has_expansions, "{command:?}");
        }
        for command in ["a; b", "a&b", "a | b", "a > b", "a < b", "(a)", "a\nb", "'a", "\"a", "a\\"] {
            assert_eq!(split(command.as_bytes()), None, "{command:?}");
        }
        assert_eq!(split(b" 's'cp  -f *").unwrap().after_first, b"  -f *");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn words_are_those_that_a_shell_sees(command in "[a-c '\"\\\\~#\t\n;&*=!-]{0,20}") {
            if let Some(Words { words, has_expansions: false, .. }) = split(command.as_bytes()) {
                let shell = Command::new("sh").args(["-c", &format!("printf '<%s>' {command}")]).output().unwrap();
                let ours: Vec<u8> = words.iter().flat_map(|word| [b"<", &word[..], b">"].concat()).collect();
                let ours = if ours.is_empty() { b"<>".to_vec() } else { ours };
                prop_assert_eq!(String::from_utf8_lossy(&ours), String::from_utf8_lossy(&shell.stdout));
            }
        }
    }
}
