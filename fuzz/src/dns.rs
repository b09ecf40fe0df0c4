//! DNS messages. Any bytes are malformed, or contain addresses and names. Removing the keys of Encrypted ClientHello
//! does not change the other contents of a message. A refusal is a valid answer to its question.

use engine::dns::{
    answers::answers,
    ech::strip_ech,
    refusal::{ExtendedError, Refusal, refuse, refused_at_once},
};
use testkit::message::{
    Data::{Bytes, Name, Plain},
    Message, name, param,
};
use wire::dns::{Key, Malformed, Question, Records, Section, Service, Type};

/// Input: a message. It is parsed as a message of the guest, and as a message of a server.
pub fn target(data: &[u8]) {
    let read = answers(data);
    if let Ok(read) = &read {
        assert!(read.addresses.len() <= data.len() / 4 && read.targets.len() < 128);
        assert!(read.targets.iter().all(|target| !target.name.is_empty() && target.name != "."));
    }
    if let Ok(Some(stripped)) = strip_ech(data) {
        assert!(stripped.len() < data.len());
        assert_eq!(shown(&stripped), shown(data));
        assert_eq!(strip_ech(&stripped), Ok(None));
    }
    check_refusal(data);
}

/// The records as text, without `ech` parameters, and without records that require this parameter.
fn shown(message: &[u8]) -> Result<Vec<String>, Malformed> {
    let mut all = Vec::new();
    for record in Records::of(message)? {
        let record = record?;
        let names = record.names()?;
        let head = (record.section, record.owner, record.kind, record.class, record.ttl, names);
        if !Service::is_in(record.kind) {
            // The text contains the names of the data. The data's bytes are left out if it has names, since pointers
            // may differ.
            let opaque = if names[0].is_some() { &[] } else { record.data() };
            all.push(format!("{head:?} {opaque:?}"));
            continue;
        }
        let service = Service::parse(&record).ok_or(Malformed)?;
        if service.params().all(|param| !param.demands(Key::ECH)) {
            let params = service.params().filter(|param| param.key != Key::ECH);
            let params: Vec<_> = params.map(|param| (param.key, param.value)).collect();
            all.push(format!("{head:?} {params:?}"));
        }
    }
    Ok(all)
}

fn check_refusal(query: &[u8]) {
    let error = ExtendedError { code: ExtendedError::BLOCKED, text: "no rule allows this name" };
    let response = refuse(query, Refusal::NoName, Some(error));
    let question = Question::parse(query);
    assert_eq!(response.is_some(), question.is_some());
    let (Some(response), Some(question)) = (response, question) else { return };
    assert!(response.len() <= 512);
    assert!(question.answered_by(&response).is_some());
    assert!(Records::of(&response).is_ok_and(|records| records.flatten().count() <= 1));
    assert!(question.name().is_some());
    let _ = refused_at_once(&question);
}

/// Seeds of the corpus.
#[must_use]
pub fn seeds() -> Vec<crate::seeds::Seed> {
    let service =
        [param(0, &[0, 1]), param(1, b"\x02h3"), param(4, &[192, 0, 2, 1]), param(5, &[9; 40])].concat();
    let demands = [param(0, &[0, 5]), param(5, &[9; 40])].concat();
    let aliases = Message::response("www.peer.test", Type::A)
        .answer("www.peer.test", Type::CNAME, &[Name("cdn.test")])
        .answer("cdn.test", Type::A, &[Bytes(&[192, 0, 2, 1])])
        .answer("cdn.test", Type::AAAA, &[Bytes(&[7; 16])])
        .record(Section::Additional, "", Type::OPT, 0x8000, &[Bytes(&[0, 15, 0, 2, 0, 15])]);
    let https = Message::response("www.peer.test", Type::HTTPS)
        .answer("www.peer.test", Type::HTTPS, &[Bytes(&[0, 1]), Plain(""), Bytes(&service)])
        .answer("www.peer.test", Type::HTTPS, &[Bytes(&[0, 2]), Name("alt.peer.test"), Bytes(&service)])
        .answer("www.peer.test", Type::HTTPS, &[Bytes(&[0, 3]), Plain("x.test"), Bytes(&demands)])
        .record(
            Section::Authority,
            "peer.test",
            Type::SOA,
            9,
            &[Name("ns.peer.test"), Name("root.peer.test"), Bytes(&[0; 20])],
        )
        .record(Section::Additional, "alt.peer.test", Type::A, 9, &[Bytes(&[192, 0, 2, 1])]);
    let services = Message::response("sip.test", Type::NAPTR)
        .answer(
            "sip.test",
            Type::NAPTR,
            &[Bytes(b"\0\x01\0\x01\x01s\x07SIP+D2U\0"), Plain("_sip._udp.sip.test")],
        )
        .answer("_sip._udp.sip.test", Type::SRV, &[Bytes(&[0, 0, 0, 0, 0x13, 0xc4]), Name("gw.sip.test")]);
    let query = |opt: &[u8]| {
        let head = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!opt.is_empty())];
        [&head[..], &name("www.peer.test"), &[0, 1, 0, 1], opt].concat()
    };
    vec![
        ("dns", "aliases", aliases.bytes()),
        ("dns", "https", https.bytes()),
        ("dns", "services", services.bytes()),
        ("dns", "query", query(&[])),
        ("dns", "query-opt", query(&[0, 0, 41, 4, 0xd0, 0, 0, 0x80, 0, 0, 0])),
    ]
}
