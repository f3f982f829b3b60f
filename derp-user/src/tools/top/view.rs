//! What is on the screen and how keys change it. Without a terminal.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::status::{ClientOrder, History, Status};

/// Samples that are kept: half an hour of a relay's.
const KEPT: usize = 900;

/// One of the screens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Tab {
    Overview,
    Clients,
    Mesh,
    Flows,
    Certificates,
}

impl Tab {
    pub(super) const ALL: [Self; 5] =
        [Self::Overview, Self::Clients, Self::Mesh, Self::Flows, Self::Certificates];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Clients => "Clients",
            Self::Mesh => "Mesh",
            Self::Flows => "Flows",
            Self::Certificates => "Certificates",
        }
    }
}

/// What is to be done about a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Action {
    Draw,
    Nothing,
    End,
}

/// The state of the screen.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) tab: Tab,
    pub(super) order: ClientOrder,
    /// Rows of the table above the first one that is shown.
    pub(super) scroll: usize,
    pub(super) is_paused: bool,
    /// The last good answer.
    pub(super) status: Option<Status>,
    /// Every sample that it, and those before it, brought.
    pub(super) history: History,
    /// Why there is no newer one.
    pub(super) fault: Option<String>,
    /// How often the relay was restarted while this looked.
    pub(super) restarts: u32,
}

impl View {
    pub(super) fn new(order: ClientOrder) -> Self {
        Self {
            tab: Tab::Overview,
            order,
            scroll: 0,
            is_paused: false,
            status: None,
            history: History::default(),
            fault: None,
            restarts: 0,
        }
    }

    /// Run and time of the last sample, so that only later ones need be asked for.
    pub(super) fn after(&self) -> Option<(u64, u64)> {
        Some((self.status.as_ref()?.run, *self.history.times.last()?))
    }

    /// Takes an answer, or why there is none.
    pub(super) fn take(&mut self, answer: Result<Status, String>) {
        match answer {
            Ok(mut status) => {
                if self.status.as_ref().is_some_and(|before| before.run != status.run) {
                    self.restarts = self.restarts.saturating_add(1);
                }
                self.history.extend(std::mem::take(&mut status.history), KEPT);
                self.order.sort(&mut status.clients.shown);
                self.status = Some(status);
                self.fault = None;
                self.scroll = self.scroll.min(self.rows().saturating_sub(1));
            }
            Err(fault) => self.fault = Some(fault),
        }
    }

    /// Does what a key says.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the list of keys is the terminal's")]
    pub(super) fn key(&mut self, key: KeyEvent) -> Action {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Action::End } else { Action::Nothing };
        }
        let last = self.rows().saturating_sub(1);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Action::End,
            KeyCode::Char(digit @ '1'..='5') => {
                let number = usize::from(digit as u8 - b'1');
                self.open(Tab::ALL[number]);
            }
            KeyCode::Tab | KeyCode::Right => self.turn(1),
            KeyCode::BackTab | KeyCode::Left => self.turn(Tab::ALL.len() - 1),
            KeyCode::Char('s') => {
                self.order = self.order.next();
                if let Some(status) = &mut self.status {
                    self.order.sort(&mut status.clients.shown);
                }
            }
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.scroll = (self.scroll + 1).min(last),
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(10),
            KeyCode::PageDown => self.scroll = (self.scroll + 10).min(last),
            KeyCode::Home => self.scroll = 0,
            _ => return Action::Nothing,
        }
        Action::Draw
    }

    fn turn(&mut self, by: usize) {
        let at = Tab::ALL.iter().position(|tab| *tab == self.tab).unwrap_or_default();
        self.open(Tab::ALL[(at + by) % Tab::ALL.len()]);
    }

    fn open(&mut self, tab: Tab) {
        (self.tab, self.scroll) = (tab, 0);
    }

    /// How many rows the table of this screen has.
    fn rows(&self) -> usize {
        let Some(status) = &self.status else { return 0 };
        match self.tab {
            Tab::Overview => 0,
            Tab::Clients => status.clients.shown.len(),
            Tab::Mesh => status.links.len(),
            Tab::Flows => status.flows.shown.len(),
            Tab::Certificates => status.certificates.as_ref().map_or(0, Vec::len),
        }
    }
}
