//! `~/.podspawn/known_hosts`: the pinned keys under the names that ssh looks them up by.
//!
//! To ssh each project is a host of its own. Their keys are those of the servers that the configuration leads to, so this file is
//! made of both, here, and again by each `podspawn connect` that finds it out of date: ssh reads it when the server has
//! answered, and so after that.

use super::{
    config::{ClientConfig, SUFFIX},
    files::{self, FileError, Home},
    host_keys::HostKeys,
};

/// What the file must say (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT). A host with a mapping has the key of that server or none:
/// never the default server's.
pub fn contents(config: &ClientConfig, keys: &HostKeys) -> String {
    let mut text = "# Made by podspawn of config.yaml and host_keys; changes are lost.\n".to_owned();
    let default = format!("*{SUFFIX}");
    let servers = config.servers();
    for (name, server, _) in &servers {
        let Some(key) = keys.of(server) else { continue };
        // ssh puts a port that is not its own 22 behind the name, in brackets.
        let mut names = vec![name.clone(), format!("[{name}]:*")];
        if *name == default {
            let others = servers.iter().map(|(other, ..)| other).filter(|other| **other != default);
            names.extend(others.flat_map(|other| [format!("!{other}"), format!("![{other}]:*")]));
        }
        text.push_str(&format!("{} {key}\n", names.join(",")));
    }
    text
}

/// Writes the file if it does not say that.
pub fn refresh(home: &Home, config: &ClientConfig, keys: &HostKeys) -> Result<(), FileError> {
    let (file, contents) = (home.known_hosts(), contents(config, keys));
    if files::read(&file)? == contents.as_bytes() { Ok(()) } else { files::write(&file, contents.as_bytes()) }
}

#[cfg(test)]
mod tests {
    use super::{super::host_keys::tests, *};

    #[test]
    fn each_server_answers_for_the_hosts_that_lead_to_it() {
        let yaml = "servers:\n  default: main\n  mappings: {api.pod: other, b.pod: unknown}\n";
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("config.yaml"), yaml).unwrap();
        let config = ClientConfig::read(&home.path().join("config.yaml")).unwrap();
        let lines = |servers: &[&str]| {
            let text = contents(&config, &tests::keys(servers));
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let all = "*.pod,[*.pod]:*,!api.pod,![api.pod]:*,!b.pod,![b.pod]:*,!localhost.pod,![localhost.pod]:*";
        assert_eq!(lines(&["main", "other"]), ["api.pod,[api.pod]:*", all]);
        assert_eq!(lines(&["main"]), [all]);
        assert_eq!(lines(&["127.0.0.1", "other:22"]), ["localhost.pod,[localhost.pod]:*"]);
    }
}
