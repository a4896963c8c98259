//! The command line: one file for each command, a client of the control API except where no server is needed.

mod check;
mod cleanup;
mod client_config;
mod completion;
mod connect;
mod doctor;
mod events;
mod exec;
mod image;
mod init;
mod inspect;
mod interrupt;
mod logs;
mod manual;
mod podfile;
mod prebuild;
mod projects;
mod pull;
mod push;
mod records;
#[cfg(test)]
mod reference;
mod servers;
mod sessions;
mod setup;
mod ssh;
mod stats;
mod table;
mod users;

use std::{
    cell::OnceCell,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::{
    api::client::Client,
    config::{Config, Options},
    errors::printable,
    log,
};

/// Disposable SSH environments: `ssh user@host` lands in a fresh container.
#[derive(Debug, Parser)]
#[command(name = "podspawn", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
#[command(help_template = "{about}\n\n{usage-heading} {usage}\n{after-help}\n\nOptions:\n{options}")]
#[command(after_help = GROUPS)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands by what they are for; a test compares the list with the commands.
const GROUPS: &str = "\
Daemon:
  serve           Serve SSH connections until a signal ends it
  doctor          Say whether this host is fit for sessions, and what was left behind
  config          Check the server's configuration, show and change the client's

Users:
  add-user        Add a user, or keys to a user
  remove-user     Take a user's access away
  list-users      List the users and how many keys they have

Images:
  pull            Fetch an image from a registry, a file, or a distribution's mirror
  push            Put an image into a registry
  image           List, inspect, remove, import and export images
  prebuild        Build the image of a podfile.yaml, so that nobody has to wait for it

Projects:
  add-project     Add a project: a git repository with a podfile.yaml
  update-project  Fetch a project's repository anew
  remove-project  Remove a project and its clone
  list-projects   List the projects
  init            Write a podfile.yaml for the project in the current directory
  podfile         Check a podfile.yaml, and show what it means

Sessions:
  list            List the sessions
  ports           List the ports of sessions that programs of this host reach
  status          Show the server in numbers
  stats           Show what each session uses
  inspect         Show all that is known of a session
  exec            Run a program in a session or in one of its services
  stop            End a session
  down            End a session and wait until it is gone, with its services' volumes if wanted
  cleanup         Remove what belongs to no session, as the server does whenever it starts
  logs            Show what a session's hooks and services have said
  events          Show what happens, as it happens
  diff            Show which files a session has changed
  records         Show what is known of sessions that are gone

Client:
  setup           Let ssh find projects by host names that end in .pod
  connect         Relay ssh to the server of a project's host name
  ssh             Run ssh, with .pod added to a host name without a dot
  open            Open a project in an editor
  ping            Ask a server whether it is there, what it is, and how long that takes
  servers         List the servers that host names lead to, and whether they answer

Misc:
  version         Show the version
  completion      Print what makes a shell complete commands, flags and values
  man             Print the manual page, or write those of all commands";

/// Flags of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Put DIR in front of every default path: a private instance with its own names
    #[arg(long, global = true, value_name = "DIR", env = "PODSPAWN_ROOT")]
    root: Option<PathBuf>,
    /// Read another configuration file
    #[arg(long, global = true, value_name = "FILE", env = "PODSPAWN_CONFIG")]
    config: Option<PathBuf>,
    /// Say only what was asked for, without progress or remarks
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve SSH connections until a signal ends it
    ///
    /// SIGTERM leaves sessions and connections to the next server, SIGINT ends them. SIGUSR2 replaces the server by the program that
    /// is at its path now, and no client notices. Sockets that systemd passes on are used instead of `listen`.
    Serve {
        /// Only say whether this program could serve with this configuration and database
        #[arg(long)]
        check: bool,
    },
    /// Say whether this host is fit for sessions, and what was left behind
    Doctor(doctor::Doctor),
    /// Check the server's configuration, show and change the client's
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Add a user, or keys to a user
    AddUser(users::AddUser),
    /// Take a user's access away
    RemoveUser(users::RemoveUser),
    /// List the users and how many keys they have
    ListUsers(users::ListUsers),
    /// Fetch an image from a registry, a file, or a distribution's mirror
    Pull(pull::PullArgs),
    /// Put an image into a registry
    Push(push::PushArgs),
    /// List, inspect, remove, import and export images
    Image {
        #[command(subcommand)]
        command: image::ImageCommand,
    },
    /// Build the image of a podfile.yaml, so that nobody has to wait for it
    Prebuild(prebuild::Prebuild),
    /// Add a project: a git repository with a podfile.yaml
    AddProject(projects::AddProject),
    /// Fetch a project's repository anew
    UpdateProject(projects::UpdateProject),
    /// Remove a project and its clone
    RemoveProject(projects::RemoveProject),
    /// List the projects
    ListProjects(projects::ListProjects),
    /// Write a podfile.yaml for the project in the current directory
    Init(init::Init),
    /// Check a podfile.yaml, and show what it means
    Podfile {
        #[command(subcommand)]
        command: podfile::PodfileCommand,
    },
    /// List the sessions
    List(sessions::List),
    /// List the ports of sessions that programs of this host reach
    Ports(sessions::Ports),
    /// Show the server in numbers
    Status(sessions::StatusArgs),
    /// Show what each session uses
    Stats(stats::StatsArgs),
    /// Show all that is known of a session
    Inspect(inspect::Inspect),
    /// Run a program in a session or in one of its services
    Exec(exec::Exec),
    /// End a session
    Stop(sessions::Stop),
    /// End a session and wait until it is gone, with its services' volumes if wanted
    Down(sessions::Down),
    /// Remove what belongs to no session, as the server does whenever it starts
    Cleanup(cleanup::Cleanup),
    /// Show what a session's hooks and services have said
    Logs(logs::Logs),
    /// Show what happens, as it happens
    Events(events::Events),
    /// Show which files a session has changed
    Diff(records::Diff),
    /// Show what is known of sessions that are gone
    Records(records::Records),
    /// Let ssh find projects by host names that end in .pod
    Setup(setup::Setup),
    /// Relay ssh to the server of a project's host name
    Connect(connect::Connect),
    /// Run ssh, with .pod added to a host name without a dot
    Ssh(ssh::Ssh),
    /// Open a project in an editor
    Open(ssh::Open),
    /// Ask a server whether it is there, what it is, and how long that takes
    Ping(servers::Ping),
    /// List the servers that host names lead to, and whether they answer
    Servers(servers::Servers),
    /// Show the version
    Version,
    /// Print what makes a shell complete commands, flags and values
    Completion(completion::Completion),
    /// Print the manual page, or write those of all commands
    Man(manual::Man),
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Validate the configuration, the users' files and the list of projects, and print what is in force and where it comes from
    Check(check::Check),
    /// Show the client's configuration, ~/.podspawn/config.yaml
    Show(client_config::Show),
    /// Change a setting of the client's configuration
    Set(client_config::Set),
}

/// What a command needs.
pub struct Session<'a> {
    pub config: &'a Config,
    pub quiet: bool,
}

impl Session<'_> {
    fn client(&self) -> Client {
        Client::new(&self.config.paths.control_socket)
    }

    /// Says something that was not asked for.
    fn remark(&self, text: &str) -> anyhow::Result<()> {
        if !self.quiet {
            writeln!(io::stderr(), "{text}")?;
        }
        Ok(())
    }
}

/// Runs the command that the arguments name. Exits with 0, 1 after an error, 2 after a usage error.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nowhere is left to report that standard error is closed.
            let _ = writeln!(io::stderr(), "podspawn: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let quiet = cli.global.quiet;
    let options = Options { root: cli.global.root.clone(), config: cli.global.config.clone() };
    // Only for commands that are about a server: a project is worked on where there is none.
    let loaded = OnceCell::new();
    let session = || -> anyhow::Result<Session<'_>> {
        let config = Config::load(&options)?;
        Ok(Session { config: loaded.get_or_init(|| config), quiet })
    };
    match &cli.command {
        Command::Serve { check: true } => {
            writeln!(io::stdout(), "{}", crate::supervisor::check(&Config::load(&options)?)?)?;
            Ok(())
        }
        Command::Serve { check: false } => {
            let config = Config::load(&options)?;
            log::init(config.log.file.as_deref()).context("cannot open the log file")?;
            Ok(crate::supervisor::run(config)?)
        }
        // What is wrong with the configuration is one of its findings.
        Command::Doctor(doctor) => doctor.run(session()),
        Command::Config { command } => match command {
            ConfigCommand::Check(check) => check.run(&session()?),
            ConfigCommand::Show(show) => show.run(),
            ConfigCommand::Set(set) => set.run(quiet),
        },
        Command::AddUser(add) => add.run(&session()?),
        Command::RemoveUser(remove) => remove.run(&session()?),
        Command::ListUsers(list) => list.run(&session()?),
        Command::Pull(pull) => pull.run(&session()?),
        Command::Push(push) => push.run(&session()?),
        Command::Image { command } => command.run(&session()?),
        Command::Prebuild(prebuild) => prebuild.run(&session()?),
        Command::AddProject(add) => add.run(&session()?),
        Command::UpdateProject(update) => update.run(&session()?),
        Command::RemoveProject(remove) => remove.run(&session()?),
        Command::ListProjects(list) => list.run(&session()?),
        Command::Init(init) => init.run(quiet),
        Command::Podfile { command } => command.run(quiet),
        Command::List(list) => list.run(&session()?),
        Command::Ports(ports) => ports.run(&session()?),
        Command::Status(status) => status.run(&session()?),
        Command::Stats(stats) => stats.run(&session()?),
        Command::Logs(logs) => logs.run(&session()?),
        Command::Inspect(inspect) => inspect.run(&session()?),
        Command::Events(events) => events.run(&session()?),
        Command::Diff(diff) => diff.run(&session()?),
        Command::Records(records) => records.run(&session()?),
        Command::Exec(exec) => exec.run(&session()?),
        Command::Stop(stop) => stop.run(&session()?),
        Command::Down(down) => down.run(&session()?),
        Command::Cleanup(cleanup) => cleanup.run(&session()?),
        Command::Setup(setup) => setup.run(quiet),
        Command::Connect(connect) => connect.run(),
        Command::Ssh(ssh) => ssh.run(quiet),
        Command::Open(open) => open.run(),
        Command::Ping(ping) => ping.run(),
        Command::Servers(servers) => servers.run(),
        Command::Version => {
            writeln!(io::stdout(), "podspawn {}", env!("CARGO_PKG_VERSION"))?;
            Ok(())
        }
        Command::Completion(completion) => completion.run(),
        Command::Man(man) => man.run(),
    }
}

/// The runtime of a command that speaks with servers; what it does is over soon.
fn client_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the async runtime")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|io| io.kind() == io::ErrorKind::BrokenPipe)
}

/// The error and its causes on one line; a cause that its effect already tells is left out.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.ends_with(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    printable(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_is_in_the_grouped_help_and_every_flag_has_help() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        let command = Cli::command();
        check(&command);
        for sub in command.get_subcommands() {
            let line = format!("  {:<14}  {}", sub.get_name(), sub.get_about().unwrap());
            assert!(GROUPS.contains(&line), "{line}");
        }
        assert_eq!(GROUPS.lines().filter(|line| line.starts_with("  ")).count(), command.get_subcommands().count());
    }
}
