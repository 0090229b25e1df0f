//! What a query in PromQL asks for: metrics, the labels that it chooses by, and those that it keeps.

use std::{iter::Peekable, str::Chars};

/// A metric that a query reads, and the labels that it must have: name, operator, value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) metric: String,
    pub(super) matchers: Vec<[String; 3]>,
}

/// What a query asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) selectors: Vec<Selector>,
    /// Labels that it groups or joins by.
    pub(super) grouping: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

/// Before a list of labels.
const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that are no metrics.
const OPERATORS: [&str; 8] = ["and", "or", "unless", "atan2", "bool", "offset", "inf", "nan"];

impl Query {
    /// Reads a query. Of one that is none it says what is in it.
    pub(super) fn of(text: &str) -> Self {
        let tokens = tokens(text);
        let mut query = Self::default();
        let mut at = 0;
        while at < tokens.len() {
            let next = tokens.get(at + 1);
            match &tokens[at] {
                Token::Word(word) if GROUPING.contains(&&*word.to_lowercase()) => {
                    at = query.labels(&tokens, at);
                }
                Token::Word(word) if !OPERATORS.contains(&&*word.to_lowercase()) && is_metric(next) => {
                    at = query.selector(word, &tokens, at + 1);
                    continue;
                }
                Token::Sign('{') => {
                    at = query.selector("", &tokens, at);
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
        query
    }

    /// The labels in brackets behind the word there, if any are, and where they end.
    fn labels(&mut self, tokens: &[Token], mut at: usize) -> usize {
        if tokens.get(at + 1) != Some(&Token::Sign('(')) {
            return at;
        }
        at += 2;
        while at < tokens.len() && tokens[at] != Token::Sign(')') {
            if let Token::Word(label) = &tokens[at] {
                self.grouping.push(label.clone());
            }
            at += 1;
        }
        at
    }

    /// The matchers of a metric, if any are there, and what is behind them.
    fn selector(&mut self, metric: &str, tokens: &[Token], mut at: usize) -> usize {
        let mut selector = Selector { metric: metric.to_owned(), matchers: Vec::new() };
        if tokens.get(at) == Some(&Token::Sign('{')) {
            let end = tokens[at..].iter().position(|token| *token == Token::Sign('}'));
            let end = end.map_or(tokens.len(), |length| at + length);
            let parts: Vec<&[Token]> =
                tokens[at + 1..end].split(|token| *token == Token::Sign(',')).collect();
            for part in parts {
                let [Token::Word(name), operator @ .., Token::Text(value)] = part else { continue };
                let sign = |token: &Token| match token {
                    Token::Sign(sign) => *sign,
                    _ => '?',
                };
                let operator: String = operator.iter().map(sign).collect();
                match &**name {
                    "__name__" => selector.metric.clone_from(value),
                    _ => selector.matchers.push([name.clone(), operator, value.clone()]),
                }
            }
            at = (end + 1).min(tokens.len());
        }
        self.selectors.push(selector);
        at
    }
}

/// Whether a word that this follows is a metric, and not a function or an aggregation.
fn is_metric(next: Option<&Token>) -> bool {
    match next {
        Some(Token::Sign('(')) => false,
        Some(Token::Word(word)) => !["by", "without"].contains(&&*word.to_lowercase()),
        _ => true,
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' | '\'' | '`' => found.push(Token::Text(quoted(&mut rest, c))),
            // A range, such as `[5m]` or `[$__rate_interval]`.
            '[' => while rest.next().is_some_and(|c| c != ']') {},
            // A number or a duration: `5m`, `1e9`.
            '0'..='9' => while rest.next_if(|c| c.is_alphanumeric() || *c == '.').is_some() {},
            // A comment.
            '#' => while rest.next().is_some_and(|c| c != '\n') {},
            _ if c.is_alphabetic() || ['_', ':', '$'].contains(&c) => {
                let mut word = String::from(c);
                while let Some(c) = rest.next_if(|c| c.is_alphanumeric() || ['_', ':'].contains(c)) {
                    word.push(c);
                }
                // What Grafana fills in is no metric.
                if !word.starts_with('$') {
                    found.push(Token::Word(word));
                }
            }
            _ if c.is_whitespace() => {}
            _ => found.push(Token::Sign(c)),
        }
    }
    found
}

/// The rest of a text in quotes.
fn quoted(rest: &mut Peekable<Chars<'_>>, quote: char) -> String {
    let mut text = String::new();
    while let Some(c) = rest.next() {
        match c {
            _ if c == quote => break,
            '\\' if quote != '`' => text.extend(rest.next()),
            _ => text.push(c),
        }
    }
    text
}

fn metrics(text: &str) -> Vec<String> {
    Query::of(text).selectors.into_iter().map(|selector| selector.metric).collect()
}

#[test]
fn metrics_are_found_wherever_they_stand() {
    for (text, expected) in [
        ("up", &["up"][..]),
        ("job:a:rate5m / on (job) group_left () (b > 0)", &["job:a:rate5m", "b"]),
        ("sum by (le, model) (rate(a_bucket{x=\"up{y}\"}[$__rate_interval]))", &["a_bucket"]),
        ("sum(rate(a_sum[5m])) by (model) / count(b)", &["a_sum", "b"]),
        ("histogram_quantile(0.99, sum without (x) (a)) > 1e9", &["a"]),
        ("a{b='c'} unless a offset 15m or {__name__=\"d\", e!~\"f\"}", &["a", "a", "d"]),
        ("absent(up{job=\"sconce\"}) and on () vector(1) # nothing", &["up"]),
        ("a == bool 1 AND b ATAN2 Inf", &["a", "b"]),
        ("rate(a[5m:1m] @ start()) + time()", &["a"]),
        ("label_replace(a, \"to\", \"$1\", \"from\", \"(.*)\")", &["a"]),
        ("topk(5, sum by (le) (a))", &["a"]),
        ("a offset $__interval unless b", &["a", "b"]),
        ("1 + 2m", &[]),
        ("", &[]),
    ] {
        assert_eq!(metrics(text), expected, "{text}");
    }
}

#[test]
fn what_a_metric_is_chosen_by_and_grouped_by_is_found_too() {
    let query = Query::of("sum by (le, code) (a{job=~\"$job\", code!=\"a\\\"b\",}) / ignoring(x) b{}");
    let matcher = |name: &str, operator: &str, value: &str| [name, operator, value].map(str::to_owned);
    assert_eq!(query.selectors[0].matchers, [matcher("job", "=~", "$job"), matcher("code", "!=", "a\"b")]);
    assert!(query.selectors[1].metric == "b" && query.selectors[1].matchers.is_empty());
    assert_eq!(query.grouping, ["le", "code", "x"]);
}

#[test]
fn what_is_no_query_does_no_harm() {
    for text in ["sum by (", "a{", "a{b=", "\"", "a[", "{", "}", "a{b=\"\\", "by", "sum by"] {
        Query::of(text);
    }
}
