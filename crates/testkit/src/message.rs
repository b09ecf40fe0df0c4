//! DNS messages of a server, with compressed names like those of real servers.

use std::{collections::BTreeMap, vec, vec::Vec};

use wire::dns::{Section, Type};

/// A response that is being written.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
    /// Offsets in the message of names and of their suffixes, by the name in wire format.
    places: BTreeMap<Vec<u8>, usize>,
}

/// A part of a record's data.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Bytes that are copied unchanged.
    Bytes(&'a [u8]),
    /// A name, compressed if possible.
    Name(&'a str),
    /// A name without compression. No pointer leads to it.
    Plain(&'a str),
}

/// A name in wire format. Upper and lower case are kept.
///
/// # Panics
/// If a label is longer than 63 bytes.
#[must_use]
pub fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> = labels
        .flat_map(|label| {
            assert!(label.len() < 64, "{label} is too long");
            [&[label.len() as u8], label.as_bytes()].concat()
        })
        .collect();
    bytes.push(0);
    bytes
}

/// A parameter of an SVCB or HTTPS record.
#[must_use]
pub fn param(key: u16, value: &[u8]) -> Vec<u8> {
    [&key.to_be_bytes(), &(value.len() as u16).to_be_bytes(), value].concat()
}

impl Message {
    /// A response to the question for the records `kind` of `name`. It has the ID 7 and no error.
    #[must_use]
    pub fn response(name: &str, kind: Type) -> Self {
        let bytes = vec![0, 7, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
        let mut message = Self { bytes, places: BTreeMap::new() };
        message.push_name(name);
        message.push(kind.0);
        message.push(1);
        message
    }

    /// Adds a record to a section. Records must be added in the order of the sections.
    ///
    /// # Panics
    /// If the data is too long.
    #[must_use]
    pub fn record(mut self, section: Section, owner: &str, kind: Type, ttl: u32, data: &[Data<'_>]) -> Self {
        let count = &mut self.bytes[section.count_at()..][..2];
        let more = u16::from_be_bytes([count[0], count[1]]) + 1;
        count.copy_from_slice(&more.to_be_bytes());
        self.push_name(owner);
        self.push(kind.0);
        self.push(1);
        self.bytes.extend(ttl.to_be_bytes());
        let at = self.bytes.len();
        self.push(0);
        for data in data {
            match data {
                Data::Bytes(bytes) => self.bytes.extend(*bytes),
                Data::Name(name) => self.push_name(name),
                Data::Plain(name) => self.bytes.extend(self::name(name)),
            }
        }
        let len = u16::try_from(self.bytes.len() - at - 2).expect("short data");
        self.bytes[at..at + 2].copy_from_slice(&len.to_be_bytes());
        self
    }

    /// Adds a record to the answer section, with a time to live of 300 s.
    #[must_use]
    pub fn answer(self, owner: &str, kind: Type, data: &[Data<'_>]) -> Self {
        self.record(Section::Answer, owner, kind, 300, data)
    }

    /// The message.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    fn push(&mut self, number: u16) {
        self.bytes.extend(number.to_be_bytes());
    }

    fn push_name(&mut self, text: &str) {
        let wire = name(text);
        let mut rest = &wire[..];
        while rest != [0] {
            if let Some(&place) = self.places.get(rest) {
                return self.push(0xc000 | place as u16);
            }
            if self.bytes.len() < 0x4000 {
                self.places.insert(rest.to_vec(), self.bytes.len());
            }
            let (label, after) = rest.split_at(1 + usize::from(rest[0]));
            self.bytes.extend(label);
            rest = after;
        }
        self.bytes.push(0);
    }
}
