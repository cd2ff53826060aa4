//! The open transaction on a lease: what its members change, and which of their replies are not the server's alone.
//!
//! The server queues them all and answers them in one array. What a member does to the session happens when that array
//! says that it ran, at its place among the others.

use bytes::{Bytes, BytesMut};

use super::{Beside, Session};
use crate::command::{Class, classify};
use crate::resp::{self, Request, RequestLimits, RequestScanner, RequestStep, encode};

/// A member whose reply means something here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Member {
    /// SELECT of this database.
    Select(u32),
    /// PUBLISH, or a question about subscribers: its reply counts our hubs.
    Counted(Bytes),
}

/// What is queued on the server.
#[derive(Debug, Default)]
pub struct Transaction {
    queued: usize,
    members: Vec<(usize, Member)>,
}

impl Transaction {
    /// The transaction that a whole block is, and where its EXEC begins; only members that count matter there.
    #[must_use]
    pub fn of_block(block: &[u8]) -> (usize, Option<Self>) {
        let limits =
            RequestLimits { max_bulk: u64::MAX, max_request: usize::MAX, ..RequestLimits::default() };
        let mut scanner = RequestScanner::default();
        let mut transaction = Self::default();
        let mut at = 0;
        while let Some(rest) = block.get(at..)
            && let Ok(RequestStep::Request(shape)) = scanner.step(rest, &limits)
        {
            let request = Request::new(rest, &shape);
            let counted = || Member::Counted(Bytes::copy_from_slice(request.bytes()));
            match classify(&request).class {
                Class::Exec => return (at, Some(transaction)),
                Class::Multi => {}
                Class::Publish | Class::PubSub => transaction.queue(Some(counted())),
                _ => transaction.queue(None), // plain: its reply stands
            }
            at += shape.len;
        }
        (0, None)
    }

    /// The server has queued one more command.
    pub(super) fn queue(&mut self, member: Option<Member>) {
        if let Some(member) = member {
            self.members.push((self.queued, member));
        }
        self.queued += 1;
    }

    /// How many commands are queued.
    pub(super) fn queued(&self) -> u32 {
        u32::try_from(self.queued).unwrap_or(u32::MAX)
    }

    /// Whether EXEC's reply must be read as a whole.
    pub(super) fn is_read_whole(&self) -> bool {
        !self.members.is_empty()
    }

    /// EXEC has answered with this: what it changes here, and the array that the client gets instead, if any.
    pub fn executed(self, frame: &[u8], session: &mut Session, beside: &dyn Beside) -> Option<Bytes> {
        let mut replies: Vec<_> = resp::elements(frame)?.map(Bytes::copy_from_slice).collect();
        let mut changed = false;
        for (at, member) in self.members {
            let Some(reply) = replies.get_mut(at) else { continue };
            match member {
                Member::Select(database) if reply.starts_with(b"+OK") => session.database = database,
                Member::Select(_) => {}
                Member::Counted(request) => {
                    if let Some(corrected) = beside.counted(&request, reply) {
                        *reply = corrected;
                        changed = true;
                    }
                }
            }
        }
        changed.then(|| {
            let mut out = BytesMut::new();
            encode::array(&mut out, replies.len());
            replies.iter().for_each(|reply| out.extend_from_slice(reply));
            out.freeze()
        })
    }
}
