//! The part of Structured Fields (RFC 9651) that a key needs: an Item of type String.
//!
//! Parameters carry no meaning here and are skipped, but they must be well-formed:
//! §4.2 has a field that fails to parse ignored as a whole, and a key that is
//! ignored leaves its request unprotected.

/// Parses `"…"` with optional parameters (RFC 9651 §4.2.3 and §4.2.5), the whole of `input`.
pub(super) fn string_item(input: &[u8]) -> Option<Vec<u8>> {
    let mut rest = input;
    let text = string(&mut rest)?;
    parameters(&mut rest)?;
    rest.iter().all(|&byte| byte == b' ').then_some(text)
}

fn string(rest: &mut &[u8]) -> Option<Vec<u8>> {
    expect(rest, b'"')?;
    let mut text = Vec::with_capacity(rest.len());
    loop {
        match next(rest)? {
            b'"' => return Some(text),
            b'\\' => text.push(next(rest).filter(|byte| matches!(byte, b'"' | b'\\'))?),
            byte @ 0x20..=0x7e => text.push(byte),
            _ => return None,
        }
    }
}

fn parameters(rest: &mut &[u8]) -> Option<()> {
    while rest.first() == Some(&b';') {
        *rest = &rest[1..];
        take_while(rest, |byte| byte == b' ');
        next(rest).filter(|byte| byte.is_ascii_lowercase() || *byte == b'*')?;
        take_while(rest, |byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte)
        });
        if rest.first() == Some(&b'=') {
            *rest = &rest[1..];
            bare_item(rest)?;
        }
    }
    Some(())
}

fn bare_item(rest: &mut &[u8]) -> Option<()> {
    match *rest.first()? {
        b'"' => string(rest).map(drop),
        b'-' | b'0'..=b'9' => number(rest).map(drop),
        b'@' => {
            *rest = &rest[1..];
            (number(rest)? == Number::Integer).then_some(())
        }
        b'?' => {
            *rest = &rest[1..];
            next(rest)
                .filter(|byte| matches!(byte, b'0' | b'1'))
                .map(drop)
        }
        b':' => byte_sequence(rest),
        b'%' => display_string(rest),
        b'*' | b'A'..=b'Z' | b'a'..=b'z' => {
            take_while(rest, |byte| {
                byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
            });
            Some(())
        }
        _ => None,
    }
}

#[derive(PartialEq)]
enum Number {
    Integer,
    Decimal,
}

fn number(rest: &mut &[u8]) -> Option<Number> {
    if rest.first() == Some(&b'-') {
        *rest = &rest[1..];
    }
    let whole = take_while(rest, |byte| byte.is_ascii_digit()).len();
    if rest.first() == Some(&b'.') {
        *rest = &rest[1..];
        let fraction = take_while(rest, |byte| byte.is_ascii_digit()).len();
        ((1..=12).contains(&whole) && (1..=3).contains(&fraction)).then_some(Number::Decimal)
    } else {
        (1..=15).contains(&whole).then_some(Number::Integer)
    }
}

fn byte_sequence(rest: &mut &[u8]) -> Option<()> {
    expect(rest, b':')?;
    let text = take_while(rest, |byte| {
        byte.is_ascii_alphanumeric() || b"+/=".contains(&byte)
    });
    let unpadded = text
        .iter()
        .rposition(|&byte| byte != b'=')
        .map_or(0, |last| last + 1);
    let padding = text.len() - unpadded;
    // Padding may be missing (§4.2.7), but one left-over digit encodes no byte.
    let whole = !text[..unpadded].contains(&b'=')
        && unpadded % 4 != 1
        && (padding == 0 || (padding <= 2 && text.len() % 4 == 0));
    expect(rest, b':').filter(|()| whole)
}

fn display_string(rest: &mut &[u8]) -> Option<()> {
    expect(rest, b'%')?;
    expect(rest, b'"')?;
    let mut text = Vec::new();
    loop {
        match next(rest)? {
            b'"' => return std::str::from_utf8(&text).ok().map(drop),
            b'%' => text.push(hex_digit(next(rest)?)? << 4 | hex_digit(next(rest)?)?),
            byte @ 0x20..=0x7e => text.push(byte),
            _ => return None,
        }
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

fn next(rest: &mut &[u8]) -> Option<u8> {
    let (&first, tail) = rest.split_first()?;
    *rest = tail;
    Some(first)
}

fn expect(rest: &mut &[u8], wanted: u8) -> Option<()> {
    next(rest).filter(|&byte| byte == wanted).map(drop)
}

fn take_while<'a>(rest: &mut &'a [u8], wanted: impl Fn(u8) -> bool) -> &'a [u8] {
    let end = rest
        .iter()
        .position(|&byte| !wanted(byte))
        .unwrap_or(rest.len());
    let (taken, tail) = rest.split_at(end);
    *rest = tail;
    taken
}
