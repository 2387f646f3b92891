//! The directory that the lock files are in: from a URL, made safe to use, shared by the managers of a process.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, DirBuilder},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use url::Url;

use super::{entry::Entry, name};
use crate::{
    Error, ErrorKind, Resource, Result,
    engine::process::{self, PerProcess},
    pattern::Pattern,
};

/// Entries, and with them open files, that are kept for the next use.
const KEPT: usize = 128;

/// File systems whose locks may end at this host, though other hosts see the files. From `statfs(2)`.
const NETWORK: [(u64, &str); 17] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x7461_636f, "OCFS2"),
    (0x0116_1970, "GFS2"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x786f_4256, "VirtualBox shared folder"),
    (0x2003_0528, "OrangeFS"),
];

/// What a `file:` URL says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    path: PathBuf,
    /// A network file system will do.
    network: bool,
}

impl Place {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let invalid = |why: &str| Error::invalid("url", why);
        // The parser would take `file:locks` for `file:///locks`.
        if !url.get("file:".len()..).is_some_and(|path| path.starts_with('/')) {
            return Err(invalid("must name a directory of this host, as in file:///var/lock/app"));
        }
        let url = Url::parse(url).map_err(|error| Error::invalid("url", format!("is not a URL: {error}")))?;
        if url.fragment().is_some() {
            return Err(invalid("must not have a #fragment; write # as %23"));
        }
        let path = url.to_file_path().ok().filter(|path| path.parent().is_some());
        let path = path.filter(|path| !path.as_os_str().as_bytes().contains(&0));
        let Some(path) = path else {
            return Err(invalid("must name a directory of this host, as in file:///var/lock/app"));
        };
        let mut network = false;
        for (key, value) in url.query_pairs() {
            match (&*key, &*value) {
                ("network", "allow") => network = true,
                ("network", "refuse") => network = false,
                ("network", _) => return Err(invalid("takes network=allow or network=refuse")),
                (other, _) => return Err(invalid(&format!("has the unknown option {other:?}"))),
            }
        }
        Ok(Self { path: path.components().collect(), network })
    }
}

/// A directory of lock files as this process knows it.
///
/// All managers of one process on one path share it, so that they exclude each other without asking the system;
/// over different paths to one directory (links, bind mounts) the lock of the file itself excludes.
pub(super) struct Directory {
    place: Place,
    generation: u32,
    /// The directory was there and fit for use.
    ready: AtomicBool,
    entries: Mutex<Entries>,
}

struct Entries {
    by_resource: HashMap<Resource, Arc<Entry>>,
    /// Idle entries are dropped when there are more.
    sweep_at: usize,
}

/// The directories in use.
static KNOWN: PerProcess<Mutex<HashMap<Place, Weak<Directory>>>> = PerProcess::new(Mutex::default);

impl Directory {
    /// The directory at `place`. Looks at nothing yet.
    pub(super) fn at(place: Place) -> Arc<Self> {
        let known = KNOWN.get();
        let mut directories = known.lock().unwrap_or_else(PoisonError::into_inner);
        directories.retain(|_, directory| directory.strong_count() > 0);
        if let Some(directory) = directories.get(&place).and_then(Weak::upgrade) {
            return directory;
        }
        let directory = Arc::new(Self {
            place: place.clone(),
            generation: known.generation(),
            ready: AtomicBool::new(false),
            entries: Mutex::new(Entries { by_resource: HashMap::new(), sweep_at: KEPT }),
        });
        directories.insert(place, Arc::downgrade(&directory));
        directory
    }

    pub(super) fn path(&self) -> &Path {
        &self.place.path
    }

    /// What this process knows of `resource`.
    pub(super) fn entry(&self, resource: &Resource) -> Arc<Entry> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.by_resource.get(resource) {
            return Arc::clone(entry);
        }
        if entries.by_resource.len() >= entries.sweep_at {
            // Entries are handed out under this lock, so one that nobody else has stays so.
            entries.by_resource.retain(|_, entry| Arc::get_mut(entry).is_none_or(|entry| !entry.is_idle()));
            entries.sweep_at = KEPT.max(2 * entries.by_resource.len());
        }
        let entry = Arc::new(Entry::new(self.place.path.join(name::lock_file(resource.as_str()))));
        entries.by_resource.insert(resource.clone(), Arc::clone(&entry));
        entry
    }

    /// Closes the file of a resource that was released, unless few files are open.
    pub(super) fn tidy(&self, resource: &Resource) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.by_resource.len() > KEPT
            && let Some(entry) = entries.by_resource.get_mut(resource)
            && Arc::get_mut(entry).is_some_and(|entry| entry.is_idle())
        {
            entries.by_resource.remove(resource);
        }
    }

    /// Closes every file that nobody holds or waits for.
    pub(super) fn close_idle(&self) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.by_resource.retain(|_, entry| Arc::get_mut(entry).is_none_or(|entry| !entry.is_idle()));
    }

    /// Makes the directory if it is missing, and finds out whether locks can be kept in it. Looks once.
    pub(super) fn make_ready(&self) -> Result<()> {
        if self.ready.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.check().map_err(|error| error_at(self.path(), error))?;
        self.ready.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes what is missing above the lock file at `path`.
    pub(super) fn make_parents(&self, path: &Path) -> Result<()> {
        self.ready.store(false, Ordering::Relaxed);
        self.make_ready()?;
        match path.parent() {
            Some(parent) => make_directory(parent).map_err(|error| error_at(parent, error)),
            None => Ok(()),
        }
    }

    /// The resources that match and have a lock file, held or not, in the order of their names.
    pub(super) fn resources(&self, pattern: &Pattern) -> Result<Vec<Resource>> {
        let mut resources = Vec::new();
        let mut directories = vec![PathBuf::new()];
        while let Some(directory) = directories.pop() {
            let path = self.path().join(&directory);
            for file in fs::read_dir(&path).map_err(|error| error_at(&path, error))? {
                let file = file.map_err(|error| error_at(&path, error))?;
                let path = directory.join(file.file_name());
                // What is neither is not ours.
                if let Some(name) = name::resource(&path) {
                    resources.extend(Resource::new(&name).ok().filter(|name| pattern.matches(name.as_str())));
                } else if name::is_part(&path) {
                    directories.push(path);
                }
            }
        }
        resources.sort();
        Ok(resources)
    }

    fn check(&self) -> io::Result<()> {
        let unsupported = |why: String| Err(io::Error::new(io::ErrorKind::Unsupported, why));
        make_directory(self.path())?;
        let metadata = fs::metadata(self.path())?;
        if !metadata.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if metadata.mode() & 0o002 != 0 && metadata.mode() & 0o1000 == 0 {
            return unsupported("everybody may delete what is in it: it is world-writable and not sticky".to_owned());
        }
        if !self.place.network {
            #[allow(clippy::unnecessary_cast, reason = "its type differs between architectures")]
            let magic = rustix::fs::statfs(self.path())?.f_type as u64 & 0xffff_ffff;
            if let Some((_, kind)) = NETWORK.iter().find(|(network, _)| *network == magic) {
                let why = format!("it is on a network file system ({kind}); ?network=allow allows that");
                return unsupported(why);
            }
        }
        Ok(())
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    // Looked at first: a directory above it may be there, yet not for us to make.
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => io::ErrorKind::NotADirectory.into(),
        _ => error,
    })
}

/// What `error` means for a lock at `path`.
pub(super) fn error_at(path: &Path, error: impl Into<io::Error>) -> Error {
    use io::ErrorKind as Io;
    let error = error.into();
    let (kind, why) = match error.kind() {
        Io::PermissionDenied => (ErrorKind::Auth, "permission denied".to_owned()),
        Io::ReadOnlyFilesystem | Io::Unsupported | Io::NotADirectory => (ErrorKind::Unsupported, error.to_string()),
        Io::IsADirectory | Io::AlreadyExists => {
            (ErrorKind::Conflict, "it is something else than a lock file".to_owned())
        }
        _ => match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::LOOP) => (ErrorKind::Conflict, "it is a symbolic link".to_owned()),
            Some(rustix::io::Errno::NOLCK) => (ErrorKind::Unsupported, error.to_string()),
            _ => (ErrorKind::Unavailable, error.to_string()),
        },
    };
    Error::new(kind, format!("cannot lock {}: {why}", path.display()))
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.generation != process::generation() {
            // Another thread may have been at work in it during the fork.
            std::mem::forget(std::mem::take(
                &mut self.entries.get_mut().unwrap_or_else(PoisonError::into_inner).by_resource,
            ));
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("place", &self.place).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls() {
        let place = |url: &str| Place::parse(url).map(|place| (place.path, place.network));
        let app = |network| Some((PathBuf::from("/var/lock/app"), network));
        assert_eq!(place("file:///var/lock/app").ok(), app(false));
        assert_eq!(place("file:/var/lock/./app/").ok(), app(false));
        assert_eq!(place("file://localhost/var/lock/app?network=allow").ok(), app(true));
        assert_eq!(place("file:///a%20b%23").ok(), Some((PathBuf::from("/a b#"), false)));
        for bad in [
            "file:",
            "file:locks",
            "file:///",
            "file://other/var/lock",
            "file:///a#b",
            "file:///a?network=yes",
            "file:///a?x=y",
            "file:///a%00b",
        ] {
            assert_eq!(place(bad).unwrap_err().argument(), Some("url"), "{bad}");
        }
    }

    #[test]
    fn keeps_few_idle_entries_and_all_that_are_in_use() {
        let directory = Directory::at(Place { path: "/nowhere/at/all".into(), network: false });
        let used = Resource::new("used").unwrap();
        let entry = directory.entry(&used);
        for number in 0..10 * KEPT {
            directory.entry(&Resource::new(&number.to_string()).unwrap());
        }
        assert!(Arc::ptr_eq(&entry, &directory.entry(&used)));
        assert!(directory.entries.lock().unwrap().by_resource.len() <= KEPT + 1);
    }
}
