//! framing
fn main() {}
