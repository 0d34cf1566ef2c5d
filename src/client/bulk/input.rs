//! The users to sign out, read one at a time: text, CSV or JSON Lines.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use crate::config::InputFormat;

/// One user of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Which record of the input it is, counted from 1.
    pub(super) number: u64,
    /// Whom to sign out, or what is wrong with the record.
    pub(super) user: Result<Wanted, String>,
}

/// A user as the input names it, not checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) user_pool_id: String,
    pub(super) username: String,
}

/// Records as they are read; an error ends them.
pub(super) type Records = Box<dyn Iterator<Item = io::Result<Record>> + Send>;

/// The same before they are counted.
type Users = Box<dyn Iterator<Item = io::Result<Result<Wanted, String>>> + Send>;

/// Opens the input; `-` is standard input. `pool` is for records that name none.
pub(super) fn open(file: &Path, format: Option<InputFormat>, pool: Option<String>) -> io::Result<Records> {
    let reader: Box<dyn Read + Send> =
        if is_stdin(file) { Box::new(io::stdin()) } else { Box::new(File::open(file)?) };
    read(reader, format.unwrap_or_else(|| format_of(file)), pool)
}

/// Whether the file stands for standard input.
pub(super) fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn format_of(file: &Path) -> InputFormat {
    let extension = file.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("csv") => InputFormat::Csv,
        Some("jsonl" | "ndjson" | "json") => InputFormat::Jsonl,
        _ => InputFormat::Text,
    }
}

fn read(
    reader: impl Read + Send + 'static,
    format: InputFormat,
    pool: Option<String>,
) -> io::Result<Records> {
    let mut reader = BufReader::new(reader);
    // Spreadsheets put a byte order mark in front, which no username begins with.
    if reader.fill_buf()?.starts_with(b"\xEF\xBB\xBF") {
        reader.consume(3);
    }
    let users: Users = match format {
        InputFormat::Text => Box::new(lines(reader).map(move |line| {
            line.map(|line| line.and_then(|username| wanted(None, Some(username), pool.as_ref())))
        })),
        InputFormat::Jsonl => Box::new(
            lines(reader)
                .map(move |line| line.map(|line| line.and_then(|line| from_json(&line, pool.as_ref())))),
        ),
        InputFormat::Csv => from_csv(reader, pool)?,
    };
    Ok(Box::new(users.zip(1..).map(|(user, number)| user.map(|user| Record { number, user }))))
}

/// Lines that are not empty, without their ends; nothing else is trimmed.
fn lines(reader: impl BufRead) -> impl Iterator<Item = io::Result<Result<String, String>>> {
    reader
        .split(b'\n')
        .map(|line| {
            line.map(|mut line| {
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                String::from_utf8(line).map_err(|_| "is not UTF-8".to_owned())
            })
        })
        .filter(|line| !matches!(line, Ok(Ok(line)) if line.is_empty()))
}

fn from_json(line: &str, pool: Option<&String>) -> Result<Wanted, String> {
    let value: serde_json::Value = serde_json::from_str(line).map_err(|_| "is not JSON".to_owned())?;
    let field = |name: &str| value.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    wanted(field("user_pool_id"), value.as_str().map(str::to_owned).or_else(|| field("username")), pool)
}

fn from_csv(reader: impl Read + Send + 'static, pool: Option<String>) -> io::Result<Users> {
    let mut csv = csv::ReaderBuilder::new().flexible(true).from_reader(reader);
    let header = csv.byte_headers().map_err(io::Error::from)?.clone();
    let column = |name: &str| header.iter().position(|column| column.eq_ignore_ascii_case(name.as_bytes()));
    let Some(username) = column("username") else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the header of the CSV has no column username",
        ));
    };
    let user_pool_id = column("user_pool_id");
    Ok(Box::new(csv.into_byte_records().map(move |row| {
        let row = row.map_err(io::Error::from)?;
        let text = |column: usize| {
            let bytes = row.get(column).unwrap_or_default();
            String::from_utf8(bytes.to_vec()).map_err(|_| "is not UTF-8".to_owned())
        };
        Ok(text(username).and_then(|username| {
            let own = user_pool_id.map(text).transpose()?.filter(|own| !own.is_empty());
            wanted(own, Some(username), pool.as_ref())
        }))
    })))
}

fn wanted(own: Option<String>, username: Option<String>, pool: Option<&String>) -> Result<Wanted, String> {
    let username = username.ok_or("has no username")?;
    let user_pool_id =
        own.or_else(|| pool.cloned()).ok_or("has no user_pool_id, and there is no --user-pool-id")?;
    Ok(Wanted { user_pool_id, username })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(format: InputFormat, text: &'static [u8]) -> Vec<Result<(String, String), String>> {
        let records = read(text, format, Some("pool".to_owned())).unwrap();
        records.map(|record| record.unwrap().user.map(|user| (user.user_pool_id, user.username))).collect()
    }

    fn user(pool: &str, name: &str) -> Result<(String, String), String> {
        Ok((pool.to_owned(), name.to_owned()))
    }

    #[test]
    fn text_is_a_username_a_line_untrimmed() {
        let read = users(InputFormat::Text, b"\xEF\xBB\xBFada\r\n\n bob \n#carol\n\xFF\nlast");
        assert_eq!(
            read,
            [
                user("pool", "ada"),
                user("pool", " bob "),
                user("pool", "#carol"),
                Err("is not UTF-8".to_owned()),
                user("pool", "last")
            ]
        );
    }

    #[test]
    fn csv_has_a_header_and_perhaps_a_column_for_the_pool() {
        let read = users(InputFormat::Csv, b"Email,Username,user_pool_id\nx,\"a,\"\"b\",other\ny,bob,\n");
        assert_eq!(read, [user("other", "a,\"b"), user("pool", "bob")]);
        assert!(super::read(&b"email\nx\n"[..], InputFormat::Csv, None).is_err());
    }

    #[test]
    fn json_lines_are_objects_or_strings() {
        let read = users(
            InputFormat::Jsonl,
            b"{\"username\":\"ada\",\"user_pool_id\":\"other\"}\n\"bob\"\n{}\nnonsense\n",
        );
        assert_eq!(
            read,
            [
                user("other", "ada"),
                user("pool", "bob"),
                Err("has no username".to_owned()),
                Err("is not JSON".to_owned())
            ]
        );
    }
}
