//! What finding a frame costs, beside `redis-protocol`'s `decode_range` in the same run.
//!
//! `cargo bench --bench framing`; `cargo bench --bench framing -- scan` for ours alone.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::time::Duration;

use bytes::BytesMut;
use criterion::{Criterion, criterion_group, criterion_main};
use redbouncer::resp::{ReplyScanner, Request, RequestLimits, RequestScanner, RequestStep, encode};
use redis_protocol::resp2::decode::decode_range;

/// An array of 100 bulks of 8 bytes.
fn hundred_bulks() -> Vec<u8> {
    [b"*100\r\n".to_vec(), b"$8\r\nabcdefgh\r\n".repeat(100)].concat()
}

/// `SET` with a value of 64 bytes.
fn set_of_64_bytes() -> BytesMut {
    let mut out = BytesMut::new();
    encode::command(&mut out, &[b"SET", b"key:000000000001", &[b'x'; 64]]);
    out
}

fn requests(criterion: &mut Criterion) {
    let limits = RequestLimits::default();
    let mut group = criterion.benchmark_group("request");
    for (name, bytes) in [("set_64", set_of_64_bytes().to_vec()), ("array_100", hundred_bulks())] {
        let mut scanner = RequestScanner::default();
        group.bench_function(format!("scan/{name}"), |bencher| {
            bencher.iter(|| scanner.step(black_box(&bytes), &limits));
        });
        group.bench_function(format!("redis-protocol/{name}"), |bencher| {
            bencher.iter(|| decode_range(black_box(&bytes)));
        });
        let Ok(RequestStep::Request(shape)) = RequestScanner::default().step(&bytes, &limits) else {
            continue;
        };
        group.bench_function(format!("arguments/{name}"), |bencher| {
            bencher.iter(|| Request::new(black_box(&bytes), &shape).args().map(<[u8]>::len).sum::<usize>());
        });
    }
    group.finish();
}

fn replies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reply");
    for (name, bytes) in [
        ("ok", b"+OK\r\n".to_vec()),
        ("integer", b":12345\r\n".to_vec()),
        ("bulk_64", [b"$64\r\n".to_vec(), vec![b'x'; 64], b"\r\n".to_vec()].concat()),
        ("array_100", hundred_bulks()),
    ] {
        let mut scanner = ReplyScanner::default();
        group.bench_function(format!("scan/{name}"), |bencher| {
            bencher.iter(|| scanner.step(black_box(&bytes)));
        });
        group.bench_function(format!("redis-protocol/{name}"), |bencher| {
            bencher.iter(|| decode_range(black_box(&bytes)));
        });
    }
    group.finish();
}

criterion_group! {
    name = framing;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(1));
    targets = requests, replies
}
criterion_main!(framing);
