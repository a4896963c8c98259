//! Lifecycle commands, in their three forms: a text for a shell, a list of arguments, or a map of either.

use super::{
    super::{
        edits::Edits,
        fields::MAX_ENTRIES,
        problem::{At, Place, Report},
        read::Item,
    },
    variables::{Script, Variables, as_word, in_script, quote},
};

/// One command.
struct Command {
    form: Form,
    place: Place,
}

enum Form {
    Shell(String),
    Arguments(Vec<String>),
}

/// The commands of several fields as one script: each runs after the one before has succeeded. Those of a map, which could run
/// side by side, run in the order of the file.
pub(super) fn script(items: &[&Item<'_>], variables: &Variables<'_>, report: &mut Report) -> Edits<String> {
    let mut commands = Vec::new();
    for item in items {
        if item.is_map() {
            for (_, item) in item.entries(report, MAX_ENTRIES) {
                commands.extend(command(&item, report));
            }
        } else {
            commands.extend(command(item, report));
        }
    }
    let alone = commands.len() == 1;
    let mut lines: Vec<At<String>> = Vec::new();
    let mut uses_workspace = false;
    for command in commands {
        match command.line(alone) {
            Ok(script) => {
                uses_workspace |= script.uses_workspace;
                lines.push(At { value: script.text, place: command.place });
            }
            Err(variable) => {
                report.warning(&command.place, format_args!("is left out, as {variable} is not known on the server"));
            }
        }
    }
    let mut hook = Edits::default();
    let last = lines.len().saturating_sub(1);
    for (index, At { value, place }) in lines.into_iter().enumerate() {
        if index == 0 && uses_workspace {
            hook.add(variables.preamble(), place.clone());
        }
        hook.add(if index < last { format!("{value} || exit") } else { value }, place);
    }
    hook
}

fn command(item: &Item<'_>, report: &mut Report) -> Option<Command> {
    let form = if item.is_list() {
        let words = item.list(report, MAX_ENTRIES);
        let words: Vec<String> = words.iter().filter_map(|word| word.text(report)).map(str::to_owned).collect();
        if words.is_empty() {
            return None;
        }
        Form::Arguments(words)
    } else {
        match item.text(report)? {
            text if text.trim().is_empty() => return None,
            text => Form::Shell(text.to_owned()),
        }
    };
    Some(Command { form, place: item.place.clone() })
}

impl Command {
    /// A line of a script that runs it and has its status. Among others a shell of its own keeps what it changes to itself.
    fn line(&self, alone: bool) -> Result<Script, String> {
        match &self.form {
            Form::Shell(text) => {
                let Script { text, uses_workspace } = in_script(text)?;
                let text = if alone { text } else { format!("sh -c {}", quote(&text)) };
                Ok(Script { text, uses_workspace })
            }
            Form::Arguments(words) => {
                let words = words.iter().map(|word| as_word(word)).collect::<Result<Vec<_>, _>>()?;
                let uses_workspace = words.iter().any(|word| word.uses_workspace);
                let text: Vec<String> = words.into_iter().map(|word| word.text).collect();
                Ok(Script { text: text.join(" "), uses_workspace })
            }
        }
    }
}
