//! Commands for keys of several slots, and commands that every master runs.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout_at};

use crate::cluster::{Gather, MOST_MASTERS, Part, Redirect, gathered, parts, scan_of, scanned};
use crate::command::classify;
use crate::downstream::client::{Attachment, Client, Kept};
use crate::pool::Pool;
use crate::resp::{Request, encode, error_text, is_error};
use crate::telemetry::ClientClose;

use super::resend::Ran;

impl Client {
    /// Runs `kept` slot by slot, and makes one reply of all. Each node gets its parts together; one that has to be sent again goes
    /// its own way.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(super) async fn by_slot(self: &Rc<Self>, kept: &Kept, gather: Gather) -> Result<Ran, ClientClose> {
        let Some(request) = Request::parse(&kept.commands) else { return Err(ClientClose::ProtocolError) };
        let Some(row) = classify(&request).row else { return Err(ClientClose::ProtocolError) };
        let parts = parts(row, &request);
        let mut replies: Vec<Option<Bytes>> = vec![None; parts.len()];
        for (_, own) in self.by_owner(&parts) {
            self.ask_for_parts(&parts, &own, &mut replies).await?;
        }
        let mut all = Vec::with_capacity(parts.len());
        for (part, reply) in parts.iter().zip(replies) {
            match reply {
                Some(reply) => all.push(reply),
                None => match self.run_on_nodes(&one(&part.command), None).await? {
                    Ran::Answered(mut own) => all.extend(own.pop()),
                    Ran::Told => return Ok(Ran::Told),
                },
            }
        }
        let keys: Vec<_> = parts.into_iter().map(|part| part.keys).collect();
        Ok(Ran::Answered(vec![gathered(gather, &all, &keys)]))
    }

    /// Which parts belong to which node now, by the place of that node in the map.
    fn by_owner(&self, parts: &[Part]) -> BTreeMap<usize, Vec<usize>> {
        let mut owners: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let Some(routing) = self.routing() else { return owners };
        let map = routing.pools.nodes().look().0;
        for (at, part) in parts.iter().enumerate() {
            owners.entry(map.owner(part.slot).unwrap_or(usize::MAX)).or_default().push(at);
        }
        owners
    }

    /// Sends the parts with the numbers `own` in one write to the node that owns them, if there is a lane at once. What is not
    /// answered, or did not run, stays without a reply.
    async fn ask_for_parts(
        self: &Rc<Self>,
        parts: &[Part],
        own: &[usize],
        replies: &mut [Option<Bytes>],
    ) -> Result<(), ClientClose> {
        let Some(routing) = self.routing() else { return Err(ClientClose::Denied) };
        let first = own.first().and_then(|at| parts.get(*at));
        let Some(node) = first.and_then(|part| routing.pools.owner(part.slot)) else { return Ok(()) };
        self.go_to(&node);
        let Some(lane) = self.current_group().and_then(|group| group.lane()) else { return Ok(()) };
        let mut commands = BytesMut::new();
        own.iter().filter_map(|at| parts.get(*at)).for_each(|part| commands.extend_from_slice(&part.command));
        let count = u32::try_from(own.len()).unwrap_or(u32::MAX);
        let Some(answers) = self.exchange_over(&lane, &commands, count).await? else {
            return Err(ClientClose::UpstreamLost);
        };
        let from = routing.pools.node_of(&node);
        for (at, answer) in own.iter().zip(answers) {
            let is_final = from.as_ref().is_some_and(|from| Redirect::read(&answer, from).is_none());
            if let Some(reply) = replies.get_mut(*at).filter(|_| is_final) {
                *reply = Some(answer);
            }
        }
        Ok(())
    }

    /// Runs `kept` on every master, one after the other, and makes one reply of all.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(super) async fn by_master(self: &Rc<Self>, kept: &Kept, gather: Gather) -> Result<Ran, ClientClose> {
        let Some(routing) = self.routing() else { return Err(ClientClose::Denied) };
        let _state = self.attachment.enter(Attachment::AwaitingLane);
        let map = routing.pools.nodes().look().0;
        let masters: Vec<_> = map.masters().iter().filter(|node| map.lowest_slot(node).is_some()).collect();
        let mut all = Vec::with_capacity(masters.len());
        for node in &masters {
            let reply = match routing.pools.at(node) {
                Some(node) => self.run_on_one(&node, kept).await?,
                None => encode::one_error("ERR redbouncer: unknown node of the cluster"),
            };
            // Where it went wrong matters: the others have run it, or will not.
            all.push(if is_error(&reply) { told(&reply, masters.len()) } else { reply });
        }
        if all.is_empty() {
            all.push(encode::one_error("ERR redbouncer: no node of the cluster has returned its slots"));
        }
        Ok(Ran::Answered(vec![gathered(gather, &all, &[])]))
    }

    /// SCAN at the master that its cursor names.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(super) async fn scan(self: &Rc<Self>, kept: &Kept) -> Result<Ran, ClientClose> {
        let Some(routing) = self.routing() else { return Err(ClientClose::Denied) };
        let _state = self.attachment.enter(Attachment::AwaitingLane);
        let map = routing.pools.nodes().look().0;
        let mut masters: Vec<_> =
            map.masters().iter().filter_map(|node| Some((map.lowest_slot(node)?, node))).collect();
        masters.sort_unstable();
        if masters.len() > MOST_MASTERS {
            let text = format!("ERR redbouncer: SCAN over more than {MOST_MASTERS} masters is not possible");
            return Ok(Ran::Answered(vec![encode::one_error(&text)]));
        }
        let Some((at, command)) = Request::parse(&kept.commands).and_then(|request| scan_of(&request)) else {
            return self.run_on_nodes(kept, None).await;
        };
        // The cursor of a cluster that had more masters: what is left is nothing.
        let node = masters.get(at).and_then(|(_, node)| routing.pools.at(node));
        let Some(node) = node else {
            return Ok(Ran::Answered(vec![Bytes::from_static(b"*2\r\n$1\r\n0\r\n*0\r\n")]));
        };
        let reply = self.run_on_one(&node, &one(&command)).await?;
        Ok(Ran::Answered(vec![scanned(&reply, at, masters.len()).unwrap_or(reply)]))
    }

    /// The reply of `node`, or why there is none.
    async fn run_on_one(self: &Rc<Self>, node: &Rc<Pool>, kept: &Kept) -> Result<Bytes, ClientClose> {
        self.go_to(node);
        let Some(group) = self.current_group() else { return Err(ClientClose::Denied) };
        let deadline = Instant::now() + node.patience();
        let ready = self.unless_gone(timeout_at(deadline, node.lane_ready(&group, deadline))).await?;
        let lane = match ready {
            Ok(Ok(())) => group.lane(),
            Ok(Err(why)) => return Ok(encode::one_error(&why.to_string())),
            Err(_) => None,
        };
        let Some(lane) = lane else { return Ok(encode::one_error("ERR redbouncer: no upstream connection")) };
        match self.exchange_over(&lane, &kept.commands, 1).await? {
            Some(mut replies) => Ok(replies.pop().unwrap_or_default()),
            None => Err(ClientClose::UpstreamLost),
        }
    }
}

/// One command by itself.
fn one(command: &Bytes) -> Kept {
    Kept { commands: command.clone(), count: 1, muted: false, is_block: false, counts: false }
}

/// An error of one node of so many.
fn told(error: &[u8], nodes: usize) -> Bytes {
    let text = String::from_utf8_lossy(error_text(error).unwrap_or_default()).into_owned();
    encode::one_error(&format!("{} (on 1 of {nodes} nodes)", text.trim_end()))
}
