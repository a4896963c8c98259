//! Each target over its corpus and over mutations of it, the same ones each time: what `scripts/fuzz` has found stays found.

use std::{fs, panic::catch_unwind, path::Path};

use super::TARGETS;

/// Mutations for each target.
const MUTATIONS: usize = 4_000;

/// Larger inputs are for cargo-fuzz, which has time.
const MAX_INPUT: usize = 16 << 10;

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }
}

/// Inputs that were found or written by hand, in the order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// One to eight changes of the kinds that libFuzzer makes.
fn mutate(input: &[u8], others: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    const WORDS: [&[u8]; 8] = [&[0], &[0xff; 4], &[0x7f, 0xff, 0xff, 0xff], b"!", b"../", b"\n", &[0; 8], b"\xc3\x28"];
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() + 1);
        let end = at + random.below(bytes.len() - at + 1).min(64);
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            4 => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].iter().copied())),
            5 => {
                let word = WORDS[random.below(WORDS.len())];
                let end = (at + word.len()).min(bytes.len());
                bytes.splice(at..end, word.iter().copied());
            }
            _ => {
                let other = &others[random.below(others.len())];
                let from = random.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
        }
        bytes.truncate(MAX_INPUT);
    }
    bytes
}

#[test]
fn no_input_makes_a_parser_panic_or_contradict_itself() {
    for (name, target) in TARGETS {
        let seeds = corpus(name);
        assert!(seeds.len() >= 2, "{name} has no corpus");
        let run = |input: &[u8], what: &str| {
            if catch_unwind(|| target(input)).is_err() {
                let path = std::env::temp_dir().join(format!("podspawn-fuzz-{name}"));
                fs::write(&path, input).unwrap();
                panic!("{name}, {what}: the input is in {}", path.display());
            }
        };
        for (number, seed) in seeds.iter().enumerate() {
            run(seed, &format!("file {number} of its corpus"));
        }
        let mut random = Random(0x706f_6473_7061_776e);
        for number in 0..MUTATIONS {
            let seed = &seeds[number % seeds.len()];
            run(&mutate(&seed[..seed.len().min(MAX_INPUT)], &seeds, &mut random), &format!("mutation {number}"));
        }
    }
}

#[test]
fn each_target_has_a_program_for_cargo_fuzz() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml")).unwrap();
    let programs: Vec<&str> = manifest.lines().filter_map(|line| line.strip_prefix("name = \"")).skip(1).collect();
    let names: Vec<String> = TARGETS.iter().map(|(name, _)| format!("{name}\"")).collect();
    assert_eq!(programs, names);
}
