//! jail.md 1.5 rule 3: what counts as the name of a TLS connection, and what as none.

use super::samples::{counted16, extension, hello, hello_with, record_of, records, server_hello};
use super::{HelloReader, Malformed, Said, Watch};

fn name_in(bytes: &[u8]) -> Result<Option<Option<String>>, Malformed> {
    let hello = HelloReader::default().push(bytes)?;
    Ok(hello.map(|hello| hello.name))
}

fn named(name: &str) -> Result<Option<Option<String>>, Malformed> {
    Ok(Some(Some(name.to_owned())))
}

#[test]
fn a_name_is_read_however_it_is_written_and_split() {
    assert_eq!(name_in(&record_of(&["api.example.com"])), named("api.example.com"));
    assert_eq!(name_in(&record_of(&["API.Example.COM"])), named("api.example.com"));
    assert_eq!(name_in(&record_of(&["api.example.com."])), named("api.example.com."));
    assert_eq!(name_in(&record_of(&[])), Ok(Some(None)));
    // An address as a server name is none (RFC 6066, 3).
    assert_eq!(name_in(&record_of(&["192.0.2.1"])), Ok(Some(None)));
    for pad in [0, 1 << 14, 60_000] {
        for size in [1, 100, 1 << 14] {
            let bytes = records(22, &hello(&["api.example.com"], pad), size);
            if bytes.len() > 1 << 17 {
                continue;
            }
            assert_eq!(name_in(&bytes), named("api.example.com"), "{pad} in records of {size}");
        }
    }
}

#[test]
fn a_hello_that_comes_byte_by_byte_is_complete_with_its_last_byte_only() {
    let bytes = records(22, &hello(&["api.example.com"], 100), 7);
    let mut reader = HelloReader::default();
    let (last, first) = bytes.split_last().expect("bytes");
    for byte in first {
        assert_eq!(reader.push(&[*byte]), Ok(None));
    }
    let hello = reader.push(&[*last]).expect("hello").expect("complete");
    assert_eq!((hello.name.as_deref(), hello.length), (Some("api.example.com"), bytes.len()));
    assert_eq!(reader.into_bytes(), bytes);
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let sni = |name: &str| {
        extension(0, &counted16(&[&[0], counted16(name.as_bytes()).as_slice()].concat()))
    };
    let twice = hello_with(&[sni("a.example.com"), sni("b.example.com")].concat());
    let mut two = record_of(&["a.example.com"]);
    let message = hello(&["b.example.com"], 0);
    two.splice(.., records(22, &[hello(&["a.example.com"], 0), message].concat(), 1 << 14));
    let long = hello(&["a.example.com"], 1 << 15);
    let cases: [(&str, Vec<u8>); 9] = [
        ("two names", record_of(&["a.example.com", "b.example.com"])),
        ("two extensions", records(22, &twice, 1 << 14)),
        ("two hellos in a record", two),
        ("no name", record_of(&["a_\u{e9}.example.com"])),
        ("an SSLv2 hello", vec![0x80, 0x2e, 1, 3, 1, 0, 0x15]),
        ("another record first", records(21, &[1, 0], 2)),
        ("another message first", records(22, &server_hello(false), 1 << 14)),
        ("cut off inside", records(22, &[1, 0, 0, 4, 3, 3, 0, 0], 100)),
        ("many small records of much", records(22, &long, 1)),
    ];
    for (what, bytes) in cases {
        assert_eq!(name_in(&bytes), Err(Malformed), "{what}");
    }
    // Control: the same extension once.
    let once = records(22, &hello_with(&sni("a.example.com")), 1 << 14);
    assert_eq!(name_in(&once), named("a.example.com"));
}

#[test]
fn a_server_that_takes_the_hello_ends_the_watch() {
    for most in [1, 1 << 14] {
        let mut watch = Watch::new();
        // Early data and whatever else waits for the answer.
        let early = records(23, b"early", 100);
        assert_eq!(watch.client(&early), Ok(Said::Hold));
        let answer = [records(21, &[1, 112], 2), records(22, &server_hello(false), most)].concat();
        let mut said = Said::Hold;
        for byte in answer {
            assert_eq!(said, Said::Hold);
            said = watch.server(&[byte]).expect("answer");
            if said == Said::Free {
                break;
            }
        }
        assert_eq!(said, Said::Free);
        assert_eq!(watch.held(), early);
    }
}

#[test]
fn a_second_hello_is_read_when_the_server_asked_for_one() {
    let mut watch = Watch::new();
    let early = [records(23, b"early", 100), records(20, &[1], 1)].concat();
    assert_eq!(watch.client(&early), Ok(Said::Hold));
    let retry = records(22, &server_hello(true), 1 << 14);
    assert_eq!(watch.server(&retry), Ok(Said::Pass(early)));
    let again = records(22, &hello(&["other.example.com"], 0), 50);
    let (first, last) = again.split_at(again.len() - 1);
    assert_eq!(watch.client(first), Ok(Said::Hold));
    assert_eq!(watch.client(last), Ok(Said::Named(Some("other.example.com".to_owned()))));
    assert_eq!(watch.held(), again);
}

#[test]
fn a_second_hello_is_read_before_the_answer_and_without_one() {
    let again = record_of(&["other.example.com"]);
    let named = Ok(Said::Named(Some("other.example.com".to_owned())));
    let mut watch = Watch::new();
    assert_eq!(watch.client(&again), named);
    // A peer that does not answer in TLS decides nothing.
    let mut watch = Watch::new();
    assert_eq!(watch.server(b"220 hello\r\n"), Ok(Said::Pass(Vec::new())));
    assert_eq!(watch.client(&again), named);
    // What is no hello ends the watch there.
    let mut watch = Watch::new();
    assert_eq!(watch.server(b"220 hello\r\n"), Ok(Said::Pass(Vec::new())));
    assert_eq!(watch.client(&records(22, &[16, 0, 0, 0], 4)), Ok(Said::Free));
    // Before any answer, a client has no other message to send.
    let mut watch = Watch::new();
    assert_eq!(watch.client(&records(22, &[16, 0, 0, 0], 4)), Err(Malformed));
}
