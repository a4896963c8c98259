//! What comes before the client's first word: perhaps the announcement of a project, which russh must not see.

use std::sync::{Arc, OnceLock};

use crate::{
    names::ProjectName,
    protocol::announcement::{FIRST_BYTE, MAX_ANNOUNCEMENT, announced},
};

/// A line that begins like an announcement and is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the announcement of a project is not valid")]
pub(super) struct Malformed;

/// What has been announced, for whoever asks after the login. Nothing has protected it on its way; it chooses among the
/// sessions of whoever logs in.
#[derive(Debug, Clone, Default)]
pub(super) struct Announced(Arc<OnceLock<ProjectName>>);

impl Announced {
    pub(super) fn project(&self) -> Option<ProjectName> {
        self.0.get().cloned()
    }
}

/// Watches the beginning of what a client sends.
#[derive(Debug)]
pub(super) enum Preface {
    /// What has come of a line so far: at most as much as the longest announcement has.
    Expected(Vec<u8>, Announced),
    Over,
}

impl Preface {
    pub(super) fn new(announced: Announced) -> Self {
        Self::Expected(Vec::new(), announced)
    }

    /// Looks at what has come next, and returns how much of it is the announcement's. The rest is SSH.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let Self::Expected(line, project) = self else { return Ok(0) };
        let Some(first) = line.first().or(bytes.first()) else { return Ok(0) };
        // An identification begins with an S. Whatever else this is, russh refuses it.
        if *first != FIRST_BYTE {
            *self = Self::Over;
            return Ok(0);
        }
        let room = MAX_ANNOUNCEMENT - line.len();
        let Some(end) = bytes.iter().take(room).position(|byte| *byte == b'\n') else {
            line.extend(bytes.iter().take(room));
            return if bytes.len() >= room { Err(Malformed) } else { Ok(bytes.len()) };
        };
        line.extend(&bytes[..=end]);
        // This is the only place that sets it, and comes here once.
        let _ = project.0.set(announced(line).ok_or(Malformed)?);
        *self = Self::Over;
        Ok(end + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SSH: &[u8] = b"SSH-2.0-test\r\n";

    /// Feeds pieces; what is left for SSH, and what was announced.
    fn feed(pieces: &[&[u8]]) -> Result<(Vec<u8>, Option<String>), Malformed> {
        let project = Announced::default();
        let mut preface = Preface::new(project.clone());
        let mut rest = Vec::new();
        for piece in pieces {
            let taken = preface.take(piece)?;
            assert!(matches!(preface, Preface::Over) || taken == piece.len(), "what is not taken is SSH");
            rest.extend(&piece[taken..]);
        }
        Ok((rest, project.project().map(String::from)))
    }

    #[test]
    fn a_line_is_taken_and_what_follows_is_left() {
        let all = [b"PODSPAWN/1 project=backend\r\n", SSH].concat();
        assert_eq!(feed(&[&all]), Ok((SSH.to_vec(), Some("backend".to_owned()))));
        assert_eq!(feed(&[SSH]), Ok((SSH.to_vec(), None)));
        assert_eq!(feed(&[]), Ok((vec![], None)));
        // A second one is no announcement any more, and no SSH.
        let twice = [b"PODSPAWN/1 project=a\r\n".as_slice(), b"PODSPAWN/1 project=b\r\n"].concat();
        assert_eq!(feed(&[&twice]), Ok((b"PODSPAWN/1 project=b\r\n".to_vec(), Some("a".to_owned()))));
    }

    #[test]
    fn what_only_looks_like_one_is_refused_as_soon_as_that_is_clear() {
        for bad in ["PODSPAWN/2 project=web\r\n", "P\n", &"P".repeat(100_000)] {
            assert_eq!(feed(&[bad.as_bytes()]), Err(Malformed), "{bad:.40}");
            let bytes: Vec<&[u8]> = bad.as_bytes().chunks(1).collect();
            assert_eq!(feed(&bytes), Err(Malformed), "{bad:.40}");
        }
        let mut preface = Preface::new(Announced::default());
        assert_eq!(preface.take(&[b'P'; MAX_ANNOUNCEMENT - 1]), Ok(MAX_ANNOUNCEMENT - 1));
        assert_eq!(preface.take(b"P"), Err(Malformed));
    }

    proptest! {
        #[test]
        fn how_it_is_cut_into_pieces_makes_no_difference(
            start in prop::sample::select(vec!["", "P", "PODSPAWN/1 project=web\r\n", "PODSPAWN/1 project=web"]),
            rest in prop::collection::vec(any::<u8>(), 0..80),
            cut in 1usize..9,
        ) {
            let all = [start.as_bytes(), &rest].concat();
            let pieces: Vec<&[u8]> = all.chunks(cut).collect();
            prop_assert_eq!(feed(&pieces), feed(&[&all]));
        }
    }
}
