//! All Sentinels of one service: a connection to each known Sentinel, and the combined answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::council::{Council, MemberRow, Verdict};
use super::link::{Link, PATIENCE, Report};
use crate::resp::Protocol;
use crate::upstream::{
    CredentialSource, HostPort, Identity, Login, SentinelOptions, SentinelService, UpstreamOptions,
};

/// The shortest time between two rounds: a loss is reported by many callers at once.
const SPACING: Duration = Duration::from_millis(50);

/// The Sentinels of one service, and a task for each. Their connections close when this is dropped.
#[derive(Debug)]
pub struct Sentinels {
    council: Council,
    links: BTreeMap<HostPort, JoinHandle<()>>,
    template: Link,
    rounds: watch::Sender<u64>,
    heard: mpsc::Receiver<Report>,
    begun: Instant,
    /// A round is to begin when it may.
    wanted: bool,
}

impl Sentinels {
    /// Begins to ask. `name` is how its connections are called there. `None`: the URL names no Sentinels.
    ///
    /// The tasks run on the current `LocalRuntime`.
    #[must_use]
    pub fn start(options: &UpstreamOptions, name: String) -> Option<Self> {
        let service = options.service.as_ref()?;
        let (reports, heard) = mpsc::channel(64);
        let mut council = Council::new(&service.sentinels);
        let rounds = watch::Sender::new(council.begin_round());
        let mut sentinels = Self {
            council,
            links: BTreeMap::new(),
            template: template(options, service, name, reports),
            rounds,
            heard,
            begun: Instant::now(),
            wanted: false,
        };
        sentinels.follow_the_council();
        Some(sentinels)
    }

    /// Requests a new round soon.
    pub fn ask(&mut self) {
        self.wanted = true;
    }

    /// Waits until a report has arrived or a round is over. [`Self::verdict`] and [`Self::rows`] have the results.
    pub async fn changed(&mut self) {
        let next = if self.wanted { self.begun + SPACING } else { self.end() };
        let is_over = !self.wanted && self.is_over();
        let report = tokio::select! {
            biased;
            report = self.heard.recv() => report,
            () = tokio::time::sleep_until(next), if !is_over => None,
        };
        match report {
            Some(Report::Answered(address, round, answer)) => {
                self.council.answered(&address, round, answer);
                self.follow_the_council();
            }
            Some(Report::Failed(address, round, state, reason)) => {
                self.council.failed(&address, round, state, reason);
            }
            Some(Report::Switched) => self.wanted = true,
            None => {}
        }
        if self.wanted && self.begun.elapsed() >= SPACING {
            self.wanted = false;
            self.begun = Instant::now();
            self.rounds.send_replace(self.council.begin_round());
        }
    }

    /// When answers of this round are waited for no more.
    fn end(&self) -> Instant {
        self.begun + PATIENCE
    }

    /// Whether nothing more is to be heard in this round.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.council.is_complete() || Instant::now() >= self.end()
    }

    /// Whether each that is known has answered, or is known not to.
    #[must_use]
    pub(super) fn is_complete(&self) -> bool {
        self.council.is_complete()
    }

    /// What they say to somebody who follows nobody, and waits for no more answers.
    #[must_use]
    pub(super) fn verdict_in_the_end(&self) -> Verdict {
        self.council.verdict(None, true, true)
    }

    /// The combined answer, see [`Council::verdict`].
    #[must_use]
    pub fn verdict(&self, current: Option<&HostPort>, is_lost: bool) -> Verdict {
        self.council.verdict(current, is_lost, self.is_over())
    }

    /// Whether any Sentinel names another master than `current`.
    #[must_use]
    pub fn is_divided(&self, current: &HostPort) -> bool {
        self.council.is_divided(current)
    }

    /// Whether more than half of the known Sentinels name `current`.
    #[must_use]
    pub fn confirms(&self, current: &HostPort) -> bool {
        self.council.confirms(current)
    }

    /// How many have answered in this round.
    #[must_use]
    pub fn answering(&self) -> usize {
        self.council.answering()
    }

    /// The Sentinels, for listings.
    #[must_use]
    pub fn rows(&self) -> Vec<MemberRow> {
        self.council.rows()
    }

    /// Opens a link to each that is known, and ends those to others.
    fn follow_the_council(&mut self) {
        self.links.retain(|address, task| {
            let is_known = self.council.addresses().any(|known| known == address);
            if !is_known {
                task.abort();
            }
            is_known
        });
        for address in self.council.addresses() {
            if self.links.contains_key(address) {
                continue;
            }
            let options = self.template.options.at(address);
            let link = Link { address: address.clone(), options, ..self.template.clone() };
            let task = tokio::task::spawn_local(link.run(self.rounds.subscribe()));
            self.links.insert(address.clone(), task);
        }
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for task in self.links.values() {
            task.abort();
        }
    }
}

/// The common options of all links, with the Sentinels' own credentials.
fn template(
    options: &UpstreamOptions,
    service: &SentinelService,
    name: String,
    reports: mpsc::Sender<Report>,
) -> Link {
    let SentinelOptions { username, password, tls, .. } = options.sentinel.clone();
    let identity =
        Identity { username: username.clone(), password: password.clone(), source: CredentialSource::Url };
    let options = UpstreamOptions {
        tls: tls.unwrap_or(options.tls),
        username,
        password,
        database: 0,
        connect_timeout: PATIENCE,
        loading_retry: Duration::ZERO,
        ..options.clone()
    };
    let login = Login {
        identity: Arc::new(identity),
        database: 0,
        protocol: Protocol::Resp3,
        name,
        readonly: false,
        tracking: false,
    };
    let address = HostPort { host: String::new(), port: 0 };
    Link { address, options, login, service: service.name.clone(), reports }
}
