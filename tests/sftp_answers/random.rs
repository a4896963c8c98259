//! Requests that nobody would think of, and damaged ones.

use proptest::prelude::*;

use super::{protocol::*, servers::Both};

/// Paths in the directory: nothing that a random request could harm is outside of it.
fn any_path() -> impl Strategy<Value = Vec<u8>> {
    const NAMES: &[&str] =
        &["f", "d", "d/e", "d/big", "to-file", "to-directory", "loop", "dangling", "nowhere", "new", "f/below"];
    prop_oneof![
        20 => proptest::sample::select(NAMES).prop_map(|name| name.as_bytes().to_vec()),
        1 => Just(b"".to_vec()),
        1 => Just(vec![0xff, 0xfe, b'\n']),
        1 => Just(vec![b'x'; 256]),
    ]
}

fn any_attributes() -> impl Strategy<Value = Attributes> {
    let pair = || (0..3000_u32, 0..3000_u32);
    let size = prop_oneof![0..300_000_u64, Just(u64::MAX)];
    (
        proptest::option::of(size),
        proptest::option::of(pair()),
        proptest::option::of(0..0o10_000_u32),
        proptest::option::of(pair()),
    )
        .prop_map(|(size, owner, permissions, times)| Attributes { size, owner, permissions, times })
}

fn any_request() -> impl Strategy<Value = Request> {
    let handle = || 0..6_u32;
    let offset = || prop_oneof![0..300_000_u64, Just(1 << 63)];
    let about_path = prop_oneof![
        Just(request(LSTAT)),
        Just(request(STAT)),
        Just(request(OPENDIR)),
        Just(request(REMOVE)),
        Just(request(RMDIR)),
        Just(request(REALPATH)),
        Just(request(READLINK)),
        Just(extended("expand-path@openssh.com")),
    ];
    let about_two = prop_oneof![
        Just(request(RENAME)),
        Just(request(SYMLINK)),
        Just(extended("posix-rename@openssh.com")),
        Just(extended("hardlink@openssh.com")),
    ];
    let about_handle = prop_oneof![Just(request(FSTAT)), Just(request(CLOSE)), Just(extended("fsync@openssh.com")),];
    let setting = prop_oneof![Just(request(SETSTAT)), Just(request(MKDIR)), Just(extended("lsetstat@openssh.com"))];
    prop_oneof![
        4 => (any_path(), 0..64_u32, any_attributes())
            .prop_map(|(path, flags, attributes)| request(OPEN).string(path).u32(flags).attributes(&attributes)),
        6 => (about_path, any_path()).prop_map(|(request, path)| request.string(path)),
        3 => (about_two, any_path(), any_path()).prop_map(|(request, from, to)| request.string(from).string(to)),
        4 => (about_handle, handle()).prop_map(|(request, handle)| request.handle(handle)),
        2 => (setting, any_path(), any_attributes())
            .prop_map(|(request, path, attributes)| request.string(path).attributes(&attributes)),
        1 => (handle(), any_attributes())
            .prop_map(|(handle, attributes)| request(FSETSTAT).handle(handle).attributes(&attributes)),
        3 => (handle(), offset(), 0..400_000_u32).prop_map(|(handle, offset, length)| read(handle, offset, length)),
        3 => (handle(), offset(), 0..5000_usize).prop_map(|(handle, offset, length)| write(handle, offset, vec![b'w'; length])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_requests_has_the_same_answers(requests in proptest::collection::vec(any_request(), 1..60)) {
        let mut both = Both::new();
        both.agree(&requests);
        // OpenSSH's server cannot list a directory that was moved after it was opened, so only now.
        for directory in [".", "d", "d/e"] {
            if let [Answer::Handle(handle)] = &both.agree(&[request(OPENDIR).string(directory)])[..] {
                both.agree(&[request(READDIR).string(handle), request(CLOSE).string(handle)]);
            }
        }
    }

    #[test]
    fn damaged_requests_end_the_server_or_are_answered(
        requests in proptest::collection::vec(any_request(), 1..6),
        at in any::<prop::sample::Index>(),
        length in 1..40_usize,
        cut in any::<bool>(),
    ) {
        let mut packets: Vec<u8> = requests.iter().zip(0..).flat_map(|(request, id)| request.packet(id)).collect();
        let start = at.index(packets.len());
        if cut {
            packets.truncate(start);
        } else {
            // Nothing but this, so that no path leads out of the directory.
            let end = packets.len().min(start + length);
            packets[start..end].fill(0xff);
        }
        let Both { ours, directory: _kept, .. } = Both::new();
        let status = ours.end_with(&packets);
        prop_assert!([0, 1, 11, 255].contains(&status), "{}", status);
    }
}
