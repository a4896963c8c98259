//! A connection that shows by its own traffic that nothing disturbs it.

use std::{
    io::{Read, Write},
    process::Child,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{DEADLINE, Host, within};

/// What goes out and has to come back, each round.
const CHUNK: usize = 16 << 10;

/// `ssh USER@host cat`, through which checked data goes round and round.
pub struct Stream {
    child: Child,
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    pump: JoinHandle<Result<(), String>>,
}

impl Stream {
    /// Connects, and waits until data flows.
    pub fn start(host: &Host, user: &str) -> Self {
        let mut child = host.ssh(user, "cat").spawn();
        let (rounds, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let pump = std::thread::spawn({
            let (rounds, stop) = (rounds.clone(), stop.clone());
            move || {
                let mut chunk = vec![0; CHUNK];
                let mut back = vec![0; CHUNK];
                while !stop.load(Ordering::Relaxed) {
                    let round = rounds.load(Ordering::Relaxed);
                    fill(&mut chunk, round);
                    to.write_all(&chunk).map_err(|error| format!("round {round}, sending: {error}"))?;
                    from.read_exact(&mut back).map_err(|error| format!("round {round}, receiving: {error}"))?;
                    if back != chunk {
                        return Err(format!("round {round}: something else came back"));
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                    // Enough to notice any disturbance, and leaves the processor to the test.
                    std::thread::sleep(Duration::from_millis(5));
                }
                drop(to);
                match from.read_to_end(&mut back) {
                    Ok(0) => Ok(()),
                    other => Err(format!("after the end of the data: {other:?}")),
                }
            }
        });
        let stream = Self { child, rounds, stop, pump };
        stream.flows();
        stream
    }

    /// Asserts that data goes round now.
    #[track_caller]
    pub fn flows(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        let flows = within(DEADLINE, || self.rounds.load(Ordering::Relaxed) > before + 1);
        assert!(flows, "no data has come back since round {before}");
    }

    /// Ends it, and asserts that everything came back and that `cat` ended well.
    #[track_caller]
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.pump.join().unwrap().unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

/// Bytes of a xorshift generator, other ones each round.
fn fill(chunk: &mut [u8], round: u64) {
    let mut state = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for piece in chunk.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
    }
}
