//! Clients with client-side caching when the proxy is replaced: they forget what they have cached, and are told of changes by the
//! new process.

use crate::harness::Client;
use crate::takeover::{Newcomer, Scene, TAKEOVER};

fn forgets(client: &mut Client, key: Option<&str>) {
    let push = client.reply();
    assert!(push.is_push(), "{push:?}");
    assert_eq!(push.items()[0].text(), "invalidate");
    match key {
        Some(key) => assert_eq!(push.items()[1].items()[0].text(), key),
        None => assert!(push.raw.ends_with(b"_\r\n"), "{push:?}"),
    }
}

#[test]
fn a_client_that_caches_forgets_everything_and_is_told_of_changes_by_the_new_process() {
    let mut scene = Scene::new(&[]);
    scene.server.call("SET k 1");
    let (mut all, mut opt_in) = (scene.proxy.connect(), scene.proxy.connect());
    for client in [&mut all, &mut opt_in] {
        assert!(!client.call("HELLO 3").is_error());
    }
    assert_eq!(all.call("CLIENT TRACKING ON NOLOOP").text(), "OK");
    assert_eq!(opt_in.call("CLIENT TRACKING ON OPTIN").text(), "OK");
    for round in 1..=2 {
        assert_eq!(all.call("GET k").text(), round.to_string());
        assert_eq!(scene.replace().wait(TAKEOVER).code, Some(0));
        // All that it may have cached is named. It is not told to forget everything, which libraries overlook for a reply that they
        // wait for.
        forgets(&mut all, Some("k"));
        assert_eq!(all.call("GET k").text(), round.to_string());
        // Nothing is remembered of this one.
        assert_eq!(opt_in.call("GET k").text(), round.to_string());
        scene.server.call(&format!("SET k {}", round + 1));
        forgets(&mut all, Some("k"));
        assert_eq!(opt_in.call("PING").text(), "PONG");
    }
    let info = format!("{:?}", all.call("CLIENT TRACKINGINFO"));
    assert!(info.contains("noloop"), "{info}");
    let info = format!("{:?}", opt_in.call("CLIENT TRACKINGINFO"));
    assert!(info.contains("optin"), "{info}");
    assert_eq!(opt_in.call("CLIENT CACHING YES").text(), "OK");
    assert_eq!(opt_in.call("GET k").text(), "3");
    scene.server.call("SET k 4");
    forgets(&mut opt_in, Some("k"));
}

#[test]
fn a_subscriber_that_caches_hears_every_message_and_forgets_what_it_has_cached() {
    let mut scene = Scene::new(&[]);
    scene.server.call("SET k 1");
    let mut client = scene.proxy.connect();
    assert!(!client.call("HELLO 3").is_error());
    assert_eq!(client.call("CLIENT TRACKING ON").text(), "OK");
    assert!(client.call("SUBSCRIBE c").is_push());
    for round in 1..=2 {
        assert_eq!(client.call("GET k").text(), round.to_string());
        assert_eq!(scene.replace().wait(TAKEOVER).code, Some(0));
        forgets(&mut client, Some("k"));
        scene.server.call(&format!("PUBLISH c {round}"));
        assert_eq!(client.reply().items()[2].text(), round.to_string());
        assert_eq!(client.call("GET k").text(), round.to_string());
        scene.server.call(&format!("SET k {}", round + 1));
        forgets(&mut client, Some("k"));
    }
    assert!(client.call("UNSUBSCRIBE").is_push());
    assert_eq!(client.call("PING").text(), "PONG");
}

#[test]
fn a_subscriber_that_caches_is_not_announced_to_a_process_that_would_have_it_forget_too_early() {
    let scene = Scene::new(&[]);
    let (mut caching, mut plain) = (scene.proxy.connect(), scene.proxy.connect());
    assert!(!caching.call("HELLO 3").is_error());
    assert_eq!(caching.call("CLIENT TRACKING ON").text(), "OK");
    assert!(caching.call("SUBSCRIBE c").is_push());
    let id = plain.call("CLIENT ID").int();
    plain.call("SUBSCRIBE c");
    // They are announced in the order of their numbers.
    let mut newcomer = Newcomer::in_charge(&scene.socket(), &["subscribers", "tracking"]);
    assert_eq!(newcomer.hear("announce")["id"], id);
    scene.server.call("PUBLISH c 1");
    assert_eq!(caching.reply().items()[2].text(), "1");
}

#[test]
fn a_client_that_caches_by_prefix_is_told_of_its_keys_by_the_new_process() {
    let mut scene = Scene::new(&[]);
    let mut plain = scene.proxy.connect();
    let mut subscribed = scene.proxy.connect();
    for client in [&mut plain, &mut subscribed] {
        assert!(!client.call("HELLO 3").is_error());
        assert_eq!(client.call("CLIENT TRACKING ON BCAST PREFIX user: PREFIX item:").text(), "OK");
    }
    assert!(subscribed.call("SUBSCRIBE c").is_push());
    for round in 1..=2 {
        assert_eq!(scene.replace().wait(TAKEOVER).code, Some(0));
        for client in [&mut plain, &mut subscribed] {
            // Once when it comes, and once more when the server has been asked for its prefixes.
            forgets(client, None);
            forgets(client, None);
        }
        scene.server.call(&format!("SET other:{round} 1"));
        scene.server.call(&format!("SET item:{round} 1"));
        for client in [&mut plain, &mut subscribed] {
            forgets(client, Some(&format!("item:{round}")));
            let info = format!("{:?}", client.call("CLIENT TRACKINGINFO"));
            assert!(info.contains("bcast") && info.contains("user:") && info.contains("item:"), "{info}");
        }
    }
}
