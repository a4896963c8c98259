//! A client that can say anything at any stage: the transport of RFC 4253 with one algorithm of each kind, and raw packets
//! above it. It judges nothing that the server proves, since it is not here to be protected.

use std::{
    io::{self, BufWriter, Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use aws_lc_rs::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral},
    rand::SystemRandom,
    signature::Ed25519KeyPair,
};
use russh::keys::{PrivateKey, ssh_key::private::KeypairData};
use sha2::{Digest, Sha256};

use crate::common::{DEADLINE, Host};

pub mod message {
    pub const DISCONNECT: u8 = 1;
    pub const SERVICE_REQUEST: u8 = 5;
    pub const KEXINIT: u8 = 20;
    pub const NEWKEYS: u8 = 21;
    pub const KEX_ECDH_INIT: u8 = 30;
    pub const KEX_ECDH_REPLY: u8 = 31;
    pub const USERAUTH_REQUEST: u8 = 50;
    pub const USERAUTH_FAILURE: u8 = 51;
    pub const USERAUTH_SUCCESS: u8 = 52;
    pub const GLOBAL_REQUEST: u8 = 80;
    pub const REQUEST_FAILURE: u8 = 82;
    pub const CHANNEL_OPEN: u8 = 90;
    pub const CHANNEL_OPEN_CONFIRMATION: u8 = 91;
    pub const CHANNEL_OPEN_FAILURE: u8 = 92;
    pub const WINDOW_ADJUST: u8 = 93;
    pub const CHANNEL_DATA: u8 = 94;
    pub const CHANNEL_EXTENDED_DATA: u8 = 95;
    pub const CHANNEL_EOF: u8 = 96;
    pub const CHANNEL_CLOSE: u8 = 97;
    pub const CHANNEL_REQUEST: u8 = 98;
    pub const CHANNEL_SUCCESS: u8 = 99;
    pub const CHANNEL_FAILURE: u8 = 100;
}

/// A payload in the making (RFC 4251, 5).
#[derive(Clone)]
pub struct Packet(pub Vec<u8>);

impl Packet {
    pub fn new(kind: u8) -> Self {
        Self(vec![kind])
    }

    pub fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    pub fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub fn string(self, bytes: impl AsRef<[u8]>) -> Self {
        let mut longer = self.number(bytes.as_ref().len() as u32);
        longer.0.extend(bytes.as_ref());
        longer
    }

    /// A CHANNEL_REQUEST that wants a reply; what follows is the request's own.
    pub fn request(channel: u32, name: &str) -> Self {
        Self::new(message::CHANNEL_REQUEST).number(channel).string(name).byte(1)
    }

    pub fn exec(channel: u32, command: impl AsRef<[u8]>) -> Self {
        Self::request(channel, "exec").string(command)
    }

    pub fn data(channel: u32, data: impl AsRef<[u8]>) -> Self {
        Self::new(message::CHANNEL_DATA).number(channel).string(data)
    }

    pub fn on(kind: u8, channel: u32) -> Self {
        Self::new(kind).number(channel)
    }
}

/// The number after the first byte: of most messages, the channel.
pub fn channel_of(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[1..5].try_into().unwrap())
}

/// One direction's AES-128-GCM (RFC 5647).
struct Cipher {
    key: LessSafeKey,
    fixed: [u8; 4],
    counter: u64,
}

impl Cipher {
    fn new(key: &[u8], iv: &[u8]) -> Self {
        Self {
            key: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key[..16]).unwrap()),
            fixed: iv[..4].try_into().unwrap(),
            counter: u64::from_be_bytes(iv[4..12].try_into().unwrap()),
        }
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.fixed);
        nonce[4..].copy_from_slice(&self.counter.to_be_bytes());
        self.counter = self.counter.wrapping_add(1);
        Nonce::assume_unique_for_key(nonce)
    }
}

pub struct Peer {
    input: TcpStream,
    output: BufWriter<TcpStream>,
    sealing: Option<Cipher>,
    opening: Option<Cipher>,
    server_banner: Vec<u8>,
    session_id: Vec<u8>,
}

const BANNER: &str = "SSH-2.0-hostile";

impl Peer {
    /// A connection on which nothing has been said.
    pub fn connect(host: &Host) -> Self {
        let input = TcpStream::connect((host.address, Host::PORT)).unwrap();
        input.set_read_timeout(Some(DEADLINE)).unwrap();
        input.set_nodelay(true).unwrap();
        let output = BufWriter::with_capacity(64 << 10, input.try_clone().unwrap());
        Self { input, output, sealing: None, opening: None, server_banner: Vec::new(), session_id: Vec::new() }
    }

    /// After the banners.
    pub fn greeted(host: &Host) -> Self {
        let mut peer = Self::connect(host);
        peer.write(format!("{BANNER}\r\n").as_bytes()).unwrap();
        let mut byte = [0];
        loop {
            peer.input.read_exact(&mut byte).unwrap();
            match byte[0] {
                b'\n' => break,
                b'\r' => {}
                other => peer.server_banner.push(other),
            }
        }
        peer
    }

    /// After the key exchange.
    pub fn encrypted(host: &Host) -> Self {
        let mut peer = Self::greeted(host);
        peer.exchange_keys();
        peer
    }

    /// Logged in as `user`.
    pub fn logged_in(host: &Host, user: &str) -> Self {
        let mut peer = Self::encrypted(host);
        peer.log_in(host, user);
        peer
    }

    /// Bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.output.flush()
    }

    /// Puts a packet into the buffer of what is sent next.
    pub fn put(&mut self, packet: &Packet) -> io::Result<()> {
        let payload = &packet.0;
        let (head, block) = if self.sealing.is_some() { (1, 16) } else { (5, 8) };
        let padding = block - (head + payload.len() + 4) % block + 4;
        let length = ((1 + payload.len() + padding) as u32).to_be_bytes();
        let mut body = vec![padding as u8];
        body.extend(payload);
        body.resize(body.len() + padding, 0);
        if let Some(cipher) = &mut self.sealing {
            let nonce = cipher.nonce();
            cipher.key.seal_in_place_append_tag(nonce, Aad::from(length), &mut body).unwrap();
        }
        self.output.write_all(&length)?;
        self.output.write_all(&body)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    pub fn send(&mut self, packet: &Packet) {
        self.put(packet).and_then(|()| self.flush()).unwrap();
    }

    /// The next payload; `None` if the server has closed the connection.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let read = |input: &mut TcpStream, buffer: &mut [u8]| match input.read_exact(buffer) {
            Ok(()) => true,
            Err(error) => {
                let gone = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
                assert!(gone.contains(&error.kind()), "waiting for the server: {error}");
                false
            }
        };
        let mut length = [0; 4];
        if !read(&mut self.input, &mut length) {
            return None;
        }
        let tag = if self.opening.is_some() { 16 } else { 0 };
        let mut body = vec![0; u32::from_be_bytes(length) as usize + tag];
        if !read(&mut self.input, &mut body) {
            return None;
        }
        if let Some(cipher) = &mut self.opening {
            let nonce = cipher.nonce();
            let opened = cipher.key.open_in_place(nonce, Aad::from(length), &mut body).unwrap().len();
            body.truncate(opened);
        }
        Some(body[1..body.len() - usize::from(body[0])].to_vec())
    }

    /// The next payload that is wanted; others are skipped.
    pub fn wait_for(&mut self, mut wanted: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
        loop {
            let payload = self.receive().expect("the server has closed the connection");
            if wanted(&payload) {
                return payload;
            }
        }
    }

    /// Waits until the server closes the connection, whatever it says before.
    #[track_caller]
    pub fn wait_for_cut(&mut self, during: &str) {
        match io::copy(&mut self.input, &mut io::sink()) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => {
                panic!("{during}: the server has not closed the connection: {error}")
            }
            _ => {}
        }
    }

    /// How long a write may wait for a server that does not read.
    pub fn set_patience(&self, patience: Duration) {
        self.input.set_write_timeout(Some(patience)).unwrap();
    }

    /// The first exchange, or another.
    pub fn exchange_keys(&mut self) {
        let ours = kexinit();
        self.send(&ours);
        let theirs = self.wait_for(|payload| payload[0] == message::KEXINIT);
        self.finish_exchange(&ours, &theirs);
    }

    fn finish_exchange(&mut self, ours: &Packet, theirs: &[u8]) {
        let secret = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).unwrap();
        let public = secret.compute_public_key().unwrap();
        self.send(&Packet::new(message::KEX_ECDH_INIT).string(public.as_ref()));
        let reply = self.wait_for(|payload| payload[0] == message::KEX_ECDH_REPLY);
        let (host_key, rest) = split_string(&reply[1..]);
        let (their_public, _signature) = split_string(rest);
        let their_key = UnparsedPublicKey::new(&X25519, their_public);
        let shared = agree_ephemeral(secret, their_key, (), |shared| Ok(mpint(shared))).unwrap();
        let hashed = Packet(Vec::new())
            .string(BANNER)
            .string(&self.server_banner)
            .string(&ours.0)
            .string(theirs)
            .string(host_key)
            .string(public.as_ref())
            .string(their_public);
        let hash = Sha256::new().chain_update(&hashed.0).chain_update(&shared).finalize().to_vec();
        if self.session_id.is_empty() {
            self.session_id.clone_from(&hash);
        }
        let derive = |letter: u8| {
            Sha256::new()
                .chain_update(&shared)
                .chain_update(&hash)
                .chain_update([letter])
                .chain_update(&self.session_id)
                .finalize()
        };
        let sealing = Cipher::new(&derive(b'C'), &derive(b'A'));
        let opening = Cipher::new(&derive(b'D'), &derive(b'B'));
        self.send(&Packet::new(message::NEWKEYS));
        self.sealing = Some(sealing);
        self.wait_for(|payload| payload[0] == message::NEWKEYS);
        self.opening = Some(opening);
    }

    /// Asks for the user authentication service.
    pub fn ask_for_service(&mut self) {
        self.send(&Packet::new(message::SERVICE_REQUEST).string("ssh-userauth"));
    }

    fn log_in(&mut self, host: &Host, user: &str) {
        self.ask_for_service();
        let key = PrivateKey::read_openssh_file(host.key(user)).unwrap();
        let public = key.public_key().to_bytes().unwrap();
        let KeypairData::Ed25519(pair) = key.key_data() else { panic!("another kind of key") };
        let pair = Ed25519KeyPair::from_seed_unchecked(&pair.private.to_bytes()).unwrap();
        let request = Packet::new(message::USERAUTH_REQUEST)
            .string(user)
            .string("ssh-connection")
            .string("publickey")
            .byte(1)
            .string("ssh-ed25519")
            .string(&public);
        let signed = [Packet(Vec::new()).string(&self.session_id).0, request.0.clone()].concat();
        let signature = Packet(Vec::new()).string("ssh-ed25519").string(pair.sign(&signed).as_ref());
        self.send(&request.string(&signature.0));
        self.wait_for(|payload| payload[0] == message::USERAUTH_SUCCESS);
    }

    /// Asks for a session channel that grants `window`.
    pub fn ask_for_channel(&mut self, ours: u32, window: u32) {
        let open = Packet::new(message::CHANNEL_OPEN).string("session").number(ours);
        self.send(&open.number(window).number(32 << 10));
    }

    /// Opens a session channel; the server's number for it.
    pub fn open(&mut self, ours: u32, window: u32) -> u32 {
        self.ask_for_channel(ours, window);
        let answer = self.wait_for(|payload| {
            let kinds = [message::CHANNEL_OPEN_CONFIRMATION, message::CHANNEL_OPEN_FAILURE];
            kinds.contains(&payload[0]) && channel_of(payload) == ours
        });
        assert_eq!(answer[0], message::CHANNEL_OPEN_CONFIRMATION, "channel {ours} is refused");
        channel_of(&answer[4..])
    }

    /// The answer to a channel request that wanted one.
    pub fn answer(&mut self, ours: u32) -> bool {
        let answer = self.wait_for(|payload| {
            [message::CHANNEL_SUCCESS, message::CHANNEL_FAILURE].contains(&payload[0]) && channel_of(payload) == ours
        });
        answer[0] == message::CHANNEL_SUCCESS
    }

    /// What arrives on a channel until it is closed.
    pub fn output(&mut self, ours: u32) -> Vec<u8> {
        let mut output = Vec::new();
        self.wait_for(|payload| {
            if payload[0] == message::CHANNEL_DATA && channel_of(payload) == ours {
                output.extend(split_string(&payload[5..]).0);
            }
            payload[0] == message::CHANNEL_CLOSE && channel_of(payload) == ours
        });
        output
    }

    /// Runs a command on a channel of its own and closes it.
    pub fn run(&mut self, ours: u32, command: &str) -> String {
        let theirs = self.open(ours, 1 << 20);
        self.send(&Packet::exec(theirs, command));
        self.send(&Packet::on(message::CHANNEL_EOF, theirs));
        let output = self.output(ours);
        self.send(&Packet::on(message::CHANNEL_CLOSE, theirs));
        String::from_utf8(output).unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // What the buffer still holds could wait for ever; if the server has gone already, so much the better.
        let _ = self.input.shutdown(Shutdown::Both);
    }
}

pub fn kexinit() -> Packet {
    let mut packet = Packet::new(message::KEXINIT);
    packet.0.extend([7; 16]);
    for names in ["curve25519-sha256", "ssh-ed25519"] {
        packet = packet.string(names);
    }
    for names in ["aes128-gcm@openssh.com", "hmac-sha2-256", "none", ""] {
        packet = packet.string(names).string(names);
    }
    packet.byte(0).number(0)
}

fn split_string(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = bytes.split_at(4);
    rest.split_at(u32::from_be_bytes(length.try_into().unwrap()) as usize)
}

/// A positive number as RFC 4251 writes it, with its length.
fn mpint(bytes: &[u8]) -> Vec<u8> {
    let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    let mut number = Vec::new();
    if significant.first().is_some_and(|byte| *byte >= 128) {
        number.push(0);
    }
    number.extend(significant);
    Packet(Vec::new()).string(number).0
}
