//! Unix sockets: there with their final mode and group from the first moment, and gone with the process.

use std::{
    fs::{self, DirBuilder, File, Permissions, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    time::{Instant, sleep},
};

use crate::config::SocketMode;

/// Who may connect.
#[derive(Debug, Clone)]
pub(super) struct Permission {
    /// The permission bits of the file.
    pub(super) mode: SocketMode,
    /// Its group, by name or number; what the directory and the process say if there is none.
    pub(super) group: Option<String>,
}

/// A bound unix socket.
pub(super) struct UnixSocket {
    // First, so that it is dropped first: as long as the socket is open, no other file can have its inode.
    _file: SocketFile,
    pub(super) listener: UnixListener,
}

/// Binds a socket that appears at `path` complete: listening, with its mode and group.
///
/// A socket is born with whatever mode the umask leaves it, so it is born where nobody else can reach it, and then
/// renamed. That also takes the place of a dead process's file in one step.
pub(super) async fn bind(path: &Path, permission: &Permission) -> io::Result<UnixSocket> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let nursery = Nursery::new(directory)?;
    let newborn = nursery.0.join("s");
    let listener = UnixListener::bind(&newborn)?;
    if let Some(group) = &permission.group {
        chown(&newborn, None, Some(gid(group)?)).map_err(|error| {
            let what = format!("it cannot be given to the group {group}, see --socket-group: {error}");
            io::Error::new(ErrorKind::InvalidInput, what)
        })?;
    }
    fs::set_permissions(&newborn, Permissions::from_mode(permission.mode.bits()))?;
    let file = SocketFile { path: path.to_owned(), id: id(&newborn)? };

    // Of two that start at one time, each would find the other's file dead or not there yet.
    let _lock = lock(directory).await?;
    must_be_free(path).await?;
    fs::rename(&newborn, path)?;
    Ok(UnixSocket { _file: file, listener })
}

/// The file of a socket, removed on the way out.
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have put another there; that one is theirs. Gone already is as good.
        if id(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What tells one file from every other that there is at the moment.
fn id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// A directory that only we can enter, beside the final place because a rename stays within a file system.
struct Nursery(PathBuf);

impl Nursery {
    fn new(parent: &Path) -> io::Result<Self> {
        loop {
            // Short, because the path of a socket may have hardly more than a hundred bytes.
            let name: String = std::iter::repeat_with(fastrand::alphanumeric).take(6).collect();
            let path = parent.join(format!(".{name}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => return created.map(|()| Self(path)),
            }
        }
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        // The socket is in it only if it did not come to be renamed.
        let _ = fs::remove_file(self.0.join("s"));
        let _ = fs::remove_dir(&self.0);
    }
}

/// Held for as long as the file is open.
async fn lock(directory: &Path) -> io::Result<Option<File>> {
    const PATIENCE: Duration = Duration::from_secs(5);
    const PAUSE: Duration = Duration::from_millis(10);

    // A directory that may be written to but not read cannot be opened; then there is no lock to be had.
    let Ok(file) = File::open(directory) else { return Ok(None) };
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if began.elapsed() < PATIENCE => sleep(PAUSE).await,
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    ErrorKind::ResourceBusy,
                    format!("another process keeps {} locked", directory.display()),
                ));
            }
            // Some file systems have no locks.
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
}

/// Whether the path may be taken: nothing is there, or the socket of a process that is dead.
async fn must_be_free(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "there is a file that is no socket; remove it"));
    }
    match UnixStream::connect(path).await {
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        // Answered, or too busy to answer.
        _ => Err(io::Error::new(ErrorKind::AddrInUse, "a process that is alive listens there")),
    }
}

/// The number of a group, given as such or by its name in /etc/group.
fn gid(group: &str) -> io::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group")?;
    let entry = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let number = entry.filter(|fields| fields[0] == group).find_map(|fields| fields.get(2)?.parse().ok());
    number.ok_or_else(|| {
        io::Error::new(ErrorKind::InvalidInput, format!("there is no group {group:?}; see --socket-group"))
    })
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use super::*;

    fn permission(mode: &str) -> Permission {
        Permission { mode: mode.parse().unwrap(), group: None }
    }

    #[tokio::test]
    async fn of_many_that_start_at_one_time_one_gets_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

        let permission = permission("600");
        let bound = futures_util::future::join_all((0..20).map(|_| bind(&path, &permission))).await;

        assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1);
        for error in bound.iter().filter_map(|bound| bound.as_ref().err()) {
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
        drop(bound);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn at_no_moment_is_there_a_socket_with_another_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let stop = Arc::new(AtomicBool::new(false));
        let (watched, stopped) = (path.clone(), stop.clone());
        let watcher = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                seen.extend(fs::symlink_metadata(&watched).map(|metadata| metadata.mode() & 0o7777));
            }
            seen
        });

        for _ in 0..1000 {
            drop(bind(&path, &permission("606")).await.unwrap());
        }

        stop.store(true, Ordering::Relaxed);
        assert_eq!(watcher.join().unwrap(), BTreeSet::from([0o606]));
    }

    #[tokio::test]
    async fn a_file_that_somebody_else_has_put_in_its_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let ours = bind(&path, &permission("600")).await.unwrap();
        fs::remove_file(&path).unwrap();
        let theirs = bind(&path, &permission("600")).await.unwrap();

        drop(ours);

        assert!(UnixStream::connect(&path).await.is_ok());
        drop(theirs);
        assert!(!path.exists());
    }

    #[test]
    fn a_group_is_a_number_or_a_name() {
        assert_eq!(gid("4711").unwrap(), 4711);
        assert_eq!(gid("root").unwrap(), 0);
        assert!(gid("no such group").unwrap_err().to_string().contains("--socket-group"));
    }
}
