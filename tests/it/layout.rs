//! The direction rule of the module map in src/lib.rs, read off the `use` lines.

use std::{collections::BTreeMap, fs, path::Path};

/// Who may be used by whom: a module may use those of a lower rank, and its own.
const RANKS: [(&str, u32); 26] = [
    ("panics", 0),
    ("codec", 0),
    ("pattern", 0),
    ("pb", 0),
    ("reload", 0),
    ("shutdown", 0),
    ("sign_out", 1),
    ("policy", 2),
    ("redact", 2),
    ("config", 2),
    ("status", 2),
    ("deadline", 3),
    ("metrics", 3),
    ("audit", 4),
    ("traces", 4),
    ("record", 5),
    ("attempts", 6),
    ("telemetry", 7),
    ("retry", 7),
    ("quota", 7),
    ("cognito", 7),
    ("bulk", 7),
    ("service", 8),
    ("server", 9),
    ("client", 10),
    ("demo", 10),
];

#[test]
fn modules_use_only_what_the_map_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let ranks: BTreeMap<_, _> = RANKS.into();
    let mut uses = 0;
    for file in rust_files(&src) {
        let relative = file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        let module = relative.split(['/', '.']).next().unwrap().to_owned();
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let rank = *ranks.get(module.as_str()).unwrap_or_else(|| panic!("{module} is not in the map"));
        for used in modules_used(&fs::read_to_string(&file).unwrap()) {
            uses += 1;
            let allowed = used == module || ranks.get(used.as_str()).is_some_and(|used| *used < rank);
            assert!(allowed, "{relative} uses crate::{used}, against the map in src/lib.rs");
        }
    }
    assert!(uses > 20, "the use lines are not read any more");
}

#[test]
fn the_module_map_names_every_module() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let map = lib.lines().filter(|line| line.starts_with("//! | ")).collect::<Vec<_>>().join("\n");
    for (module, _) in RANKS {
        assert!(map.contains(&format!("`{module}`")), "{module} is not in the map");
    }
}

fn rust_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The first segments after `crate::`, in `use` lines with and without braces and in paths.
fn modules_used(source: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in source.match_indices("crate::") {
        let rest = &source[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => used.push(first_segment(rest)),
            Some(tree) => {
                let mut depth = 0;
                let mut start = 0;
                for (n, c) in tree.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => {
                            used.push(first_segment(&tree[start..n]));
                            break;
                        }
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            used.push(first_segment(&tree[start..n]));
                            start = n + 1;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    used.retain(|module| !module.is_empty());
    used
}

fn first_segment(path: &str) -> String {
    path.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn use_trees_are_read() {
    let source = "use crate::{\n a::{B, c::D},\n e,\n self_::f::{g, h},\n};\nuse crate::i::J; fn k() { crate::l::m() }";
    assert_eq!(modules_used(source), ["a", "e", "self_", "i", "l"]);
}
