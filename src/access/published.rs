//! Public keys that a user has published elsewhere: a stranger's text, of which keys are taken and nothing else.

use super::key_line::Entry;

/// Takes the keys out of a list of them, each with `comment`. The second list says what is wrong with the others.
///
/// Options are the administrator's to give, so a line that has some is not one of these.
pub fn keys(text: &str, comment: &str) -> (Vec<String>, Vec<String>) {
    let (mut keys, mut complaints) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let entry = match Entry::parse(line) {
            Ok(None) => continue,
            Ok(Some(entry)) => entry,
            Err(error) => {
                complaints.push(format!("line {} is left out: {error}", index + 1));
                continue;
            }
        };
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some(algorithm), Some(key)) if algorithm == entry.key.algorithm().as_str() => {
                keys.push(format!("{algorithm} {key} {comment}"));
            }
            _ => complaints.push(format!("line {} is left out: it has options", index + 1)),
        }
    }
    (keys, complaints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_and_nothing_else() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        let text =
            format!("# a comment\n\n{key}\nrestrict {key}\ncert-authority {key}\nssh-ed25519 AAAA\n  {key} x\ty\n");
        let (keys, complaints) = keys(&text, "ada@github.com");
        assert_eq!(keys, vec![format!("{key} ada@github.com"); 2]);
        assert_eq!(complaints.len(), 3, "{complaints:?}");
        assert!(complaints[0].starts_with("line 4 ") && complaints[1].starts_with("line 5 "), "{complaints:?}");
    }
}
