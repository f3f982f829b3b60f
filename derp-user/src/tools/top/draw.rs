//! What a [`View`] looks like.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Cell, Paragraph, Row, Table},
};

use super::view::{Tab, View};
use crate::status::{CHARTS, Chart, Flow, History, Status, words};

const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
const ALERT: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
/// A certificate that ends sooner, in seconds, is worth a look; as on the page.
const SOON: i64 = 14 * 86_400;
/// Widest column of charts.
const CHART_WIDTH: u16 = 64;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let [head, tabs, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(title(view), head);
    frame.render_widget(tab_line(view), tabs);
    frame.render_widget(keys(view), foot);
    let Some(status) = &view.status else { return };
    match view.tab {
        Tab::Overview => overview(frame, body, status, &view.history),
        Tab::Clients => clients(frame, body, view, status),
        Tab::Mesh => mesh(frame, body, view, status),
        Tab::Flows => flows(frame, body, view, status),
        Tab::Certificates => certificates(frame, body, view, status),
    }
}

fn title(view: &View) -> Line<'_> {
    let mut line = Line::from("derpd".bold());
    if let Some(status) = &view.status {
        let name = if status.hostname.is_empty() { &status.machine } else { &status.hostname };
        line.push_span(format!(" {name}"));
        let up = words::duration(status.uptime_seconds);
        line.push_span(Span::styled(format!("  {}, up {up}", status.version), FAINT));
        if view.restarts > 0 {
            line.push_span(Span::styled(format!(", restarted {} times", view.restarts), FAINT));
        }
    }
    match (&view.fault, &view.status) {
        (Some(fault), _) => line.push_span(Span::styled(format!("  no answer: {fault}"), ALERT)),
        (None, None) => line.push_span("  asking"),
        (None, Some(_)) if view.is_paused => line.push_span("  paused".bold()),
        (None, Some(_)) => {}
    }
    line
}

fn tab_line(view: &View) -> Line<'static> {
    let mut line = Line::default();
    for (number, tab) in (1..).zip(Tab::ALL) {
        let text = format!(" {number} {} ", tab.name());
        let style = if tab == view.tab { Style::new().reversed() } else { Style::new() };
        line.push_span(Span::styled(text, style));
    }
    line
}

fn keys(view: &View) -> Line<'static> {
    let order = match view.tab {
        Tab::Clients => format!("  s: order ({})", view.order),
        Tab::Overview | Tab::Mesh | Tab::Flows | Tab::Certificates => String::new(),
    };
    let text = format!(" q: end  1-5, Tab: screens{order}  Up, Down: scroll  p: pause");
    Line::styled(text, FAINT)
}

/// As many columns of charts as there is room for; lines that have always been 0 are left out.
fn overview(frame: &mut Frame<'_>, area: Rect, status: &Status, history: &History) {
    let [charts, last] = Layout::vertical([Constraint::Min(0), Constraint::Length(2)]).areas(area);
    let blocks: Vec<_> = CHARTS.iter().map(|chart| lines_of(chart, history)).collect();
    let columns = usize::from((charts.width / 38).clamp(1, 3));
    let height: usize = blocks.iter().map(|lines| lines.len() + 1).sum();
    let width = (charts.width / columns as u16).min(CHART_WIDTH);
    let areas = Layout::horizontal(vec![Constraint::Length(width); columns]).split(charts);
    let (mut column, mut taken) = (0, 0);
    for (chart, lines) in CHARTS.iter().zip(blocks) {
        // A column is full when it has its share.
        if taken > 0 && taken + lines.len() / 2 >= height.div_ceil(columns) && column + 1 < columns
        {
            (column, taken) = (column + 1, 0);
        }
        let place = areas[column];
        let needed = lines.len() + 1;
        let room = usize::from(place.height).saturating_sub(taken);
        let area = Rect {
            y: place.y + taken.min(usize::from(place.height)) as u16,
            height: needed.min(room) as u16,
            ..place
        };
        let mut text = vec![Line::from(chart.title.bold())];
        text.extend(lines.into_iter().map(|line| line.draw(usize::from(place.width))));
        frame.render_widget(Paragraph::new(text), area);
        taken += needed;
    }
    frame.render_widget(Paragraph::new(summary(status)), last);
}

/// One line of a chart.
struct Drawn<'a> {
    label: &'static str,
    value: String,
    values: &'a [f32],
    color: Color,
}

fn lines_of<'a>(chart: &Chart, history: &'a History) -> Vec<Drawn<'a>> {
    const COLORS: [Color; 4] = [Color::Blue, Color::Green, Color::Yellow, Color::Magenta];
    let mut lines = Vec::new();
    for (index, (name, label)) in chart.lines.iter().enumerate() {
        let values = history.series.get(*name).map(Vec::as_slice).unwrap_or_default();
        if index >= 2 && values.iter().all(|value| *value == 0.0 || value.is_nan()) {
            continue;
        }
        lines.push(Drawn {
            label,
            value: chart.unit.words(values.last().copied().unwrap_or_default().into()),
            values,
            color: COLORS[index % COLORS.len()],
        });
    }
    lines
}

impl Drawn<'_> {
    fn draw(&self, width: usize) -> Line<'static> {
        const VALUE: usize = 12;
        let label = (width / 2).saturating_sub(4).clamp(10, 26);
        let text: String = self.label.chars().take(label).collect();
        let room = width.saturating_sub(label + VALUE + 3);
        Line::from(vec![
            Span::raw(format!(" {text:<label$}{:>VALUE$} ", self.value)),
            Span::styled(sparkline(self.values, room), Style::new().fg(self.color)),
        ])
    }
}

/// The last `width` values as bars from 0 to the largest of them; what is missing is blank.
fn sparkline(values: &[f32], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = &values[values.len().saturating_sub(width)..];
    let most = shown.iter().copied().filter(|value| value.is_finite()).fold(0.0, f32::max);
    let bar = |value: &f32| {
        if !value.is_finite() {
            return ' ';
        }
        let height = if most > 0.0 { value / most * (BARS.len() - 1) as f32 } else { 0.0 };
        BARS[(height.round().max(0.0) as usize).min(BARS.len() - 1)]
    };
    let bars: String = shown.iter().map(bar).collect();
    format!("{bars:>width$}")
}

fn summary(status: &Status) -> Vec<Line<'static>> {
    let up = status.links.iter().filter(|link| link.state == "up").count();
    let interfaces = status.interfaces.iter().map(|it| format!("{} ({})", it.name, it.mode));
    let interfaces = interfaces.collect::<Vec<_>>().join(", ");
    let xdp = if interfaces.is_empty() { "not attached".to_owned() } else { interfaces };
    let mut line = Line::from(format!(
        "Mesh: {up} links up   Flows: {} of {} forwarding   XDP: {xdp}",
        status.flows.forwarding, status.flows.total
    ));
    if let Some(first) = status.certificates.iter().flatten().next() {
        let left = words::duration(first.seconds_left.unsigned_abs());
        let (text, style) = match first.seconds_left {
            ..0 => (format!("   Certificate {} ended {left} ago", first.name), ALERT),
            0..SOON => (format!("   Certificate {}: {left} left", first.name), ALERT),
            SOON.. => (format!("   Certificate: {left} left"), Style::new()),
        };
        line.push_span(Span::styled(text, style));
    }
    vec![Line::default(), line]
}

fn clients(frame: &mut Frame<'_>, area: Rect, view: &View, status: &Status) {
    let rows = status.clients.shown.iter().map(|client| {
        let rate = match (client.received_rate, client.sent_rate) {
            (Some(_), Some(_)) => words::bits(client.rate().into()),
            _ => "...".to_owned(),
        };
        let cells = [
            client.key.clone(),
            client.address.clone(),
            rate,
            words::bytes(client.received_bytes),
            words::bytes(client.sent_bytes),
            format!("{:.1} ms", client.round_trip_milliseconds),
            client.senders.to_string(),
            words::duration(client.connected_seconds),
        ];
        (cells, client.is_waiting)
    });
    let columns = [
        ("Key", Constraint::Length(8)),
        ("Address", Constraint::Min(15)),
        ("Rate", Constraint::Length(12)),
        ("Received", Constraint::Length(9)),
        ("Sent", Constraint::Length(9)),
        ("Round trip", Constraint::Length(10)),
        ("Senders", Constraint::Length(7)),
        ("Connected", Constraint::Length(12)),
    ];
    let shown = status.clients.shown.len();
    let title = format!("{shown} of {} clients, by {}", status.clients.total, view.order);
    table(frame, area, view.scroll, title, columns, rows);
}

fn mesh(frame: &mut Frame<'_>, area: Rect, view: &View, status: &Status) {
    let rows = status.links.iter().map(|link| {
        let cells = [
            link.peer.clone(),
            link.address.clone().unwrap_or_default(),
            link.state.clone(),
            words::duration(link.seconds),
            link.clients.to_string(),
            words::bytes(link.forwarded_bytes),
            link.dropped_packets.to_string(),
            link.fault.clone().unwrap_or_default(),
        ];
        (cells, ["down", "not found"].contains(&link.state.as_str()))
    });
    let columns = [
        ("Peer", Constraint::Fill(2)),
        ("Address", Constraint::Fill(2)),
        ("Link", Constraint::Length(11)),
        ("For", Constraint::Length(12)),
        ("Clients", Constraint::Length(7)),
        ("Forwarded", Constraint::Length(9)),
        ("Lost", Constraint::Length(6)),
        ("Last failure", Constraint::Fill(2)),
    ];
    table(
        frame,
        area,
        view.scroll,
        "Links to the other servers of the region".to_owned(),
        columns,
        rows,
    );
}

fn flows(frame: &mut Frame<'_>, area: Rect, view: &View, status: &Status) {
    let amount = |flow: &Flow, value: fn(&crate::status::FlowEnd) -> u64| {
        words::bytes(flow.ends.iter().map(value).fold(0, u64::saturating_add))
    };
    let rows = status.flows.shown.iter().map(|flow| {
        let rate = if flow.ends.iter().any(|end| end.rate.is_some()) {
            words::bits(flow.rate().into())
        } else {
            "...".to_owned()
        };
        let [a, b] = flow.ends.each_ref().map(|end| end.remote.clone().unwrap_or_default());
        let cells = [
            flow.name.clone(),
            flow.vni.map(|vni| vni.to_string()).unwrap_or_default(),
            flow.state.clone(),
            rate,
            a,
            b,
            amount(flow, |end| end.kernel_bytes),
            amount(flow, |end| end.userspace_bytes),
        ];
        (cells, false)
    });
    let columns = [
        ("Flow", Constraint::Fill(2)),
        ("VNI", Constraint::Length(8)),
        ("State", Constraint::Length(10)),
        ("Rate", Constraint::Length(12)),
        ("A", Constraint::Fill(2)),
        ("B", Constraint::Fill(2)),
        ("Kernel", Constraint::Length(9)),
        ("Userspace", Constraint::Length(9)),
    ];
    let (shown, total) = (status.flows.shown.len(), status.flows.total);
    let title = format!("{shown} of {total} flows, {} forwarding", status.flows.forwarding);
    table(frame, area, view.scroll, title, columns, rows);
}

fn certificates(frame: &mut Frame<'_>, area: Rect, view: &View, status: &Status) {
    let Some(held) = &status.certificates else {
        frame.render_widget(Paragraph::new("The relay is served without TLS."), area);
        return;
    };
    let rows = held.iter().map(|certificate| {
        let left = words::duration(certificate.seconds_left.unsigned_abs());
        let left = if certificate.seconds_left < 0 { format!("ended {left} ago") } else { left };
        let cells = [certificate.name.clone(), words::date(certificate.not_after), left];
        (cells, certificate.seconds_left < SOON)
    });
    let columns = [
        ("Name", Constraint::Fill(1)),
        ("Valid until", Constraint::Length(30)),
        ("Left", Constraint::Length(24)),
    ];
    table(frame, area, view.scroll, "Certificates".to_owned(), columns, rows);
}

/// A table from row `scroll` on. Rows that somebody should look at stand out.
fn table<const N: usize>(
    frame: &mut Frame<'_>,
    area: Rect,
    scroll: usize,
    title: String,
    columns: [(&'static str, Constraint); N],
    rows: impl Iterator<Item = ([String; N], bool)>,
) {
    let [top, rest] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(Line::styled(title, FAINT), top);
    let rows = rows.skip(scroll).take(rest.height.into()).map(|(cells, is_notable)| {
        let row = Row::new(cells.map(Cell::from));
        if is_notable { row.style(ALERT) } else { row }
    });
    let header = Row::new(columns.map(|(label, _)| label)).bold();
    let table = Table::new(rows, columns.map(|(_, width)| width)).header(header).column_spacing(1);
    frame.render_widget(table, rest);
}
