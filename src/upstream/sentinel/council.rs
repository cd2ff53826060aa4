//! The Sentinels of one service, their answers, and the master that follows from them. Does no I/O and has no clock.

use std::collections::{BTreeMap, BTreeSet};

use super::answer::{Answer, Named, Other};
use crate::upstream::HostPort;

/// Maximum number of queried Sentinels, because a listing could name any number.
const MOST: usize = 64;

/// How one Sentinel was last met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// It was not reached yet.
    Connecting,
    /// It answers.
    Connected,
    /// It is not reached, or does not answer.
    Unreachable,
    /// It refuses the login or a command, or is not a Sentinel.
    Refused,
    /// It does not know the service.
    UnknownService,
}

impl MemberState {
    /// Every state, for documentation and for series made once.
    pub const ALL: [Self; 5] =
        [Self::Connecting, Self::Connected, Self::Unreachable, Self::Refused, Self::UnknownService];

    /// The label in metrics and listings.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::UnknownService => "unknown_service",
        }
    }
}

/// One Sentinel, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// Where it is, as configured or announced.
    pub address: HostPort,
    /// How it was last met.
    pub state: MemberState,
    /// Why it is not connected.
    pub reason: Option<String>,
    /// The master that it named last, as announced, with its epoch.
    pub names: Option<(HostPort, u64)>,
}

#[derive(Debug)]
struct Member {
    address: HostPort,
    /// The URL names it: it stays, whatever others say.
    is_configured: bool,
    id: Option<String>,
    state: MemberState,
    reason: Option<String>,
    named: Option<Named>,
    others: Vec<Other>,
    /// The last round in which it answered, or was found not to.
    heard_in: u64,
    /// The last round in which it answered.
    answered_in: u64,
}

/// The master to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The master is the one that is followed already, or nothing is sure enough to leave it.
    Stay,
    /// Another one is the master.
    Follow(Naming),
}

/// A master that is named, and by how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// Where it is, as announced.
    pub master: HostPort,
    /// The number of the election that made it the master.
    pub epoch: u64,
    /// Sentinels that name it.
    pub votes: usize,
    /// Sentinels that are known.
    pub known: usize,
}

impl Naming {
    /// Whether more than half of the known Sentinels name it.
    #[must_use]
    pub fn is_by_majority(&self) -> bool {
        2 * self.votes > self.known
    }
}

/// The Sentinels of one service.
#[derive(Debug)]
pub struct Council {
    members: Vec<Member>,
    round: u64,
}

impl Council {
    /// These Sentinels, none of which was asked yet.
    #[must_use]
    pub fn new(configured: &[HostPort]) -> Self {
        let members = configured.iter().map(|address| Member::new(address.clone(), true, None)).collect();
        Self { members, round: 0 }
    }

    /// Starts a new round: earlier answers no longer count. Returns the number of the round.
    pub fn begin_round(&mut self) -> u64 {
        self.round += 1;
        self.round
    }

    /// Whether every Sentinel has answered in this round, or is known not to.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.members.iter().all(|member| member.heard_in == self.round)
    }

    /// The Sentinels that are to be asked.
    pub fn addresses(&self) -> impl Iterator<Item = &HostPort> {
        self.members.iter().map(|member| &member.address)
    }

    /// Records the answers of one Sentinel in `round`. The Sentinels that it lists are queried from now on.
    pub(super) fn answered(&mut self, address: &HostPort, round: u64, answer: Answer) {
        let Some(at) = self.members.iter().position(|member| member.address == *address) else { return };
        let member = &mut self.members[at];
        member.state = MemberState::Connected;
        member.reason = None;
        member.heard_in = round;
        member.answered_in = round;
        member.named = Some(answer.named);
        member.others = answer.others;
        if let Some(id) = answer.id {
            member.id = Some(id.clone());
            // The same one under two addresses has one vote: by the address that the URL names, which comes first.
            let mut met = false;
            self.members
                .retain(|member| member.id.as_ref() != Some(&id) || !std::mem::replace(&mut met, true));
        }
        self.take_up_others();
    }

    /// One Sentinel could not be asked in `round`.
    pub(super) fn failed(&mut self, address: &HostPort, round: u64, state: MemberState, reason: String) {
        if let Some(member) = self.members.iter_mut().find(|member| member.address == *address) {
            member.state = state;
            member.reason = Some(reason);
            member.heard_in = round;
        }
    }

    /// Starts to query listed Sentinels, and stops to query those that no Sentinel lists.
    fn take_up_others(&mut self) {
        let mut listed: BTreeMap<String, HostPort> = BTreeMap::new();
        for other in self.members.iter().flat_map(|member| &member.others) {
            listed.entry(other.id.clone()).or_insert_with(|| other.address.clone());
        }
        let (is_complete, round) = (self.is_complete(), self.round);
        self.members.retain(|member| {
            let is_known = member.id.as_ref().is_some_and(|id| listed.contains_key(id));
            member.is_configured || is_known || !is_complete || member.answered_in == round
        });
        for (id, address) in listed {
            let is_known = |member: &Member| member.id.as_ref() == Some(&id) || member.address == address;
            if !self.members.iter().any(is_known) && self.members.len() < MOST {
                self.members.push(Member::new(address, false, Some(id)));
            }
        }
    }

    /// The conclusion from the answers of this round for a client of `current`, which may be lost; `is_over`: no more
    /// answers are expected.
    ///
    /// The highest epoch counts, then the most frequent answer. More than half of all known Sentinels must name another
    /// master. Fewer are sufficient only if fewer answer at all, and the followed master is lost.
    #[must_use]
    pub fn verdict(&self, current: Option<&HostPort>, is_lost: bool, is_over: bool) -> Verdict {
        let answers: Vec<&Named> = self.answers().collect();
        let Some(epoch) = answers.iter().map(|named| named.epoch).max() else { return Verdict::Stay };
        let votes_for = |master: &HostPort| answers.iter().filter(|named| named.master == *master).count();
        let newest: BTreeSet<&HostPort> =
            answers.iter().filter(|named| named.epoch == epoch).map(|named| &named.master).collect();
        let Some(master) = newest.into_iter().max_by_key(|&master| votes_for(master)) else {
            return Verdict::Stay;
        };
        let (votes, known) = (votes_for(master), self.members.len());
        let naming = Naming { master: master.clone(), epoch, votes, known };
        let few_answer = 2 * answers.len() <= known;
        let may_follow_few = is_over && is_lost && few_answer && 2 * votes > answers.len();
        if current == Some(master) || !(naming.is_by_majority() || may_follow_few) {
            return Verdict::Stay;
        }
        Verdict::Follow(naming)
    }

    /// The answers of this round.
    fn answers(&self) -> impl Iterator<Item = &Named> {
        let of_now = self.members.iter().filter(|member| member.answered_in == self.round);
        of_now.filter_map(|member| member.named.as_ref())
    }

    /// Whether some Sentinel has named another master than `current` in this round.
    #[must_use]
    pub fn is_divided(&self, current: &HostPort) -> bool {
        self.answers().any(|named| named.master != *current)
    }

    /// Whether more than half of the known Sentinels name `current` in this round.
    #[must_use]
    pub fn confirms(&self, current: &HostPort) -> bool {
        2 * self.answers().filter(|named| named.master == *current).count() > self.members.len()
    }

    /// How many have answered in this round.
    #[must_use]
    pub fn answering(&self) -> usize {
        self.answers().count()
    }

    /// The Sentinels, for listings.
    #[must_use]
    pub fn rows(&self) -> Vec<MemberRow> {
        let row = |member: &Member| MemberRow {
            address: member.address.clone(),
            state: member.state,
            reason: member.reason.clone(),
            names: member.named.as_ref().map(|named| (named.master.clone(), named.epoch)),
        };
        self.members.iter().map(row).collect()
    }
}

impl Member {
    fn new(address: HostPort, is_configured: bool, id: Option<String>) -> Self {
        Self {
            address,
            is_configured,
            id,
            state: MemberState::Connecting,
            reason: None,
            named: None,
            others: Vec::new(),
            heard_in: 0,
            answered_in: 0,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(text: &str) -> HostPort {
        HostPort::parse(text, Some(26379)).unwrap()
    }

    fn answer(id: &str, master: &str, epoch: u64, others: &[(&str, &str)]) -> Answer {
        let others = others.iter().map(|(id, address)| Other { id: (*id).to_owned(), address: at(address) });
        Answer {
            id: Some(id.to_owned()),
            named: Named { master: at(master), epoch },
            others: others.collect(),
        }
    }

    /// Three Sentinels `s1` to `s3`, of which each has said this.
    fn council(said: &[Option<(&str, u64)>]) -> Council {
        let addresses: Vec<_> = (1..=said.len()).map(|number| at(&format!("s{number}"))).collect();
        let mut council = Council::new(&addresses);
        let round = council.begin_round();
        for ((number, address), said) in (1..).zip(&addresses).zip(said) {
            match said {
                Some((master, epoch)) => {
                    council.answered(address, round, answer(&format!("id{number}"), master, *epoch, &[]));
                }
                None => council.failed(address, round, MemberState::Unreachable, "away".to_owned()),
            }
        }
        council
    }

    fn followed(council: &Council, current: Option<&str>, is_lost: bool) -> Option<(String, usize)> {
        let current = current.map(at);
        match council.verdict(current.as_ref(), is_lost, true) {
            Verdict::Stay => None,
            Verdict::Follow(naming) => Some((naming.master.host, naming.votes)),
        }
    }

    #[test]
    fn a_majority_is_followed_whether_the_old_master_works_or_not() {
        let council = council(&[Some(("b", 2)), Some(("b", 2)), Some(("a", 1))]);
        assert_eq!(followed(&council, Some("a"), false), Some(("b".to_owned(), 2)));
        assert_eq!(followed(&council, Some("a"), true), Some(("b".to_owned(), 2)));
        assert_eq!(followed(&council, None, true), Some(("b".to_owned(), 2)));
        assert_eq!(followed(&council, Some("b"), false), None);
    }

    #[test]
    fn one_against_a_majority_is_not_followed_however_new_it_says_it_is() {
        for epoch in [0, 1, 9] {
            let council = council(&[Some(("b", epoch)), Some(("a", 1)), Some(("a", 1))]);
            assert_eq!(followed(&council, Some("a"), false), None, "{epoch}");
            assert_eq!(followed(&council, Some("a"), true), None, "{epoch}");
        }
    }

    #[test]
    fn few_replace_a_master_only_if_it_is_lost_and_the_others_are_silent() {
        let alone = council(&[Some(("b", 2)), None, None]);
        assert_eq!(followed(&alone, Some("a"), false), None);
        assert_eq!(followed(&alone, Some("a"), true), Some(("b".to_owned(), 1)));
        let current = at("a");
        assert_eq!(alone.verdict(Some(&current), true, false), Verdict::Stay, "others may answer yet");
        let divided = council(&[Some(("b", 2)), Some(("c", 2)), None, None, None]);
        assert_eq!(followed(&divided, Some("a"), true), None);
    }

    #[test]
    fn the_newest_configuration_counts_before_the_number_of_voices() {
        // Three of five have not heard of the failover, and their configuration is old: nothing is sure yet.
        let council =
            council(&[Some(("b", 2)), Some(("b", 2)), Some(("a", 1)), Some(("a", 1)), Some(("a", 1))]);
        assert_eq!(followed(&council, Some("b"), false), None);
        assert_eq!(followed(&council, Some("c"), true), None);
    }

    #[test]
    fn what_was_said_in_an_earlier_round_counts_no_more() {
        let mut council = council(&[Some(("b", 2)), Some(("b", 2)), Some(("b", 2))]);
        council.begin_round();
        assert_eq!(followed(&council, Some("a"), true), None);
        assert!(!council.is_complete());
    }

    #[test]
    fn listed_sentinels_are_asked_and_each_has_one_vote() {
        let mut council = Council::new(&[at("name"), at("second")]);
        let round = council.begin_round();
        let others = [("id2", "10.0.0.2"), ("id3", "10.0.0.3")];
        council.answered(&at("name"), round, answer("id1", "a", 1, &others));
        assert_eq!(council.addresses().count(), 4, "nobody knows yet who `second` is");
        council.answered(
            &at("second"),
            round,
            answer("id2", "a", 1, &[("id1", "10.0.0.1"), ("id3", "10.0.0.3")]),
        );
        let known: Vec<_> = council.addresses().map(ToString::to_string).collect();
        assert_eq!(known, ["name:26379", "second:26379", "10.0.0.3:26379"]);
        // The URL may name one twice.
        let mut twice = Council::new(&[at("one"), at("alias")]);
        let round = twice.begin_round();
        twice.answered(&at("one"), round, answer("id1", "a", 1, &[]));
        twice.answered(&at("alias"), round, answer("id1", "a", 1, &[]));
        assert_eq!(twice.addresses().count(), 1);
    }

    #[test]
    fn one_that_nobody_lists_any_more_is_forgotten_unless_the_url_names_it() {
        let mut council = Council::new(&[at("s1"), at("s2")]);
        let round = council.begin_round();
        council.answered(&at("s1"), round, answer("id1", "a", 1, &[("id3", "s3")]));
        council.failed(&at("s2"), round, MemberState::Unreachable, String::new());
        council.failed(&at("s3"), round, MemberState::Unreachable, String::new());
        assert_eq!(council.addresses().count(), 3);
        let round = council.begin_round();
        council.failed(&at("s2"), round, MemberState::Unreachable, String::new());
        council.failed(&at("s3"), round, MemberState::Unreachable, String::new());
        council.answered(&at("s1"), round, answer("id1", "a", 1, &[]));
        let known: Vec<_> = council.addresses().map(|address| address.host.as_str()).collect();
        assert_eq!(known, ["s1", "s2"]);
    }
}
