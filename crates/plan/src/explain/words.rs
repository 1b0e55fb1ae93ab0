//! An explanation as lines for people: a label, and what there is to say.

use super::{Candidate, Excluded, Explanation, Sees, Step};

/// How a line is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Plain,
    /// Good news.
    Good,
    /// What stops the packet.
    Bad,
    /// Less important.
    Faint,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Empty where the line before has the label.
    pub label: &'static str,
    /// What there is to say.
    pub text: String,
    /// How it is meant.
    pub tone: Tone,
}

impl Explanation {
    /// The lines, without the verdict.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for step in &self.steps {
            let (label, texts) = of(step);
            for (index, (text, tone)) in texts.into_iter().enumerate() {
                let label = if index == 0 { label } else { "" };
                lines.push(Line { label, text, tone });
            }
        }
        lines
    }

    /// The verdict, and what the client sees.
    #[must_use]
    pub fn end(&self) -> Line {
        let tone = if self.arrives { Tone::Good } else { Tone::Bad };
        let sees = match self.client_sees {
            Sees::Refused => " The client sees: connection refused.",
            Sees::Silence => " The client sees: a timeout.",
            Sees::NoName => " The client sees: no such host.",
            _ => "",
        };
        Line { label: "", text: format!("{}{sees}", self.verdict), tone }
    }

    /// Everything as text, without colour.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{} to {}\n\n", self.from, self.to);
        for line in self.lines() {
            text.push_str(format!("{:<11}{}", line.label, line.text).trim_end());
            text.push('\n');
        }
        text.push_str(&format!("\n{}\n", self.end().text));
        text
    }
}

type Text = (String, Tone);

fn of(step: &Step) -> (&'static str, Vec<Text>) {
    let plain = |text: String| (text, Tone::Plain);
    let judged = |text: String, passes: bool| (text, if passes { Tone::Plain } else { Tone::Bad });
    match step {
        Step::From { who, address, node, trouble } => {
            ("from", vec![from(who, address.as_deref(), node.as_deref(), trouble.as_deref())])
        }
        Step::Name { server, lookups, words, found } => {
            let server = server.as_deref().map_or_else(String::new, |at| format!(" at {at}"));
            let mut texts = vec![plain(format!("asked of the cluster's DNS{server}:"))];
            texts.extend(
                lookups.iter().map(|one| (format!("  {}: {}", one.name, one.answer), Tone::Plain)),
            );
            if !words.is_empty() {
                texts.push(judged(words.clone(), *found));
            }
            ("name", texts)
        }
        Step::Address { address, words, passes, .. } => {
            ("address", vec![judged(format!("{address} is {words}"), *passes)])
        }
        Step::Entry { node, words } => ("enters", vec![plain(format!("at node {node}: {words}"))]),
        Step::Rule { field, words, passes } => {
            ("rule", vec![judged(format!("{field}: {words}"), *passes)])
        }
        Step::Endpoints { candidates, left_out } => ("endpoints", endpoints(candidates, left_out)),
        Step::Nat { destination, source } => {
            ("NAT", vec![plain(format!("destination {destination}; source {source}"))])
        }
        Step::Route { hops } => {
            ("route", hops.iter().map(|hop| plain(format!("{}: {}", hop.to, hop.way))).collect())
        }
        Step::Kernel { agrees, words, differences, .. } => {
            let tone = match agrees {
                Some(true) => Tone::Plain,
                Some(false) => Tone::Bad,
                None => Tone::Faint,
            };
            let mut texts = vec![(words.clone(), tone)];
            texts.extend(differences.iter().map(|one| (format!("  {one}"), Tone::Bad)));
            ("kernel", texts)
        }
        Step::Listening { endpoints } => {
            let texts = endpoints.iter().map(|one| {
                let tone = match one.open {
                    Some(true) => Tone::Plain,
                    Some(false) => Tone::Bad,
                    None => Tone::Faint,
                };
                (format!("{}: {}", one.address, one.words), tone)
            });
            ("listens", texts.collect())
        }
        Step::Unheard { words, .. } => ("agents", vec![(words.clone(), Tone::Faint)]),
        Step::Why { hints } => {
            ("look at", hints.iter().map(|hint| (hint.clone(), Tone::Bad)).collect())
        }
    }
}

fn from(who: &str, address: Option<&str>, node: Option<&str>, trouble: Option<&str>) -> Text {
    let mut text = who.to_owned();
    if let Some(address) = address {
        text.push_str(&format!(", {address}"));
    }
    if let Some(node) = node {
        text.push_str(&format!(", on node {node}"));
    }
    match trouble {
        Some(trouble) => (format!("{text}: {trouble}"), Tone::Bad),
        None => (text, Tone::Plain),
    }
}

fn endpoints(candidates: &[Candidate], left_out: &[Excluded]) -> Vec<Text> {
    let all = candidates.len() + left_out.len();
    let head = match (candidates.len(), all) {
        (_, 0) => "the Service has none".to_owned(),
        (0, all) => format!("none of {all} may get the packet:"),
        (some, all) if some == all => "each may get the packet:".to_owned(),
        (some, all) => format!("{some} of {all} may get the packet:"),
    };
    let tone = if candidates.is_empty() { Tone::Bad } else { Tone::Plain };
    let mut texts = vec![(head, tone)];
    let place = |address: &str, pod: Option<&str>, node: Option<&str>| {
        let pod = pod.map_or_else(String::new, |pod| format!("  pod {pod}"));
        let node = node.map_or_else(String::new, |node| format!(" on {node}"));
        format!("{address}{pod}{node}")
    };
    for one in candidates {
        let at = place(&one.address, one.pod.as_deref(), one.node.as_deref());
        let (whole, tenth) = (one.share_permille / 10, one.share_permille % 10);
        let share = if tenth == 0 { format!("{whole} %") } else { format!("{whole}.{tenth} %") };
        texts.push((format!("  {at}  {share} of new connections"), Tone::Plain));
    }
    for one in left_out {
        let address = one.address.as_deref().unwrap_or("no address");
        let at = place(address, one.pod.as_deref(), one.node.as_deref());
        texts.push((format!("  {at}  left out: {}", one.why), Tone::Faint));
    }
    texts
}
