//! The troubles that sequences get into, one each, and what has to be set up for them.
//!
//! | trouble | what happens | what must agree |
//! |---|---|---|
//! | `half-closes` | a FIN right behind a pipeline | every reply to the last byte |
//! | `departures` | a client that is gone right behind a pipeline, nothing read | the data |
//! | `slow-readers` | megabytes of replies that nobody reads for a while | the others meanwhile, the data, then every byte |
//! | `pauses` | CLIENT PAUSE, of writes until UNPAUSE, of everything for a moment | what is held and what is not, every byte |
//! | `refusals` | more transactions, databases and subscribers than 4 connections | every byte, with a refused command taken out of the direct world as [`super::fate`] says |
//! | `renames` | MULTI, SELECT, WATCH and others have other names on the server | every byte |
//! | `reply-modes` | CLIENT REPLY OFF and SKIP over many writes, RESET | every byte, the data |
//! | `kills` | the proxy's connections are killed at a quiet moment | every byte; those whose state was on it are closed, directly too |
//! | `demotions` | the server becomes a replica, and a master again | every byte |

use std::ops::RangeInclusive;

use fastrand::Rng;

/// What goes wrong in a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Trouble {
    None,
    HalfClose,
    Leave,
    Slow,
    Pause,
    Refusal,
    Rename,
    Mute,
    Kill,
    Demotion,
}

/// A kind of upstream connection, by the last word of its name on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Control,
    Shared,
    Leased,
    Blocking,
    PubSub,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::Control, Self::Shared, Self::Leased, Self::Blocking, Self::PubSub];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Shared => "shared",
            Self::Leased => "leased",
            Self::Blocking => "blocking",
            Self::PubSub => "pubsub",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Servers and proxies that were started alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Setup {
    /// Every client may hold a lease.
    Ample,
    /// A pool of 4, and waiting for it is soon over.
    Scarce,
    /// Commands have other names on the server.
    Renamed,
    /// The server is a replica now and then: HELLO tells its role at the last login.
    Fickle,
}

/// What commands are called in [`Setup::Renamed`]: each with an X before it. SYNC would make a replica of its client.
pub(crate) const RENAMED: [&str; 7] = ["MULTI", "SELECT", "WATCH", "MONITOR", "SUBSCRIBE", "DEBUG", "SYNC"];

impl Trouble {
    pub(crate) const ALL: [Self; 10] = [
        Self::None,
        Self::HalfClose,
        Self::Leave,
        Self::Slow,
        Self::Pause,
        Self::Refusal,
        Self::Rename,
        Self::Mute,
        Self::Kill,
        Self::Demotion,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::HalfClose => "half-closes",
            Self::Leave => "departures",
            Self::Slow => "slow-readers",
            Self::Pause => "pauses",
            Self::Refusal => "refusals",
            Self::Rename => "renames",
            Self::Mute => "reply-modes",
            Self::Kill => "kills",
            Self::Demotion => "demotions",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|trouble| trouble.name() == name)
    }

    /// How many of a hundred sequences are for it.
    pub(crate) fn weight(self) -> usize {
        match self {
            Self::None => 12,
            Self::HalfClose => 17,
            Self::Leave => 12,
            Self::Slow => 3,
            Self::Pause => 4,
            Self::Refusal => 2,
            Self::Rename => 14,
            Self::Mute => 15,
            Self::Kill => 18,
            Self::Demotion => 3,
        }
    }

    /// How many clients there are: some troubles are between them.
    pub(crate) fn clients(self) -> RangeInclusive<usize> {
        match self {
            Self::None | Self::HalfClose | Self::Leave | Self::Mute | Self::Kill | Self::Demotion => 1..=4,
            Self::Slow | Self::Pause | Self::Rename => 2..=4,
            Self::Refusal => 3..=5,
        }
    }

    /// The trouble of this seed.
    pub(crate) fn of_seed(seed: u64) -> Self {
        // Not the numbers that the sequence itself is made from.
        let mut left = Rng::with_seed(!seed).usize(0..100);
        for trouble in Self::ALL {
            if left < trouble.weight() {
                return trouble;
            }
            left -= trouble.weight();
        }
        Self::None
    }

    pub(crate) fn setup(self) -> Setup {
        match self {
            Self::None
            | Self::HalfClose
            | Self::Leave
            | Self::Slow
            | Self::Pause
            | Self::Mute
            | Self::Kill => Setup::Ample,
            Self::Refusal => Setup::Scarce,
            Self::Rename => Setup::Renamed,
            Self::Demotion => Setup::Fickle,
        }
    }
}

#[test]
fn weights_are_of_a_hundred() {
    assert_eq!(Trouble::ALL.map(Trouble::weight).iter().sum::<usize>(), 100);
}
