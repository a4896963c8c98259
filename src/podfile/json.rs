//! JSON with comments and trailing commas, as devcontainer.json is written, to a tree of nodes.

use jsonc_parser::{
    CollectOptions, ParseOptions,
    ast::{ObjectPropName, Value as Ast},
    common::Ranged,
    parse_to_ast,
};

use super::node::{Key, MAX_DEPTH, Mark, Node, SyntaxError, Value};

/// Reads a text that has one value in it.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    // Some editors begin a file with a byte order mark, as RFC 8259, 8.1, lets readers ignore.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let lines = Lines::of(text);
    let parsed = parse_to_ast(text, &CollectOptions::default(), &options)
        .map_err(|error| SyntaxError { mark: lines.mark(error.range().start), message: error.kind().to_string() })?;
    match parsed.value {
        Some(value) => node(&value, &lines, 0),
        None => Ok(Node { mark: Mark::START, value: Value::Null }),
    }
}

fn node(ast: &Ast<'_>, lines: &Lines<'_>, depth: usize) -> Result<Node, SyntaxError> {
    let mark = lines.mark(ast.range().start);
    if depth > MAX_DEPTH {
        return Err(SyntaxError { mark, message: format!("more than {MAX_DEPTH} levels") });
    }
    let value = match ast {
        Ast::NullKeyword(_) => Value::Null,
        Ast::StringLit(text) => Value::Scalar(text.value.clone().into_owned()),
        Ast::NumberLit(number) => Value::Scalar(number.value.to_owned()),
        Ast::BooleanLit(truth) => Value::Scalar(truth.value.to_string()),
        Ast::Array(array) => {
            Value::List(array.elements.iter().map(|item| node(item, lines, depth + 1)).collect::<Result<_, _>>()?)
        }
        Ast::Object(object) => {
            let entries = object.properties.iter().map(|property| {
                let name = match &property.name {
                    ObjectPropName::String(text) => text.value.clone().into_owned(),
                    ObjectPropName::Word(word) => word.value.to_owned(),
                };
                let key = Key { mark: lines.mark(property.name.range().start), name };
                Ok((key, node(&property.value, lines, depth + 1)?))
            });
            Value::Map(entries.collect::<Result<_, _>>()?)
        }
    };
    Ok(Node { mark, value })
}

/// Finds the line and column of a byte.
struct Lines<'t> {
    text: &'t str,
    /// Where each line begins.
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        let after_breaks = text.match_indices('\n').map(|(index, _)| index + 1);
        Self { text, starts: std::iter::once(0).chain(after_breaks).collect() }
    }

    fn mark(&self, byte: usize) -> Mark {
        let line = self.starts.partition_point(|start| *start <= byte);
        let start = self.starts[line - 1];
        let column = self.text.get(start..byte).map_or(0, |before| before.chars().count()) + 1;
        Mark { line, column }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_trailing_commas_are_allowed_and_nothing_else_is() {
        let good = "// a\n{ /* b */ \"x\": [1, true, null,], // c\n }";
        let node = parse(good).unwrap();
        let Value::Map(entries) = node.value else { panic!("no map") };
        assert_eq!((entries[0].0.name.as_str(), entries[0].0.mark), ("x", Mark { line: 2, column: 11 }));
        let table = [
            ("{'a': 1}", Mark { line: 1, column: 2 }),
            ("{a: 1}", Mark { line: 1, column: 2 }),
            ("{\"a\": 1 \"b\": 2}", Mark { line: 1, column: 8 }),
            ("{\n  \"ä\": }", Mark { line: 2, column: 8 }),
            ("{} {}", Mark { line: 1, column: 4 }),
            ("[", Mark { line: 1, column: 1 }),
            ("/* a", Mark { line: 1, column: 1 }),
        ];
        for (text, mark) in table {
            assert_eq!(parse(text).map(|_| ()).map_err(|error| error.mark), Err(mark), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        for depth in [20, 400, 600, 100_000] {
            let error = parse(&"[".repeat(depth)).unwrap_err();
            assert!(!error.message.is_empty());
            assert!(parse(&("[".repeat(depth) + &"]".repeat(depth))).is_err(), "{depth}");
        }
        assert!(parse(&("[".repeat(16) + &"]".repeat(16))).is_ok());
    }
}
