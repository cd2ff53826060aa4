//! Whether a user may see other clients: the server's ACL is asked, and its answer remembered for `auth.cache_ttl`.

use std::rc::Rc;

use bytes::Bytes;

use crate::downstream::client::Client;
use crate::pool::Unavailable;
use crate::resp::{self, ErrorCode, encode};

impl Client {
    /// The refusal where this client's user may not CLIENT LIST, and where that is not known: the server is silent, or
    /// loads its data. A server that does not understand the question keeps nobody from looking at us.
    pub(in crate::downstream) async fn forbidden_to_list(self: &Rc<Self>) -> Option<Bytes> {
        let Some((key, _)) = self.lane_key() else {
            return Some(encode::one_error(&Unavailable::NoAuth.to_string()));
        };
        if let Some(known) = self.context.permissions.of(key.user) {
            return known;
        }
        let question = encode::one_command(&[b"CLIENT", b"LIST", b"ID", b"1"]);
        let reply = match self.ask_control(question).await {
            Ok(reply) => reply,
            Err(why) => return Some(encode::one_error(&why.to_string())),
        };
        let refusal = match resp::error_text(&reply) {
            Some(text) => match ErrorCode::of_text(text) {
                ErrorCode::Err => None,
                ErrorCode::NoPerm => Some(reply),
                _ => return Some(reply), // it will say later
            },
            None => None,
        };
        self.context.permissions.remember(key.user, refusal.clone());
        refusal
    }
}
