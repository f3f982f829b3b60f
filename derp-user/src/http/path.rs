//! Which paths are not answered but redirected to their clean form, as Go's request router does.

/// Where a request for `path` should go instead, or `None` if the path is clean.
///
/// Repeated slashes and dot segments are resolved, and `/debug` becomes `/debug/`. The query stays.
pub(super) fn redirect(path: &str, query: Option<&str>) -> Option<String> {
    let mut clean = clean(path);
    if clean == "/debug" {
        clean.push('/');
    }
    if clean == path {
        return None;
    }
    if let Some(query) = query {
        clean.push('?');
        clean.push_str(query);
    }
    Some(clean)
}

fn clean(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    let mut clean = String::with_capacity(path.len() + 1);
    for segment in segments {
        clean.push('/');
        clean.push_str(segment);
    }
    if clean.is_empty() || path.ends_with('/') {
        clean.push('/');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_paths_stay() {
        for path in ["/", "/derp", "/derp/probe", "/debug/", "/a.b/..c"] {
            assert_eq!(redirect(path, Some("q=1")), None, "{path}");
        }
    }

    #[test]
    fn unclean_paths_are_resolved() {
        for (path, expected) in [
            ("//derp", "/derp"),
            ("/derp//probe", "/derp/probe"),
            ("/x/../derp", "/derp"),
            ("/x/./y/", "/x/y/"),
            ("/../..", "/"),
            ("/debug", "/debug/"),
            ("//evil.example/", "/evil.example/"),
            ("*", "/*"),
            ("", "/"),
        ] {
            assert_eq!(redirect(path, None).as_deref(), Some(expected), "{path}");
        }
        assert_eq!(redirect("/debug", Some("a=b")).as_deref(), Some("/debug/?a=b"));
    }
}
