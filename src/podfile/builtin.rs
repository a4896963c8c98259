//! The Podfiles that are part of podspawn: what `extends` finds by name, and what `init` begins with.

use super::{Document, Format, Origin};

/// One of the files in `images/`.
#[derive(Debug)]
pub struct BuiltIn {
    pub name: &'static str,
    pub about: &'static str,
    pub text: &'static str,
    /// Files that tell that a directory is a project of this kind.
    markers: Markers,
}

#[derive(Debug)]
enum Markers {
    None,
    Any(&'static [&'static str]),
    /// Tells more than one file does, so it goes first.
    All(&'static [&'static str]),
}

macro_rules! built_in {
    ($name:literal, $about:literal, $markers:expr) => {
        BuiltIn {
            name: $name,
            about: $about,
            text: include_str!(concat!("../../images/", $name, ".yaml")),
            markers: $markers,
        }
    };
}

pub static ALL: &[BuiltIn] = &[
    built_in!("ubuntu-dev", "Ubuntu with what most projects need", Markers::None),
    built_in!("minimal", "Ubuntu with git and curl", Markers::None),
    built_in!("agent", "Ubuntu with what coding agents reach for", Markers::None),
    built_in!("data-science", "Python with notebooks and numerics", Markers::None),
    built_in!(
        "fullstack",
        "Node.js in front, Go behind, with postgres and redis",
        Markers::All(&["package.json", "go.mod"])
    ),
    built_in!("go", "Go", Markers::Any(&["go.mod", "go.sum"])),
    built_in!("node", "Node.js", Markers::Any(&["package.json"])),
    built_in!("python", "Python", Markers::Any(&["pyproject.toml", "setup.py", "requirements.txt"])),
    built_in!("rust", "Rust", Markers::Any(&["Cargo.toml"])),
];

impl BuiltIn {
    /// The file as a document.
    pub fn document(&'static self) -> Document {
        Document {
            name: format!("built-in {}", self.name),
            origin: Origin::BuiltIn(self.name),
            text: self.text.to_owned(),
            format: Format::Podfile,
        }
    }
}

/// The one of this name.
pub fn find(name: &str) -> Option<&'static BuiltIn> {
    ALL.iter().find(|built_in| built_in.name == name)
}

/// The one for a project of whose files `exists` knows, and the files that told. Without any it is `minimal`.
pub fn detect(exists: impl Fn(&str) -> bool) -> (&'static BuiltIn, Vec<&'static str>) {
    let mut best = (&ALL[1], Vec::new());
    for built_in in ALL {
        let (markers, all) = match built_in.markers {
            Markers::None => continue,
            Markers::Any(markers) => (markers, false),
            Markers::All(markers) => (markers, true),
        };
        let found: Vec<&str> = markers.iter().copied().filter(|marker| exists(marker)).collect();
        if all && found.len() == markers.len() {
            return (built_in, found);
        }
        // Of several that match, the one that more files speak for.
        if !all && found.len() > best.1.len() {
            best = (built_in, found);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_known_by_its_files() {
        let table: [(&[&str], &str, &[&str]); 8] = [
            (&[], "minimal", &[]),
            (&["README.md"], "minimal", &[]),
            (&["go.mod"], "go", &["go.mod"]),
            (&["package.json"], "node", &["package.json"]),
            (&["setup.py", "requirements.txt"], "python", &["setup.py", "requirements.txt"]),
            (&["Cargo.toml"], "rust", &["Cargo.toml"]),
            (&["Cargo.toml", "pyproject.toml", "setup.py"], "python", &["pyproject.toml", "setup.py"]),
            (&["go.mod", "go.sum", "package.json"], "fullstack", &["package.json", "go.mod"]),
        ];
        for (files, name, told) in table {
            let (built_in, markers) = detect(|marker| files.contains(&marker));
            assert_eq!((built_in.name, &markers[..]), (name, told), "{files:?}");
        }
    }
}
