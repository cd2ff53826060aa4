//! `redbouncer status --watch`: a full-screen view in the manner of `top`. The proxy is asked in a thread of its own, so that a slow
//! answer holds up no key.

mod screen;

use std::io::{self, IsTerminal};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use serde_json::Value;

use super::operate::{self, OperateError, Target, Way};
use super::status;
use crate::admin::AdminOptions;
use crate::config::Config;
use crate::resp;
use screen::{Screen, Wish};

/// How often the proxy is asked.
const PERIOD: Duration = Duration::from_secs(1);
/// How often messages of the threads are polled.
const STEP: Duration = Duration::from_millis(50);

/// A message of a thread.
enum News {
    Status(Value),
    Note(String),
}

/// Shows the proxy that `config` describes until the operator leaves. Clients are closed by way of `target`, or of what the proxy
/// tells of itself.
///
/// # Errors
/// There is no terminal, or it cannot be used.
pub(super) fn run(config: &Config, target: &Target) -> io::Result<()> {
    if !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
        return Err(io::Error::other("--watch needs a terminal"));
    }
    let (sender, news) = mpsc::channel();
    let (asked, looks) = (config.admin.clone(), sender.clone());
    std::thread::Builder::new().name("status".to_owned()).spawn(move || look(&asked, &looks))?;
    let mut terminal = ratatui::try_init()?;
    let way = |listener: Option<&String>| {
        let url = target.url.as_ref().or(listener).map_or("", String::as_str);
        target.way_to(url, config.listen.tls.cert.as_deref())
    };
    let outcome = show(&mut terminal, way, &sender, &news);
    ratatui::restore();
    outcome
}

/// Polls until the receiver is dropped.
fn look(options: &AdminOptions, sender: &mpsc::Sender<News>) {
    loop {
        let next = Instant::now() + PERIOD;
        let news = status::fetch(options).map_or_else(|wrong| News::Note(wrong.to_string()), News::Status);
        if sender.send(news).is_err() {
            return;
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    way: impl Fn(Option<&String>) -> Result<Way, OperateError>,
    sender: &mpsc::Sender<News>,
    news: &mpsc::Receiver<News>,
) -> io::Result<()> {
    let mut screen = Screen::new();
    let mut listener = None;
    loop {
        for news in news.try_iter() {
            match news {
                News::Status(status) => {
                    listener = listener_of(&status);
                    screen.has_seen(status);
                }
                News::Note(note) => screen.note(note),
            }
        }
        terminal.draw(|frame| screen.draw(frame))?;
        if !event::poll(STEP)? {
            continue;
        }
        let Event::Key(key) = event::read()? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
        match if is_interrupt { Some(Wish::Quit) } else { screen.press(key.code) } {
            Some(Wish::Quit) => return Ok(()),
            Some(Wish::Kill(id)) => {
                let (way, sender) = (way(listener.as_ref()), sender.clone());
                screen.note(format!("closing client {id}"));
                std::thread::Builder::new().name("kill".to_owned()).spawn(move || {
                    // The view was closed.
                    let _ = sender.send(News::Note(kill(way, id)));
                })?;
            }
            None => {}
        }
    }
}

fn kill(way: Result<Way, OperateError>, id: u64) -> String {
    let words = ["KILL".to_owned(), "ID".to_owned(), id.to_string()];
    match way.and_then(|way| operate::send(&way, &words)) {
        Ok(reply) if resp::integer(&reply) == Some(1) => format!("closed client {id}"),
        Ok(_) => format!("client {id} had gone already"),
        Err(wrong) => wrong.to_string().trim_end().to_owned(),
    }
}

/// The first listener that the proxy tells of; a wildcard address by loopback.
fn listener_of(status: &Value) -> Option<String> {
    let url = status["listen"].as_array()?.iter().filter_map(Value::as_str).next()?;
    Some(url.replace("://0.0.0.0:", "://127.0.0.1:").replace("://[::]:", "://[::1]:"))
}
