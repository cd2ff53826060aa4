//! What is sent again as a whole: one command, or a transaction in one piece.

use bytes::{Bytes, BytesMut};

use crate::command::classify;
use crate::resp::{Request, encode};
use crate::session::ABORTED;
use crate::upstream::HostPort;

use super::place::{CROSS_SLOT, about_one_node};
use super::{Place, Redirect, place};

/// The commands in `bytes`, which holds whole canonical frames.
pub fn commands(bytes: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let len = Request::first(bytes.get(at..)?)?.bytes().len();
        let command = bytes.slice(at..at + len);
        at += len;
        Some(command)
    })
}

/// Where a transaction goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockPlace {
    /// To the owner of this slot.
    Slot(u16),
    /// It has no keys: to the home node.
    Home,
    /// Nowhere; these are the replies to all its commands.
    Refused(Bytes),
}

/// Decides where the whole transaction `block` goes, MULTI and EXEC included. All its keys must be in one slot, as the server
/// itself demands at EXEC.
#[must_use]
pub fn block_place(block: &Bytes) -> BlockPlace {
    let frames: Vec<_> = commands(block).collect();
    let members = frames.get(1..frames.len().saturating_sub(1)).unwrap_or_default();
    let (mut slot, mut is_refused) = (None, false);
    let mut replies = BytesMut::new();
    encode::simple(&mut replies, "OK");
    for member in members {
        let placed = Request::parse(member).map(|request| place(&classify(&request), &request));
        let refusal = match placed {
            Some(Place::Slot(own)) if slot.is_none_or(|slot| slot == own) => {
                slot = Some(own);
                None
            }
            Some(Place::Slot(_)) => Some(CROSS_SLOT.to_owned()),
            Some(Place::Home) | None => None,
            Some(Place::BySlot(_)) => Some(CROSS_SLOT.to_owned()),
            Some(Place::Info | Place::ByMaster(_) | Place::Scan) => Some(about_one_node(&name_of(member))),
            Some(Place::Refused(text)) => Some(text),
        };
        match refusal {
            Some(text) => {
                is_refused = true;
                encode::error(&mut replies, &text);
            }
            None => encode::simple(&mut replies, "QUEUED"),
        }
    }
    if is_refused {
        encode::error(&mut replies, ABORTED);
        return BlockPlace::Refused(replies.freeze());
    }
    slot.map_or(BlockPlace::Home, BlockPlace::Slot)
}

/// The name of a command in the table.
fn name_of(command: &[u8]) -> String {
    let row = Request::parse(command).and_then(|request| classify(&request).row);
    row.map_or("", |row| row.name).to_owned()
}

/// Why a whole transaction did not run, by its replies from the node at `asked`. `None`: it ran, or was refused for a reason that
/// holds on any node.
///
/// EXEC says itself that the slot has moved, or that a member was refused; then the queue is gone and nothing ran. What a member
/// answers is said when it is queued, so no script has a hand in it.
#[must_use]
pub fn block_redirect(replies: &[Bytes], asked: &HostPort) -> Option<Redirect> {
    let (exec, queued) = replies.split_last()?;
    Redirect::read(exec, asked).or_else(|| {
        let is_aborted = exec.starts_with(b"-EXECABORT ");
        is_aborted.then(|| queued.iter().find_map(|reply| Redirect::read(reply, asked))).flatten()
    })
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::super::map::tests::address;
    use super::super::slot_of;
    use super::*;

    fn block(lines: &[&str]) -> Bytes {
        let mut out = BytesMut::new();
        for line in lines {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            encode::command(&mut out, &words);
        }
        out.freeze()
    }

    #[test]
    fn a_transaction_goes_where_its_keys_are() {
        let slot = BlockPlace::Slot(slot_of(b"a"));
        assert_eq!(block_place(&block(&["MULTI", "PING", "SET a 1", "GET {a}x", "EXEC"])), slot);
        assert_eq!(block_place(&block(&["MULTI", "PING", "EXEC"])), BlockPlace::Home);
    }

    #[test]
    fn keys_of_several_slots_are_refused_where_they_are_queued() {
        let refused = block_place(&block(&["MULTI", "SET a 1", "SET b 1", "EXEC"]));
        let BlockPlace::Refused(replies) = refused else { panic!("{refused:?}") };
        let text = String::from_utf8_lossy(&replies).into_owned();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[..2], ["+OK", "+QUEUED"]);
        assert!(lines[2].starts_with("-CROSSSLOT") && lines[3].starts_with("-EXECABORT"), "{text}");
        assert!(matches!(block_place(&block(&["MULTI", "FLUSHALL", "EXEC"])), BlockPlace::Refused(_)));
    }

    #[test]
    fn a_transaction_is_known_not_to_have_run() {
        let asked = address("h:1");
        let moved = Bytes::from_static(b"-MOVED 1 b:1\r\n");
        let [ok, queued, aborted] =
            ["+OK\r\n", "+QUEUED\r\n", "-EXECABORT Transaction discarded because of previous errors.\r\n"]
                .map(|line| Bytes::from_static(line.as_bytes()));
        let to = Some(Redirect::Moved(1, Some(address("b:1"))));
        let last = [&ok, &queued, &moved].map(Clone::clone);
        assert_eq!(block_redirect(&last, &asked), to);
        let member = [&ok, &moved, &aborted].map(Clone::clone);
        assert_eq!(block_redirect(&member, &asked), to);
        // It ran, and a member has answered so.
        let ran = [ok.clone(), queued.clone(), Bytes::from_static(b"*1\r\n-MOVED 1 b:1\r\n")];
        assert_eq!(block_redirect(&ran, &asked), None);
        assert_eq!(block_redirect(&[ok, queued, aborted], &asked), None);
    }

    #[test]
    fn commands_are_taken_apart() {
        let bytes = block(&["SET a 1", "GET a"]);
        let parts: Vec<_> = commands(&bytes).collect();
        assert_eq!(parts.concat(), bytes);
        assert_eq!(parts.len(), 2);
    }
}
