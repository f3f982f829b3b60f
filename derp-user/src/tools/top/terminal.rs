//! The terminal: drawn on until a key or a signal says to stop, and given back as it was, whatever happens.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use crossterm::event::{self, Event, KeyEventKind};
use ratatui::DefaultTerminal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::{
    Arguments, TopError, draw,
    source::{self, Source},
    view::{Action, View},
};

/// Keys that wait to be looked at.
const KEYS: usize = 64;

/// Gives the terminal back when dropped; after a panic, the hook that [`ratatui::try_init`] sets has done so already.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> Result<Self, TopError> {
        if !io::stdout().is_terminal() {
            return Err(TopError::NoTerminal);
        }
        ratatui::try_init().map(Self).map_err(TopError::Terminal)
    }

    fn draw(&mut self, view: &View) -> Result<(), TopError> {
        self.0.draw(|frame| draw::draw(frame, view)).map_err(TopError::Terminal)?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows the relay until the user ends it.
pub(super) async fn show(source: &Source, arguments: &Arguments) -> Result<(), TopError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(TopError::Terminal)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(TopError::Terminal)?;
    let mut screen = Screen::take()?;
    let mut events = events();
    let mut view = View::new(arguments.sort);
    let mut turns = interval(Duration::from_secs(arguments.interval.into()));
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    screen.draw(&view)?;
    loop {
        // Asking may take seconds, in which keys still count.
        let is_paused = view.is_paused;
        let after = view.after();
        let answer = async {
            turns.tick().await;
            if is_paused {
                return None;
            }
            Some(source.ask(after).await.and_then(|text| source::read(&text)))
        };
        let mut answer = std::pin::pin!(answer);
        loop {
            let event = tokio::select! {
                answer = &mut answer => {
                    if let Some(answer) = answer {
                        view.take(answer);
                        screen.draw(&view)?;
                    }
                    break;
                }
                event = events.recv() => event,
                _ = terminate.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
            };
            let action = match event {
                None => return Ok(()),
                Some(Err(error)) => return Err(TopError::Terminal(error)),
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => view.key(key),
                Some(Ok(Event::Resize(..))) => Action::Draw,
                Some(Ok(_)) => Action::Nothing,
            };
            match action {
                Action::Draw => screen.draw(&view)?,
                Action::Nothing => {}
                Action::End => return Ok(()),
            }
        }
    }
}

/// What happens at the terminal, read by a thread that ends with the program.
fn events() -> mpsc::Receiver<io::Result<Event>> {
    let (sender, receiver) = mpsc::channel(KEYS);
    std::thread::spawn(move || {
        loop {
            let event = event::read();
            let is_last = event.is_err();
            if sender.blocking_send(event).is_err() || is_last {
                break;
            }
        }
    });
    receiver
}
