//! Removes the keys of Encrypted ClientHello from answers. With such a key, a client would hide the server's name.

#[cfg(test)]
mod tests;

use alloc::{vec, vec::Vec};
use core::ops::Range;

use wire::dns::{Key, Malformed, Name, Part, Record, Records, Section, Service};

/// Removes the `ech` parameter from all SVCB and HTTPS records (RFC 9460 §14.3.2). A record that requires clients to
/// understand this parameter ([`Key::MANDATORY`]) is removed as a whole. All other bytes stay unchanged. Returns none
/// if there is nothing to remove: the caller forwards the original message.
///
/// The DNSSEC signature over a changed record is no longer valid, so a validating client discards the records. A TSIG
/// of the message is no longer valid either, but only clients that share a key with the resolver use TSIG.
///
/// # Errors
/// The message is malformed. Or a compressed name can't be corrected, since it points to bytes that are not part of a
/// name or were removed. The caller must not forward the message to the guest.
pub fn strip_ech(message: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    let mut plan = Plan::default();
    for record in Records::of(message)? {
        plan.add(&record?)?;
    }
    if plan.cuts.is_empty() {
        return Ok(None);
    }
    let mut stripped = plan.cut(message);
    plan.shorten(message, &mut stripped)?;
    plan.move_names(message, &mut stripped)?;
    Ok(Some(stripped))
}

/// The parts of the message to remove.
#[derive(Default)]
struct Plan {
    /// Removed ranges of the message, in order.
    cuts: Vec<Range<usize>>,
    /// For each shortened record: the offset of its data length in the message, and the number of removed bytes.
    shorter: Vec<(usize, usize)>,
    /// The section and start offset of each record that is removed as a whole.
    removed: Vec<(Section, usize)>,
}

impl Plan {
    fn add(&mut self, record: &Record<'_>) -> Result<(), Malformed> {
        const LEN_LEN: usize = 2;
        if !Service::is_in(record.kind) {
            return Ok(());
        }
        let service = Service::parse(record).ok_or(Malformed)?;
        if service.params().any(|param| param.demands(Key::ECH)) {
            self.removed.push((record.section, record.span().start));
            self.cuts.push(record.span());
        } else if let Some(ech) = service.params().find(|param| param.key == Key::ECH) {
            self.shorter.push((record.data_span().start - LEN_LEN, ech.span.len()));
            self.cuts.push(ech.span);
        }
        Ok(())
    }

    /// The message without the removed ranges.
    fn cut(&self, message: &[u8]) -> Vec<u8> {
        let mut stripped = Vec::with_capacity(message.len());
        let mut at = 0;
        for cut in &self.cuts {
            stripped.extend_from_slice(message.get(at..cut.start).unwrap_or_default());
            at = cut.end;
        }
        stripped.extend_from_slice(message.get(at..).unwrap_or_default());
        stripped
    }

    /// The new offset, after the removal, of the byte at offset `at`. This byte must not be removed.
    fn moved(&self, at: usize) -> usize {
        at - self.cuts.iter().take_while(|cut| cut.end <= at).map(Range::len).sum::<usize>()
    }

    /// Corrects lengths and numbers of records.
    fn shorten(&self, message: &[u8], stripped: &mut [u8]) -> Result<(), Malformed> {
        for &(at, by) in &self.shorter {
            subtract(stripped, self.moved(at), read(message, at)?, by)?;
        }
        for section in Section::ALL {
            let by = self.removed.iter().filter(|(of, _)| *of == section).count();
            let at = section.count_at();
            subtract(stripped, at, read(message, at)?, by)?;
        }
        Ok(())
    }

    /// Corrects the pointers of compressed names.
    fn move_names(&self, message: &[u8], stripped: &mut [u8]) -> Result<(), Malformed> {
        let records = Records::of(message)?;
        let mut parts = vec![];
        if let Some(question) = records.question_name() {
            self.move_name(question, &mut parts, stripped)?;
        }
        for record in records {
            let record = record?;
            let start = record.span().start;
            if self.removed.iter().any(|&(_, removed)| removed == start) {
                continue;
            }
            for name in [Some(record.owner)].into_iter().chain(record.names()?).flatten() {
                self.move_name(name, &mut parts, stripped)?;
            }
        }
        Ok(())
    }

    /// Corrects the pointer of a name. `parts` has the offsets of the parts of all earlier names, in order. The target
    /// of a pointer must be one of these parts, since only they are correct after the removal.
    fn move_name(
        &self,
        name: Name<'_>,
        parts: &mut Vec<usize>,
        stripped: &mut [u8],
    ) -> Result<(), Malformed> {
        const POINTER: u16 = 0xc000;
        for part in name.parts() {
            if let Part::Pointer { at, target } = part {
                parts.binary_search(&target).map_err(|_| Malformed)?;
                write(stripped, self.moved(at), POINTER | self.moved(target) as u16)?;
            }
            parts.push(part.at());
        }
        Ok(())
    }
}

fn read(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    let number = bytes.get(at..).and_then(<[u8]>::first_chunk).ok_or(Malformed)?;
    Ok(u16::from_be_bytes(*number))
}

fn write(bytes: &mut [u8], at: usize, number: u16) -> Result<(), Malformed> {
    *bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut).ok_or(Malformed)? = number.to_be_bytes();
    Ok(())
}

fn subtract(bytes: &mut [u8], at: usize, number: u16, by: usize) -> Result<(), Malformed> {
    let less = u16::try_from(by).ok().and_then(|by| number.checked_sub(by)).ok_or(Malformed)?;
    write(bytes, at, less)
}
