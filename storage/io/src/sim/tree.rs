//! The directory tree of a simulated disk, as processes see it and as a power cut leaves it.
//!
//! Owns names: which directory has which entry, and the journal of changes that are not durable yet. Never holds the content
//! of a file. The rules by which changes become durable are those of [`Metadata`], told at the top of `disk.rs`.
//!
//! ```text
//!   create, rename, remove ──> seen ─────────────────────────────> processes
//!            └───────────────> journal ──sync──> durable ──cut──> seen
//!                                 └───────── a subset ──cut──> durable
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path};

use super::disk::Metadata;
use super::random::Random;
use super::request::Errno;

/// A file or directory, whatever its name is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Inode(pub(crate) u64);

/// The directory `/`.
pub(crate) const ROOT: Inode = Inode(0);

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    File(Inode),
    Directory(Inode),
}

impl Node {
    pub(crate) fn inode(self) -> Inode {
        match self {
            Node::File(inode) | Node::Directory(inode) => inode,
        }
    }
}

/// A place in the journal; later changes have greater ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct JournalPosition(u64);

/// One change of metadata.
#[derive(Clone, Debug)]
enum Change {
    Link {
        directory: Inode,
        name: OsString,
        node: Node,
    },
    Unlink {
        directory: Inode,
        name: OsString,
    },
    /// Within one directory: the old name goes and the new one comes at once.
    Rename {
        directory: Inode,
        from: OsString,
        to: OsString,
        node: Node,
    },
    /// The second half of a rename between directories; never survives without its first half, the link.
    UnlinkMoved {
        directory: Inode,
        name: OsString,
        link: JournalPosition,
    },
    /// A file's length was set; the content itself keeps the change and asks [`Tree::cut`] whether it survived.
    Length {
        file: Inode,
    },
}

impl Change {
    /// Whether syncing `inode` (a directory, or a file) makes this change durable where only what was synced is.
    fn is_entry_of(&self, inode: Inode) -> bool {
        match self {
            Change::Link { directory, .. }
            | Change::Unlink { directory, .. }
            | Change::Rename { directory, .. }
            | Change::UnlinkMoved { directory, .. } => *directory == inode,
            Change::Length { .. } => false,
        }
    }

    /// Whether the change touches `inode` at all, as a directory or as the thing that was named.
    fn touches(&self, inode: Inode) -> bool {
        self.is_entry_of(inode)
            || match self {
                Change::Link { node, .. } | Change::Rename { node, .. } => node.inode() == inode,
                Change::Length { file } => *file == inode,
                Change::Unlink { .. } | Change::UnlinkMoved { .. } => false,
            }
    }
}

/// Entries of every directory.
#[derive(Clone, Debug, Default)]
struct Names(BTreeMap<Inode, BTreeMap<OsString, Node>>);

impl Names {
    fn entry(&self, directory: Inode, name: &OsStr) -> Option<Node> {
        self.0.get(&directory)?.get(name).copied()
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Link { directory, name, node } => self.link(*directory, name, *node),
            Change::Unlink { directory, name } | Change::UnlinkMoved { directory, name, .. } => {
                self.unlink(*directory, name);
            }
            Change::Rename { directory, from, to, node } => {
                self.unlink(*directory, from);
                self.link(*directory, to, *node);
            }
            Change::Length { .. } => {}
        }
    }

    fn link(&mut self, directory: Inode, name: &OsStr, node: Node) {
        self.0.entry(directory).or_default().insert(name.to_owned(), node);
        if let Node::Directory(inode) = node {
            self.0.entry(inode).or_default();
        }
    }

    fn unlink(&mut self, directory: Inode, name: &OsStr) {
        if let Some(entries) = self.0.get_mut(&directory) {
            entries.remove(name);
        }
    }

    /// Everything that has a name below the root.
    fn reachable(&self) -> BTreeSet<Inode> {
        let mut found = BTreeSet::from([ROOT]);
        let mut waiting = vec![ROOT];
        while let Some(directory) = waiting.pop() {
            for node in self.0.get(&directory).into_iter().flat_map(BTreeMap::values) {
                if found.insert(node.inode())
                    && let Node::Directory(inode) = node
                {
                    waiting.push(*inode);
                }
            }
        }
        found
    }

    fn keep_reachable(&mut self) {
        let reachable = self.reachable();
        self.0.retain(|inode, _| reachable.contains(inode));
    }
}

/// The tree with its journal.
#[derive(Clone)]
pub(crate) struct Tree {
    seen: Names,
    durable: Names,
    journal: Vec<(JournalPosition, Change)>,
    journal_end: u64,
    inode_next: u64,
}

impl Tree {
    pub(crate) fn new() -> Tree {
        let root = Names(BTreeMap::from([(ROOT, BTreeMap::new())]));
        Tree { seen: root.clone(), durable: root, journal: Vec::new(), journal_end: 0, inode_next: ROOT.0 + 1 }
    }

    /// What `path` names. A relative path starts at the root.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, or `EINVAL` for a path with `..` in it.
    pub(crate) fn lookup(&self, path: &Path) -> Result<Node, Errno> {
        let mut node = Node::Directory(ROOT);
        for name in components(path)? {
            let Node::Directory(directory) = node else { return Err(Errno(libc::ENOTDIR)) };
            node = self.seen.entry(directory, name).ok_or(Errno(libc::ENOENT))?;
        }
        Ok(node)
    }

    /// The directory that holds `path`, and the name it has there.
    pub(crate) fn parent<'a>(&self, path: &'a Path) -> Result<(Inode, &'a OsStr), Errno> {
        let name = components(path)?.pop().ok_or(Errno(libc::EBUSY))?;
        match self.lookup(path.parent().unwrap_or(Path::new("/")))? {
            Node::Directory(directory) => Ok((directory, name)),
            Node::File(_) => Err(Errno(libc::ENOTDIR)),
        }
    }

    /// The entries of a directory, by name.
    pub(crate) fn entries(&self, directory: Inode) -> impl Iterator<Item = (&OsStr, Node)> {
        self.seen.0.get(&directory).into_iter().flatten().map(|(name, node)| (name.as_os_str(), *node))
    }

    /// Makes a new file under a name that is free.
    pub(crate) fn create_file(&mut self, directory: Inode, name: &OsStr) -> Inode {
        let inode = self.new_inode();
        self.change(Change::Link { directory, name: name.to_owned(), node: Node::File(inode) });
        inode
    }

    /// Makes a new, empty directory under a name that is free.
    pub(crate) fn create_directory(&mut self, directory: Inode, name: &OsStr) {
        let inode = self.new_inode();
        self.change(Change::Link { directory, name: name.to_owned(), node: Node::Directory(inode) });
    }

    /// Removes a name; what it stood for lives on while a process has it open.
    pub(crate) fn unlink(&mut self, directory: Inode, name: &OsStr) {
        self.change(Change::Unlink { directory, name: name.to_owned() });
    }

    /// Gives `from` the name `to`, replacing what had it.
    ///
    /// # Errors
    /// As `rename(2)`: a directory replaces only an empty directory, a file only a file.
    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Errno> {
        let node = self.lookup(from)?;
        let (from_directory, from_name) = self.parent(from)?;
        let (to_directory, to_name) = self.parent(to)?;
        if let Some(replaced) = self.seen.entry(to_directory, to_name) {
            if replaced == node {
                return Ok(());
            }
            self.check_replaces(node, replaced)?;
        }
        let (from, to) = (from_name.to_owned(), to_name.to_owned());
        if from_directory == to_directory {
            self.change(Change::Rename { directory: from_directory, from, to, node });
        } else {
            let link = self.change(Change::Link { directory: to_directory, name: to, node });
            self.change(Change::UnlinkMoved { directory: from_directory, name: from, link });
        }
        Ok(())
    }

    fn check_replaces(&self, node: Node, replaced: Node) -> Result<(), Errno> {
        match (node, replaced) {
            (Node::File(_), Node::File(_)) => Ok(()),
            (Node::File(_), Node::Directory(_)) => Err(Errno(libc::EISDIR)),
            (Node::Directory(_), Node::File(_)) => Err(Errno(libc::ENOTDIR)),
            (Node::Directory(_), Node::Directory(inode)) if self.entries(inode).next().is_none() => Ok(()),
            (Node::Directory(_), Node::Directory(_)) => Err(Errno(libc::ENOTEMPTY)),
        }
    }

    /// Notes that the length of `file` was set.
    pub(crate) fn length_changed(&mut self, file: Inode) -> JournalPosition {
        self.change(Change::Length { file })
    }

    /// Where the next change will stand: a sync that starts now covers what lies before.
    pub(crate) fn journal_end(&self) -> JournalPosition {
        JournalPosition(self.journal_end)
    }

    /// Makes durable what a sync of `inode`, started when the journal ended at `end`, promises.
    pub(crate) fn sync(&mut self, inode: Inode, end: JournalPosition, metadata: Metadata) {
        match metadata {
            Metadata::OnlySynced => self.commit(|position, change| position < end && change.is_entry_of(inode)),
            Metadata::Journaled => {
                let last = self.journal.iter().rev().find(|(at, change)| *at < end && change.touches(inode));
                if let Some(&(last, _)) = last {
                    let end = self.whole_rename(JournalPosition(last.0 + 1));
                    self.commit(|position, _| position < end);
                }
            }
        }
    }

    /// Makes durable everything that was done before the journal ended at `end`.
    pub(crate) fn sync_all(&mut self, end: JournalPosition) {
        let end = self.whole_rename(end);
        self.commit(|position, _| position < end);
    }

    /// Whether a set length at `position` is durable though its file was not synced: another sync took it along.
    pub(crate) fn is_committed(&self, position: JournalPosition) -> bool {
        self.journal.binary_search_by_key(&position, |(at, _)| *at).is_err()
    }

    /// Forgets a set length that its own file's sync has made durable.
    pub(crate) fn length_synced(&mut self, position: JournalPosition) {
        self.commit(|at, _| at == position);
    }

    /// Power is lost: some of the journal survives, and what survived is all there is.
    pub(crate) fn cut(&mut self, metadata: Metadata, random: &mut Random, per_mille: u64) {
        match metadata {
            Metadata::Journaled => {
                let survivors = match per_mille {
                    0 => 0,
                    1000 => self.journal.len(),
                    _ => random.below(self.journal.len() as u64 + 1) as usize,
                };
                let end = self.journal.get(survivors).map_or(self.journal_end(), |(at, _)| *at);
                let end = self.whole_rename(end);
                self.commit(|position, _| position < end);
            }
            Metadata::OnlySynced => {
                let surviving: BTreeSet<JournalPosition> =
                    self.journal.iter().filter(|_| random.chance(per_mille)).map(|(at, _)| *at).collect();
                let lost_link = |change: &Change| match change {
                    Change::UnlinkMoved { link, .. } => {
                        !surviving.contains(link) && self.journal.iter().any(|(at, _)| at == link)
                    }
                    _ => false,
                };
                let orphaned: BTreeSet<JournalPosition> =
                    self.journal.iter().filter(|(_, change)| lost_link(change)).map(|(at, _)| *at).collect();
                self.commit(|position, _| surviving.contains(&position) && !orphaned.contains(&position));
            }
        }
    }

    /// A journal holds both halves of a rename between directories or none: `end`, or the position behind the second half.
    fn whole_rename(&self, end: JournalPosition) -> JournalPosition {
        let next = self.journal.iter().find(|(position, _)| *position == end);
        match next {
            Some((position, Change::UnlinkMoved { .. })) => JournalPosition(position.0 + 1),
            _ => end,
        }
    }

    /// After [`Tree::cut`] and once set lengths were looked up: nothing is pending any more.
    pub(crate) fn restart(&mut self) {
        self.journal.clear();
        self.durable.keep_reachable();
        self.seen = self.durable.clone();
    }

    /// Files and directories that still have a name, or could get it back by a power cut.
    pub(crate) fn named(&self) -> BTreeSet<Inode> {
        let mut named = self.seen.reachable();
        named.extend(self.durable.reachable());
        for (_, change) in &self.journal {
            if let Change::Link { node, .. } | Change::Rename { node, .. } = change {
                named.insert(node.inode());
            }
        }
        named
    }

    /// Moves the changes that `chosen` picks from the journal to the durable names, in their order.
    fn commit(&mut self, mut chosen: impl FnMut(JournalPosition, &Change) -> bool) {
        let Tree { durable, journal, .. } = self;
        journal.retain(|(position, change)| {
            let commit = chosen(*position, change);
            if commit {
                durable.apply(change);
            }
            !commit
        });
    }

    fn change(&mut self, change: Change) -> JournalPosition {
        let position = self.journal_end();
        self.journal_end += 1;
        self.seen.apply(&change);
        self.journal.push((position, change));
        position
    }

    fn new_inode(&mut self) -> Inode {
        self.inode_next += 1;
        Inode(self.inode_next - 1)
    }
}

/// The names in a path, without the root and without `.`.
fn components(path: &Path) -> Result<Vec<&OsStr>, Errno> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(Ok(name)),
            Component::RootDir | Component::CurDir => None,
            Component::ParentDir | Component::Prefix(_) => Some(Err(Errno(libc::EINVAL))),
        })
        .collect()
}
