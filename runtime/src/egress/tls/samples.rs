//! ClientHellos and ServerHellos for tests, made by hand so that they can be wrong.

/// A ClientHello message with these server names in one extension, and `pad` bytes of padding.
pub(crate) fn hello(names: &[&str], pad: usize) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        list.push(0);
        list.extend(counted16(name.as_bytes()));
    }
    let sni = match names {
        [] => Vec::new(),
        _ => extension(0, &counted16(&list)),
    };
    hello_with(&[sni, extension(21, &vec![0; pad])].concat())
}

/// A ClientHello message with these extensions and signature algorithms.
pub(crate) fn hello_with(extensions: &[u8]) -> Vec<u8> {
    let algorithms = extension(13, &counted16(&[4, 3]));
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(counted16(&[algorithms.as_slice(), extensions].concat()));
    message(1, &body)
}

/// A ServerHello message; a HelloRetryRequest if `retry`.
pub(crate) fn server_hello(retry: bool) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend(if retry { super::watch::RETRY } else { [9; 32] });
    body.extend([0, 0x13, 1, 0, 0, 0]);
    message(2, &body)
}

pub(crate) fn extension(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[0, kind], counted16(body).as_slice()].concat()
}

pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let size = (body.len() as u32).to_be_bytes();
    [&[kind], &size[1..], body].concat()
}

/// `bytes` in records of at most `most` bytes.
pub(crate) fn records(kind: u8, bytes: &[u8], most: usize) -> Vec<u8> {
    bytes
        .chunks(most)
        .flat_map(|part| [&[kind, 3, 1], counted16(part).as_slice()].concat())
        .collect()
}

/// A ClientHello in one record, or as few as it fits in.
pub(crate) fn record_of(names: &[&str]) -> Vec<u8> {
    records(22, &hello(names, 0), 1 << 14)
}

pub(crate) fn counted16(bytes: &[u8]) -> Vec<u8> {
    let size = (bytes.len() as u16).to_be_bytes();
    [&size, bytes].concat()
}
