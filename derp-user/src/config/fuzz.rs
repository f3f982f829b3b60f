//! Configuration out of any text.

use std::{ffi::OsString, io, num::NonZeroUsize, path::Path};

use super::{Config, Environment, Invocation, Settings, Surroundings, key_file, parse, rate_file};

/// A configuration file is read, or what is wrong is said.
pub(crate) fn file(text: &[u8]) {
    configure(&["-dev", "-config=/f"], &|_| None, text);
}

/// A command line, one word in each line; after an empty line, variables.
pub(crate) fn flags(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (words, variables) = text.split_once("\n\n").unwrap_or((text, ""));
    let variable = |name: &str| {
        let mut lines = variables.lines().filter_map(|line| line.split_once('='));
        lines.find(|(known, _)| *known == name).map(|(_, value)| value.to_owned())
    };
    let words: Vec<_> = words.lines().collect();
    configure(&words, &variable, b"[server]\nhome = \"blank\"\n");
}

fn configure(words: &[&str], variable: &dyn Fn(&str) -> Option<String>, file: &[u8]) {
    let read = |path: &Path| {
        if path == Path::new("/f") {
            Ok(file.to_vec())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    };
    let options =
        match parse(words.iter().map(OsString::from), &Surroundings { variable, read: &read }) {
            Ok(Invocation::Run(options)) => options,
            Ok(Invocation::Help(_)) => return,
            Err(error) => return assert!(!error.to_string().is_empty()),
        };
    let environment = Environment {
        variable,
        is_root: true,
        file_exists: &|_| false,
        processors: NonZeroUsize::MIN,
    };
    let shown = Config::resolve(*options, &environment)
        .and_then(|config| config.file_settings().map(|_| config))
        .and_then(|config| Settings::new(&config, variable));
    match shown {
        Ok(settings) => {
            assert!(!(settings.to_string() + &settings.to_json().to_string()).is_empty())
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The files that hold one thing each.
pub(crate) fn small_files(contents: &[u8]) {
    let _ = rate_file::parse_rate_limit(contents);
    if let Ok(key) = key_file::parse_key_file(contents) {
        let again = key_file::parse_key_file(key_file::render_key_file(&key).as_bytes());
        assert_eq!(again.expect("what is written can be read").public(), key.public());
    }
}
