//! What is replied to which question, and what the ledger then holds.

use super::*;
use hickory_proto::op::{OpCode, ResponseCode};
use hickory_proto::rr::DNSClass;

use RecordType as T;

// INV-8, jail.md 1.5 rule 1. Each refusal stands beside a name that is answered.
#[test]
fn only_names_that_a_rule_names_are_answered() {
    const REFUSED: &str = "Refused";
    const FIRST: (&str, &str) = ("198.18.0.16", "fd01:203:405:607::c612:10");
    let long = format!("{}.any.example.org.", "a.".repeat(48).trim_end_matches('.'));
    let longer = format!("{}.any.example.org.", "a.".repeat(49).trim_end_matches('.'));
    #[rustfmt::skip]
    let cases = [
        ("api.example.com.",                FIRST),
        ("ssh.example.com.",                FIRST), // another port than the web's
        ("x.one.example.com.",              FIRST),
        ("a.b.any.example.org.",            FIRST),
        ("xn--bcher-kva.one.example.com.",  FIRST),
        (&long,                             FIRST), // 95 bytes
        (&longer,                           (REFUSED, REFUSED)), // 97 bytes
        ("localhost.",                      ("127.0.0.1", "::1")),
        ("db.LocalHost.",                   ("127.0.0.1", "::1")),
        ("example.com.",                    (REFUSED, REFUSED)),
        ("one.example.com.",                (REFUSED, REFUSED)), // the apex is not implied
        ("any.example.org.",                (REFUSED, REFUSED)),
        ("y.x.one.example.com.",            (REFUSED, REFUSED)),
        ("api.example.com.evil.test.",      (REFUSED, REFUSED)),
        ("evilapi.example.com.",            (REFUSED, REFUSED)),
        ("localhost.evil.test.",            (REFUSED, REFUSED)),
        ("192.0.2.1.",                      (REFUSED, REFUSED)), // addresses are no names
        ("0x7f.1.",                         (REFUSED, REFUSED)),
        (".",                               (REFUSED, REFUSED)),
        ("com.",                            (REFUSED, REFUSED)),
        ("a_b.one.example.com.",            FIRST),
        ("_b.one.example.com.",             FIRST), // a rule names all of it
        ("-a-.one.example.com.",            FIRST),
        ("xn--.one.example.com.",           (REFUSED, REFUSED)),
        (r"a\000.one.example.com.",         (REFUSED, REFUSED)), // NUL
        (r"api\.example.com.",              (REFUSED, REFUSED)), // a dot inside a label
        (r"a\.b.one.example.com.",          (REFUSED, REFUSED)),
        (r"b\195\188cher.one.example.com.", (REFUSED, REFUSED)), // UTF-8 is not looked up as such
        ("*.one.example.com.",              (REFUSED, REFUSED)),
    ];
    for (name, (v4, v6)) in cases {
        let (scope, _) = scope();
        assert_eq!(said(&ask(&scope, &question(name, T::A))), v4, "A of {name}");
        assert_eq!(said(&ask(&scope, &question(name, T::AAAA))), v6, "AAAA of {name}");
    }
}

// jail.md 1.5 rule 1: HTTPS and SVCB have no data, TXT, ANY, PTR and their like are refused.
#[test]
fn no_type_but_addresses_has_data() {
    const ABSENT: &str = "NoError, absent";
    #[rustfmt::skip]
    let cases = [
        (T::HTTPS, ABSENT), (T::SVCB, ABSENT), (T::MX, ABSENT), (T::NS, ABSENT), (T::SOA, ABSENT),
        (T::SRV, ABSENT), (T::CNAME, ABSENT), (T::CAA, ABSENT), (T::DS, ABSENT), (T::DNSKEY, ABSENT),
        (T::SSHFP, ABSENT), (T::TLSA, ABSENT), (T::NAPTR, ABSENT),
        (T::TXT, "Refused"), (T::NULL, "Refused"), (T::ANY, "Refused"), (T::AXFR, "Refused"),
        (T::IXFR, "Refused"), (T::PTR, "Refused"), (T::HINFO, "Refused"), (T::KEY, "Refused"),
        (T::CERT, "Refused"), (T::OPENPGPKEY, "Refused"), (T::Unknown(10), "Refused"),
        (T::Unknown(99), "Refused"), (T::Unknown(65399), "Refused"), (T::ZERO, "Refused"),
        (T::OPT, "Refused"), (T::TSIG, "Refused"), (T::A, "198.18.0.16"),
    ];
    for (record_type, want) in cases {
        let (scope, kept) = scope();
        let reply = ask(&scope, &question("api.example.com.", record_type));
        assert_eq!(said(&reply), want, "{record_type}");
        let denied = want == "Refused" && record_type != T::PTR;
        let reason = ("api.example.com".to_owned(), 53, Some(Reason::RecordType));
        assert_eq!(kept.denials(), if denied { vec![reason] } else { vec![] }, "{record_type}");
        // Of a name that is not allowed every type is refused, and the name is what is wrong.
        let reply = ask(&scope, &question("evil.test.", record_type));
        assert_eq!(said(&reply), "Refused", "{record_type} of another name");
        let reason = ("evil.test".to_owned(), 53, Some(Reason::Lookup));
        let denied = record_type != T::PTR;
        assert_eq!(kept.denials(), if denied { vec![reason] } else { vec![] }, "{record_type}");
    }
}

// product.md 2B.7, "do not cry wolf": what tools ask by themselves is not held against them.
#[test]
fn questions_that_tools_ask_by_themselves_are_no_denials() {
    let (scope, kept) = scope();
    let quiet = [
        ("1.0.0.127.in-addr.arpa.", T::PTR, "Refused"),
        ("16.0.18.198.in-addr.arpa.", T::PTR, "Refused"),
        (".", T::NS, "Refused"),
        ("localhost.", T::MX, "NoError, absent"),
        // apt asks for servers before it asks for addresses.
        ("_http._tcp.api.example.com.", T::SRV, "NoError, absent"),
        ("_8443._https.api.example.com.", T::HTTPS, "NoError, absent"),
        ("_http._tcp.api.example.com.", T::A, "NoError, absent"),
        ("_http._tcp.LOCALHOST.", T::SRV, "NoError, absent"),
    ];
    for (name, record_type, want) in quiet {
        assert_eq!(said(&ask(&scope, &question(name, record_type))), want, "{record_type} {name}");
    }
    assert_eq!(kept.denials(), []);
    assert_eq!(scope.ledger.turn(None), []);
    // What they are about is judged all the same.
    #[rustfmt::skip]
    let judged = [
        ("_http._tcp.evil.test.",            T::SRV, "evil.test",       Reason::Lookup),
        ("_acme-challenge.other.test.",      T::TXT, "other.test",      Reason::Lookup),
        ("_acme-challenge.api.example.com.", T::TXT, "api.example.com", Reason::RecordType),
    ];
    for (name, record_type, host, reason) in judged {
        assert_eq!(said(&ask(&scope, &question(name, record_type))), "Refused", "{name}");
        assert_eq!(kept.denials(), [(host.to_owned(), 53, Some(reason))]);
    }
}

// product.md 3.4, channel 3; RFC 8914; RFC 6891, 7.
#[test]
fn refusal_says_why_to_those_who_can_read_it() {
    let (scope, _) = scope();
    let text = "egress: no rule of the operator's policy names api.partner.example";
    let cases = [
        ("api.partner.example.", T::A, Some((15, text.to_owned()))),
        (
            "api.example.com.",
            T::TXT,
            Some((21, "egress: records of this type are never answered".to_owned())),
        ),
        ("api.example.com.", T::A, None),
    ];
    for (name, record_type, want) in cases {
        let mut message = question(name, record_type);
        assert_eq!(extended(&ask(&scope, &message)), want, "{record_type} {name}");
        message.edns = None;
        let reply = ask(&scope, &message);
        assert!(reply.edns.is_none(), "an OPT record for who sent none");
    }
}

#[test]
fn longest_names_get_replies_of_512_bytes_at_most() {
    let (scope, _) = scope();
    let label = "a".repeat(63);
    for tail in ["any.example.org.", "evil.test."] {
        let head = format!("{label}.{label}.{label}.");
        let name = format!("{head}{}.{tail}", "b".repeat(253 - head.len() - tail.len()));
        for record_type in [T::A, T::AAAA, T::HTTPS, T::TXT] {
            let message = bytes(&question(&name, record_type));
            let reply = answer(&message, Transport::Udp, &scope).expect("a reply");
            let read = Message::from_vec(&reply).expect("readable");
            assert!(reply.len() <= 512 && !read.metadata.truncation, "{}", reply.len());
            let absent = record_type == T::HTTPS && tail == "any.example.org.";
            assert_eq!(extended(&read).is_none(), absent, "{record_type} {tail}");
        }
    }
}

// RFC 1035, 4.1.1: who compares question, id and flags finds their own.
#[test]
fn reply_repeats_the_question_letter_by_letter() {
    let (scope, _) = scope();
    for name in ["aPi.ExAmPlE.cOm.", "API.EXAMPLE.COM.", "eViL.tEsT."] {
        let message = question(name, T::A);
        let reply = ask(&scope, &message);
        assert_eq!(reply.queries[0].name().to_ascii(), name);
        if let [only] = reply.answers.as_slice() {
            assert_eq!((only.name.to_ascii().as_str(), only.ttl), (name, 30));
            assert_eq!(said(&reply), "198.18.0.16", "one name, whatever its letters");
        }
        let metadata = &reply.metadata;
        assert_eq!(metadata.id, 0x1234);
        assert!(metadata.recursion_desired && metadata.recursion_available);
        assert!(!metadata.authoritative && !metadata.authentic_data && !metadata.truncation);
    }
}

#[test]
fn bytes_that_are_no_single_question_get_an_error_or_nothing() {
    let (scope, kept) = scope();
    let good = question("api.example.com.", T::A);
    let with = |change: fn(&mut Message)| {
        let mut message = question("api.example.com.", T::A);
        change(&mut message);
        bytes(&message)
    };
    let loops = {
        let mut bytes = bytes(&good);
        bytes.splice(12..14, [0xc0, 12]);
        bytes
    };
    let two_options = {
        let mut bytes = bytes(&good);
        bytes[11] = 2;
        let option = bytes[bytes.len() - 11..].to_vec();
        bytes.extend(option);
        bytes
    };
    let whole = bytes(&good);
    #[rustfmt::skip]
    let cases = [
        ("nothing",                vec![],                                                    None),
        ("part of a header",       whole[..11].to_vec(),                                      None),
        ("a response",             with(|m| m.metadata.message_type = hickory_proto::op::MessageType::Response), None),
        ("a header",               whole[..12].to_vec(),                                      Some(ResponseCode::FormErr)),
        ("part of a name",         whole[..20].to_vec(),                                      Some(ResponseCode::FormErr)),
        ("part of an option",      whole[..whole.len() - 1].to_vec(),                         Some(ResponseCode::FormErr)),
        ("a name that is a loop",  loops,                                                     Some(ResponseCode::FormErr)),
        ("two option records",     two_options,                                               Some(ResponseCode::FormErr)),
        ("no question",            with(|m| m.queries.clear()),                               Some(ResponseCode::FormErr)),
        ("two questions",          with(|m| m.queries.push(m.queries[0].clone())),            Some(ResponseCode::FormErr)),
        ("an update",              with(|m| m.metadata.op_code = OpCode::Update),             Some(ResponseCode::NotImp)),
        ("a notification",         with(|m| m.metadata.op_code = OpCode::Notify),             Some(ResponseCode::NotImp)),
        ("a later version",        with(|m| { m.edns.as_mut().map(|edns| edns.set_version(1)); }), Some(ResponseCode::BADVERS)),
        ("another class",          with(|m| { m.queries[0].set_query_class(DNSClass::CH); }), Some(ResponseCode::Refused)),
        ("a question",             whole.clone(),                                             Some(ResponseCode::NoError)),
    ];
    for (what, bytes, want) in cases {
        for transport in [Transport::Udp, Transport::Tcp] {
            let reply = answer(&bytes, transport, &scope);
            let code = reply.as_deref().map(|reply| {
                let reply = Message::from_vec(reply).expect("readable");
                assert_eq!(reply.metadata.id, 0x1234, "{what}");
                // As numbers: 16 has two names.
                u16::from(reply.metadata.response_code)
            });
            assert_eq!(code, want.map(u16::from), "{what}");
        }
    }
    assert_eq!(kept.denials(), [], "none of them named a destination");
}

// INV-8, jail.md 1.5 rule 2: how many names code in the jail may choose is bounded.
#[test]
fn names_below_wildcards_are_counted_and_others_are_not() {
    let limits = EgressLimits { wildcard_names: 3, ..EgressLimits::default() };
    let (scope, kept) = scope_with(plan(&RULES, limits));
    for name in ["a.one.example.com.", "B.one.example.com.", "c.d.any.example.org."] {
        assert!(said(&ask(&scope, &question(name, T::A))).starts_with("198.18."), "{name}");
    }
    let reply = ask(&scope, &question("e.one.example.com.", T::A));
    assert_eq!(said(&reply), "Refused");
    let text = "egress: e.one.example.com is one name too many, or too long";
    assert_eq!(extended(&reply), Some((0, text.to_owned())));
    let denied = ("e.one.example.com".to_owned(), 53, Some(Reason::LookupBudget));
    assert_eq!(kept.denials(), [denied]);
    // Those that were given addresses keep them, and names of the operator's choice cost nothing.
    for name in ["b.one.example.com.", "A.ONE.example.com.", "api.example.com."] {
        assert!(said(&ask(&scope, &question(name, T::AAAA))).starts_with("fd01:"), "{name}");
    }
    assert_eq!(kept.denials(), []);
}

// INV-11, jail.md 1.5 rule 2: a flood is refused and leaves one entry, whatever it asks for.
#[test]
fn flood_of_questions_leaves_one_entry() {
    let limits = EgressLimits { connection_rate: 1, ..EgressLimits::default() };
    let (scope, kept) = scope_with(plan(&RULES, limits));
    scope.ledger.turn(Some("call"));
    let mut refused = 0;
    for number in 0..1000 {
        let reply = ask(&scope, &question(&format!("n{number}.any.example.org."), T::MX));
        match said(&reply).as_str() {
            "NoError, absent" => {}
            "Refused" => {
                let text = "egress: too many lookups in a short time".to_owned();
                assert_eq!(extended(&reply), Some((0, text)));
                refused += 1;
            }
            other => panic!("{other}"),
        }
    }
    // The slowest machine takes less than some seconds for this, at 64 questions each.
    assert!((500..=872).contains(&refused), "{refused} refused");
    assert_eq!(kept.denials(), []);
    let denials = scope.ledger.turn(None);
    let [denial] = denials.as_slice() else { panic!("{denials:?}") };
    let seen = (denial.target.clone(), denial.reason, denial.count);
    assert_eq!(seen, (None, Reason::LookupBudget, refused));
}

// Denials are there before the refusal can be noticed; a name that is no host's is counted.
#[test]
fn denied_lookup_is_in_the_window_of_its_call() {
    let (scope, kept) = scope();
    scope.ledger.turn(Some("call"));
    for _ in 0..3 {
        ask(&scope, &question("evil.test.", T::A));
        ask(&scope, &question("EVIL.test.", T::AAAA));
        ask(&scope, &question(r"a\000b.evil.test.", T::A));
    }
    assert_eq!(kept.denials(), [("evil.test".to_owned(), 53, Some(Reason::Lookup))]);
    let denials = scope.ledger.turn(None);
    let seen: Vec<_> = denials
        .iter()
        .map(|denial| (denial.target.as_ref().map(|t| t.host.to_string()), denial.count))
        .collect();
    assert_eq!(seen, [(None, 3), (Some("evil.test".to_owned()), 6)]);
}

// The rules in force decide at each question; addresses that were given out stay the same.
#[test]
fn change_of_rules_holds_for_the_next_question() {
    let (scope, _) = scope();
    let message = question("api.example.com.", T::A);
    assert_eq!(said(&ask(&scope, &message)), "198.18.0.16");
    scope.replace(plan(&["other.example.com:443"], EgressLimits::default()));
    assert_eq!(said(&ask(&scope, &message)), "Refused");
    assert_eq!(said(&ask(&scope, &question("other.example.com.", T::A))), "198.18.0.17");
    scope.replace(plan(&RULES, EgressLimits::default()));
    assert_eq!(said(&ask(&scope, &message)), "198.18.0.16");
}

// Report mode answers what no rule names, within the same bounds, until it ends.
#[test]
fn report_mode_answers_every_name_until_it_ends() {
    for (until, want) in [(u64::MAX, "198.18.0.16"), (1, "Refused")] {
        let limits = EgressLimits { wildcard_names: 1, ..EgressLimits::default() };
        let mut plan = plan(&RULES, limits);
        plan.rules.report_until = Some(until);
        let (scope, kept) = scope_with(plan);
        let long = format!("{}.{}.test.", "a".repeat(63), "b".repeat(63));
        assert_eq!(said(&ask(&scope, &question(&long, T::A))), "Refused", "too long to be chosen");
        assert_eq!(said(&ask(&scope, &question("else.test.", T::A))), want);
        assert_eq!(said(&ask(&scope, &question("more.test.", T::A))), "Refused");
        let open = want != "Refused";
        let reasons: Vec<_> = kept.denials().into_iter().filter_map(|(.., why)| why).collect();
        let reason = if open { Reason::LookupBudget } else { Reason::Lookup };
        assert_eq!(reasons, vec![reason; if open { 2 } else { 3 }]);
    }
}
