//! The redbouncer program.
fn main() {}
