//! The data of SVCB and HTTPS records (RFC 9460 §2.2).

use core::ops::Range;

use super::{Name, Record, Type};

/// A parameter's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(pub u16);

impl Key {
    /// The keys that a client must understand to use the record.
    pub const MANDATORY: Self = Self(0);
    /// IPv4 addresses of the target.
    pub const IPV4_HINT: Self = Self(4);
    /// Configurations of Encrypted ClientHello.
    pub const ECH: Self = Self(5);
    /// IPv6 addresses of the target.
    pub const IPV6_HINT: Self = Self(6);
}

/// Data of an SVCB or HTTPS record.
#[derive(Clone, Copy, Debug)]
pub struct Service<'a> {
    /// The name of the host with the service. The root means the owner of the record.
    pub target: Name<'a>,
    /// The parameters as on the wire.
    params: &'a [u8],
    /// Offset of the parameters in the message.
    at: usize,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: &'a [u8],
    /// The range of the parameter in the message, key included.
    pub span: Range<usize>,
}

impl<'a> Service<'a> {
    /// Whether records of this type have data of this format.
    #[must_use]
    pub const fn is_in(kind: Type) -> bool {
        matches!(kind, Type::SVCB | Type::HTTPS)
    }

    /// The data of a record. None if the data is malformed. A repeated key, or a key out of order, is malformed (RFC
    /// 9460 §2.2).
    #[must_use]
    pub fn parse(record: &Record<'a>) -> Option<Self> {
        const PRIORITY_LEN: usize = 2;
        let (target, offset) = record.name_at(PRIORITY_LEN)?;
        let service =
            Self { target, params: record.data().get(offset..)?, at: record.data_span().start + offset };
        let (mut end, mut last) = (service.at, None);
        for param in service.params() {
            if last.is_some_and(|last| param.key <= last) {
                return None;
            }
            (last, end) = (Some(param.key), param.span.end);
        }
        (end == record.data_span().end).then_some(service)
    }

    /// The parameters in order.
    pub fn params(self) -> impl Iterator<Item = Param<'a>> {
        let mut offset = 0;
        core::iter::from_fn(move || {
            let &[key_high, key_low, high, low] = self.params.get(offset..)?.first_chunk()?;
            let begin = offset + 4;
            let end = begin + usize::from(u16::from_be_bytes([high, low]));
            let value = self.params.get(begin..end)?;
            let span = self.at + offset..self.at + end;
            offset = end;
            Some(Param { key: Key(u16::from_be_bytes([key_high, key_low])), value, span })
        })
    }
}

impl Param<'_> {
    /// Whether this parameter is [`Key::MANDATORY`] and lists `key`: a client must understand `key` to use the record.
    #[must_use]
    pub fn demands(&self, key: Key) -> bool {
        let wanted = key.0.to_be_bytes();
        self.key == Key::MANDATORY && self.value.as_chunks().0.contains(&wanted)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::{super::Records, *};

    fn service(data: &[u8], check: impl Fn(Option<Service<'_>>)) {
        let mut message = vec![0, 7, 0x81, 0x80, 0, 0, 0, 1, 0, 0, 0, 0];
        message.extend([0, 0, 65, 0, 1, 0, 0, 0, 9, 0, data.len() as u8]);
        message.extend(data);
        let record = Records::of(&message).unwrap().next().unwrap().unwrap();
        assert!(Service::is_in(record.kind));
        check(Service::parse(&record));
    }

    #[test]
    fn parameters_are_read_in_order() {
        service(b"\0\x01\x01a\0\0\0\0\x04\0\x01\0\x05\0\x01\0\x02h2\0\x02\0\0\0\x05\0\x02ke", |parsed| {
            let parsed = parsed.unwrap();
            assert_eq!(parsed.target.labels().collect::<Vec<_>>(), [b"a"]);
            let params: Vec<_> = parsed.params().collect();
            let keys: Vec<_> = params.iter().map(|param| (param.key.0, param.value)).collect();
            assert_eq!(keys, [(0, &b"\0\x01\0\x05"[..]), (1, b"h2"), (2, b""), (5, b"ke")]);
        });
    }

    #[test]
    fn malformed_parameters_are_refused() {
        for (data, good) in [
            (&b"\0\x01\0"[..], true),
            (b"\0\x01\0\0\x01\0\0", true),
            (b"\0\x01", false),
            (b"\0\x01\x01", false),
            (b"\0\x01\0\0", false),
            (b"\0\x01\0\0\x01\0\x01", false),
            (b"\0\x01\0\0\x01\0\0\0\x01\0\0", false),
            (b"\0\x01\0\0\x02\0\0\0\x01\0\0", false),
        ] {
            service(data, |parsed| assert_eq!(parsed.is_some(), good, "{data:?}"));
        }
    }

    #[test]
    fn mandatory_keys() {
        let param = |key, value| Param { key: Key(key), value, span: 0..0 };
        assert!(param(0, b"\0\x01\0\x05").demands(Key::ECH));
        assert!(!param(0, b"\0\x01\x05\0").demands(Key::ECH));
        assert!(!param(0, b"\x01\0\x05\0").demands(Key::ECH), "keys have two bytes each");
        assert!(!param(1, b"\0\x05").demands(Key::ECH));
    }
}
