//! The key that usernames are hashed with, and its rotation.

use std::{
    fmt::Write as _,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tracing::{info, warn};

/// A shorter one could be guessed, and with it every username.
const SHORTEST: usize = 32;
/// What the key's id is the hash of.
const ID_OF: &str = "cognito-signout audit key id";

/// A key.
pub(super) struct Key {
    /// Tells keys apart and says nothing about them.
    pub(super) id: String,
    mac: Hmac<Sha256>,
}

impl Key {
    fn new(bytes: &[u8]) -> io::Result<Self> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        if bytes.len() < SHORTEST {
            return Err(invalid(format!(
                "the key has {} bytes, and must have {SHORTEST}; make one by: openssl rand -hex 32",
                bytes.len()
            )));
        }
        let mac = Hmac::new_from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        let mut key = Self { id: String::new(), mac };
        key.id = key.hash(ID_OF)[..16].to_owned();
        Ok(key)
    }

    /// The hash of a text, in hexadecimal digits.
    pub(super) fn hash(&self, text: &str) -> String {
        let mut mac = self.mac.clone();
        mac.update(text.as_bytes());
        let mut digits = String::with_capacity(64);
        for byte in mac.finalize().into_bytes() {
            let _ = write!(digits, "{byte:02x}");
        }
        digits
    }
}

/// The key in a file, and what was last seen there.
pub(super) struct Keys {
    path: PathBuf,
    seen: Mutex<Seen>,
}

struct Seen {
    key: Arc<Key>,
    bytes: Vec<u8>,
    failing: bool,
}

impl Keys {
    pub(super) fn read(path: PathBuf) -> io::Result<Self> {
        let bytes = read(&path)?;
        let key = Arc::new(Key::new(&bytes)?);
        Ok(Self { path, seen: Mutex::new(Seen { key, bytes, failing: false }) })
    }

    pub(super) fn current(&self) -> Arc<Key> {
        self.seen().key.clone()
    }

    /// Looks at the file again. `None` if there is nothing new, else whether the new key could be taken. Contents are
    /// compared, for mounted secrets are replaced by swapping a link.
    pub(super) fn refresh(&self) -> Option<bool> {
        let read = read(&self.path);
        let mut seen = self.seen();
        let read = match read {
            Ok(bytes) if bytes == seen.bytes => {
                seen.failing = false;
                return None;
            }
            Ok(bytes) => Key::new(&bytes).map(|key| (bytes, key)),
            Err(error) => Err(error),
        };
        match read {
            Ok((bytes, key)) => {
                info!(
                    old = seen.key.id,
                    new = key.id,
                    "audit: usernames are hashed with another key from now on"
                );
                *seen = Seen { key: Arc::new(key), bytes, failing: false };
                Some(true)
            }
            Err(_) if seen.failing => None,
            Err(error) => {
                warn!(path = %self.path.display(), %error, "audit: the key cannot be read anew, the old one stays in use");
                seen.failing = true;
                Some(false)
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the file holds, without the line's end that editors and tools add.
fn read(path: &PathBuf) -> io::Result<Vec<u8>> {
    let mut bytes = fs::read(path)?;
    while bytes.last().is_some_and(|last| matches!(last, b'\n' | b'\r')) {
        bytes.pop();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_replaced_and_a_bad_one_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let write = |text: &str| fs::write(&path, text).unwrap();
        write("too short");
        assert!(Keys::read(path.clone()).err().unwrap().to_string().contains("openssl rand"));

        write(&"a".repeat(32));
        let keys = Keys::read(path.clone()).unwrap();
        let old = keys.current();
        assert_eq!(keys.refresh(), None);
        write("too short");
        assert_eq!(keys.refresh(), Some(false));
        assert_eq!(keys.refresh(), None, "told once");
        assert_eq!(keys.current().id, old.id);
        write(&"b".repeat(32));
        assert_eq!(keys.refresh(), Some(true));
        assert_ne!(keys.current().id, old.id);
        assert_ne!(keys.current().hash("ada"), old.hash("ada"));
    }
}
