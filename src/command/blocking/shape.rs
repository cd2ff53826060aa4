//! Which calls are alike.

use super::call::Call;
use super::parse::parse;
use crate::command::{Class, classify};
use crate::resp::Request;

impl Call {
    /// Whether `b`'s caller may be handed what was popped for `a`: the same command, keys, options and ids, the
    /// timeout aside. Both are compared as written: the same options in another order count as different.
    pub fn same_shape(a: &Request<'_>, b: &Request<'_>) -> bool {
        let (Some(ours), Some(theirs)) = (Self::of(a), Self::of(b)) else { return false };
        ours.command == theirs.command
            && ours.timeout_arg == theirs.timeout_arg
            && a.argc() == b.argc()
            && a.args().zip(b.args()).enumerate().skip(1).all(|(i, (x, y))| i == ours.timeout_arg || x == y)
    }

    /// The call that a request is, if it is a blocking one.
    pub(super) fn of(request: &Request<'_>) -> Option<Self> {
        let Class::Blocking(command) = classify(request).class else { return None };
        parse(request, command)
    }
}
