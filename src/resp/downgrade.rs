//! A RESP3 reply as a RESP2 client knows it.
//!
//! A hub speaks RESP3 upstream and serves clients of both protocols. What it carries are the replies of blocking
//! commands: a score is a double there and a bulk here, with the same digits; XREAD's map of streams is an array of
//! pairs here; the missing body of a deleted entry is `_` there and `*-1` here. (`addReplyDouble` and
//! `addReplyNullArray` in redis `networking.c`, `xreadCommand` in `t_stream.c`.)

use bytes::{BufMut, BytesMut};

use super::elements::{bulk, elements, header_line, split_frame, without_attributes};

/// Appends a whole reply of a blocking command in RESP2's form. Its attributes are left out: RESP2 has none.
pub fn downgrade(frame: &[u8], out: &mut BytesMut) {
    let Some(frame) = without_attributes(frame) else { return };
    if frame.first() != Some(&b'%') {
        copy(frame, out);
        return;
    }
    let (Some((pairs, _)), Some(mut parts)) = (header_line(frame), elements(frame)) else { return };
    out.extend_from_slice(format!("*{pairs}\r\n").as_bytes());
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        out.extend_from_slice(b"*2\r\n");
        copy(name, out);
        copy(value, out);
    }
}

/// Copies a frame and what it holds. Flat: the frames of a whole reply follow one another in its bytes.
fn copy(mut rest: &[u8], out: &mut BytesMut) {
    while let Some(marker) = rest.first() {
        match marker {
            b'*' | b'%' | b'~' | b'>' => {
                let Some((count, behind)) = header_line(rest) else { return };
                let count = if *marker == b'%' { count.saturating_mul(2) } else { count };
                out.extend_from_slice(format!("*{count}\r\n").as_bytes());
                rest = behind;
            }
            _ => {
                let Some((leaf, behind)) = split_frame(rest) else { return };
                match marker {
                    b',' => {
                        let digits = bulk(leaf).unwrap_or_default();
                        out.extend_from_slice(format!("${}\r\n", digits.len()).as_bytes());
                        out.extend_from_slice(digits);
                        out.put_slice(b"\r\n");
                    }
                    b'_' => out.extend_from_slice(b"*-1\r\n"),
                    _ => out.extend_from_slice(leaf),
                }
                rest = behind;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resp2(frame: &[u8]) -> String {
        let mut out = BytesMut::new();
        downgrade(frame, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn scores_become_bulks_with_the_same_digits() {
        assert_eq!(
            resp2(b"*3\r\n$1\r\nk\r\n$1\r\nm\r\n,1.5\r\n"),
            "*3\r\n$1\r\nk\r\n$1\r\nm\r\n$3\r\n1.5\r\n"
        );
        assert_eq!(resp2(b"*1\r\n*1\r\n,-inf\r\n"), "*1\r\n*1\r\n$4\r\n-inf\r\n");
    }

    #[test]
    fn a_map_of_streams_becomes_an_array_of_pairs() {
        let map = b"%2\r\n$1\r\na\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n$1\r\nb\r\n*0\r\n";
        assert_eq!(
            resp2(map),
            "*2\r\n*2\r\n$1\r\na\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n*2\r\n$1\r\nb\r\n*0\r\n"
        );
    }

    #[test]
    fn the_missing_body_of_a_deleted_entry_is_a_null_array() {
        let map = b"%1\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-0\r\n_\r\n";
        assert_eq!(resp2(map), "*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*-1\r\n");
    }

    #[test]
    fn bytes_that_look_like_markers_are_left_alone_inside_bulks() {
        let frame = b"*2\r\n$5\r\n,1\r\n_\r\n$3\r\n%2*\r\n";
        assert_eq!(resp2(frame).as_bytes(), frame);
    }
}
