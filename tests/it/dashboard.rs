//! The dashboard's files and its events. What a browser makes of them is tested by tests/clients/dashboard.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::harness::{PATIENCE, Stage, until};

/// The events of one viewer, as they arrive.
struct Viewer {
    lines: BufReader<TcpStream>,
}

impl Viewer {
    /// Asks for events. Returns the status if it is not 200.
    fn open(admin: SocketAddr) -> Result<Self, u16> {
        let mut stream = TcpStream::connect(admin).unwrap();
        // Pictures that take long to make come less often.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        if status != 200 {
            return Err(status);
        }
        while line != "\r\n" {
            line.clear();
            lines.read_line(&mut line).unwrap();
        }
        Ok(Self { lines })
    }

    /// The next event: its name and its data.
    fn next(&mut self) -> (String, Json) {
        let mut event = String::new();
        while !event.ends_with("\n\n") {
            assert!(self.lines.read_line(&mut event).unwrap() > 0, "no more events: {event}");
        }
        let (name, data) = event.trim_end().split_once('\n').unwrap();
        let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        (name.strip_prefix("event: ").unwrap().to_owned(), data)
    }

    /// The next picture.
    fn picture(&mut self) -> Json {
        loop {
            if let (name, data) = self.next()
                && name == "picture"
            {
                return data;
            }
        }
    }
}

/// The kinds of the upstream connections in a picture, in order.
fn kinds(picture: &Json) -> Vec<String> {
    let rows = picture["cells"]["rows"].as_array().unwrap();
    let mut kinds: Vec<_> = rows.iter().map(|row| row["kind"].as_str().unwrap().to_owned()).collect();
    kinds.sort();
    kinds
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let stage = Stage::proxied();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(stage.proxy().admin()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let page = get("/");
    assert!(page.contains("content-type: text/html"), "{page}");
    assert!(page.contains("content-security-policy: default-src 'none'; script-src 'self';"), "{page}");
    assert!(
        !page.contains("unsafe-inline") && !page.contains(" style=") && !page.contains(" onclick="),
        "{page}"
    );
    let mut files = vec!["/".to_owned()];
    for part in page
        .split(['"', '\''])
        .filter(|part| part.ends_with(".js") || part.ends_with(".css") || part.ends_with(".svg"))
    {
        files.push(format!("/{part}"));
    }
    let script = get("/dashboard.js");
    files
        .extend(script.split('\'').filter_map(|part| part.strip_prefix("./")).map(|file| format!("/{file}")));
    assert!(files.len() >= 7, "{files:?}");
    for file in files {
        let answer = get(&file);
        assert!(answer.starts_with("HTTP/1.0 200") && answer.contains("nosniff"), "{file}: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        // The one address is a name: that of SVG.
        let elsewhere = body.replace("http://www.w3.org/2000/svg", "");
        assert!(!elsewhere.contains("http:") && !elsewhere.contains("https:"), "{file}");
        assert!(!body.contains("innerHTML") && !body.contains("insertAdjacentHTML"), "{file}");
    }
}

#[test]
fn a_picture_a_second_agrees_with_the_server() {
    let stage = Stage::proxied();
    let mut clients: Vec<_> = (0..5).map(|_| stage.connect()).collect();
    for client in &mut clients {
        client.call("PING");
    }
    clients[0].call("CLIENT SETNAME cart");
    clients[0].call("WATCH w");
    clients[1].start("BLPOP none 0");
    let mut viewer = Viewer::open(stage.proxy().admin()).unwrap();
    let (name, history) = viewer.next();
    assert_eq!(name, "history");
    assert!(history["samples"].is_array());
    let mut last = Json::Null;
    until("the picture and CLIENT LIST agree", PATIENCE, || {
        last = viewer.picture();
        let mut listed: Vec<_> = stage
            .server
            .rows()
            .iter()
            .map(|row| row.get("name").rsplit(':').next().unwrap().to_owned())
            .collect();
        listed.sort();
        kinds(&last) == listed && last["clients"]["blocked"]["rows"][0][1] == 1
    });
    assert_eq!(last["clients"]["count"], 5);
    assert_eq!(last["connections"]["max"], 8);
    let rows = last["cells"]["rows"].as_array().unwrap();
    let lease = rows.iter().find(|row| row["kind"] == "leased").unwrap();
    assert_eq!(lease["now"]["name"], "cart");
    assert_eq!(lease["client"]["id"], clients[0].call("CLIENT ID").int());
    let began = Instant::now();
    let seconds: Vec<u64> = (0..4).map(|_| viewer.picture()["uptime"].as_u64().unwrap()).collect();
    assert!(seconds.windows(2).all(|pair| pair[1] > pair[0]), "one a second, not more: {seconds:?}");
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn samples_are_taken_while_no_viewer_is_there() {
    let stage = Stage::proxied();
    let _clients: Vec<_> = (0..3).map(|_| stage.connect()).collect();
    until("seconds with 3 clients have passed", PATIENCE, || {
        let (_, history) = Viewer::open(stage.proxy().admin()).unwrap().next();
        let samples = history["samples"].as_array().unwrap();
        samples.iter().filter(|sample| sample[1] == 3).count() >= 2
    });
}

#[test]
fn fifty_viewers_leave_room_for_probes_and_more_are_refused() {
    let stage = Stage::proxied();
    let admin = stage.proxy().admin();
    let mut viewers: Vec<_> = (0..50).map(|_| Viewer::open(admin).unwrap()).collect();
    assert_eq!(Viewer::open(admin).err(), Some(503));
    // Peers that only connect give way first: viewers stay.
    let _idle: Vec<_> = (0..100).map(|_| TcpStream::connect(admin).unwrap()).collect();
    assert_eq!(stage.proxy().http("/live").0, 200);
    assert_eq!(stage.proxy().http("/ready").0, 200);
    for viewer in &mut viewers {
        assert_eq!(viewer.picture()["version"], env!("CARGO_PKG_VERSION"));
    }
    viewers.truncate(1);
    until("there is room again", PATIENCE, || Viewer::open(admin).is_ok());
}

#[test]
fn a_viewer_that_does_not_read_is_dropped_and_holds_up_no_other() {
    let stage = Stage::proxied();
    let admin = stage.proxy().admin();
    // A picture of many clients with long names, and a reader with a small buffer that stops.
    let _clients: Vec<_> = (0..20)
        .map(|number| {
            let mut client = stage.connect();
            client.call(&format!("CLIENT SETNAME {number}{}", "n".repeat(100_000)));
            client
        })
        .collect();
    let slow = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    slow.set_recv_buffer_size(4096).unwrap();
    slow.connect(&admin.into()).unwrap();
    (&slow).write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut viewer = Viewer::open(admin).unwrap();
    until("both are counted", PATIENCE, || viewer.picture()["viewers"] == 2);
    until("the slow one is no longer", Duration::from_secs(60), || viewer.picture()["viewers"] == 1);
}
