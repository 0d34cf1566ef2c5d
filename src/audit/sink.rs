//! Where lines go: standard output, or a file that may be moved away while we write.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

/// A sink. What cannot be written whole is continued by the next try.
pub(super) struct Sink {
    file: File,
    /// How much of the current line is written.
    written: usize,
    /// Nothing for standard output.
    path: Option<PathBuf>,
}

impl Sink {
    pub(super) fn stdout() -> io::Result<Self> {
        // Without the buffer of std's own: what cannot be written must be known.
        Ok(Self::of(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }

    /// What is open already, and has no path to follow.
    pub(super) fn of(file: File) -> Self {
        Self { file, written: 0, path: None }
    }

    pub(super) fn file(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: open(&path)?, written: 0, path: Some(path) })
    }

    pub(super) fn write(&mut self, line: &str) -> io::Result<()> {
        self.follow()?;
        let line = line.as_bytes();
        while self.written < line.len() {
            match self.file.write(&line[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.written = 0;
        Ok(())
    }

    /// Opens the file anew once it was moved away or removed, as logrotate does; no signal is needed.
    fn follow(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let ours = self.file.metadata()?;
        let is_ours =
            std::fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
        if !is_ours {
            self.file = open(path)?;
            // A line that was begun in the old file is whole in the new one.
            self.written = 0;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    // It holds pseudonyms of people: not for everybody, but for a group that ships it.
    let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
    if ends_within_a_line(path).unwrap_or(false) {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// A process that died, or a full disk, may have left half a line.
fn ends_within_a_line(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if !file.metadata()?.is_file() || file.metadata()?.len() == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_moved_away_is_begun_anew_and_half_a_line_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("log"), dir.path().join("log.1"));
        fs::write(&path, "half").unwrap();
        let mut sink = Sink::file(path.clone()).unwrap();
        sink.write("one\n").unwrap();
        fs::rename(&path, &moved).unwrap();
        sink.write("two\n").unwrap();
        assert_eq!(fs::read_to_string(&moved).unwrap(), "half\none\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
    }
}
