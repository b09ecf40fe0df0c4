use alloc::{format, string::String, vec::Vec};

use hickory_proto::{
    op,
    rr::{
        RData,
        rdata::{
            SVCB,
            svcb::{SvcParamKey, SvcParamValue},
        },
    },
};
use proptest::prelude::*;
use wire::dns::Type;

use super::*;
use crate::testkit::message::{
    Data::{self, Bytes, Name, Plain},
    Message, param,
};

/// A parameter `ech` between two other parameters.
fn params() -> Vec<u8> {
    [param(1, b"\x02h3"), param(5, &[7; 100]), param(6, &[0; 16])].concat()
}

fn without() -> Vec<u8> {
    [param(1, b"\x02h3"), param(6, &[0; 16])].concat()
}

/// A message whose HTTPS records have these parameters. Before and after these records, there are compressed names.
fn message(params: &[u8]) -> Message {
    let service = [Bytes(&[0, 1]), Plain("alt.test"), Bytes(params)];
    Message::response("www.test", Type::HTTPS)
        .answer("www.test", Type::CNAME, &[Name("cdn.test")])
        .answer("cdn.test", Type::HTTPS, &service)
        .answer("cdn.test", Type::HTTPS, &[Bytes(&[0, 2]), Name("far.other.test"), Bytes(params)])
        .record(
            Section::Authority,
            "other.test",
            Type::SOA,
            9,
            &[Name("ns.other.test"), Name("root.other.test"), Bytes(&[0; 20])],
        )
        .record(Section::Additional, "far.other.test", Type::A, 9, &[Bytes(&[192, 0, 2, 1])])
        .record(
            Section::Additional,
            "ns.other.test",
            Type::MX,
            9,
            &[Bytes(&[0, 1]), Name("mx.ns.other.test")],
        )
        .record(Section::Additional, "mx.ns.other.test", Type(65_400), 9, &[Bytes(b"\xc0\x0c as it is")])
}

#[test]
fn the_parameter_is_cut_out_and_all_names_stay() {
    // A message that was built without the parameter has the same bytes, since the builder compresses the same names.
    let stripped = strip_ech(&message(&params()).bytes()).unwrap().unwrap();
    assert_eq!(stripped, message(&without()).bytes());
    assert_eq!(strip_ech(&stripped), Ok(None));
}

#[test]
fn messages_without_the_parameter_stay_as_they_are() {
    for params in [&[][..], &without()] {
        assert_eq!(strip_ech(&message(params).bytes()), Ok(None));
    }
    // Bytes after the last record, and data that looks like the parameter, are kept.
    let txt = Message::response("www.test", Type::TXT).answer("www.test", Type::TXT, &[Bytes(&params())]);
    assert_eq!(strip_ech(&[&txt.bytes()[..], b"more"].concat()), Ok(None));
    assert_eq!(strip_ech(&Message::response("www.test", Type::A).bytes()), Ok(None));
}

#[test]
fn the_parameter_alone() {
    let stripped = strip_ech(&[&message(&param(5, b"key")).bytes()[..], b"more"].concat()).unwrap().unwrap();
    assert_eq!(stripped, [&message(&[]).bytes()[..], b"more"].concat());
}

/// Records that can't be used without the parameter are removed.
#[test]
fn a_record_that_demands_the_parameter_is_removed() {
    let demands = [param(0, &[0, 1, 0, 5]), params()].concat();
    let build = |both: bool| {
        let message = Message::response("www.test", Type::HTTPS);
        let message = if both {
            message.answer("www.test", Type::HTTPS, &[Bytes(&[0, 1]), Plain("alt.test"), Bytes(&demands)])
        } else {
            message
        };
        message
            .answer("www.test", Type::HTTPS, &[Bytes(&[0, 2]), Plain("far.test"), Bytes(&without())])
            .record(Section::Additional, "far.test", Type::A, 9, &[Bytes(&[192, 0, 2, 1])])
            .bytes()
    };
    assert_eq!(strip_ech(&build(true)), Ok(Some(build(false))));
    // A later name that points into a removed record can't be corrected.
    let message = Message::response("www.test", Type::HTTPS)
        .answer("www.test", Type::HTTPS, &[Bytes(&[0, 1]), Name("alt.far.test"), Bytes(&demands)])
        .record(Section::Additional, "far.test", Type::A, 9, &[Bytes(&[192, 0, 2, 1])]);
    assert_eq!(strip_ech(&message.bytes()), Err(Malformed));
}

/// A pointer to bytes that are not part of a name can't be corrected.
#[test]
fn pointers_into_other_data_are_refused() {
    let with = |target: u16, after: &[u8]| {
        let pointer = (0xc000 | target).to_be_bytes();
        let message = Message::response("www.test", Type::HTTPS)
            .answer("www.test", Type::TXT, &[Bytes(b"\x01x\0")])
            .answer("www.test", Type::HTTPS, &[Bytes(&[0, 1]), Plain(""), Bytes(&params())])
            .answer("www.test", Type::CNAME, &[Bytes(&pointer)])
            .bytes();
        [&message, after].concat()
    };
    let question = 12;
    let text = question + 10 + 4 + 12;
    let key = text + 3 + 12 + 3 + params().len() as u16 - 30;
    assert_eq!(strip_ech(&with(question, b"")).map(|stripped| stripped.is_some()), Ok(true));
    assert_eq!(strip_ech(&with(text, b"")), Err(Malformed));
    assert_eq!(strip_ech(&with(key, b"")), Err(Malformed));
}

#[test]
fn malformed_services_are_refused() {
    for params in [&param(5, b"key")[..6], &[param(6, &[0; 16]), param(5, b"key")].concat()] {
        let data = [Bytes(&[0, 1]), Plain(""), Bytes(params)];
        let message = Message::response("www.test", Type::HTTPS).answer("www.test", Type::HTTPS, &data);
        assert_eq!(strip_ech(&message.bytes()), Err(Malformed));
    }
}

/// A record for [`any_message_is_the_same_without_the_parameter`]: owner, kind, target, parameters.
type Choice = (u8, u8, u8, u8);

fn build(choices: &[Choice]) -> Message {
    let name = |number: u8| match number % 6 {
        0 => "www.test".into(),
        1 => String::new(),
        _ => format!("{}.n{}.test", number % 4, number % 6),
    };
    choices.iter().fold(Message::response("www.test", Type::HTTPS), |message, &(owner, kind, to, keys)| {
        let (owner, to) = (name(owner), name(to));
        let flags =
            [(1, &b"\x02h3"[..]), (4, &[192, 0, 2, 1]), (5, &[9; 70]), (6, &[0; 16]), (7, b"/dns{?q}")];
        let chosen = flags.iter().enumerate().filter(|(bit, _)| keys >> bit & 1 == 1);
        let params: Vec<u8> = chosen.flat_map(|(_, (key, value))| param(*key, value)).collect();
        let service = [Bytes(&[0, 1]), if keys & 32 == 0 { Plain(&to) } else { Name(&to) }, Bytes(&params)];
        let (kind, data): (Type, &[Data<'_>]) = match kind % 7 {
            0 => (Type::A, &[Bytes(&[192, 0, 2, 1])]),
            1 => (Type::CNAME, &[Name(&to)]),
            2 => (Type::MX, &[Bytes(&[0, 1]), Name(&to)]),
            3 => (Type::SOA, &[Name(&to), Name("root.n2.test"), Bytes(&[0; 20])]),
            4 => (Type::SRV, &[Bytes(&[0; 6]), Name(&to)]),
            5 => (Type::SVCB, &service),
            _ => (Type::HTTPS, &service),
        };
        message.answer(&owner, kind, data)
    })
}

/// The message as another parser reads it, without the parameter.
fn read(bytes: &[u8]) -> op::Message {
    let mut message = op::Message::from_vec(bytes).unwrap();
    for record in &mut message.answers {
        let remove = |svcb: &SVCB| {
            let kept = |(key, _): &&(SvcParamKey, SvcParamValue)| *key != SvcParamKey::EchConfigList;
            SVCB::new(
                svcb.svc_priority,
                svcb.target_name.clone(),
                svcb.svc_params.iter().filter(kept).cloned().collect(),
            )
        };
        match &mut record.data {
            RData::SVCB(svcb) => *svcb = remove(svcb),
            RData::HTTPS(https) => https.0 = remove(&https.0),
            _ => {}
        }
    }
    message
}

proptest! {
    #[test]
    fn any_message_is_the_same_without_the_parameter(
        choices in prop::collection::vec(any::<Choice>(), 0..30)
    ) {
        let bytes = build(&choices).bytes();
        let expected: Vec<Choice> =
            choices.iter().map(|&(owner, kind, to, keys)| (owner, kind, to, keys & !4)).collect();
        let expected = build(&expected).bytes();
        let stripped = strip_ech(&bytes).unwrap();
        prop_assert_eq!(stripped.is_some(), bytes != expected);
        let stripped = stripped.unwrap_or(bytes.clone());
        prop_assert_eq!(&stripped, &expected);
        prop_assert_eq!(read(&stripped), read(&bytes));
    }

    #[test]
    fn any_bytes_are_stripped_or_malformed(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(Some(stripped)) = strip_ech(&bytes) {
            prop_assert_eq!(strip_ech(&stripped), Ok(None));
        }
    }
}
