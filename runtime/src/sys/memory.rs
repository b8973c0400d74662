//! Memory of this process.

use std::io;
use std::ops::Range;

/// Where the linker put this program's constants and code, which nothing writes to.
fn code() -> Range<usize> {
    // end(3).
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let page = rustix::param::page_size();
    let start = (&raw const __executable_start).addr();
    let end = (&raw const etext).addr();
    start / page * page..end / page * page
}

/// Unmaps the pages of this program's constants and code: a start needs most of those that are mapped
/// by its end, and nothing does afterwards. What is needed again comes from the page cache, madvise(2).
///
/// # Errors
/// Those of madvise(2); then nothing has changed.
pub fn release_code() -> io::Result<()> {
    let code = code();
    let start = std::ptr::without_provenance_mut(code.start);
    // SAFETY: a private mapping of a file that was never written to, so what is read again is the same.
    let done = unsafe { libc::madvise(start, code.len(), libc::MADV_DONTNEED) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kilobytes of the program's file that are mapped and were not written to, proc_pid_smaps(5).
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let code = code();
        let mut counts = false;
        let mut sum = 0;
        for line in text.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            if let Some((start, end)) = range {
                let number = |text| usize::from_str_radix(text, 16);
                if let (Ok(start), Ok(end)) = (number(start), number(end)) {
                    counts = start >= code.start && end <= code.end + rustix::param::page_size();
                }
            } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| counts) {
                sum += rest.trim().trim_end_matches(" kB").parse::<usize>().expect("a number");
            }
        }
        sum
    }

    #[test]
    fn code_that_was_needed_once_takes_no_memory_and_comes_back() {
        let before = resident();
        release_code().expect("released");
        let after = resident();
        assert!(before > 0 && after < before, "{before} kB, then {after} kB");
    }
}
