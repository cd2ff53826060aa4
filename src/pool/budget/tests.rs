//! Who gets a permit, in which order, and that each comes back.

use super::ledger::without_reserve;
use super::*;

fn take(budget: &Arc<Budget>, kind: Kind) -> Option<Permit> {
    budget.try_acquire(kind, "test")
}

async fn now(place: &mut Place) -> Option<Permit> {
    tokio::time::timeout(Duration::from_millis(1), place.granted()).await.ok().flatten()
}

#[test]
fn leases_never_get_the_floors_of_lanes_and_control() {
    let budget = Budget::new(8, 1, Hubs::default());
    let leases: Vec<_> = (0..8).filter_map(|_| take(&budget, Kind::Lease)).collect();
    assert_eq!(leases.len(), 5);
    assert!(take(&budget, Kind::Lane).is_some());
    assert!(take(&budget, Kind::Control).is_some());
}

#[test]
fn lanes_beyond_their_floor_use_open_permits_and_the_cap_holds() {
    let budget = Budget::new(8, 1, Hubs::default());
    let lanes: Vec<_> = (0..20).filter_map(|_| take(&budget, Kind::Lane)).collect();
    assert_eq!(lanes.len(), 7);
    let control = take(&budget, Kind::Control).unwrap();
    assert_eq!(budget.held(), 8);
    assert!(take(&budget, Kind::Lease).is_none());
    drop((lanes, control));
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn a_permit_given_back_goes_to_the_longest_waiter() {
    let budget = Budget::new(4, 1, Hubs::default());
    let held: Vec<_> = (0..2).filter_map(|_| take(&budget, Kind::Lease)).collect();
    let mut first = budget.queue(Claim::Lease, "first");
    let mut second = budget.queue(Claim::Lease, "second");
    assert!(now(&mut first).await.is_none());
    drop(held);
    assert!(now(&mut first).await.is_some_and(|permit| permit.kind() == Kind::Lease));
    assert!(now(&mut second).await.is_some());
}

#[tokio::test]
async fn a_blocking_call_waits_behind_those_who_cannot_do_without() {
    let budget = Budget::new(4, 1, Hubs::default());
    let held: Vec<_> = (0..2).filter_map(|_| take(&budget, Kind::Lease)).collect();
    let mut blocking = budget.queue(Claim::BlockingLease, "b");
    let mut watch = budget.queue(Claim::Lease, "w");
    assert_eq!(budget.pressure(), Pressure { leases: 1, blocking: 1, ..Pressure::default() });
    let [a, b] = <[Permit; 2]>::try_from(held).unwrap();
    drop(a);
    let permit = now(&mut watch).await;
    assert!(permit.is_some());
    assert!(now(&mut blocking).await.is_none());
    drop(b);
    assert!(now(&mut blocking).await.is_some());
}

#[tokio::test]
async fn a_waiter_that_leaves_loses_no_permit() {
    let budget = Budget::new(4, 1, Hubs::default());
    let held: Vec<_> = (0..2).filter_map(|_| take(&budget, Kind::Lease)).collect();
    let gone = budget.queue(Claim::Lease, "gone");
    let granted_then_gone = budget.queue(Claim::Lease, "late");
    drop(gone);
    drop(held);
    drop(granted_then_gone);
    assert_eq!(budget.held(), 0);
    assert_eq!(budget.pressure(), Pressure::default());
}

#[tokio::test]
async fn lanes_and_leases_take_turns_for_open_permits() {
    let budget = Budget::new(4, 1, Hubs::default());
    let mut held: Vec<_> = (0..3).filter_map(|_| take(&budget, Kind::Lane)).collect();
    assert_eq!(held.len(), 3);
    let mut lanes = [budget.queue(Claim::Lane, "l1"), budget.queue(Claim::Lane, "l2")];
    let mut leases = [budget.queue(Claim::Lease, "w1"), budget.queue(Claim::Lease, "w2")];
    held.pop();
    held.pop();
    let mut got = (Vec::new(), Vec::new());
    for (lane, lease) in lanes.iter_mut().zip(leases.iter_mut()) {
        got.0.extend(now(lane).await);
        got.1.extend(now(lease).await);
    }
    assert_eq!((got.0.len(), got.1.len()), (1, 1));
}

fn client(id: u64, pin: &'static str) -> Arc<HoldingClient> {
    let peer = std::net::SocketAddr::from(([10, 0, 0, 1], 5000)).into();
    Arc::new(HoldingClient::new(id, b"x y", peer, None, pin))
}

#[test]
fn the_full_text_says_who_holds_what() {
    let budget = Budget::new(8, 1, Hubs::default());
    let leases: Vec<_> = (0..5).filter_map(|_| take(&budget, Kind::Lease)).collect();
    let client = client(7, "WATCH");
    leases[0].opened(Some(17), Some(40_000));
    leases[0].describe(Holder { user: 1, address: None, who: Who::Client(&client) });
    client.sends(crate::command::find("get"));
    let text = budget.full_text(Kind::Lease, Holder::NOBODY, Duration::from_secs(2));
    let (full, longest) = text.split_once("; longest: ").unwrap();
    assert_eq!(
        full,
        "redbouncer: no upstream connection within 2s (leases 5 of 5; 5 of 8 connections held: 5 leases; reserved: 1 control, \
         2 lanes"
    );
    let (before, after) = (
        "client=7 name=x-y addr=10.0.0.1:5000 user=- pin=WATCH held=",
        " cmd=get server_id=17 local_port=40000)",
    );
    assert!(longest.starts_with(before) && longest.ends_with(after), "{longest}");
    assert!(budget.kinds().iter().all(|of| of.is_full() == (of.kind == Kind::Lease)), "{:?}", budget.kinds());
}

#[test]
fn a_lease_that_is_held_for_long_is_told_of_once() {
    let budget = Budget::new(8, 1, Hubs::default());
    let leases: Vec<_> = (0..5).filter_map(|_| take(&budget, Kind::Lease)).collect();
    let describe = |at: usize, pin| {
        leases[at].describe(Holder { user: 1, address: None, who: Who::Client(&client(at as u64, pin)) });
    };
    ["WATCH", "MULTI", "MONITOR", "blocking call"]
        .into_iter()
        .enumerate()
        .for_each(|(at, pin)| describe(at, pin));
    let take = |most| -> Vec<_> {
        let long = budget.take_long_leases(Duration::ZERO, "blocking call", most);
        long.iter().filter_map(|row| Some(row.client()?.id)).collect()
    };
    assert!(budget.take_long_leases(Duration::from_secs(30), "", 9).is_empty());
    assert_eq!((take(2), take(2), take(2)), (vec![0, 1], vec![2], vec![]));
    // Another client has it now.
    describe(0, "WATCH");
    assert_eq!(take(9), [0]);
    assert_eq!(
        budget.oldest_leases().into_keys().collect::<Vec<_>>(),
        ["MONITOR", "MULTI", "WATCH", "blocking call"]
    );
    assert_eq!(budget.longest_lease().and_then(|row| Some(row.client()?.id)), Some(1));
}

const BOTH: Hubs = Hubs { blocking: true, pubsub: true };

#[test]
fn each_hub_has_a_connection_that_leases_cannot_take() {
    let budget = Budget::new(8, 1, BOTH);
    let leases: Vec<_> = (0..8).filter_map(|_| take(&budget, Kind::Lease)).collect();
    assert_eq!(leases.len(), 3);
    assert!(take(&budget, Kind::Blocking).is_some());
    let _hub = take(&budget, Kind::PubSub).unwrap();
    assert!(take(&budget, Kind::PubSub).is_none());
    drop(leases);
    assert!(take(&budget, Kind::PubSub).is_some());
}

#[test]
fn a_small_cap_keeps_a_floor_for_the_blocking_hub_first() {
    for (cap, open) in [(4, 1), (5, 1), (6, 1), (8, 3)] {
        assert_eq!(Budget::new(cap, 1, BOTH).open_permits(), open, "cap {cap}");
    }
    let pubsub_only = Hubs { blocking: false, pubsub: true };
    assert_eq!(Budget::new(4, 1, pubsub_only).open_permits(), 1);
}

#[tokio::test]
async fn a_further_hub_waits_in_turn_with_leases() {
    let budget = Budget::new(8, 1, BOTH);
    let _own = take(&budget, Kind::PubSub).unwrap();
    let mut held: Vec<_> = (0..3).filter_map(|_| take(&budget, Kind::Lease)).collect();
    let mut leases = [budget.queue(Claim::Lease, "a"), budget.queue(Claim::Lease, "b")];
    let mut hub = budget.queue(Claim::PubSub, "hub");
    held.truncate(1);
    let mut got = Vec::new();
    for lease in &mut leases {
        got.extend(now(lease).await);
    }
    assert_eq!(got.len(), 1);
    assert!(now(&mut hub).await.is_some_and(|permit| permit.kind() == Kind::PubSub));
}

#[test]
fn a_connection_s_id_is_known_from_its_login_to_its_end() {
    let budget = Budget::new(8, 1, BOTH);
    let permit = take(&budget, Kind::Lane).unwrap();
    assert!(budget.is_dialling());
    assert_eq!(budget.ids(), Some(HashSet::new()));
    permit.opened(Some(7), None);
    assert!(!budget.is_dialling());
    assert_eq!((permit.client_id(), budget.ids()), (Some(7), Some(HashSet::from([7]))));
    permit.ended();
    assert_eq!(budget.ids(), Some(HashSet::new()));
    permit.opened(None, None);
    assert_eq!(budget.ids(), None, "one that the server does not tell");
    permit.dials();
    assert_eq!(budget.ids(), Some(HashSet::new()));
}

#[tokio::test]
async fn an_end_that_the_server_has_not_answered_is_told() {
    let budget = Budget::new(8, 1, BOTH);
    let told = || tokio::time::timeout(Duration::from_millis(1), budget.lost());
    let ended = take(&budget, Kind::Lane).unwrap();
    ended.opened(Some(1), None);
    ended.ended();
    drop(ended);
    assert!(told().await.is_err(), "the server has seen this one's end");
    let lost = take(&budget, Kind::Lane).unwrap();
    lost.opened(Some(2), None);
    drop(lost);
    assert!(told().await.is_ok());
    let hub = take(&budget, Kind::Blocking).unwrap();
    hub.opened(Some(3), None);
    hub.dials();
    assert!(told().await.is_ok(), "a new dial is the end of the connection before");
    assert!(told().await.is_err());
}

#[test]
fn lanes_stay_until_the_control_connection_shows_others_that_we_live() {
    let budget = Budget::new(8, 1, BOTH);
    let [lane, lease, control] =
        [Kind::Lane, Kind::Lease, Kind::Control].map(|kind| take(&budget, kind).unwrap());
    lane.opened(Some(1), None);
    assert!(budget.can_do_without_lanes(), "nothing else is there");
    lease.opened(Some(2), None);
    assert!(!budget.can_do_without_lanes());
    control.opened(Some(3), None);
    assert!(budget.can_do_without_lanes());
    drop(control);
    assert!(!budget.can_do_without_lanes());
    drop(lease);
    assert!(budget.can_do_without_lanes());
}

#[tokio::test]
async fn a_user_at_its_own_cap_holds_up_nobody_else() {
    let budget = Budget::new(8, 1, Hubs::default());
    budget.limit_user(7, Some(1));
    let mine = |what| Holder { user: 7, address: None, who: Who::Words(what) };
    let first = budget.try_acquire(Kind::Lane, mine("lane")).unwrap();
    assert!(budget.try_acquire(Kind::Lane, mine("another")).is_none());
    let mut lease = budget.queue(Claim::Lease, mine("lease"));
    assert!(now(&mut lease).await.is_none());
    // Others overtake it, and need not give anything up for it.
    let mut other = budget.queue(Claim::Lease, "other");
    assert!(now(&mut other).await.is_some());
    assert_eq!(budget.pressure(), Pressure::default());
    assert_eq!(budget.crowded(), [7]);
    let text = budget.full_text(Kind::Lease, 7, Duration::from_secs(2));
    assert_eq!(text, "redbouncer: no upstream connection within 2s: this user has 1 of its 1 connections");
    drop(first);
    assert!(now(&mut lease).await.is_some());
    assert!(budget.crowded().is_empty());
    budget.limit_user(7, None);
    assert!(budget.try_acquire(Kind::Lane, mine("lane")).is_some());
}

#[tokio::test]
async fn standing_leases_leave_a_share_to_the_others() {
    for (open, standing) in [(0, 0), (1, 1), (2, 1), (3, 2), (8, 6), (40, 30)] {
        assert_eq!(without_reserve(open), standing, "of {open}");
    }
    let budget = Budget::new(8, 1, BOTH);
    let mut monitors: Vec<_> = (0..4).map(|_| budget.queue(Claim::StandingLease, "m")).collect();
    let mut blocked = budget.queue(Claim::BlockingLease, "b");
    let mut standing = Vec::new();
    for monitor in &mut monitors {
        standing.extend(now(monitor).await);
    }
    assert_eq!((standing.len(), budget.standing()), (2, (2, 2)));
    assert!(now(&mut blocked).await.is_none());
    // Whom only a standing one's end helps needs nothing else given up, and holds up nobody.
    assert_eq!(budget.pressure(), Pressure { standing: 2, ..Pressure::default() });
    let mut watch = budget.queue(Claim::Lease, "w");
    let lease = now(&mut watch).await.unwrap();
    assert!(!lease.may_stand());
    let mut next = budget.queue(Claim::Lease, "w");
    assert!(now(&mut next).await.is_none());
    drop(lease);
    let lease = now(&mut next).await.unwrap();
    // One stands no more: its place goes to who waits for it, as soon as there is a connection.
    standing[0].stands(false);
    assert!(lease.may_stand());
    assert_eq!(budget.standing(), (2, 2));
    drop(lease);
    assert!(now(&mut monitors[2]).await.is_some());
}

#[tokio::test]
async fn a_user_s_standing_leases_leave_a_share_of_its_own_cap() {
    let budget = Budget::new(40, 1, BOTH);
    budget.limit_user(7, Some(3));
    let mine = |what| Holder { user: 7, address: None, who: Who::Words(what) };
    let lane = budget.try_acquire(Kind::Lane, mine("lane"));
    let mut first = budget.queue(Claim::StandingLease, mine("m"));
    let mut second = budget.queue(Claim::StandingLease, mine("m"));
    let held = now(&mut first).await;
    assert!(held.is_some() && now(&mut second).await.is_none());
    assert!(budget.reserved_text(7).is_some_and(|text| text.contains("1 of 1 leases of this user")));
    let mut watch = budget.queue(Claim::Lease, mine("w"));
    assert!(now(&mut watch).await.is_some());
    let mut other = budget.queue(Claim::StandingLease, "other");
    assert!(now(&mut other).await.is_some());
    drop((lane, held));
}

#[tokio::test]
async fn what_is_left_to_another_process_is_granted_to_nobody_until_it_comes_back() {
    let budget = Budget::new(8, 1, Hubs { blocking: true, pubsub: true });
    let leases: Vec<_> = (0..8).filter_map(|_| take(&budget, Kind::Lease)).collect();
    assert_eq!(leases.len(), 3);
    let lane = take(&budget, Kind::Lane).unwrap();
    budget.keep(Some(4));
    assert_eq!((budget.limit(), budget.ceiling(), budget.cap()), (4, 4, 8));
    for kind in Kind::ALL {
        assert!(take(&budget, kind).is_none(), "{kind:?}");
    }
    // Whoever holds more than the limit is asked to give it up, as for somebody who waits.
    budget.keep(Some(2));
    assert_eq!((budget.pressure().leases, budget.ceiling()), (2, 4));
    let mut waiting = budget.queue(Claim::Lease, "waits");
    drop(leases);
    assert_eq!((budget.pressure().leases, budget.ceiling()), (0, 2));
    assert!(now(&mut waiting).await.is_some(), "one beside the lane");
    budget.keep(Some(0));
    assert_eq!(budget.ceiling(), 1);
    drop(lane);
    assert_eq!(budget.ceiling(), 0);
    budget.keep(None);
    assert_eq!((budget.limit(), budget.floor(Kind::Lane), budget.open_permits()), (8, 2, 3));
}

#[test]
fn three_processes_share_the_cap() {
    let budget = Budget::new(8, 1, Hubs::default());
    budget.set_elsewhere(4);
    assert_eq!((budget.limit(), budget.ceiling()), (4, 8));
    budget.keep(Some(2));
    assert_eq!((budget.limit(), budget.ceiling()), (2, 6));
    // What the first one gives up is for the last one.
    budget.set_elsewhere(1);
    assert_eq!((budget.limit(), budget.ceiling()), (2, 3));
    budget.keep(None);
    assert_eq!((budget.limit(), budget.ceiling()), (7, 8));
}

/// A budget whose control connection is there, and whose part of a total of 20 is registered.
fn registered(share: usize) -> (Arc<Budget>, Permit) {
    let budget = Budget::new(8, 1, BOTH);
    budget.share_total(20);
    let control = take(&budget, Kind::Control).unwrap();
    control.opened(Some(1), None);
    let doubts = budget.fleet_demand().doubts;
    budget.set_share(share, 3, Some(doubts));
    (budget, control)
}

#[tokio::test]
async fn of_a_shared_total_the_part_is_granted_and_what_is_held_beyond_it_is_asked_for() {
    let (budget, _control) = registered(4);
    let lane = take(&budget, Kind::Lane).unwrap();
    let lease = take(&budget, Kind::Lease).unwrap();
    let mut waits = budget.queue(Claim::Lease, "w");
    assert!(now(&mut waits).await.is_none(), "what is left is the hub's");
    // Room for the hub and for the one that waits.
    let demand = budget.fleet_demand();
    assert_eq!((demand.held, demand.wanted, demand.most), (3, 5, 8));
    assert!(tokio::time::timeout(Duration::from_millis(1), budget.share_wanted()).await.is_ok());
    budget.set_share(8, 3, None);
    let another = now(&mut waits).await.unwrap();
    assert_eq!(budget.set_share(2, 4, None), 4);
    assert_eq!((budget.limit(), budget.pressure().leases), (2, 2));
    assert!(budget.is_above_limit());
    lease.closing();
    another.closing();
    assert!(!budget.is_above_limit(), "what is too much is on its way out");
    drop((lease, another));
    assert_eq!((budget.held(), budget.pressure()), (2, Pressure::default()));
    assert!(take(&budget, Kind::Lease).is_none());
    // Only the control connection is left at last, and even the lane has to go.
    budget.set_share(1, 9, None);
    assert_eq!((budget.pressure().leases, budget.lanes_above_floor()), (1, 1));
    let text = budget.full_text(Kind::Lane, 1, Duration::from_secs(2));
    assert_eq!(text, "redbouncer: this instance's share of fleet.total_connections is 0");
    drop(lane);
}

#[tokio::test]
async fn nothing_of_a_shared_total_is_granted_in_doubt_but_the_control_connection() {
    let budget = Budget::new(8, 1, BOTH);
    budget.share_total(20);
    assert!(take(&budget, Kind::Lane).is_none(), "nothing is registered");
    let (budget, control) = registered(6);
    let lane = take(&budget, Kind::Lane).unwrap();
    lane.opened(Some(2), None);
    let doubts = budget.fleet_demand().doubts;
    // The server has closed it, and may have restarted.
    drop(lane);
    assert!(take(&budget, Kind::Lane).is_none());
    budget.set_share(6, 3, Some(doubts));
    assert!(take(&budget, Kind::Lane).is_none(), "what was listed before the loss says nothing");
    budget.set_share(6, 3, Some(budget.fleet_demand().doubts));
    let lane = take(&budget, Kind::Lane).unwrap();
    assert!(take(&budget, Kind::Control).is_none(), "there is one");
    control.closing();
    assert!(take(&budget, Kind::Lease).is_none(), "the register goes with it");
    let text = budget.full_text(Kind::Lease, 1, Duration::from_secs(2));
    assert!(text.ends_with("this instance's claim is not registered on the server"), "{text}");
    control.ended();
    drop(control);
    assert!(take(&budget, Kind::Control).is_some());
    drop(lane);
}

#[test]
fn while_another_process_takes_over_the_part_of_a_shared_total_only_falls() {
    let (budget, _control) = registered(6);
    budget.keep(Some(4));
    assert!(budget.fleet_demand().leaves);
    assert_eq!((budget.fleet_demand().most, budget.ceiling()), (4, 4));
    budget.set_share(3, 3, None);
    budget.set_share(8, 3, None);
    assert_eq!((budget.limit(), budget.ceiling()), (3, 3));
    budget.keep(None);
    budget.set_share(8, 3, None);
    assert_eq!(budget.limit(), 8);
}
