//! The repository as files: which there are, and what they say. Reads the working tree, never git.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Folders that hold no source of ours.
const LEFT_OUT: [&str; 5] = ["target", ".git", "heddle-data", "corpus", "artifacts"];

/// The workspace's root folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace").to_path_buf()
}

/// Every file of the tree below `folder` (relative to the root), as paths relative to the root, sorted.
///
/// # Errors
/// A folder that cannot be read.
pub fn files_below(folder: &str) -> io::Result<Vec<PathBuf>> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !LEFT_OUT.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else {
                found.push(path.strip_prefix(&root).expect("listed below the root").to_path_buf());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Every Rust file of ours, with its text.
///
/// # Errors
/// A file that cannot be read or is not UTF-8.
pub fn rust_files() -> io::Result<Vec<(PathBuf, String)>> {
    let files = files_below("")?;
    let sources = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    sources.map(|path| fs::read_to_string(root().join(&path)).map(|text| (path, text))).collect()
}
