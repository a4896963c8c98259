//! What a session's environment variables mean: `${PODSPAWN_...}` and `$PATH` in their values.

use super::{environment::EnvironmentError, steps::SessionKey};
use crate::names::SessionId;

/// What processes get to search where the image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All variables of a session together, expanded. They travel in one message, and to each process in its exec.
const MAX_BYTES: usize = 256 << 10;

/// What can stand in a value.
#[derive(Debug, Clone, Copy)]
pub struct Variables<'a> {
    pub key: &'a SessionKey,
    pub session: &'a SessionId,
    /// The image's own variables.
    pub image: &'a [(String, String)],
}

impl Variables<'_> {
    /// The image's variables, and then `more` with what stands in their values.
    pub fn with(&self, more: &[(String, String)]) -> Result<Vec<(String, String)>, EnvironmentError> {
        let mut all = self.image.to_vec();
        let size = |(name, value): &(String, String)| name.len() + value.len() + 2;
        let mut left = MAX_BYTES.saturating_sub(all.iter().map(size).sum());
        for (name, value) in more {
            let entry = (name.clone(), self.expand(value, left).ok_or(EnvironmentError::TooManyVariables)?);
            left = left.checked_sub(size(&entry)).ok_or(EnvironmentError::TooManyVariables)?;
            all.push(entry);
        }
        Ok(all)
    }

    /// `text` with what stands in it, `None` if that is more than `max` bytes. Other names are left as they are: they are
    /// for the shell that reads them.
    fn expand(&self, text: &str, max: usize) -> Option<String> {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            expanded.push_str(&rest[..at]);
            rest = &rest[at..];
            let (length, value) = self.reference(rest).unwrap_or((1, "$"));
            expanded.push_str(value);
            rest = &rest[length..];
            if expanded.len() > max {
                return None;
            }
        }
        expanded.push_str(rest);
        (expanded.len() <= max).then_some(expanded)
    }

    /// The length and value of the reference that `text` begins with.
    fn reference(&self, text: &str) -> Option<(usize, &str)> {
        if let Some(inner) = text.strip_prefix("${") {
            let (name, _) = inner.split_once('}')?;
            return self.value(name).map(|value| (name.len() + 3, value));
        }
        // Without braces for PATH only, as people write it in shells; `$PODSPAWN_USERNAME` would be another name.
        let after = text.strip_prefix("$PATH")?;
        let ends = !after.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        ends.then(|| ("$PATH".len(), self.path()))
    }

    fn value(&self, name: &str) -> Option<&str> {
        match name {
            "PODSPAWN_USER" => Some(self.key.user.as_str()),
            "PODSPAWN_PROJECT" => Some(self.key.project.as_ref().map_or("", |project| project.as_str())),
            "PODSPAWN_SESSION" => Some(self.session.as_str()),
            "PATH" => Some(self.path()),
            _ => None,
        }
    }

    fn path(&self) -> &str {
        let path = self.image.iter().rev().find(|(name, _)| name == "PATH");
        path.map_or(DEFAULT_PATH, |(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_podspawn_knows_is_put_in_and_the_rest_is_left() {
        let (key, plain) = ("ada@web".parse().unwrap(), "ada".parse().unwrap());
        let session = SessionId::from_bits(0);
        let image = [("PATH".to_owned(), "/opt/bin:/bin".to_owned())];
        let variables = Variables { key: &key, session: &session, image: &image };
        let table = [
            ("", ""),
            ("plain", "plain"),
            ("/home/${PODSPAWN_USER}/go", "/home/ada/go"),
            ("${PODSPAWN_PROJECT}-${PODSPAWN_SESSION}", &format!("web-{session}")),
            ("/x:$PATH", "/x:/opt/bin:/bin"),
            ("/x:${PATH}:/y", "/x:/opt/bin:/bin:/y"),
            ("$PATH_X $PATHS $HOME ${HOME} ${PODSPAWN_X}", "$PATH_X $PATHS $HOME ${HOME} ${PODSPAWN_X}"),
            ("$ $$ ${ ${} ${PODSPAWN_USER", "$ $$ ${ ${} ${PODSPAWN_USER"),
            ("ü$PATH$PATH", "ü/opt/bin:/bin/opt/bin:/bin"),
        ];
        for (text, expected) in table {
            assert_eq!(variables.expand(text, 1000).as_deref(), Some(expected), "{text}");
        }
        let variables = Variables { key: &plain, session: &session, image: &[] };
        assert_eq!(variables.expand("[${PODSPAWN_PROJECT}]", 1000).as_deref(), Some("[]"));
        assert_eq!(variables.expand("$PATH", 1000).as_deref(), Some(DEFAULT_PATH));
    }

    #[test]
    fn variables_have_a_limit_also_when_they_grow() {
        let key = "ada".parse().unwrap();
        let session = SessionId::from_bits(0);
        let image = [("PATH".to_owned(), "x".repeat(1000))];
        let variables = Variables { key: &key, session: &session, image: &image };
        let with = |value: String| variables.with(&[("A".to_owned(), value)]);
        assert_eq!(with("$PATH ".repeat(10)).unwrap().len(), 2);
        assert!(with("$PATH ".repeat(1000)).is_err());
        assert!(with("x".repeat(MAX_BYTES)).is_err());
    }
}
