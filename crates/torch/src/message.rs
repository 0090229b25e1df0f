//! One line out of what libtorch says when it throws.

/// How much of a model's own text is passed on. Headers carry it, and clients bound those.
const LIMIT: usize = 1000;

/// The line that tells a person what went wrong: the model's own message where the TorchScript
/// interpreter wrapped it in a traceback, else the first line. Escaped and cut: a model may put into it
/// what it was sent.
pub(crate) fn first_line(text: &str) -> String {
    let line = telling_line(text.trim());
    let mut line: String = line
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_debug().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if let Some((at, _)) = line.char_indices().nth(LIMIT) {
        line.truncate(at);
        line.push_str("...");
    }
    line
}

fn telling_line(text: &str) -> String {
    if text.contains("The following operation failed in the TorchScript interpreter.")
        && let Some(line) = text.lines().rev().find_map(exception_line)
    {
        return line;
    }
    if let Some(operator) = unknown_operator(text) {
        return format!(
            "it needs the operator `{operator}`, which is not registered; load the library that has it with \
             --op-library or `op_libraries` in the model's config.yaml"
        );
    }
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message");
    strip_location(line).to_owned()
}

/// `Class: message` as the interpreter ends its traceback. A plain RuntimeError needs no class.
fn exception_line(line: &str) -> Option<String> {
    let (class, message) = line.split_once(": ")?;
    let is_class = !class.is_empty() && class.chars().all(|c| c.is_alphanumeric() || "._".contains(c));
    if !is_class || message.trim().is_empty() {
        return None;
    }
    let class = class.strip_prefix("builtins.").unwrap_or(class);
    let message = strip_location(message.trim());
    Some(if class == "RuntimeError" { message.to_owned() } else { format!("{class}: {message}") })
}

/// What the loader says of an operator that no library has registered.
fn unknown_operator(text: &str) -> Option<&str> {
    let rest = text.split_once("Unknown builtin op: ").or_else(|| text.split_once("Unknown type name '"))?.1;
    let name = rest.split(|c: char| c.is_whitespace() || c == '\'').next()?.trim_end_matches('.');
    (name.contains("::") || name.contains("__torch__.torch.classes")).then_some(name)
}

/// Without what only a debugger could use: addresses, and places in libtorch's own source.
fn strip_location(line: &str) -> &str {
    let line = line.split_once(" Exception raised from ").map_or(line, |(line, _)| line);
    let line = line.split_once(" (of Python compilation unit at: ").map_or(line, |(line, _)| line);
    line.trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceback_becomes_the_models_own_message() {
        let text = "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript, \
                    serialized code (most recent call last):\n  File \"code/__torch__.py\", line 9, in forward\n    \
                    ops.prim.RaiseException(\"negative: no\", \"builtins.ValueError\")\n    ~~~ <--- \
                    HERE\nbuiltins.ValueError: negative: no\n";
        assert_eq!(first_line(text), "ValueError: negative: no");
        let text = "The following operation failed in the TorchScript interpreter.\nTraceback\nRuntimeError: The size \
                    of tensor a (3) must match\n";
        assert_eq!(first_line(text), "The size of tensor a (3) must match");
    }

    #[test]
    fn a_missing_operator_is_named() {
        let text =
            "\nUnknown builtin op: torchvision::nms.\nCould not find any similar ops to torchvision::nms.";
        assert!(first_line(text).contains("the operator `torchvision::nms`"));
    }

    #[test]
    fn what_a_model_repeats_is_escaped_and_cut() {
        let text = format!("bad: \u{1b}[31m{}", "é".repeat(5000));
        let line = first_line(&text);
        assert!(line.starts_with("bad: \\u{1b}[31mé") && line.ends_with("é..."), "{line}");
        assert_eq!(line.chars().count(), LIMIT + 3);
    }

    #[test]
    fn anything_else_is_its_first_line() {
        assert_eq!(first_line("\n  open file failed\nframe #0: 0x7f"), "open file failed");
        assert_eq!(first_line(""), "no message");
    }
}
