//! OpenSSH's own server, to ask what is right: in a mount namespace of its own, with one user `ada` like that of a session.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::{Host, eventually, ssh};

/// A running sshd on port [`Host::PORT`] of an address of its own.
pub struct Sshd {
    pub address: Ipv4Addr,
    directory: tempfile::TempDir,
    child: Child,
}

impl Sshd {
    /// Starts one for the user `ada` of `host`, who has the same key there.
    pub fn start(host: &Host) -> Self {
        let directory = tempfile::Builder::new().prefix("podspawn-sshd-").tempdir().unwrap();
        // sshd runs what it runs for ada as ada.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| directory.path().join(name);
        let address = super::own_address();
        ssh::make_key(&at("host_key"), &["-t", "ed25519"]);
        fs::copy(host.key("ada").with_extension("key.pub"), at("authorized_keys")).unwrap();
        for (name, line) in [
            ("passwd", "ada:x:1000:1000::/home/ada:/bin/bash\n"),
            ("group", "ada:x:1000:\n"),
            ("shadow", "ada:*:1::::::\n"),
        ] {
            let without = fs::read_to_string(Path::new("/etc").join(name)).unwrap();
            let others = without.lines().filter(|line| !line.starts_with("ada:") && !line.contains(":1000:"));
            let text: String = others.map(|line| format!("{line}\n")).collect();
            fs::write(at(name), text + line).unwrap();
        }
        let config = format!(
            "Port {port}\nListenAddress {address}\nHostKey {host_key}\nPidFile none\nUsePAM no\nStrictModes no\n\
             PasswordAuthentication no\nAuthorizedKeysFile {keys}\nAcceptEnv LANG LC_*\nPrintMotd no\nPrintLastLog no\n\
             Subsystem sftp internal-sftp\nX11Forwarding yes\nMaxStartups 100\nGatewayPorts clientspecified\n\
             ClientAliveInterval 15\n",
            port = Host::PORT,
            host_key = at("host_key").display(),
            keys = at("authorized_keys").display(),
        );
        fs::write(at("config"), config).unwrap();
        let script = "set -e\nfor file in passwd group shadow; do mount --bind $1/$file /etc/$file; done\n\
             mount -t tmpfs none /home\nmkdir /home/ada\ncp -rT /etc/skel /home/ada\nchown -R 1000:1000 /home/ada\n\
             mkdir -p /run/sshd\nexec /usr/sbin/sshd -D -e -f $1/config";
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .arg(directory.path())
            .stdin(Stdio::null())
            .stderr(fs::File::create(at("log")).unwrap())
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .spawn()
            .unwrap();
        let sshd = Self { address, directory, child };
        eventually("sshd listens", || TcpStream::connect((address, Host::PORT)).is_ok());
        let key = fs::read_to_string(sshd.directory.path().join("host_key.pub")).unwrap();
        let mut known = fs::read_to_string(host.known_hosts()).unwrap();
        known.push_str(&format!("[{address}]:{} {key}", Host::PORT));
        fs::write(host.known_hosts(), known).unwrap();
        sshd
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // sshd ends its children's connections with itself only if they have not logged in; tests end theirs.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
