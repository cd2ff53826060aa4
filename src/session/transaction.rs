//! The open transaction on a lease: what its members change, and which of their replies are not the server's alone.
//!
//! The server queues them all and answers them in one array. What a member does to the session happens when that array
//! says that it ran, at its place among the others. The array is read reply by reply, so that a long one need not be
//! held here for the sake of a short member.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::Beside;
use super::queued::Member;
use crate::command::{Class, classify};
use crate::resp::{self, Request, RequestLimits, RequestScanner, RequestStep, encode};

/// The commands queued on the server.
#[derive(Debug, Default)]
pub struct Transaction {
    queued: usize,
    /// Those whose reply means something here, by their place in EXEC's array.
    members: VecDeque<(usize, Member)>,
    array: Option<Array>,
    /// The data kept for its commands.
    kept: usize,
}

/// How far EXEC's array has arrived.
#[derive(Debug)]
struct Array {
    next: usize,
    len: usize,
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
            self.kept += member.kept() + size_of::<Member>();
            self.members.push_back((self.queued, member));
        }
        self.queued += 1;
    }

    /// Bytes that its members keep.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// How many commands are queued.
    pub(super) fn queued(&self) -> u32 {
        u32::try_from(self.queued).unwrap_or(u32::MAX)
    }

    /// Whether EXEC's array is to be read reply by reply.
    pub(super) fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// Whether a member switches the protocol.
    pub(super) fn switches_protocol(&self) -> bool {
        self.members.iter().any(|(_, member)| matches!(member, Member::Hello(_)))
    }

    /// EXEC's array begins: so many replies follow.
    pub(super) fn array_begins(&mut self, len: u64) {
        self.array = Some(Array { next: 0, len: usize::try_from(len).unwrap_or(usize::MAX) });
    }

    /// Whether EXEC's array has begun.
    pub(super) fn is_executing(&self) -> bool {
        self.array.is_some()
    }

    /// Whether all of EXEC's array has arrived.
    pub(super) fn is_executed(&self) -> bool {
        self.array.as_ref().is_some_and(|array| array.next >= array.len)
    }

    /// Whether the next reply in EXEC's array means something here.
    pub(super) fn awaits_member(&self) -> bool {
        let next = self.array.as_ref().map(|array| array.next);
        self.members.front().is_some_and(|(place, _)| Some(*place) == next)
    }

    /// One more reply of EXEC's array has arrived: whose it is, if it means something here.
    pub(super) fn next_member(&mut self) -> Option<Member> {
        let is_member = self.awaits_member();
        if let Some(array) = &mut self.array {
            array.next += 1;
        }
        if is_member { self.members.pop_front().map(|(_, member)| member) } else { None }
    }

    /// EXEC's array on a lane, whole: the one that the client gets instead, if any. Only counts are corrected there.
    pub fn executed(self, frame: &[u8], beside: &dyn Beside) -> Option<Bytes> {
        let mut replies: Vec<_> = resp::elements(frame)?.map(Bytes::copy_from_slice).collect();
        let mut changed = false;
        for (place, member) in self.members {
            if let (Member::Counted(request), Some(reply)) = (member, replies.get_mut(place))
                && let Some(corrected) = beside.counted(&request, reply)
            {
                *reply = corrected;
                changed = true;
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
