//! How russh is set up: algorithms, limits, and what of its defaults does not suit a server like ours.

use std::{borrow::Cow, time::Duration};

use russh::{
    Limits, MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex,
    keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey, ssh_key},
    mac,
    server::Config,
};

use super::inbound;
use crate::protocol::{Algorithms, Serve, announcement::IDENTIFICATION};

/// How long a refused login takes, whatever the reason: more than looking at the files takes, and little enough that a
/// client with many keys is not kept waiting.
pub(super) const REJECTION: Duration = Duration::from_millis(100);

const POST_QUANTUM_KEX: &[kex::Name] = &[kex::MLKEM768X25519_SHA256];

/// As in OpenSSH 10 nothing in finite fields, which costs a server more than it costs who attacks it (CVE-2002-20001); and
/// nothing on the NIST curves.
const KEX: &[kex::Name] = &[kex::CURVE25519, kex::CURVE25519_PRE_RFC_8731];

/// For `auth.algorithms: compatible`.
const MORE_KEX: &[kex::Name] = &[kex::DH_G16_SHA512, kex::DH_G14_SHA256];

const KEX_EXTENSIONS: &[kex::Name] = &[kex::EXTENSION_SUPPORT_AS_SERVER, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER];

const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

/// For the CTR ciphers; the others authenticate by themselves.
const MACS: &[mac::Name] = &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM];

/// For `auth.algorithms: compatible`: the MAC is of the plain text, which libssh2 before 1.11 cannot do without.
const MORE_MACS: &[mac::Name] = &[mac::HMAC_SHA256, mac::HMAC_SHA512];

/// Signatures by users' keys, told to clients as `server-sig-algs`, and by those host keys that there are: no RSA with
/// SHA-1.
const KEYS: &[Algorithm] = &[
    Algorithm::Ed25519,
    Algorithm::SkEd25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::SkEcdsaSha2NistP256,
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];

/// russh's configuration for one client.
pub(super) fn config(serve: &Serve) -> Result<Config, ssh_key::Error> {
    let keys = serve.host_keys.iter().map(|key| PrivateKey::from_openssh(&key.0)).collect::<Result<_, _>>()?;
    let settings = &serve.settings;
    let (kex, macs): (&[&[kex::Name]], &[&[mac::Name]]) = match settings.algorithms {
        Algorithms::PostQuantum => (&[POST_QUANTUM_KEX], &[MACS]),
        Algorithms::Strong => (&[POST_QUANTUM_KEX, KEX], &[MACS]),
        Algorithms::Compatible => (&[POST_QUANTUM_KEX, KEX, MORE_KEX], &[MACS, MORE_MACS]),
    };
    let interval = Duration::from_millis(settings.client_alive_interval_ms);
    Ok(Config {
        server_id: SshId::Standard(Cow::Owned(format!("{IDENTIFICATION}{}", env!("CARGO_PKG_VERSION")))),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REJECTION,
        // The `none` that OpenSSH begins with to learn the methods.
        auth_rejection_time_initial: Some(Duration::ZERO),
        // The `none` is not counted by sshd. And sshd lets go of a client in answer to its last failed attempt, russh only
        // when it makes another.
        max_auth_attempts: (settings.max_auth_tries as usize).saturating_add(1),
        keys,
        window_size: inbound::WINDOW,
        maximum_packet_size: 64 << 10,
        event_buffer_size: 64,
        limits: Limits::new(1 << 30, 1 << 30, Duration::from_secs(3600)),
        preferred: Preferred {
            kex: Cow::Owned([&kex.concat(), KEX_EXTENSIONS].concat()),
            key: Cow::Borrowed(KEYS),
            cipher: Cow::Borrowed(CIPHERS),
            mac: Cow::Owned(macs.concat()),
            compression: Cow::Borrowed(&[compression::NONE]),
            host_key_certificates: Cow::Borrowed(&[]),
        },
        // An idle shell is no reason to disconnect; a silent client is asked for a sign of life.
        inactivity_timeout: None,
        keepalive_interval: (!interval.is_zero()).then_some(interval),
        keepalive_max: settings.client_alive_count_max as usize,
        nodelay: true,
        ..Config::default()
    })
}
