//! An SSH client that costs little: what a server can do when its clients are not what it waits for.
//!
//! `load ADDRESS KEY [--connections N] [--at-once N] [--users N] [--hold]`: each connection logs in as one of the users u0, u1, ...,
//! runs `true`, waits for its status and closes. Prints one line for each with its seconds until the login and until the status.
//! With `--hold`, all stay connected, without a command, until standard input ends; then `ready` is printed when all are there.

use std::{
    io::{Read, Write},
    sync::Arc,
    time::Instant,
};

use russh::{
    ChannelMsg, Disconnect,
    client::{self, Handle},
    keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, load_secret_key},
};
use tokio::sync::Semaphore;

/// Takes any host key: it measures, on loopback.
struct Anyone;

impl client::Handler for Anyone {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &russh::keys::PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

struct Options {
    address: String,
    key: PrivateKey,
    connections: usize,
    at_once: usize,
    users: usize,
    hold: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let address = words.next().ok_or("no address")?;
    let key = load_secret_key(words.next().ok_or("no key")?, None)?;
    let mut options = Options { address, key, connections: 1, at_once: 1, users: 1, hold: false };
    while let Some(word) = words.next() {
        let mut number =
            || words.next().ok_or("no number")?.parse::<usize>().map_err(Box::<dyn std::error::Error>::from);
        match word.as_str() {
            "--connections" => options.connections = number()?,
            "--at-once" => options.at_once = number()?,
            "--users" => options.users = number()?,
            "--hold" => options.hold = true,
            _ => return Err(format!("{word}: unknown option").into()),
        }
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(all(Arc::new(options)))
}

async fn all(options: Arc<Options>) -> Result<(), Box<dyn std::error::Error>> {
    let places = Arc::new(Semaphore::new(options.at_once));
    let mut running = Vec::new();
    for number in 0..options.connections {
        let (options, places) = (options.clone(), places.clone());
        running.push(tokio::spawn(async move {
            let _place = places.acquire().await;
            one(&options, number).await
        }));
    }
    let mut held = Vec::new();
    for connection in running {
        let (login, status, session) = connection.await??;
        println!("{login:.6} {status:.6}");
        held.extend(session);
    }
    if options.hold {
        println!("ready");
        std::io::stdout().flush()?;
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    }
    Ok(())
}

/// Seconds until the login and until the status; and the connection, where it is to be held.
async fn one(options: &Options, number: usize) -> Result<(f64, f64, Option<Handle<Anyone>>), russh::Error> {
    let start = Instant::now();
    let config = Arc::new(client::Config { nodelay: true, ..Default::default() });
    let mut session = client::connect(config, &options.address, Anyone).await?;
    let key = PrivateKeyWithHashAlg::new(Arc::new(options.key.clone()), None::<HashAlg>);
    if !session.authenticate_publickey(format!("u{}", number % options.users), key).await?.success() {
        return Err(russh::Error::NotAuthenticated);
    }
    let login = start.elapsed().as_secs_f64();
    let mut channel = session.channel_open_session().await?;
    channel.exec(true, "true").await?;
    let mut status = None;
    while let Some(message) = channel.wait().await {
        if let ChannelMsg::ExitStatus { exit_status } = message {
            status = Some(exit_status);
        }
    }
    if status != Some(0) {
        return Err(russh::Error::Disconnect);
    }
    let done = start.elapsed().as_secs_f64();
    if options.hold {
        return Ok((login, done, Some(session)));
    }
    session.disconnect(Disconnect::ByApplication, "", "").await?;
    Ok((login, done, None))
}
