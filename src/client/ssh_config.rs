//! Our block of `~/.ssh/config`: how ssh reaches hosts that end in `.pod`, and checks whom it has reached.
//!
//! It stands first in the file, since of two values ssh takes the first: what the file says for other hosts, or for all of
//! them, cannot switch the check of host keys off for these. Everything else of the file stays as it is, byte for byte.

use std::path::Path;

use super::files::Home;

const BEGIN: &str = "# >>> podspawn >>> Written by `podspawn setup`, which replaces everything down to <<<.";
const END: &str = "# <<< podspawn <<<";

/// Why a block cannot be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    #[error("line {0} begins podspawn's block, whose end is missing; remove what is left of it")]
    NoEnd(usize),
    #[error("line {0} begins a second block of podspawn's; remove it")]
    Two(usize),
    #[error("the path of podspawn itself cannot be written into it: {0}")]
    Program(String),
}

/// The block, with the path of the program that it runs.
///
/// User and host are quoted, as a shell reads the command and both may come from anywhere, such as the URL of a submodule;
/// newer versions of ssh refuse those that could do harm by themselves. The last line ends the block for ssh: what follows counts for
/// all hosts, as the beginning of a file does.
pub fn block(home: &Home, program: &Path) -> Result<String, BlockError> {
    let unfit = || BlockError::Program(program.display().to_string());
    let plain = |text: &&str| text.chars().all(|c| !c.is_control() && !"'\"\\$".contains(c));
    let program = program.to_str().filter(plain).ok_or_else(unfit)?.replace('%', "%%");
    // Neither quotes nor dollar signs are in it.
    let known_hosts = home.known_hosts().display().to_string().replace('%', "%%");
    Ok(format!(
        "{BEGIN}\n\
         Host *.pod\n    \
             ProxyCommand '{program}' connect -- '%r' '%h' '%p'\n    \
             UserKnownHostsFile \"{known_hosts}\"\n    \
             StrictHostKeyChecking yes\n\
         Host *\n\
         {END}\n"
    ))
}

/// The file with the block in it: where it was, or first.
pub fn install(file: &[u8], block: &str) -> Result<Vec<u8>, BlockError> {
    let mut lines = Vec::new();
    let mut offset = 0;
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        lines.push((offset, offset + line.len(), line.trim_ascii_end()));
        offset += line.len();
    }
    let begins = |(_, (_, _, line)): &(usize, &(usize, usize, &[u8]))| line.starts_with(b"# >>> podspawn >>>");
    let mut blocks = lines.iter().enumerate().filter(begins);
    let Some((first, (start, _, _))) = blocks.next() else { return Ok([block.as_bytes(), file].concat()) };
    if let Some((second, _)) = blocks.next() {
        return Err(BlockError::Two(second + 1));
    }
    let end = lines[first..].iter().find(|(_, _, line)| *line == END.as_bytes());
    let (_, end, _) = end.ok_or(BlockError::NoEnd(first + 1))?;
    Ok([&file[..*start], block.as_bytes(), &file[*end..]].concat())
}

/// Lines outside the block that are about hosts of projects too, by number: the settings of an earlier tool, or the user's.
pub fn others(file: &[u8]) -> Vec<usize> {
    let mut ours = false;
    let mut found = Vec::new();
    for (index, line) in String::from_utf8_lossy(file).lines().enumerate() {
        ours = (ours || line.starts_with("# >>> podspawn >>>")) && line != END;
        let mut words = line.split([' ', '\t', '=', '"']).filter(|word| !word.is_empty());
        let is_host = words.next().is_some_and(|word| word.eq_ignore_ascii_case("host"));
        if is_host && !ours && words.any(|word| word == "*.pod") {
            found.push(index + 1);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install_text(file: &str, block: &str) -> Result<String, BlockError> {
        install(file.as_bytes(), block).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn the_block_is_put_first_or_where_it_was_and_the_rest_stays() {
        let (one, two) = (format!("{BEGIN}\nA\n{END}\n"), format!("{BEGIN}\nB\nC\n{END}\n"));
        for before in ["", "Host x\n  Port 1\n", "no newline at the end", "\r\n\t\u{fc}\n\n"] {
            let installed = install_text(before, &one).unwrap();
            assert_eq!(installed, format!("{one}{before}"));
            assert_eq!(install_text(&installed, &one).unwrap(), installed);
            assert_eq!(install_text(&installed, &two).unwrap(), format!("{two}{before}"));
            let moved = format!("# mine\n{one}{before}");
            assert_eq!(install_text(&moved, &two).unwrap(), format!("# mine\n{two}{before}"));
        }
        assert_eq!(install_text(&format!("# mine\n{BEGIN}\nA\n"), &one), Err(BlockError::NoEnd(2)));
        assert_eq!(install_text(&format!("{one}{one}"), &one), Err(BlockError::Two(4)));
        assert_eq!(install(b"\xff\n", &one).unwrap(), [one.as_bytes(), b"\xff\n"].concat());
    }

    #[test]
    fn other_blocks_for_the_same_hosts_are_found() {
        let ours = format!("{BEGIN}\nHost *.pod\n{END}\n");
        let file = format!("{ours}Host a b\n\thost  *.pod x\nHost=\"*.pod\"\n# Host *.pod\nHostName *.pod\n");
        assert_eq!(others(file.as_bytes()), [5, 6]);
    }
}
