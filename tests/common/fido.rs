//! An ssh-agent that holds a FIDO key, as a security key's would: there is no hardware here, and ssh-keygen(1) makes no
//! such key without. See PROTOCOL.u2f and draft-ietf-sshm-ssh-agent.

use std::{
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
};

use russh::keys::{
    Algorithm, EcdsaCurve, PrivateKey, PublicKey,
    signature::Signer,
    ssh_key::{
        public::{Ed25519PublicKey, KeyData, SkEcdsaSha2NistP256, SkEd25519},
        sha2::{Digest, Sha256},
    },
};

const APPLICATION: &str = "ssh:";
/// The user has touched it.
const USER_PRESENT: u8 = 1;

const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const FAILURE: u8 = 5;

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Ed25519,
    Ecdsa,
}

/// A key on a stick that nobody has to touch.
pub struct Agent {
    pub socket: PathBuf,
    public: PublicKey,
}

impl Agent {
    /// Starts answering on a socket in `directory`, until the process ends.
    pub fn start(directory: &Path, kind: Kind) -> Self {
        let algorithm = match kind {
            Kind::Ed25519 => Algorithm::Ed25519,
            Kind::Ecdsa => Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        };
        let private = PrivateKey::random(&mut rand::rng(), algorithm).unwrap();
        let public = PublicKey::from(match private.public_key().key_data() {
            KeyData::Ed25519(Ed25519PublicKey(point)) => {
                KeyData::SkEd25519(SkEd25519::new(Ed25519PublicKey(*point), APPLICATION))
            }
            KeyData::Ecdsa(russh::keys::ssh_key::public::EcdsaPublicKey::NistP256(point)) => {
                KeyData::SkEcdsaSha2NistP256(SkEcdsaSha2NistP256::new(*point, APPLICATION))
            }
            other => panic!("{other:?}"),
        });
        let socket = directory.join(format!("fido-{kind:?}"));
        let listener = UnixListener::bind(&socket).unwrap();
        let blob = public.to_bytes().unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // A client that goes away in the middle is its own affair.
                let _ = serve(client, &private, &blob);
            }
        });
        Self { socket, public }
    }

    /// The line for `authorized_keys`.
    pub fn line(&self) -> String {
        self.public.to_openssh().unwrap()
    }
}

fn serve(mut client: UnixStream, key: &PrivateKey, blob: &[u8]) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        client.read_exact(&mut length)?;
        let mut message = vec![0; u32::from_be_bytes(length) as usize];
        client.read_exact(&mut message)?;
        let answer = match message.split_first() {
            Some((&REQUEST_IDENTITIES, _)) => {
                [&[IDENTITIES, 0, 0, 0, 1][..], &string(blob), &string(b"stick")].concat()
            }
            Some((&SIGN_REQUEST, mut rest)) => {
                assert_eq!(take_string(&mut rest), blob);
                let signature = sign(key, blob, take_string(&mut rest));
                [&[SIGN_RESPONSE][..], &string(&signature)].concat()
            }
            // Extensions, of which session-bind@openssh.com is one.
            _ => vec![FAILURE],
        };
        client.write_all(&string(&answer))?;
    }
}

/// What a FIDO token signs is not the message, but hashes of it and of the application, with flags and a counter.
fn sign(key: &PrivateKey, blob: &[u8], message: &[u8]) -> Vec<u8> {
    let trailer = [USER_PRESENT, 0, 0, 0, 7];
    let signed = [&Sha256::digest(APPLICATION)[..], &trailer, &Sha256::digest(message)].concat();
    let inner = key.try_sign(&signed).unwrap();
    let name = take_string(&mut &blob[..]).to_vec();
    [&string(&name)[..], &string(inner.as_bytes()), &trailer].concat()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

fn take_string<'a>(from: &mut &'a [u8]) -> &'a [u8] {
    let (length, rest) = from.split_first_chunk().unwrap();
    let (taken, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
    *from = rest;
    taken
}
