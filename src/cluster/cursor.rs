//! SCAN over all masters: one behind the other, in the order of their slots.
//!
//! A cursor holds the node's own cursor and which of the masters it is of, so that it means the same in every instance, and after
//! a failover, which changes no order.

use bytes::{Bytes, BytesMut};

use crate::resp::{Request, bulk, elements, encode};

/// More masters than this cannot be told apart.
pub const MOST_MASTERS: usize = 256;
const RADIX: u64 = 256;

/// The cursor of a SCAN: which master is meant, and the command for it. `None`: it is no number, which any node says.
#[must_use]
pub fn scan_of(request: &Request<'_>) -> Option<(usize, Bytes)> {
    let text = std::str::from_utf8(request.arg(1)?).ok()?;
    let cursor: u64 = text.parse().ok()?;
    let own = (cursor / RADIX).to_string();
    let mut words: Vec<&[u8]> = request.args().collect();
    *words.get_mut(1)? = own.as_bytes();
    Some((usize::try_from(cursor % RADIX).ok()?, encode::one_command(&words)))
}

/// The reply of the master with number `at`, of so many, as the client gets it: a node that has come to its end is followed by the
/// next. `None`: it is an error, or no answer to SCAN.
#[must_use]
pub fn scanned(reply: &[u8], at: usize, masters: usize) -> Option<Bytes> {
    let mut parts = elements(reply)?;
    let own: u64 = std::str::from_utf8(bulk(parts.next()?)?).ok()?.parse().ok()?;
    let found = parts.next()?;
    let (number, next) = (u64::try_from(at).ok()?, u64::try_from(at + 1).ok()?);
    let cursor = match own {
        0 if at + 1 < masters => next,
        0 => 0,
        own => own.checked_mul(RADIX)?.checked_add(number)?,
    };
    let mut out = BytesMut::new();
    encode::array(&mut out, 2);
    encode::bulk(&mut out, cursor.to_string().as_bytes());
    out.extend_from_slice(found);
    Some(out.freeze())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn scan(line: &str) -> Option<(usize, String)> {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let frame = encode::one_command(&words);
        let (at, command) = scan_of(&Request::parse(&frame).unwrap())?;
        let words = Request::parse(&command).unwrap();
        Some((
            at,
            words.args().map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>().join(" "),
        ))
    }

    fn answer(cursor: u64) -> String {
        let cursor = cursor.to_string();
        format!("*2\r\n${}\r\n{cursor}\r\n*1\r\n$1\r\nk\r\n", cursor.len())
    }

    #[test]
    fn a_cursor_names_the_master_and_its_own_cursor() {
        assert_eq!(scan("SCAN 0 COUNT 5"), Some((0, "SCAN 0 COUNT 5".to_owned())));
        assert_eq!(scan("SCAN 2"), Some((2, "SCAN 0".to_owned())));
        assert_eq!(scan("SCAN 4353"), Some((1, "SCAN 17".to_owned())));
        assert_eq!(scan("SCAN x"), None);
        assert_eq!(scan("SCAN -1"), None);
    }

    #[test]
    fn the_end_of_one_master_is_the_beginning_of_the_next() {
        let told = |cursor, at| {
            scanned(answer(cursor).as_bytes(), at, 3).map(|reply| String::from_utf8(reply.to_vec()).unwrap())
        };
        assert_eq!(told(17, 1), Some(answer(4353)));
        assert_eq!(told(0, 1), Some(answer(2)));
        assert_eq!(told(0, 2), Some(answer(0)));
        assert_eq!(scanned(b"-ERR syntax error\r\n", 0, 3), None);
        assert_eq!(told(u64::MAX, 0), None);
    }
}
