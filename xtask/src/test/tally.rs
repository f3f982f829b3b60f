//! Counting the output of `cargo test -- --show-output`.

use std::{collections::HashSet, fmt};

const SKIPPED: &str = "skipped: ";

/// What the tests reported so far.
///
/// A test that cannot run here prints `skipped: <what>: <reason>` and returns; to the test harness
/// it passed. Here it counts as skipped, as an ignored test does.
#[derive(Default)]
pub(crate) struct Tally {
    reported_passed: u64,
    failed: u64,
    skips: Vec<String>,
    /// Tests among the passed ones that said they skipped: the suite's number and the name.
    skipped_tests: HashSet<(u64, String)>,
    /// Skips that tests wrote past the harness's capture, so that their names are not known.
    nameless_skips: usize,
    suite: u64,
    section: Section,
}

/// The part of one suite's output that a line belongs to.
#[derive(Default)]
enum Section {
    #[default]
    Results,
    /// The output of passed tests, at present of the one named.
    Successes(String),
    Failures,
}

impl Tally {
    /// Notes a skip that is no test's own.
    pub(crate) fn skip(&mut self, what_and_why: &str) {
        self.skips.push(format!("{SKIPPED}{what_and_why}"));
    }

    /// Counts a line of output; returns whether to show it.
    pub(crate) fn line(&mut self, line: &str) -> bool {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.section = Section::Results;
            self.reported_passed += count(result, "passed");
            self.failed += count(result, "failed");
        } else if line.starts_with("running ") && line.trim_end_matches('s').ends_with(" test") {
            self.suite += 1;
            self.section = Section::Results;
        } else if line == "successes:" {
            self.section = Section::Successes(String::new());
        } else if line == "failures:" {
            self.section = Section::Failures;
        } else if let Some(skip) = skip_in(line) {
            self.note_skip(skip);
        } else if let Section::Successes(test) = &mut self.section {
            if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.split(' ').next()) {
                name.clone_into(test);
            }
        } else if let Some((test, reason)) = ignored(line) {
            self.skips.push(format!("{SKIPPED}{test}: {reason}"));
        }
        !matches!(self.section, Section::Successes(_))
    }

    /// Returns the number of failed tests.
    pub(crate) fn failed(&self) -> u64 {
        self.failed
    }

    fn note_skip(&mut self, skip: &str) {
        self.skips.push(skip.to_owned());
        if let Section::Successes(test) = &self.section {
            self.skipped_tests.insert((self.suite, test.clone()));
        } else {
            self.nameless_skips += 1;
        }
    }
}

/// The list of skips, then `N passed, N failed, N skipped`.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        let mut shown = HashSet::new();
        for skip in self.skips.iter().filter(|skip| shown.insert(*skip)) {
            match self.skips.iter().filter(|other| *other == skip).count() {
                1 => writeln!(f, "{skip}")?,
                times => writeln!(f, "{skip} ({times} times)")?,
            }
        }
        let skipped_tests = self.skipped_tests.len() + self.nameless_skips;
        let passed = self.reported_passed.saturating_sub(skipped_tests as u64);
        writeln!(f, "{passed} passed, {} failed, {} skipped", self.failed, self.skips.len())
    }
}

/// Returns the number before ` {word}` in `ok. 4 passed; 0 failed; ...`.
fn count(result: &str, word: &str) -> u64 {
    result
        .split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
        .unwrap_or(0)
}

/// Returns the part from `skipped: ` on, at the start of a line or behind a test's name.
fn skip_in(line: &str) -> Option<&str> {
    let start = line.find(SKIPPED)?;
    let (before, skip) = line.split_at_checked(start)?;
    let alone = before.trim().is_empty() || before.ends_with(" ... ");
    alone.then_some(skip)
}

/// Returns name and reason in `test name ... ignored, reason`.
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (test, rest) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    Some((test, rest.strip_prefix(", ").unwrap_or("marked as ignored")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str) -> (Tally, Vec<&str>) {
        let mut tally = Tally::default();
        let shown = output.lines().filter(|line| tally.line(line)).collect();
        (tally, shown)
    }

    #[test]
    fn a_test_that_says_it_skipped_is_not_passed() {
        let (tally, shown) = tally(
            "running 3 tests\ntest a ... ok\ntest b ... ok\ntest c ... ignored, slow\n\nsuccesses:\n\n\
             ---- a stdout ----\nnoise\nskipped: a: no root\nskipped: half of a: no kernel\n\n\
             ---- b stdout ----\nfine\n\nsuccesses:\n    a\n    b\n\n\
             test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!(
            tally.to_string(),
            "\nskipped: c: slow\nskipped: a: no root\nskipped: half of a: no kernel\n\
             1 passed, 0 failed, 3 skipped\n"
        );
        assert!(!shown.contains(&"noise"), "output of passed tests is left out");
    }

    #[test]
    fn failures_are_shown_and_suites_add_up() {
        let suite = "running 2 tests\n\nsuccesses:\n\n---- a stdout ----\nnoise\n\n\
                     successes:\n    a\n\nfailures:\n\n---- b stdout ----\nwhy\n\nfailures:\n    b\n\n\
                     test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured\n";
        let text = suite.repeat(2);
        let (tally, shown) = tally(&text);
        assert_eq!(tally.to_string(), "\n2 passed, 2 failed, 0 skipped\n");
        assert_eq!(shown.iter().filter(|line| **line == "why").count(), 2);
    }

    #[test]
    fn a_skip_past_the_harness_is_counted_once() {
        let (mut tally, _) = tally(
            "running 2 tests\ntest a ... skipped: a: printed past the harness\nok\ntest b ... ok\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored\n",
        );
        for _ in 0..2 {
            tally.skip("kernel tests: no toolchain");
        }
        let expected = "\nskipped: a: printed past the harness\n\
                        skipped: kernel tests: no toolchain (2 times)\n\
                        1 passed, 0 failed, 3 skipped\n";
        assert_eq!(tally.to_string(), expected);
    }

    #[test]
    fn the_word_in_a_sentence_is_no_skip() {
        assert_eq!(skip_in("the frame was skipped: unknown type"), None);
    }
}
