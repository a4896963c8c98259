//! `${containerWorkspaceFolder}`, `${localEnv:NAME:default}` and the like.

/// A part of a text with variables.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// The directory of the project; as it is written.
    Workspace(String),
    /// The last component of that; as it is written.
    WorkspaceName(String),
    /// A variable of the container.
    Environment(String),
}

/// Names the directory of the project in scripts, for the same reason in the same way as in the texts that use it.
const WORKSPACE: &str = "containerWorkspaceFolder";

/// What the variables stand for.
pub(super) struct Variables<'w> {
    /// Unless the server chooses it.
    pub workspace: Option<&'w str>,
}

/// A text without variables, or the first one that nothing is known for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expanded {
    Text(String),
    Unknown(String),
}

/// A part of a shell script, which may need [`Variables::preamble`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Script {
    pub text: String,
    pub uses_workspace: bool,
}

impl Variables<'_> {
    /// The text with everything put in, for a value of a variable or field.
    pub(super) fn in_value(&self, text: &str) -> Expanded {
        let pieces = match pieces(text) {
            Ok(pieces) => pieces,
            Err(unknown) => return Expanded::Unknown(unknown),
        };
        let mut value = String::new();
        for piece in pieces {
            match (piece, self.workspace) {
                (Piece::Literal(text), _) => value.push_str(&text),
                (Piece::Workspace(_), Some(path)) => value.push_str(path),
                (Piece::WorkspaceName(_), Some(path)) => value.push_str(path.rsplit('/').next().unwrap_or(path)),
                // The one variable of the image that a Podfile's values can repeat.
                (Piece::Environment(name), _) if name == "PATH" => value.push_str("${PATH}"),
                (Piece::Environment(name), _) => return Expanded::Unknown(format!("${{containerEnv:{name}}}")),
                (Piece::Workspace(written) | Piece::WorkspaceName(written), None) => return Expanded::Unknown(written),
            }
        }
        Expanded::Text(value)
    }

    /// Defines what scripts use.
    pub(super) fn preamble(&self) -> String {
        match self.workspace {
            Some(path) => format!("export {WORKSPACE}={}", quote(path)),
            None => format!("export {WORKSPACE}=\"$PWD\""),
        }
    }
}

/// A text that is a script, in which a shell expands what is left of the variables.
pub(super) fn in_script(text: &str) -> Result<Script, String> {
    put_together(text, str::to_owned, |variable| variable)
}

/// A text as one word of a script.
pub(super) fn as_word(text: &str) -> Result<Script, String> {
    put_together(text, quote, |variable| format!("\"{variable}\""))
}

fn put_together(
    text: &str,
    literal: impl Fn(&str) -> String,
    variable: impl Fn(String) -> String,
) -> Result<Script, String> {
    let pieces = pieces(text)?;
    let uses_workspace = pieces.iter().any(|piece| matches!(piece, Piece::Workspace(_) | Piece::WorkspaceName(_)));
    let shown = pieces.into_iter().map(|piece| match piece {
        Piece::Literal(text) => literal(&text),
        Piece::Workspace(_) => variable(format!("${{{WORKSPACE}}}")),
        Piece::WorkspaceName(_) => variable(format!("${{{WORKSPACE}##*/}}")),
        Piece::Environment(name) => variable(format!("${{{name}}}")),
    });
    let text: String = shown.collect();
    // An empty text is a word all the same.
    let text = if text.is_empty() { literal("") } else { text };
    Ok(Script { text, uses_workspace })
}

/// A text as a shell reads it as one word.
pub(super) fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Parts a text at its variables; what only looks like one is left to the shell. The error is one that has no value here.
fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        literal.push_str(before);
        let Some((inside, behind)) = after.split_once('}') else {
            rest = &rest[before.len()..];
            break;
        };
        rest = behind;
        let mut parts = inside.splitn(3, ':');
        let written = || format!("${{{inside}}}");
        let piece = match (parts.next().unwrap_or_default(), parts.next(), parts.next()) {
            ("containerWorkspaceFolder" | "localWorkspaceFolder", None, None) => Piece::Workspace(written()),
            ("containerWorkspaceFolderBasename" | "localWorkspaceFolderBasename", None, None) => {
                Piece::WorkspaceName(written())
            }
            ("containerEnv", Some(name), _) if is_name(name) => Piece::Environment(name.to_owned()),
            ("localEnv" | "env", Some(_), Some(default)) => Piece::Literal(default.to_owned()),
            ("localEnv" | "env", Some(_), None) | ("devcontainerId", None, None) => return Err(written()),
            _ => Piece::Literal(written()),
        };
        if let Piece::Literal(text) = piece {
            literal.push_str(&text);
        } else {
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(piece);
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(pieces)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_devcontainers_get_their_values_and_those_of_the_shell_stay() {
        let known = Variables { workspace: Some("/workspaces/app") };
        let table = [
            ("a", Ok("a")),
            ("", Ok("")),
            ("${containerWorkspaceFolder}/bin", Ok("/workspaces/app/bin")),
            ("x${localWorkspaceFolderBasename}", Ok("xapp")),
            ("/opt/bin:${containerEnv:PATH}", Ok("/opt/bin:${PATH}")),
            ("${localEnv:TOKEN:none}", Ok("none")),
            ("${localEnv:TOKEN:}", Ok("")),
            ("${PODSPAWN_USER} ${HOME", Ok("${PODSPAWN_USER} ${HOME")),
            ("${localEnv:TOKEN}", Err("${localEnv:TOKEN}")),
            ("${containerEnv:GOPATH}", Err("${containerEnv:GOPATH}")),
            ("${devcontainerId}", Err("${devcontainerId}")),
        ];
        for (text, expected) in table {
            let expected = match expected {
                Ok(text) => Expanded::Text(text.to_owned()),
                Err(unknown) => Expanded::Unknown(unknown.to_owned()),
            };
            assert_eq!(known.in_value(text), expected, "{text}");
        }
        let unknown = Variables { workspace: None }.in_value("${localWorkspaceFolder}");
        assert_eq!(unknown, Expanded::Unknown("${localWorkspaceFolder}".to_owned()));
    }

    #[test]
    fn words_reach_a_command_as_they_are() {
        let table = [
            ("plain-1.0", "plain-1.0"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$(id)`id`", "'$(id)`id`'"),
            ("${containerWorkspaceFolder}/a b", "\"${containerWorkspaceFolder}\"'/a b'"),
            ("${containerEnv:HOME}", "\"${HOME}\""),
        ];
        for (text, word) in table {
            assert_eq!(as_word(text).map(|script| script.text).as_deref(), Ok(word), "{text}");
        }
    }
}
