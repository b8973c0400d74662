//! Bytes that programs in a jail make, given to the readers of the control side at random.
//!
//! Stands in for cargo-fuzz, which needs a nightly compiler. Each target runs its corpus
//! (`tests/corpus/TARGET/*`, raw bytes, a file each) as it is, and then, for `FUZZ_SECONDS` seconds
//! (default 1), mutations of it and random bytes. A target fails if it panics, says that something
//! does not hold, or takes longer than [`LONGEST`] for one input; the input is printed in hex, and
//! belongs into the corpus once it is understood: `xxd -r -p > runtime/tests/corpus/TARGET/NAME`.
//! `FUZZ_SEED` repeats a run, as far as its time allows.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::exit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use stockade_runtime::egress::fuzzing;

/// Says what does not hold of an input.
type Target = fn(&[u8]) -> Result<(), String>;

/// Longest an input may take. A debug build on a busy machine needs milliseconds; what is quadratic
/// or endless needs more.
const LONGEST: Duration = Duration::from_secs(5);
/// Longest input, bytes: more than any reader keeps.
const INPUT_BYTES_MAX: usize = 70_000;

#[test]
fn no_bytes_confuse_the_resolver() {
    fuzz("dns", fuzzing::dns);
}

#[test]
fn no_bytes_confuse_the_http_reader() {
    fuzz("http_head", fuzzing::http_head);
}

#[test]
fn no_bytes_confuse_the_reader_of_client_hellos() {
    fuzz("client_hello", fuzzing::client_hello);
}

#[test]
fn no_bytes_confuse_the_reader_of_archives() {
    fuzz("archive", stockade_runtime::porter::fuzz_archive);
}

/// The harness itself: a bug that needs two bytes to be right is found, and one that panics.
#[test]
fn planted_bugs_are_found() {
    let seeds = [b"what begins like a greeting: hello".to_vec()];
    let length: Target = |input| match input {
        [.., 0xff, 0xff] if input.len() > 40 => Err("planted".to_owned()),
        _ => Ok(()),
    };
    let panics: Target = |input| {
        let at = input.iter().position(|byte| *byte == b':').unwrap_or_default();
        let word = &input[at..];
        assert!(word.len() != 3, "planted");
        Ok(())
    };
    let fine: Target = |_| Ok(());
    let found = [length, panics, fine].map(|target| {
        let mut random = Random(7);
        (0..200_000).find_map(|_| run(target, &random.input(&seeds)).err())
    });
    let [length, panics, fine] = found;
    assert_eq!(length.as_deref(), Some("planted"));
    assert!(panics.is_some_and(|text| text.contains("planted")));
    assert_eq!(fine, None, "and nothing where there is none");
}

/// Runs `target` on the corpus `name`, then on what comes of it.
fn fuzz(name: &'static str, target: Target) {
    let seeds = corpus(name);
    let number = |key: &str| std::env::var(key).ok().and_then(|text| text.parse().ok());
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = number("FUZZ_SEED").unwrap_or_else(|| since.map_or(1, |s| s.as_nanos() as u64));
    let until = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(1));
    let current = Arc::new(Current::default());
    let watched = Arc::clone(&current);
    std::thread::spawn(move || watch(name, seed, &watched));
    let mut random = Random(seed);
    let mut inputs = seeds.iter().cloned();
    let mut count = 0_u64;
    while count < seeds.len() as u64 || Instant::now() < until {
        let input = inputs.next().unwrap_or_else(|| random.input(&seeds));
        *current.lock() = Some((Instant::now(), input.clone()));
        if let Err(wrong) = run(target, &input) {
            panic!("{name}: {wrong}\nFUZZ_SEED={seed}, input {count}: {}", hex(&input));
        }
        count += 1;
    }
    *current.lock() = None;
    println!("fuzz {name}: {count} inputs, {} of them the corpus, FUZZ_SEED={seed}", seeds.len());
}

/// What a target says of `input`; a panic says so too.
fn run(target: Target, input: &[u8]) -> Result<(), String> {
    std::panic::catch_unwind(|| target(input)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// The input that is being tried, and since when.
#[derive(Default)]
struct Current(Mutex<Option<(Instant, Vec<u8>)>>);

impl Current {
    fn lock(&self) -> MutexGuard<'_, Option<(Instant, Vec<u8>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the process when an input takes too long: what hangs would never say so itself.
fn watch(name: &str, seed: u64, current: &Current) {
    loop {
        std::thread::sleep(Duration::from_millis(100));
        if let Some((since, input)) = current.lock().as_ref()
            && since.elapsed() > LONGEST
        {
            eprintln!("{name}: longer than {LONGEST:?}\nFUZZ_SEED={seed}, input: {}", hex(input));
            exit(101);
        }
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let entries = std::fs::read_dir(&folder).expect("a folder of seeds");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no seeds in {}", folder.display());
    files.iter().map(|file| std::fs::read(file).expect("a seed")).collect()
}

fn hex(input: &[u8]) -> String {
    input.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("strings take everything");
        text
    })
}

/// SplitMix64: one number gives the whole run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let a = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        b ^ (b >> 31)
    }

    /// From 0 to below `end`; 0 if there is nothing.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % (end.max(1) as u64)) as usize
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }

    /// An input: a seed with one to eight changes, or now and then random bytes.
    fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        if self.below(32) == 0 {
            let length = self.below(600);
            return (0..length).map(|_| self.next() as u8).collect();
        }
        let mut input = self.pick(seeds).cloned().unwrap_or_default();
        for _ in 0..=self.below(8) {
            self.change(&mut input, seeds);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let (at, other) = (self.below(input.len()), self.below(input.len() + 1));
        let (start, end) = (at.min(other), at.max(other));
        match self.below(10) {
            0 => flip(input, at, 1 << self.below(8)),
            1 => flip(input, at, self.next() as u8),
            2 => input.truncate(at),
            // Numbers where lengths and counts go wrong, of one, two and three bytes.
            3 => {
                let edges = [0_u8, 1, 2, 0x0a, 0x0d, 0x20, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xff];
                let edge = self.pick(&edges).copied().unwrap_or_default();
                let length = 1 + self.below(3);
                let zero = self.below(2) == 0;
                for (number, byte) in input.iter_mut().skip(at).take(length).enumerate() {
                    *byte = if zero && number + 1 < length { 0 } else { edge };
                }
            }
            4 => {
                let bytes: Vec<u8> = (0..=self.below(8)).map(|_| self.next() as u8).collect();
                input.splice(at..at, bytes);
            }
            5 => drop(input.drain(start..end)),
            6 => {
                let part = input.get(start..end).unwrap_or_default().to_vec();
                for _ in 0..=self.below(4) {
                    input.splice(start..start, part.iter().copied());
                }
            }
            // The front of this one, the back of another.
            7 => {
                let tail = self.pick(seeds).cloned().unwrap_or_default();
                input.truncate(at);
                input.extend_from_slice(&tail[self.below(tail.len())..]);
            }
            8 => {
                let part = self.pick(seeds).cloned().unwrap_or_default();
                let (a, b) = (self.below(part.len()), self.below(part.len() + 1));
                let part = part.get(a.min(b)..a.max(b)).unwrap_or_default().iter().copied();
                input.splice(start..end, part);
            }
            // One number more or less.
            _ => {
                let by = if self.below(2) == 0 { 1 } else { 0xff };
                if let Some(byte) = input.get_mut(at) {
                    *byte = byte.wrapping_add(by);
                }
            }
        }
    }
}

fn flip(input: &mut [u8], at: usize, bits: u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte ^= bits;
    }
}
