//! The screen. It depends on the state alone.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::columns::{self, Column};
use super::flow::Flow;
use super::state::{Mode, State};
use crate::text;

/// Number of rows around the list: three above its heading, its heading, and two below it.
pub(super) const OTHER_ROWS: u16 = 6;

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

const KEYS: &str = "q quit  s sort  r reverse  / filter  e end  space freeze  ? help";

const HELP: &str = "\
q              quit
s, r           next order, reverse it
/              filter: port, address, prefix, name,
               *.name, tcp, udp, icmp, inbound,
               outbound, bypass, state=closing, ...
               several words: all of them
arrows, PgUp, PgDn, Home, End
               select a flow
Esc            select none
e              end the selected flow
space          freeze, continue

OUT, IN        bytes from the guest, to it
tcp*           the flow bypasses the link
<              the peer has begun the flow
-              not known";

/// Draws the screen.
pub(super) fn draw(state: &State, frame: &mut Frame<'_>) {
    let heights = [3, 1].map(Constraint::Length).into_iter().chain([Constraint::Fill(1)]);
    let heights = heights.chain([1, 1].map(Constraint::Length));
    let areas = Layout::vertical(heights).split(frame.area());
    let [head, heading, list, detail, foot] = areas[..] else { return };
    frame.render_widget(Paragraph::new(header(state, head.width)), head);
    let columns = columns::fitting(state, list.width);
    let titles = columns.iter().map(|column| column.cell(column.title(state)));
    frame.render_widget(Line::styled(joined(titles), REVERSED), heading);
    for (row, flow) in state.flows.iter().skip(state.offset).take(list.height.into()).enumerate() {
        let area = Rect { y: list.y + row as u16, height: 1, ..list };
        frame.render_widget(line(state, &columns, flow), area);
    }
    if state.flows.is_empty() {
        let text = if state.filter.text.is_empty() { "no flows" } else { "no flows that meet the filter" };
        frame.render_widget(Line::styled(text, DIM).centered(), list);
    }
    frame.render_widget(Line::styled(details(state), DIM), detail);
    frame.render_widget(footer(state), foot);
    match &state.mode {
        Mode::Help => help(frame),
        Mode::Filter(typed) => {
            let column = "filter: ".len() + text::word(&typed[..].into()).chars().count();
            let last = foot.width.saturating_sub(1);
            frame.set_cursor_position((foot.x + u16::try_from(column).unwrap_or(last).min(last), foot.y));
        }
        Mode::List | Mode::End(_) => {}
    }
}

fn header(state: &State, width: u16) -> Vec<Line<'static>> {
    let counts = &state.counts;
    let up = format!("up {}", text::duration(counts.uptime));
    let room = usize::from(width).saturating_sub(up.chars().count() + 1);
    let title = columns::from_right(&state.title, room);
    let [tcp, bypass, udp, ping] = counts.open;
    let kinds = format!("{tcp} TCP, {bypass} TCP bypass, {udp} UDP, {ping} ping");
    // Rates of flows that are not listed are not known.
    let least = if state.more { "at least " } else { "" };
    let [sent, received] = state.rates().map(|rate| text::amount(&(rate as u64).into()));
    let mut order = format!("by {}", state.sort.name());
    if state.reverse {
        order.push_str(", reversed");
    }
    let mut last = vec![Span::from(format!("{least}{sent}/s out, {received}/s in; {order}"))];
    if !state.filter.text.is_empty() {
        last.push(Span::from("; only "));
        last.push(Span::styled(text::word(&state.filter.text[..].into()), BOLD));
    }
    if state.frozen {
        last.insert(0, Span::styled("FROZEN", REVERSED));
        last.insert(1, Span::from(" "));
    }
    vec![
        Line::from(vec![Span::styled(format!("{title:room$} "), BOLD), Span::from(up)]),
        Line::from(format!(
            "{} flows: {kinds}; {} refusals",
            counts.open.iter().sum::<u64>(),
            counts.refusals
        )),
        Line::from(last),
    ]
}

fn line(state: &State, columns: &[Column], flow: &Flow) -> Line<'static> {
    let content = joined(columns.iter().map(|column| column.cell(&column.content(flow))));
    let moves = flow.rates.is_some_and(|rates| rates[0] + rates[1] > 0.0);
    match () {
        () if state.selected == Some(flow.number) => Line::styled(content, REVERSED),
        () if moves => Line::styled(content, BOLD),
        () => Line::from(content),
    }
}

fn joined(cells: impl Iterator<Item = String>) -> String {
    cells.collect::<Vec<_>>().join(" ")
}

/// All about the selected flow, or how many flows are listed.
fn details(state: &State) -> String {
    match state.selection() {
        Some(flow) => {
            let arrow = if flow.inbound { "<-" } else { "->" };
            format!("{}: {} {arrow} {} {}", flow.number, flow.guest, flow.peer, flow.remark)
        }
        None if state.flows.is_empty() => String::new(),
        None => {
            let first = state.offset + 1;
            let last = state.flows.len().min(state.offset + state.rows);
            let all = state.flows.len();
            format!("{first} to {last} of {all}{}", if state.more { " listed; there are more" } else { "" })
        }
    }
}

fn footer(state: &State) -> Line<'static> {
    match &state.mode {
        _ if !state.message.is_empty() => Line::styled(text::word(&state.message[..].into()), BOLD),
        Mode::Filter(typed) => Line::styled(format!("filter: {}", text::word(&typed[..].into())), BOLD),
        Mode::End(number) => Line::styled(format!("end flow {number}? y/n"), BOLD),
        Mode::List | Mode::Help => Line::styled(KEYS, DIM),
    }
}

fn help(frame: &mut Frame<'_>) {
    let screen = frame.area();
    let width = HELP.lines().map(|line| line.chars().count()).max().unwrap_or(0) as u16 + 4;
    let height = HELP.lines().count() as u16 + 2;
    let area = Rect {
        x: screen.width.saturating_sub(width) / 2,
        y: screen.height.saturating_sub(height) / 2,
        width: width.min(screen.width),
        height: height.min(screen.height),
    };
    frame.render_widget(Clear, area);
    let lines: Vec<Line<'_>> = HELP.lines().map(|line| Line::from(format!(" {line}"))).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" pesto top ")), area);
}

#[cfg(test)]
mod tests;
