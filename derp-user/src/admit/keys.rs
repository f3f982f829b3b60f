//! Allow lists in files: one `nodekey:<hex>` per line, `#` begins a comment.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::AdmitError;
use crate::proto::keys::{KeyError, NodePublic};

/// Longest list that is read, all files together: some 800,000 keys.
const MAX_LIST_BYTES: u64 = 64 << 20;
/// Most files of a directory.
const MAX_FILES: usize = 10_000;

/// The keys of a list.
pub(super) type Keys = Arc<HashSet<NodePublic>>;

/// What tells one state of the files from another: path, inode, size and time of each.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Fingerprint(Vec<(PathBuf, u64, u64, i64, i64)>);

/// A line that is no key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct BadLine {
    /// Counted from 1.
    pub(super) number: usize,
    pub(super) reason: KeyError,
}

/// Adds the keys in `text` to `keys`.
///
/// # Errors
///
/// The first line that is neither a key nor a comment nor empty.
pub(super) fn parse(text: &str, keys: &mut HashSet<NodePublic>) -> Result<(), BadLine> {
    for (index, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        let fault = |reason| BadLine { number: index + 1, reason };
        let key: NodePublic = entry.parse().map_err(fault)?;
        if key.is_zero() {
            return Err(fault(KeyError::Zero));
        }
        keys.insert(key);
    }
    Ok(())
}

/// Reads the list at `path`: a file, or every file in a directory that is not hidden.
///
/// # Errors
///
/// If anything cannot be read or is no list. Then nothing of it counts.
pub(super) fn load(path: &Path) -> Result<(Keys, Fingerprint), AdmitError> {
    let fault = |path: &Path| {
        let path = path.to_owned();
        move |source| AdmitError::Read { flag: "-allow-keys", path, source }
    };
    let files = files(path).map_err(fault(path))?;
    let before = fingerprint_of(&files).map_err(fault(path))?;
    let mut keys = HashSet::new();
    let mut left = MAX_LIST_BYTES;
    for file in &files {
        let text = read(file, &mut left).map_err(fault(file))?;
        parse(&text, &mut keys).map_err(|BadLine { number, reason }| AdmitError::Line {
            path: file.clone(),
            line: number,
            reason,
        })?;
    }
    Ok((Arc::new(keys), before))
}

/// The state of the list at `path` now.
///
/// # Errors
///
/// If it is not there.
pub(super) fn fingerprint(path: &Path) -> io::Result<Fingerprint> {
    fingerprint_of(&files(path)?)
}

fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        // Editors and Kubernetes keep what is not finished under hidden names.
        let hidden =
            file.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with('.'));
        // Not the entry's own type: it may be a link to a file.
        if !hidden && fs::metadata(&file)?.is_file() {
            files.push(file);
        }
        if files.len() > MAX_FILES {
            return Err(io::Error::other(format!("more than {MAX_FILES} files")));
        }
    }
    files.sort();
    Ok(files)
}

fn fingerprint_of(files: &[PathBuf]) -> io::Result<Fingerprint> {
    let print = |path: &PathBuf| {
        let data = fs::metadata(path)?;
        Ok((path.clone(), data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
    };
    files.iter().map(print).collect::<io::Result<_>>().map(Fingerprint)
}

fn read(path: &Path, left: &mut u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(*left + 1).read_to_end(&mut bytes)?;
    *left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
        io::Error::new(io::ErrorKind::FileTooLarge, "the list is longer than 64 MiB")
    })?;
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a text file"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> NodePublic {
        NodePublic::from_bytes([byte; 32])
    }

    #[test]
    fn one_key_per_line_with_comments() {
        let text = format!(
            "# the office\n\n{}\n  {}\t# laptop\r\nnodekey:{}\n{}",
            key(1),
            key(2),
            "AB".repeat(32),
            key(1)
        );
        let mut keys = HashSet::new();
        parse(&text, &mut keys).unwrap();
        assert_eq!(keys, HashSet::from([key(1), key(2), key(0xab)]));
    }

    #[test]
    fn the_first_bad_line_is_named() {
        for (line, reason) in [
            ("nodekey:12", KeyError::Digits),
            ("mkey:00", KeyError::Prefix("nodekey:")),
            (&key(1).to_hex(), KeyError::Prefix("nodekey:")),
            (&format!("{} laptop", key(1)), KeyError::Digits),
            (&key(0).to_string(), KeyError::Zero),
        ] {
            let text = format!("# one\n{}\n{line}\nnonsense", key(3));
            let bad = parse(&text, &mut HashSet::new()).unwrap_err();
            assert_eq!(bad, BadLine { number: 3, reason }, "{line}");
        }
    }

    #[test]
    fn a_directory_is_all_its_files_or_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: String| fs::write(directory.path().join(name), text).unwrap();
        write("a", key(1).to_string());
        write("b.keys", key(2).to_string());
        write(".hidden", "nonsense".to_owned());
        fs::create_dir(directory.path().join("old")).unwrap();
        std::os::unix::fs::symlink("../elsewhere", directory.path().join(".data")).unwrap();
        let (keys, print) = load(directory.path()).unwrap();
        assert_eq!(*keys, HashSet::from([key(1), key(2)]));
        assert_eq!(fingerprint(directory.path()).unwrap(), print);

        write("c", "\nnonsense".to_owned());
        assert_ne!(fingerprint(directory.path()).unwrap(), print);
        let error = load(directory.path()).unwrap_err().to_string();
        let expected = format!(
            "-allow-keys: {}/c:2: a key must start with \"nodekey:\"",
            directory.path().display()
        );
        assert_eq!(error, expected);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = load(&missing).unwrap_err().to_string();
        assert!(error.starts_with(&format!("-allow-keys: cannot read {}: ", missing.display())));
        fs::write(directory.path().join("binary"), [0xff]).unwrap();
        let error = load(directory.path()).unwrap_err().to_string();
        assert!(error.contains("binary: not a text file"), "{error}");
        assert!(load(Path::new("/dev/zero")).unwrap_err().to_string().contains("64 MiB"));
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "(\\PC|\n){0,200}") {
            let _ = parse(&text, &mut HashSet::new());
        }
    }
}
