//! The results file: a JSON object a line, only ever appended to, from which a run is resumed.
//!
//! Whatever was written before a crash counts. A last line that was cut short is taken away, so that what comes after it
//! stands on a line of its own; a line that cannot be read counts for nothing, so that its user is signed out again.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions, TryLockError},
    hash::{BuildHasher as _, RandomState},
    io::{self, BufRead as _, BufReader, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use tokio::{sync::mpsc, task::JoinHandle};

use super::input::Wanted;

/// Who is signed out already, by 128 bits of hash each: a million cost some 40 MB less than their names.
#[derive(Debug, Default)]
pub(super) struct Done {
    keys: [RandomState; 2],
    users: HashSet<(u64, u64)>,
}

impl Done {
    fn key(&self, user: &Wanted) -> (u64, u64) {
        (self.keys[0].hash_one(user), self.keys[1].hash_one(user))
    }

    /// Whether an earlier run signed the user out.
    pub(super) fn contains(&self, user: &Wanted) -> bool {
        !self.users.is_empty() && self.users.contains(&self.key(user))
    }

    pub(super) fn len(&self) -> usize {
        self.users.len()
    }

    fn read(file: &File) -> io::Result<(Self, u64)> {
        let mut done = Self::default();
        let mut reader = BufReader::new(file);
        let (mut line, mut whole) = (Vec::new(), 0);
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                return Ok((done, whole));
            }
            whole += length as u64;
            let Ok(value) = serde_json::from_slice::<serde_json::Value>(&line) else { continue };
            let field = |name: &str| value.get(name).and_then(|value| value.as_str()).map(str::to_owned);
            if let (Some("signed_out"), Some(user_pool_id), Some(username)) =
                (field("status").as_deref(), field("user_pool_id"), field("username"))
            {
                let key = done.key(&Wanted { user_pool_id, username });
                done.users.insert(key);
            }
        }
    }
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(
        "there are results in it already; say --resume to go on with them, or choose another by --results"
    )]
    NotEmpty,
    #[error("another run is writing to it")]
    Locked,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What an earlier run did, without touching anything.
pub(super) fn look(path: &Path, resume: bool) -> Result<Done, OpenError> {
    match File::open(path) {
        Ok(file) if resume => Ok(Done::read(&file)?.0),
        Ok(file) if file.metadata()?.len() > 0 => Err(OpenError::NotEmpty),
        Ok(_) => Ok(Done::default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Done::default()),
        Err(error) => Err(error.into()),
    }
}

/// Opens the file to append to it. It holds usernames, so it is for its owner alone.
pub(super) fn open(path: &Path, resume: bool) -> Result<(Done, File), OpenError> {
    let options = OpenOptions::new().read(true).append(true).create(true).mode(0o600).clone();
    let mut file = options.open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::Locked),
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    if !resume && file.metadata()?.len() > 0 {
        return Err(OpenError::NotEmpty);
    }
    let (done, whole) = Done::read(&file)?;
    file.set_len(whole)?;
    file.seek(io::SeekFrom::End(0))?;
    Ok((done, file))
}

/// Writes lines as they come and syncs them: while one sync lasts, the lines for the next gather.
pub(super) fn writer(mut file: File) -> (mpsc::Sender<String>, JoinHandle<io::Result<()>>) {
    const AT_ONCE: usize = 1024;
    let (sender, mut lines) = mpsc::channel::<String>(AT_ONCE);
    let task = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        while let Some(line) = lines.blocking_recv() {
            bytes.clear();
            bytes.extend(line.into_bytes());
            bytes.push(b'\n');
            while bytes.len() < 1 << 20
                && let Ok(line) = lines.try_recv()
            {
                bytes.extend(line.into_bytes());
                bytes.push(b'\n');
            }
            file.write_all(&bytes)?;
            file.sync_data()?;
        }
        Ok(())
    });
    (sender, task)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn line(username: &str, status: &str) -> String {
        format!("{{\"user_pool_id\":\"pool\",\"username\":\"{username}\",\"status\":\"{status}\"}}\n")
    }

    fn user(username: &str) -> Wanted {
        Wanted { user_pool_id: "pool".to_owned(), username: username.to_owned() }
    }

    #[test]
    fn a_crash_at_any_byte_loses_nothing_that_was_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.jsonl");
        let (first, failed, last) =
            (line("ada", "signed_out"), line("bob", "failed"), line("carol", "signed_out"));
        let whole = [first.as_str(), failed.as_str(), last.as_str()].concat();
        for length in 0..=whole.len() {
            fs::write(&path, &whole.as_bytes()[..length]).unwrap();
            let (done, mut file) = open(&path, true).unwrap();
            assert_eq!(done.contains(&user("ada")), length >= first.len(), "{length}");
            assert!(!done.contains(&user("bob")), "who was not signed out is tried again");
            assert_eq!(done.contains(&user("carol")), length == whole.len());
            // What follows stands on a line of its own.
            file.write_all(line("dave", "signed_out").as_bytes()).unwrap();
            drop(file);
            let (done, _file) = open(&path, true).unwrap();
            assert!(done.contains(&user("dave")), "{length}");
        }
    }

    #[test]
    fn results_are_neither_overwritten_nor_shared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.jsonl");
        let (_, file) = open(&path, false).unwrap();
        assert!(matches!(open(&path, true), Err(OpenError::Locked)));
        drop(file);
        fs::write(&path, line("ada", "failed")).unwrap();
        assert!(matches!(open(&path, false), Err(OpenError::NotEmpty)));
        assert!(matches!(look(&path, false), Err(OpenError::NotEmpty)));
    }
}
