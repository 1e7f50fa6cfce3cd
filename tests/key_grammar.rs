//! The key's parser reads what the grammar says, by two other readings of the grammar.
#![allow(clippy::unwrap_used)]

mod support;

use http::HeaderValue;
use proptest::prelude::*;
use support::pieces::cases;
use tower_idempotency::IdempotencyKey;

/// RFC 9651, word for word and with no regard to speed: a part is tried at every end it
/// could have, and judged as a whole.
mod naive {
    pub(crate) fn key(value: &[u8]) -> Option<String> {
        let text = latin(value);
        let text = text.trim_matches([' ', '\t']);
        let key = if text.starts_with('"') {
            item(text)?
        } else {
            text.chars()
                .all(|c| ('!'..='~').contains(&c) && !"\",;\\".contains(c))
                .then(|| text.to_owned())?
        };
        (1..=255).contains(&key.len()).then_some(key)
    }

    fn latin(value: &[u8]) -> String {
        value.iter().copied().map(char::from).collect()
    }

    fn cuts(text: &str) -> impl Iterator<Item = (&str, &str)> {
        (0..=text.len())
            .filter(|&at| text.is_char_boundary(at))
            .map(|at| text.split_at(at))
    }

    fn item(text: &str) -> Option<String> {
        cuts(text)
            .filter(|(_, rest)| parameters(rest))
            .find_map(|(head, _)| string(head))
    }

    fn parameters(text: &str) -> bool {
        text.is_empty() || {
            text.strip_prefix(';').is_some_and(|text| {
                let text = text.trim_start_matches(' ');
                cuts(text).any(|(one, rest)| parameter(one) && parameters(rest))
            })
        }
    }

    fn parameter(text: &str) -> bool {
        match text.split_once('=') {
            Some((name, value)) => key_name(name) && bare_item(value),
            None => key_name(text),
        }
    }

    fn key_name(text: &str) -> bool {
        text.starts_with(|c: char| c.is_ascii_lowercase() || c == '*')
            && text
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.*".contains(c))
    }

    fn bare_item(text: &str) -> bool {
        string(text).is_some()
            || integer(text)
            || decimal(text)
            || text.strip_prefix('@').is_some_and(integer)
            || ["?0", "?1"].contains(&text)
            || token(text)
            || bytes(text)
            || display_string(text)
    }

    fn string(text: &str) -> Option<String> {
        let inner = text.strip_prefix('"')?.strip_suffix('"')?;
        let (mut out, mut escaped) = (String::new(), false);
        for c in inner.chars() {
            match (escaped, c) {
                (false, '\\') => escaped = true,
                (false, '"') => return None,
                (false, ' '..='~') | (true, '"' | '\\') => {
                    out.push(c);
                    escaped = false;
                }
                _ => return None,
            }
        }
        (!escaped).then_some(out)
    }

    fn digits(text: &str, at_most: usize) -> bool {
        (1..=at_most).contains(&text.len()) && text.chars().all(|c| c.is_ascii_digit())
    }

    fn integer(text: &str) -> bool {
        digits(text.strip_prefix('-').unwrap_or(text), 15)
    }

    fn decimal(text: &str) -> bool {
        let text = text.strip_prefix('-').unwrap_or(text);
        text.split_once('.')
            .is_some_and(|(whole, part)| digits(whole, 12) && digits(part, 3))
    }

    fn token(text: &str) -> bool {
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '*')
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(c))
    }

    fn bytes(text: &str) -> bool {
        let Some(text) = text
            .strip_prefix(':')
            .and_then(|text| text.strip_suffix(':'))
        else {
            return false;
        };
        let plain = text.trim_end_matches('=');
        let alphabet = |c: char| c.is_ascii_alphanumeric() || "+/".contains(c);
        plain.chars().all(alphabet)
            && plain.len() % 4 != 1
            && (plain == text || (text.len() % 4 == 0 && text.len() - plain.len() < 3))
    }

    fn display_string(text: &str) -> bool {
        let Some(text) = text
            .strip_prefix("%\"")
            .and_then(|text| text.strip_suffix('"'))
        else {
            return false;
        };
        let mut out = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '%' => {
                    let pair: String = chars.by_ref().take(2).collect();
                    let lower = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
                    if pair.len() != 2 || !pair.chars().all(lower) {
                        return false;
                    }
                    out.push(u8::from_str_radix(&pair, 16).unwrap());
                }
                ' ' | '!' | '#'..='~' => out.push(c as u8),
                _ => return false,
            }
        }
        String::from_utf8(out).is_ok()
    }
}

fn parsed(value: &HeaderValue) -> Option<String> {
    IdempotencyKey::try_from(value)
        .ok()
        .map(|key| key.as_str().to_owned())
}

/// A crate for the whole of RFC 9651, for a value that begins with a quotation mark. What
/// a server strips around a field value is stripped here.
fn by_another_crate(value: &HeaderValue) -> Option<String> {
    let value = value.as_bytes().trim_ascii();
    let item: sfv::Item = sfv::Parser::new(value).parse().ok()?;
    let text = item.bare_item.as_string()?.as_str().to_owned();
    (1..=255).contains(&text.len()).then_some(text)
}

/// Base64 with one of its two `=`, on which RFC 9651 §4.2.7 leaves room for both answers.
fn is_half_padded(value: &[u8]) -> bool {
    value
        .split(|&byte| byte == b':')
        .any(|part| part.ends_with(b"=") && part.len() % 4 != 0)
}

/// Pieces that meet in all the wrong places.
fn fragments() -> impl Strategy<Value = Vec<u8>> {
    const FRAGMENTS: &[&[u8]] = &[
        b"\"",
        b"\\",
        b"\\\"",
        b"\\\\",
        b"a",
        b"Z",
        b"0",
        b"1",
        b" ",
        b"\t",
        b";",
        b";a",
        b"; b=",
        b"=",
        b"-",
        b".",
        b",",
        b"?1",
        b"?",
        b":",
        b"YQ",
        b"==",
        b"=",
        b"%\"",
        b"%c3%a9",
        b"%",
        b"@",
        b"*",
        b"/",
        b"\xc3\xa9",
        b"\xff",
        b"tok/en:x",
        b"~",
        b"!",
        b"123456789012",
        b"(",
    ];
    prop::collection::vec(prop::sample::select(FRAGMENTS), 0..12)
        .prop_map(|fragments| fragments.concat())
}

fn bare_item() -> impl Strategy<Value = String> {
    prop_oneof![
        "\"([a-z ;,=]|\\\\\"|\\\\\\\\){0,6}\"",
        "-?[0-9]{1,16}",
        "-?[0-9]{1,13}\\.[0-9]{1,4}",
        "@-?[0-9]{1,16}(\\.[0-9])?",
        "\\?[012]",
        "[a-zA-Z*][a-zA-Z0-9:/!#%&'*+.^_`|~-]{0,6}",
        ":[a-zA-Z0-9+/]{0,9}={0,3}:",
        "%\"([a-z ]|%[0-9a-f]{2}|%c3%a9){0,4}\"",
    ]
}

/// Values that mostly are well-formed, some with one byte changed.
fn items() -> impl Strategy<Value = Vec<u8>> {
    let parameter = (
        "; {0,2}",
        "[a-z*][a-z0-9_.*-]{0,3}",
        prop::option::of(bare_item()),
    )
        .prop_map(|(start, name, value)| match value {
            Some(value) => format!("{start}{name}={value}"),
            None => format!("{start}{name}"),
        });
    let item = (
        "\"([ -!#-\\[\\]-~]|\\\\\"|\\\\\\\\){0,8}\"",
        prop::collection::vec(parameter, 0..3),
        " {0,2}",
    )
        .prop_map(|(text, parameters, end)| format!("{text}{}{end}", parameters.concat()));
    let change = prop::option::of((any::<prop::sample::Index>(), any::<u8>()));
    (item, change).prop_map(|(item, change)| {
        let mut item = item.into_bytes();
        if let Some((at, byte)) = change {
            let at = at.index(item.len());
            item[at] = byte;
        }
        item
    })
}

fn values() -> impl Strategy<Value = HeaderValue> {
    let around_the_limit = (250_usize..260, prop::bool::ANY).prop_map(|(len, quoted)| {
        let key = "k".repeat(len);
        if quoted { format!("\"{key}\"") } else { key }.into_bytes()
    });
    let bare = "[ -~]{0,12}".prop_map(String::into_bytes);
    let quoted = fragments().prop_map(|rest| [b"\"", &rest[..]].concat());
    prop_oneof![4 => items(), 3 => quoted, 2 => fragments(), 2 => bare, 1 => around_the_limit]
        .prop_filter_map("no field value", |value| {
            HeaderValue::from_bytes(&value).ok()
        })
}

proptest! {
    #![proptest_config(cases(1500))]

    #[test]
    fn a_second_reading_of_the_grammar_agrees(value in values()) {
        prop_assert_eq!(parsed(&value), naive::key(value.as_bytes()), "{:?}", value);
    }

    #[test]
    fn a_crate_for_structured_fields_agrees_on_quoted_values(value in values()) {
        let is_quoted = value.as_bytes().trim_ascii().starts_with(b"\"");
        if !is_quoted || is_half_padded(value.as_bytes()) {
            return Ok(());
        }
        prop_assert_eq!(parsed(&value), by_another_crate(&value), "{:?}", value);
    }

    #[test]
    fn a_key_written_as_a_string_is_read_back(text in "[ -~]{1,255}") {
        let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let value = HeaderValue::from_str(&quoted).unwrap();
        prop_assert_eq!(parsed(&value), Some(text));
    }
}

#[test]
fn the_cases_hold_keys_of_both_kinds_and_values_that_are_none() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::new(cases(1));
    let (mut quoted, mut bare, mut with_parameters, mut refused) = (0, 0, 0, 0);
    for _ in 0..2000 {
        let value = values().new_tree(&mut runner).unwrap().current();
        let is_quoted = value.as_bytes().starts_with(b"\"");
        match parsed(&value) {
            Some(_) if is_quoted && value.as_bytes().contains(&b';') => with_parameters += 1,
            Some(_) if is_quoted => quoted += 1,
            Some(_) => bare += 1,
            None => refused += 1,
        }
    }
    for seen in [quoted, bare, with_parameters, refused] {
        assert!(seen > 50, "{quoted} {bare} {with_parameters} {refused}");
    }
}

#[test]
fn neither_debug_nor_an_error_shows_the_key() {
    let key = IdempotencyKey::new("secret-7").unwrap();
    assert!(!format!("{key:?}").contains("secret"));
    let value = HeaderValue::from_static("secret 7");
    let error = IdempotencyKey::try_from(&value).unwrap_err();
    for text in [
        format!("{error:?}"),
        error.to_string(),
        error.reason().to_owned(),
    ] {
        assert!(!text.contains("secret"), "{text}");
    }
}
