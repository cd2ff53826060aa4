//! How long an argument the server takes (`proto-max-bulk-len`): asked on every new lane, and anew before a client is told
//! that it has announced too much. Where CONFIG is refused, Redis's default stands.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Group, Lane, Lost, Pool};
use crate::resp::{self, encode};
use crate::upstream::{Capability, Identity};

impl Pool {
    /// The question. `None`: this user may not ask.
    pub fn limit_question(&self, identity: &Identity) -> Option<Bytes> {
        if self.shared.connector.missing_capabilities().has(Capability::Config, identity.name()) {
            return None;
        }
        Some(encode::one_command(&[b"CONFIG", b"GET", b"proto-max-bulk-len"]))
    }

    /// Notes the answer.
    pub fn heed_limit(&self, identity: &Identity, answer: &[Bytes]) {
        let answer = answer.first();
        let missing = self.shared.connector.missing_capabilities();
        match answer.and_then(|frame| value_in(frame)) {
            Some(value) => {
                self.shared.max_bulk.store(value, Ordering::Relaxed);
                missing.record_support(Capability::Config, identity.name());
            }
            None => {
                let words = answer.and_then(|frame| resp::error_text(frame));
                let words = words.map_or("(an answer without a value)".into(), String::from_utf8_lossy);
                missing.record_refusal(Capability::Config, identity.name(), &words);
            }
        }
    }

    /// The first words on a lane.
    pub(super) fn ask_for_limit(self: &Rc<Self>, group: &Group, lane: &Lane) {
        let Some(question) = self.limit_question(group.identity()) else { return };
        let (pool, identity) = (Rc::clone(self), Arc::clone(group.identity()));
        let then = move |answer: Result<Vec<Bytes>, Lost>| {
            if let Ok(frames) = answer {
                pool.heed_limit(&identity, &frames);
            }
        };
        lane.exchange(&question, 1, Instant::now(), Box::new(then));
    }
}

fn value_in(frame: &[u8]) -> Option<u64> {
    let value = resp::bulk(resp::elements(frame)?.nth(1)?)?;
    std::str::from_utf8(value).ok()?.parse().ok()
}
