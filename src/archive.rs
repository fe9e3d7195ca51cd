//! A .tar.gz, for tickets: POSIX `ustar` headers, in a gzip member of stored blocks.
//!
//! Stored, not compressed: what goes in is small, every `tar` reads it, and a compressor
//! would be the tool's largest dependency for its least used command.

/// A file to pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its path, at most [`NAME_MAX`] bytes.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// Longest name, in bytes (POSIX.1-1988 `ustar`; the prefix field is not used).
pub const NAME_MAX: usize = 100;

const BLOCK: usize = 512;

/// Packs `members`, last changed at `time`, seconds since 1970.
///
/// # Errors
/// If a name is too long, or a member larger than 8 GB.
pub fn tar_gz(members: &[Member], time: u64) -> Result<Vec<u8>, String> {
    let mut tar = Vec::new();
    for member in members {
        tar.extend(header(member, time)?);
        tar.extend(&member.bytes);
        pad(&mut tar);
    }
    // Two empty blocks end it.
    tar.extend([0; 2 * BLOCK]);
    Ok(gzip(&tar))
}

fn pad(tar: &mut Vec<u8>) {
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

fn header(member: &Member, time: u64) -> Result<Vec<u8>, String> {
    if member.name.len() > NAME_MAX {
        return Err(format!("`{}` is too long a name", member.name));
    }
    let octal = |value: u64, width: usize| {
        let text = format!("{value:0width$o}\0");
        if text.len() == width + 1 {
            Ok(text)
        } else {
            Err(format!("`{}` is too large", member.name))
        }
    };
    let size = u64::try_from(member.bytes.len()).map_err(|error| error.to_string())?;
    let mut fields: Vec<u8> = Vec::with_capacity(BLOCK);
    fields.extend(member.name.as_bytes());
    fields.resize(NAME_MAX, 0);
    for field in [
        octal(0o600, 7)?,
        octal(0, 7)?,
        octal(0, 7)?,
        octal(size, 11)?,
        octal(time, 11)?,
    ] {
        fields.extend(field.as_bytes());
    }
    let checksum_at = fields.len();
    // The sum is taken with its own field full of spaces; `0` is a plain file.
    fields.extend(b"        0");
    fields.resize(257, 0);
    fields.extend(b"ustar\x0000root\0");
    fields.resize(297, 0);
    fields.extend(b"root");
    fields.resize(BLOCK, 0);
    let sum: u64 = fields.iter().map(|byte| u64::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    for (field, byte) in fields.iter_mut().skip(checksum_at).zip(sum.bytes()) {
        *field = byte;
    }
    Ok(fields)
}

/// A gzip member (RFC 1952) whose deflate stream (RFC 1951) has stored blocks only.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    // Magic, deflate, no flags, no time, no hint, Unix.
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    let mut chunks = bytes.chunks(usize::from(u16::MAX)).peekable();
    while let Some(chunk) = chunks.next() {
        let length = u16::try_from(chunk.len()).unwrap_or(u16::MAX);
        out.push(u8::from(chunks.peek().is_none()));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(chunk);
    }
    out.extend(crc32(bytes).to_le_bytes());
    #[expect(
        clippy::cast_possible_truncation,
        reason = "RFC 1952: the size modulo 2^32"
    )]
    out.extend((bytes.len() as u32).to_le_bytes());
    out
}

/// CRC-32 as in RFC 1952, 8.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::process;

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_is_packed_is_unpacked_by_tar() {
        let large: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        let members = [
            ("a/empty", Vec::new()),
            ("a/small.txt", b"hello\n".to_vec()),
            ("a/large", large.clone()),
        ]
        .map(|(name, bytes)| Member {
            name: name.to_owned(),
            bytes,
        });
        let packed = tar_gz(&members, 1_700_000_000).unwrap();
        let soon = std::time::Duration::from_secs(10);
        let run = |arguments: &[&str]| {
            let output = process::run("tar", arguments, &packed, soon).unwrap();
            assert!(output.status.success(), "{}", output.complaint());
            output.stdout
        };
        let listed = String::from_utf8(run(&["-tzvf", "-"])).unwrap();
        assert!(listed.contains("-rw------- root/root"), "{listed}");
        assert!(listed.contains("2023-11-14"), "{listed}");
        assert_eq!(listed.lines().count(), 3);
        assert_eq!(run(&["-xzOf", "-", "a/large"]), large);
        assert_eq!(run(&["-xzOf", "-", "a/small.txt"]), b"hello\n");
        let long = Member {
            name: "n".repeat(101),
            bytes: Vec::new(),
        };
        assert!(tar_gz(&[long], 0).is_err());
    }
}
