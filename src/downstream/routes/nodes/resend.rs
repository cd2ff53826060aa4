//! A command that is run wherever its keys are, however often they move meanwhile.
//!
//! It is sent again only after a reply that proves that it did not run. Nothing is ever dialled because a reply names it: only
//! nodes that the cluster itself has listed. Where a script may have made the reply up, the cluster is asked first.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, sleep, timeout_at};

use crate::cluster::{
    BlockPlace, Place, Redirect, as_standalone, block_place, block_redirect, is_migrating, place,
};
use crate::command::{Aftermath, classify, key_positions};
use crate::downstream::client::{Attachment, Client, Kept};
use crate::downstream::routes::pending::PendingCommand;
use crate::pool::{Lane, Pool, Receiver, Unavailable};
use crate::resp::{Request, bulk, encode};
use crate::session::ABORTED;
use crate::telemetry::ClientClose;
use crate::upstream::{HostPort, OnLoss};

/// How long a lane of one node is waited for before it is looked whether the slot has another owner.
const LANE: Duration = Duration::from_millis(250);
/// Between two tries on the same node: at first, and at the most.
const PAUSE: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(100)];
/// So many redirections are followed at once; behind them each waits.
const HOPS: u32 = 5;
/// So often the cluster is asked whether a MOVED that a script may have made up is true.
const QUESTIONS: u32 = 3;

/// What has become of a command.
pub(in crate::downstream::routes) enum Ran {
    /// Its replies are to be delivered.
    Answered(Vec<Bytes>),
    /// Its client has been told why there are none.
    Told,
}

/// Where a command goes next.
enum Target {
    /// To the owner of the slot.
    Slot(u16),
    /// To the home node.
    Home,
    /// To this node, behind ASKING.
    Asking(Rc<Pool>),
}

/// A command on its way.
struct Search<'a> {
    kept: &'a Kept,
    /// Its last reply may be of a script's making.
    may_invent: bool,
    target: Target,
    /// It was sent behind ASKING.
    has_asked: bool,
    /// The node that has answered last.
    from: Rc<Pool>,
    begun: Instant,
    end: Instant,
    hops: u32,
    pause: Duration,
    /// Why it has no answer yet.
    why: String,
}

impl Search<'_> {
    /// Waits before the next try.
    async fn wait(&mut self) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE[1]);
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Replies that say why there are none.
    fn failed(&self) -> Ran {
        Ran::Answered(failures(self.kept, &self.why))
    }
}

/// What is to be done after a reply that may prove that a command did not run.
enum Verdict {
    /// It is the answer.
    Answer,
    /// It is to be sent again.
    Again,
}

impl Client {
    /// Runs a command that could not be sent at once.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream::routes) async fn over_nodes(
        self: &Rc<Self>,
        taken: PendingCommand,
    ) -> Result<(), ClientClose> {
        let is_block = taken.replies > 1;
        let kept = Kept {
            commands: taken.request,
            count: taken.replies,
            muted: taken.muted,
            is_block,
            counts: taken.counts,
        };
        let placed = placed(&kept.commands).filter(|_| !is_block);
        let ran = match &placed {
            Some(Place::Refused(text)) => {
                self.error(text, kept.muted);
                return Ok(());
            }
            Some(Place::BySlot(gather)) => self.by_slot(&kept, *gather).await?,
            Some(Place::ByMaster(gather)) => self.by_master(&kept, *gather).await?,
            Some(Place::Scan) => self.scan(&kept).await?,
            Some(Place::Slot(_) | Place::Home | Place::Info) | None => self.run_on_nodes(&kept, None).await?,
        };
        match ran {
            Ran::Answered(replies) if placed == Some(Place::Info) => {
                let protocol = self.protocol();
                let replies = replies.into_iter().map(|reply| as_standalone(reply, protocol)).collect();
                self.deliver(&kept, replies);
            }
            Ran::Answered(replies) => self.deliver(&kept, replies),
            Ran::Told => {}
        }
        Ok(())
    }

    /// Runs `kept` where its keys are. `first`: what it has been answered already, the replies, and by which node.
    pub(super) async fn run_on_nodes(
        self: &Rc<Self>,
        kept: &Kept,
        first: Option<(Redirect, Vec<Bytes>, Rc<Pool>)>,
    ) -> Result<Ran, ClientClose> {
        let _state = self.attachment.enter(Attachment::AwaitingLane);
        let begun = Instant::now();
        let mut search = Search {
            kept,
            may_invent: !kept.is_block && may_invent(&kept.commands),
            target: target_of(kept),
            has_asked: false,
            from: first.as_ref().map_or_else(|| self.pool(), |(.., from)| Rc::clone(from)),
            begun,
            end: begun + self.context.pool.patience(),
            hops: 0,
            pause: PAUSE[0],
            why: "ERR redbouncer: no node of the cluster has returned its slots".to_owned(),
        };
        if let Some((redirect, replies, _)) = first
            && let Verdict::Answer = self.follow(&mut search, redirect).await?
        {
            return Ok(Ran::Answered(replies));
        }
        loop {
            self.until_resumed().await?;
            if search.is_over() {
                return Ok(search.failed());
            }
            let Some((node, is_asking)) = self.find_node(&mut search).await? else { continue };
            self.go_to(&node);
            search.from = Rc::clone(&node);
            let lane = match self.lane_of_node(&mut search, &node).await? {
                Ok(Some(lane)) => lane,
                Ok(None) => continue,
                Err(why) => {
                    self.unserved(&why, Aftermath::Nothing, kept.count, kept.muted)?;
                    return Ok(Ran::Told);
                }
            };
            search.has_asked |= is_asking;
            let Some(replies) = self.ask_node(&lane, kept, is_asking).await? else {
                return Ok(Ran::Answered(failures(
                    kept,
                    "ERR redbouncer: upstream connection lost, the command may have run",
                )));
            };
            let Some(redirect) = self.redirected(&node, kept, &replies) else {
                return Ok(Ran::Answered(replies));
            };
            if let Verdict::Answer = self.follow(&mut search, redirect).await? {
                return Ok(Ran::Answered(replies));
            }
        }
    }

    /// Why the last of `replies` prove that nothing of `kept` ran, if they do.
    fn redirected(&self, node: &Rc<Pool>, kept: &Kept, replies: &[Bytes]) -> Option<Redirect> {
        let from = self.routing()?.pools.node_of(node)?;
        if kept.is_block { block_redirect(replies, &from) } else { Redirect::read(replies.first()?, &from) }
    }

    /// The node that is next, and whether behind ASKING. `None`: there is none yet; a moment has been waited.
    async fn find_node(&self, search: &mut Search<'_>) -> Result<Option<(Rc<Pool>, bool)>, ClientClose> {
        let Some(routing) = self.routing() else { return Err(ClientClose::Denied) };
        let found = match std::mem::replace(&mut search.target, target_of(search.kept)) {
            Target::Asking(node) => return Ok(Some((node, true))),
            Target::Home => return Ok(Some((Rc::clone(routing.pools.home()), false))),
            Target::Slot(slot) => {
                search.target = Target::Slot(slot);
                let owner = routing.pools.owner(slot);
                if owner.is_none() {
                    search.why = format!("ERR redbouncer: slot {slot} has no node");
                    routing.pools.nodes().doubt();
                }
                owner
            }
        };
        if found.is_none() {
            self.unless_gone(search.wait()).await?;
        }
        Ok(found.map(|node| (node, false)))
    }

    /// A lane of `node`. `Ok(None)`: not yet, and the slot may have another owner by now.
    async fn lane_of_node(
        &self,
        search: &mut Search<'_>,
        node: &Rc<Pool>,
    ) -> Result<Result<Option<Rc<Lane>>, Unavailable>, ClientClose> {
        let Some(group) = self.current_group() else { return Err(ClientClose::Denied) };
        let until = search.end.min(Instant::now() + LANE);
        let why = match self.unless_gone(node.lane_ready(&group, until)).await? {
            Ok(()) => return Ok(Ok(group.lane())),
            Err(why) => why,
        };
        let wait_timeout = node.shared.options.get().wait_timeout;
        let is_final = match &why {
            Unavailable::Full(_) => search.begun.elapsed() >= wait_timeout,
            Unavailable::Down(_) | Unavailable::Busy(_) | Unavailable::Unanswered => search.is_over(),
            Unavailable::LoginRefused(_)
            | Unavailable::NoAuth
            | Unavailable::SelectRefused(_)
            | Unavailable::Stopping => true,
        };
        if is_final {
            return Ok(Err(why));
        }
        if !matches!(why, Unavailable::Full(_))
            && let Some(routing) = self.routing()
        {
            routing.pools.nodes().doubt();
            self.unless_gone(search.wait()).await?;
        }
        Ok(Ok(None))
    }

    /// Sends `kept` and waits for its replies. `None`: the connection was lost, and the client goes on (`upstream.on_loss`).
    async fn ask_node(
        self: &Rc<Self>,
        lane: &Rc<Lane>,
        kept: &Kept,
        is_asking: bool,
    ) -> Result<Option<Vec<Bytes>>, ClientClose> {
        let mut commands = BytesMut::new();
        if is_asking {
            encode::command(&mut commands, &[b"ASKING"]);
        }
        commands.extend_from_slice(&kept.commands);
        let count = kept.count + u32::from(is_asking);
        match self.exchange_over(lane, &commands, count).await? {
            Some(mut replies) => {
                replies.drain(..usize::from(is_asking));
                Ok(Some(replies))
            }
            None if self.context.pool.shared.upstream.get().on_loss == OnLoss::Error => Ok(None),
            None => Err(ClientClose::UpstreamLost),
        }
    }

    pub(super) async fn exchange_over(
        self: &Rc<Self>,
        lane: &Rc<Lane>,
        commands: &[u8],
        replies: u32,
    ) -> Result<Option<Vec<Bytes>>, ClientClose> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let then = Box::new(move |frames| drop(sender.send(frames)));
        let (now, owner) = (Instant::now(), Rc::clone(self) as Rc<dyn Receiver>);
        lane.touch(now);
        lane.exchange_for(Some(owner), commands, replies, now, then);
        let frames = self.unless_gone(receiver).await?;
        Ok(frames.ok().and_then(Result::ok))
    }

    /// Does what `redirect` demands, and waits where nothing else can be done.
    async fn follow(
        self: &Rc<Self>,
        search: &mut Search<'_>,
        redirect: Redirect,
    ) -> Result<Verdict, ClientClose> {
        let Some(routing) = self.routing() else { return Err(ClientClose::Denied) };
        let (pools, from) = (&routing.pools, routing.pools.node_of(&search.from));
        metrics::counter!("redbouncer_redirects_total", "kind" => redirect.label()).increment(1);
        search.hops += 1;
        let mut has_to_wait = search.hops > HOPS;
        match redirect {
            Redirect::Moved(slot, to) => {
                if search.may_invent {
                    if !self.is_moved(search, slot, from.as_ref()).await? {
                        return Ok(Verdict::Answer);
                    }
                } else {
                    pools.nodes().doubt();
                    let is_elsewhere = to.is_some() && to != from;
                    has_to_wait |= !(is_elsewhere && to.is_some_and(|to| pools.nodes().patch(slot, &to)));
                }
                search.why = format!("ERR redbouncer: slot {slot} has no node");
                search.target = Target::Slot(slot);
            }
            Redirect::Ask(slot, to) => {
                if search.may_invent && !self.is_leaving(&search.from, slot).await? {
                    // It may have left by now.
                    search.target = Target::Slot(slot);
                    let has_left = self.is_moved(search, slot, from.as_ref()).await?;
                    return Ok(if has_left { Verdict::Again } else { Verdict::Answer });
                }
                search.why = format!(
                    "ERR redbouncer: slot {slot} is being moved to a node that the cluster does not list"
                );
                search.target = match to.and_then(|to| pools.at(&to)) {
                    Some(node) => Target::Asking(node),
                    None => {
                        pools.nodes().doubt();
                        has_to_wait = true;
                        Target::Slot(slot)
                    }
                };
            }
            Redirect::TryAgain | Redirect::ClusterDown | Redirect::Loading | Redirect::ReadOnly
                if search.may_invent && !self.is_its_own_word(search).await? =>
            {
                return Ok(Verdict::Answer);
            }
            Redirect::TryAgain => {
                search.why = "TRYAGAIN Multiple keys request during rehashing of slot".to_owned();
                has_to_wait = true;
            }
            Redirect::ClusterDown | Redirect::Loading | Redirect::ReadOnly => {
                search.why = format!(
                    "ERR redbouncer: no master for the command's keys: the node answers {}",
                    redirect.label().to_uppercase()
                );
                pools.nodes().doubt();
                has_to_wait = true;
            }
        }
        if has_to_wait {
            self.unless_gone(search.wait()).await?;
        }
        Ok(Verdict::Again)
    }

    /// Whether `slot` belongs to another node than `from`, by the cluster's word.
    async fn is_moved(
        &self,
        search: &Search<'_>,
        slot: u16,
        from: Option<&HostPort>,
    ) -> Result<bool, ClientClose> {
        let Some(routing) = self.routing() else { return Err(ClientClose::Denied) };
        let nodes = routing.pools.nodes();
        for _ in 0..QUESTIONS {
            let asked = self.unless_gone(timeout_at(search.end, nodes.asked_anew())).await?;
            if nodes.look().0.owner_of(slot) != from {
                return Ok(true);
            }
            if asked.is_err() {
                break;
            }
        }
        Ok(false)
    }

    /// Whether a refusal is the node's own word for the keys of a command: EXISTS of the same keys, which makes nothing up, is refused
    /// there as well. Behind ASKING it is: the node was asked because another has sent us.
    async fn is_its_own_word(self: &Rc<Self>, search: &Search<'_>) -> Result<bool, ClientClose> {
        if search.has_asked {
            return Ok(true);
        }
        let Some(question) = exists_of(&search.kept.commands) else { return Ok(false) };
        self.go_to(&search.from);
        let Some(lane) = self.current_group().and_then(|group| group.lane()) else { return Ok(false) };
        let answer = self.exchange_over(&lane, &question, 1).await?;
        Ok(answer.is_some_and(|frames| frames.first().is_some_and(|reply| Redirect::is_one(reply))))
    }

    /// Whether `node` moves `slot` away, by its own word.
    async fn is_leaving(self: &Rc<Self>, node: &Rc<Pool>, slot: u16) -> Result<bool, ClientClose> {
        self.go_to(node);
        let Some(lane) = self.current_group().and_then(|group| group.lane()) else { return Ok(false) };
        let question = encode::one_command(&[b"CLUSTER", b"NODES"]);
        let answer = self.exchange_over(&lane, &question, 1).await?;
        let answer = answer.and_then(|frames| frames.into_iter().next());
        Ok(answer.is_some_and(|answer| bulk(&answer).is_some_and(|nodes| is_migrating(nodes, slot))))
    }
}

/// Where a single command goes.
fn placed(command: &[u8]) -> Option<Place> {
    Request::parse(command).map(|request| place(&classify(&request), &request))
}

/// Where `kept` goes first. What is to be refused was refused before.
fn target_of(kept: &Kept) -> Target {
    let slot = if kept.is_block {
        match block_place(&kept.commands) {
            BlockPlace::Slot(slot) => Some(slot),
            BlockPlace::Home | BlockPlace::Refused(_) => None,
        }
    } else {
        match placed(&kept.commands) {
            Some(Place::Slot(slot)) => Some(slot),
            Some(
                Place::Home
                | Place::Info
                | Place::BySlot(_)
                | Place::ByMaster(_)
                | Place::Scan
                | Place::Refused(_),
            )
            | None => None,
        }
    };
    slot.map_or(Target::Home, Target::Slot)
}

/// Replies to `kept` that say why there are none.
fn failures(kept: &Kept, why: &str) -> Vec<Bytes> {
    let text = |at| if kept.is_block && at == kept.count { ABORTED } else { why };
    (1..=kept.count).map(|at| encode::one_error(text(at))).collect()
}

/// EXISTS of the keys of `command`.
fn exists_of(command: &[u8]) -> Option<Bytes> {
    let request = Request::parse(command)?;
    let keys = key_positions(classify(&request).row?, &request);
    let words: Vec<&[u8]> =
        std::iter::once(&b"EXISTS"[..]).chain(keys.into_iter().filter_map(|at| request.arg(at))).collect();
    (words.len() > 1).then(|| encode::one_command(&words))
}

/// Whether the text of a reply to `command` may be of somebody else's making than the node's.
fn may_invent(command: &[u8]) -> bool {
    Request::parse(command).is_none_or(|request| classify(&request).may_invent())
}
