//! The screen of `redbouncer status --watch` and its keys: state and drawing, without a terminal.

use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Table, TableState};
use serde_json::Value;

use crate::cli::fields::{human, number, text};
use crate::cli::overview::{problems, summary, verdict};

/// The columns of the table of clients.
const COLUMNS: [&str; 9] =
    ["client", "name", "user", "address", "place", "held", "idle", "command", "memory"];
const WIDTHS: [Constraint; 9] = [
    Constraint::Length(14),
    Constraint::Min(12),
    Constraint::Length(10),
    Constraint::Length(21),
    Constraint::Length(15),
    Constraint::Length(6),
    Constraint::Length(6),
    Constraint::Length(14),
    Constraint::Length(8),
];
/// The initial sort column: the age of leases.
const HELD: usize = 5;
const KEYS: &str = "q quit  up/down select  k kill  / filter  left/right sort  r reverse  p problems";

/// An action outside the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Quit,
    /// Close this client.
    Kill(u64),
}

/// The current mode of the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    List,
    /// The filter is being typed.
    Filter,
    /// Whether to close this client, called so.
    Confirm(u64, String),
}

/// One client: sort keys and cells.
struct Client {
    id: u64,
    keys: [u64; COLUMNS.len()],
    cells: [String; COLUMNS.len()],
}

/// The state of the screen.
pub(super) struct Screen {
    status: Value,
    filter: String,
    sort: usize,
    is_reversed: bool,
    shows_problems: bool,
    selected: Option<u64>,
    mode: Mode,
    /// The outcome of the last action or poll.
    note: String,
    table: TableState,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            status: Value::Null,
            filter: String::new(),
            sort: HELD,
            is_reversed: false,
            shows_problems: true,
            selected: None,
            mode: Mode::List,
            note: String::new(),
            table: TableState::default(),
        }
    }

    /// The proxy has answered.
    pub(super) fn has_seen(&mut self, status: Value) {
        self.status = status;
    }

    /// The outcome of an action or a failed poll.
    pub(super) fn note(&mut self, note: String) {
        self.note = note;
    }

    /// The clients that the filter lets pass, in their order.
    fn clients(&self) -> Vec<Client> {
        let all = self.status["clients"].as_array().map_or(&[][..], Vec::as_slice);
        let held = |id: u64| {
            let rows = self.status["upstreams"].as_array().map_or(&[][..], Vec::as_slice);
            rows.iter().filter(|row| row["client"]["id"] == id).map(|row| number(&row["seconds"])).max()
        };
        let wanted = self.filter.to_lowercase();
        let mut clients: Vec<_> = all
            .iter()
            .map(|row| client(row, held(number(&row["id"]))))
            .filter(|client| client.cells.iter().any(|cell| cell.to_lowercase().contains(&wanted)))
            .collect();
        let at = self.sort;
        // Numbers in descending order, words in ascending order, equal ones by id.
        clients.sort_by(|a, b| {
            b.keys[at].cmp(&a.keys[at]).then_with(|| a.cells[at].cmp(&b.cells[at])).then(a.id.cmp(&b.id))
        });
        if self.is_reversed {
            clients.reverse();
        }
        clients
    }

    /// A key was pressed.
    pub(super) fn press(&mut self, key: KeyCode) -> Option<Wish> {
        match (&self.mode, key) {
            (Mode::Confirm(id, _), KeyCode::Char('y')) => {
                let wish = Wish::Kill(*id);
                self.mode = Mode::List;
                return Some(wish);
            }
            (Mode::Confirm(..), _) => {
                self.mode = Mode::List;
                "nothing was closed".clone_into(&mut self.note);
            }
            (Mode::Filter, KeyCode::Enter) => self.mode = Mode::List,
            (Mode::Filter, KeyCode::Esc) => {
                self.filter.clear();
                self.mode = Mode::List;
            }
            (Mode::Filter, KeyCode::Backspace) => drop(self.filter.pop()),
            (Mode::Filter, KeyCode::Char(sign)) => self.filter.push(sign),
            (Mode::List, KeyCode::Char('q')) => return Some(Wish::Quit),
            (Mode::List, KeyCode::Char('/')) => self.mode = Mode::Filter,
            (Mode::List, KeyCode::Esc) => self.filter.clear(),
            (Mode::List, KeyCode::Char('r')) => self.is_reversed = !self.is_reversed,
            (Mode::List, KeyCode::Char('p')) => self.shows_problems = !self.shows_problems,
            (Mode::List, KeyCode::Right) => self.sort = (self.sort + 1) % COLUMNS.len(),
            (Mode::List, KeyCode::Left) => self.sort = (self.sort + COLUMNS.len() - 1) % COLUMNS.len(),
            (Mode::List, KeyCode::Down) => self.step(1),
            (Mode::List, KeyCode::Up) => self.step(-1),
            (Mode::List, KeyCode::Char('k')) => {
                let clients = self.clients();
                let at = self.place(&clients);
                if let Some(client) = at.and_then(|at| clients.get(at)) {
                    self.mode = Mode::Confirm(client.id, client.cells[1].clone());
                }
            }
            _ => {} // every other key does nothing
        }
        None
    }

    /// The position of the selected client, or the first one if it has left.
    fn place(&self, clients: &[Client]) -> Option<usize> {
        let found = self.selected.and_then(|id| clients.iter().position(|client| client.id == id));
        found.or((!clients.is_empty()).then_some(0))
    }

    fn step(&mut self, by: isize) {
        let clients = self.clients();
        let Some(at) = self.place(&clients) else { return };
        let at = at.saturating_add_signed(by).min(clients.len().saturating_sub(1));
        self.selected = clients.get(at).map(|client| client.id);
    }

    /// Draws everything.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let wrong = problems(&self.status);
        let mut head = vec![
            Line::from(match self.status.is_null() {
                true => "waiting for the proxy".to_owned(),
                false => verdict(&self.status, &wrong),
            })
            .bold(),
        ];
        head.extend(summary(&self.status).into_iter().map(Line::from));
        if self.shows_problems {
            head.extend(wrong.into_iter().map(|problem| Line::from(format!("! {problem}"))));
        }
        let height = u16::try_from(head.len()).unwrap_or(u16::MAX);
        let [top, middle, bottom] =
            Layout::vertical([Constraint::Length(height), Constraint::Min(2), Constraint::Length(1)])
                .areas(frame.area());
        frame.render_widget(Paragraph::new(head), top);
        let clients = self.clients();
        let place = self.place(&clients);
        self.selected = place.and_then(|at| clients.get(at)).map(|client| client.id);
        self.table.select(place);
        let mark = if self.is_reversed { " ^" } else { " v" };
        let heads = COLUMNS.iter().enumerate().map(|(at, name)| match at == self.sort {
            true => format!("{name}{mark}"),
            false => (*name).to_owned(),
        });
        let table = Table::new(clients.into_iter().map(|client| Row::new(client.cells)), WIDTHS)
            .header(Row::new(heads).style(Style::new().underlined()))
            .row_highlight_style(Style::new().reversed());
        frame.render_stateful_widget(table, middle, &mut self.table);
        frame.render_widget(Paragraph::new(self.last_line()).reversed(), bottom);
    }

    fn last_line(&self) -> String {
        match &self.mode {
            Mode::Confirm(id, name) => {
                format!("close client {id}, name {name}? y closes it, any other key does not")
            }
            Mode::Filter => format!("filter: {}_  (Enter keeps it, Esc clears it)", self.filter),
            Mode::List if !self.note.is_empty() => format!("{}  |  {KEYS}", self.note),
            Mode::List if !self.filter.is_empty() => format!("filter: {}  |  {KEYS}", self.filter),
            Mode::List => KEYS.to_owned(),
        }
    }
}

/// A client as a row; `held`: for how many seconds it has held a lease.
fn client(row: &Value, held: Option<u64>) -> Client {
    let id = number(&row["id"]);
    let (idle, memory) = (number(&row["idle"]), number(&row["memory"]));
    let held_key = held.map_or(0, |held| held + 1);
    Client {
        id,
        keys: [id, 0, 0, 0, 0, held_key, idle, 0, memory],
        cells: [
            id.to_string(),
            text(&row["name"]),
            text(&row["user"]),
            text(&row["peer"]),
            text(&row["place"]),
            held.map_or_else(|| "-".to_owned(), human),
            human(idle),
            text(&row["command"]),
            memory.to_string(),
        ],
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn screen() -> Screen {
        let client = |id: u64, name: &str, place: &str, idle: u64| json!({ "id": id, "name": name, "user": "default", "peer": "10.0.0.7:5000", "place": place, "idle": idle, "command": "get", "memory": 0 });
        let mut screen = Screen::new();
        screen.has_seen(json!({
            "state": "serving",
            "connections": { "held": 3, "max": 8 },
            "upstreams": [{ "kind": "leased", "seconds": 41, "client": { "id": 2, "pin": "WATCH", "name": "web\u{1b}" } }],
            "clients": [client(1, "worker", "lane", 9), client(2, "web\u{1b}", "WATCH", 3), client(3, "api", "lane", 70)],
        }));
        screen
    }

    fn drawn(screen: &mut Screen) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(130, 16)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let width = usize::from(buffer.area.width);
        buffer.content.chunks(width).map(|row| row.iter().map(|cell| cell.symbol()).collect()).collect()
    }

    /// The ids from top to bottom.
    fn order(screen: &mut Screen) -> Vec<u64> {
        let lines = drawn(screen).into_iter().skip_while(|line| !line.starts_with("client ")).skip(1);
        lines.map_while(|line| line.split_whitespace().next()?.parse().ok()).collect()
    }

    fn press(screen: &mut Screen, keys: &str) -> Option<Wish> {
        keys.chars().filter_map(|key| screen.press(KeyCode::Char(key))).last()
    }

    #[test]
    fn who_holds_a_lease_for_longest_stands_first_and_other_orders_are_a_key_away() {
        let mut screen = screen();
        assert_eq!(order(&mut screen), [2, 1, 3]);
        let lines = drawn(&mut screen);
        assert!(
            lines[0].starts_with("ATTENTION: 1 problem; 3 clients over 3 of 8 connections"),
            "{lines:#?}"
        );
        assert!(lines.iter().any(|line| line.starts_with("! WATCH held for 41s by client 2")), "{lines:#?}");
        assert!(lines.iter().all(|line| !line.contains('\u{1b}')), "{lines:#?}");
        screen.press(KeyCode::Right);
        assert_eq!(order(&mut screen), [3, 1, 2], "by idle time");
        press(&mut screen, "r");
        assert_eq!(order(&mut screen), [2, 1, 3]);
        press(&mut screen, "r");
        (0..5).for_each(|_| assert_eq!(screen.press(KeyCode::Left), None));
        assert_eq!(order(&mut screen), [3, 2, 1], "by name");
    }

    #[test]
    fn a_filter_is_typed_kept_and_cleared() {
        let mut screen = screen();
        assert_eq!(press(&mut screen, "/Qapi"), None);
        assert_eq!(order(&mut screen), Vec::<u64>::new());
        (0..4).for_each(|_| assert_eq!(screen.press(KeyCode::Backspace), None));
        press(&mut screen, "lane");
        screen.press(KeyCode::Enter);
        assert_eq!(order(&mut screen), [1, 3]);
        assert!(drawn(&mut screen).last().unwrap().starts_with("filter: lane"));
        screen.press(KeyCode::Esc);
        assert_eq!(order(&mut screen), [2, 1, 3]);
    }

    #[test]
    fn a_client_is_closed_only_after_a_yes_and_only_the_one_that_was_named() {
        let mut screen = screen();
        drawn(&mut screen);
        screen.press(KeyCode::Down);
        assert_eq!(press(&mut screen, "k"), None);
        assert!(drawn(&mut screen).last().unwrap().starts_with("close client 1, name worker?"));
        assert_eq!(press(&mut screen, "n"), None);
        assert_eq!(press(&mut screen, "y"), None, "there is no question");
        press(&mut screen, "k");
        // Another order in the meantime changes nothing.
        let clients = screen.status["clients"].take();
        screen.status["clients"] = json!([clients[2], clients[0]]);
        assert_eq!(press(&mut screen, "y"), Some(Wish::Kill(1)));
        assert_eq!(press(&mut screen, "q"), Some(Wish::Quit));
    }

    #[test]
    fn nothing_to_select_is_nothing_to_close() {
        let mut screen = Screen::new();
        assert!(drawn(&mut screen)[0].starts_with("waiting for the proxy"));
        screen.press(KeyCode::Down);
        assert_eq!(press(&mut screen, "ky"), None);
    }
}
