//! What an operator sees of a cluster, and does to it.

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::{Client, Cluster, PATIENCE, Proxy, Server, Stage, Value, until};

/// A key whose slot belongs to each of the three masters.
const KEYS: [&str; 3] = ["b", "c", "a"];

/// The ids of the proxy's connections on `node`, as the node lists them.
fn ids(node: &Server) -> BTreeSet<u64> {
    let rows = node.call("CLIENT LIST").text();
    let ours = rows.lines().filter(|row| row.contains(" name=redbouncer:"));
    ours.map(|row| row.split([' ', '=']).nth(1).unwrap().parse().unwrap()).collect()
}

/// A proxy with a lane to each master, and what has made them.
fn serve(cluster: &Cluster) -> (Proxy, Client) {
    let proxy = Proxy::launch(&cluster.url(), &["pool.max_connections=4"])
        .unwrap_or_else(|exit| panic!("the proxy ended: {exit:#?}"));
    let mut client = proxy.connect();
    for key in KEYS {
        assert_eq!(client.call(&format!("SET {key} 1")).text(), "OK");
    }
    // What this user may list is asked for over a connection of its own, which stays.
    assert!(!client.call("PROXY UPSTREAMS").is_error());
    (proxy, client)
}

#[test]
fn the_connections_of_all_nodes_are_shown() {
    let cluster = Cluster::start();
    let (proxy, mut client) = serve(&cluster);
    // A lease on a node that is perhaps not home.
    for key in KEYS {
        let mut holder = proxy.connect();
        holder.call(&format!("WATCH {key}"));
        let listed: BTreeMap<String, BTreeSet<u64>> =
            cluster.masters.iter().map(|node| (node.address().to_string(), ids(node))).collect();
        let total: usize = listed.values().map(BTreeSet::len).sum();
        let status = proxy.status();
        let mut shown: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for row in status["upstreams"].as_array().unwrap() {
            let node = row["node"].as_str().unwrap().to_owned();
            shown.entry(node).or_default().insert(row["server_id"].as_u64().unwrap());
        }
        assert_eq!(shown, listed, "{status}");
        assert_eq!(status["connections"]["held"], total, "{status:#}");
        assert_eq!(status["connections"]["max"], 12, "the caps of three nodes");
        assert_eq!(status["longest_lease"]["client"]["command"], "watch");
        let text = client.call("PROXY UPSTREAMS");
        let lines: Vec<_> = text.items().iter().map(|line| line.text()).collect();
        assert_eq!(lines.len(), total);
        for (node, count) in listed.iter().map(|(node, ids)| (node, ids.len())) {
            let own = lines.iter().filter(|line| line.starts_with(&format!("node={node} ")));
            assert_eq!(own.count(), count, "{lines:?}");
        }
        let pools = client.call("PROXY POOLS").items()[0].text();
        assert_eq!(pools, format!("max_connections=12 held={total}"));
        let topology = client.call("PROXY TOPOLOGY");
        let nodes: BTreeMap<String, usize> = topology
            .items()
            .iter()
            .map(Value::text)
            .filter_map(|line| {
                let field = |name: &str| {
                    let named = line.split(' ').find_map(|field| field.strip_prefix(name));
                    named.unwrap_or_else(|| panic!("{line}")).to_owned()
                };
                line.starts_with("node=").then(|| {
                    assert_eq!(
                        (field("role="), field("max=")),
                        ("master".to_owned(), "4".to_owned()),
                        "{line}"
                    );
                    (field("node="), field("connections=").parse().unwrap())
                })
            })
            .collect();
        assert!(listed.iter().all(|(node, ids)| nodes[node] == ids.len()) && nodes.len() == 3, "{nodes:?}");
        assert!(status["upstream"]["cluster"]["map_seconds"].is_u64(), "{status}");
        let metrics = proxy.metrics();
        assert!(metrics["redbouncer_map_age_seconds"] < 100.0);
        let by_node = |node: &str| -> f64 {
            let label = format!("node=\"{node}\"");
            let own = metrics.iter().filter(|(name, _)| {
                name.starts_with("redbouncer_upstream_connections{") && name.contains(&label)
            });
            own.map(|(_, count)| count).sum()
        };
        for (node, ids) in &listed {
            assert!((by_node(node) - ids.len() as f64).abs() < 0.5, "{node}: {metrics:?}");
        }
        assert!((metrics["redbouncer_upstream_connections_max"] - 12.0).abs() < 0.5);
        // The id is of the node that the holder's row names; the holder is closed, on whichever node.
        let row =
            status["upstreams"].as_array().unwrap().iter().find(|row| row["client"].is_object()).unwrap();
        let id = row["client"]["id"].as_u64().unwrap();
        assert_eq!(client.call(&format!("PROXY KILL ID {id}")).int(), 1);
        until("its connection is closed or kept by nobody", PATIENCE, || {
            proxy.status()["longest_lease"].is_null()
        });
    }
}

#[test]
fn the_connections_to_one_node_are_renewed() {
    let cluster = Cluster::start();
    let (_proxy, mut client) = serve(&cluster);
    let before: Vec<_> = cluster.masters.iter().map(ids).collect();
    assert!(before.iter().all(|ids| !ids.is_empty()), "{before:?}");
    let node = cluster.masters[1].address();
    let told = client.call(&format!("PROXY RECONNECT {node}")).int();
    assert_eq!(told, i64::try_from(before[1].len()).unwrap());
    until("no connection of before is left on it", PATIENCE, || {
        ids(&cluster.masters[1]).is_disjoint(&before[1])
    });
    for key in KEYS {
        assert_eq!(client.call(&format!("GET {key}")).text(), "1");
    }
    for other in [0, 2] {
        assert_eq!(ids(&cluster.masters[other]), before[other], "the others stay");
    }
    let told = client.call("PROXY RECONNECT").int();
    assert!(told >= 3, "{told}");
    until("all are renewed", PATIENCE, || {
        cluster.masters.iter().zip(&before).all(|(node, before)| ids(node).is_disjoint(before))
    });
    for wrong in ["127.0.0.1:1", "x", ""] {
        let reply = client.ask(&["PROXY", "RECONNECT", wrong]);
        assert!(reply.error().contains("takes a node as listed"), "{reply:?}");
    }
}

#[test]
fn without_a_cluster_the_server_is_the_only_node() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    client.call("PING");
    assert!(client.call(&format!("PROXY RECONNECT {}", stage.server.address())).int() >= 1);
    let reply = stage.connect().call("PROXY RECONNECT 127.0.0.1:6379");
    assert!(reply.error().contains("takes a node as listed"), "{reply:?}");
}
