//! DNS under rules by name: which questions the guest may ask, and which addresses an answer may give it.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::{
    hash::BuildHasher,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use wire::{
    dns::Type,
    domain::{reverse_address, without_service},
};

use super::{Guard, Rules};
use crate::{
    flow::HashKey,
    names::Answers,
    policy::{NameVerdict, Reason},
    timer::Instant,
};

/// For how long a refused name is remembered: stubs ask for the name with the next search domain at once.
const RECENT: Duration = Duration::from_secs(30);
/// How many refused names are remembered.
const MOST_RECENT: usize = 64;

/// A question of the guest.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The guest's end.
    pub client: SocketAddr,
    /// The name, in the form of [`wire::dns::write_text`].
    pub name: &'a str,
    /// The type of the records that it asks for.
    pub kind: Type,
    /// Why questions of this type are refused for all names.
    pub useless: Option<&'static str>,
    /// The domains that the guest was told to search.
    pub search: &'a [String],
}

/// A question or an answer that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The name may have other records, or names below it may be allowed.
    pub name_exists: bool,
    /// The rule, or the reason.
    pub text: String,
}

impl Refused {
    fn existing(text: &str) -> Self {
        Self { name_exists: true, text: text.into() }
    }
}

/// The hashes of refused names, each with the time of the refusal.
#[derive(Debug, Default)]
pub(super) struct Recent {
    names: Vec<(u64, Instant)>,
    /// The place of the next one: of the oldest one, if the list is full.
    next: usize,
    hash_key: Option<HashKey>,
}

impl Recent {
    pub(super) const fn new(hash_key: [u8; 16]) -> Self {
        Self { names: Vec::new(), next: 0, hash_key: Some(HashKey(hash_key)) }
    }

    fn note(&mut self, name: &str, now: Instant) {
        let Some(hash_key) = &self.hash_key else { return };
        let noted = (hash_key.hash_one(name), now);
        if let Some(same) = self.names.iter_mut().find(|(hash, _)| *hash == noted.0) {
            *same = noted;
            return;
        }
        match self.names.get_mut(self.next) {
            Some(oldest) => *oldest = noted,
            None => self.names.push(noted),
        }
        self.next = (self.next + 1) % MOST_RECENT;
    }

    fn has(&self, name: &str, now: Instant) -> bool {
        let Some(hash_key) = &self.hash_key else { return false };
        let hash = hash_key.hash_one(name);
        self.names.iter().any(|&(noted, at)| noted == hash && now.since(at) < RECENT)
    }

    /// Whether `name` is a name that was refused, with one of the domains appended.
    fn has_searched(&self, name: &str, search: &[String], now: Instant) -> bool {
        !self.names.is_empty()
            && search.iter().any(|domain| {
                let domain = domain.trim_matches('.');
                let cut = name.len().checked_sub(domain.len()).filter(|&cut| name.is_char_boundary(cut));
                let (start, end) = name.split_at(cut.unwrap_or(0));
                let refused = start.strip_suffix('.').filter(|_| end.eq_ignore_ascii_case(domain));
                refused.is_some_and(|refused| self.has(refused, now))
            })
    }
}

impl Guard {
    /// Whether every DNS question of the guest is judged, and asked of the host's resolvers whatever server the guest
    /// has written to: there are rules by name.
    #[must_use]
    pub const fn judges_questions(&self) -> bool {
        self.names.is_some()
    }

    /// Whether nothing is refused, only logged.
    #[must_use]
    pub fn audits(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.audit)
    }

    /// Whether the guest may ask a question. `is_local` says whether an address is in the guest's own network. A refusal
    /// is counted and logged.
    ///
    /// # Errors
    /// The refusal.
    pub fn admits_question(
        &mut self,
        asked: &Asked<'_>,
        is_local: impl FnOnce(IpAddr) -> bool,
        now: Instant,
    ) -> Result<(), Refused> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let judged = self.judge_name(rules, asked, is_local, now);
        let judged = match (judged, asked.useless) {
            (Ok(()), Some(why)) => Err(Refused::existing(why)),
            (Err(refused), _) => {
                self.recent.note(asked.name, now);
                Err(refused)
            }
            (judged, None) => judged,
        };
        self.settle(asked, "asked for", judged)
    }

    /// Whether the guest may get an answer to a question. `leads_to_host` says whether an address of the answer leads to
    /// the host itself. A refusal is counted and logged. What the guest learns from the answer is noted: call this before
    /// the answer goes to the guest.
    ///
    /// # Errors
    /// The refusal: the answer leads into private networks (DNS rebinding).
    pub fn admits_answer(
        &mut self,
        asked: &Asked<'_>,
        answers: &Answers,
        mut leads_to_host: impl FnMut(IpAddr) -> bool,
        now: Instant,
    ) -> Result<(), Refused> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let forbidden = answers
            .addresses
            .iter()
            .find(|given| !rules.policy.may_answer(given.address, leads_to_host(given.address)));
        let judged = forbidden.map_or(Ok(()), |given| {
            let why = alloc::format!("its address {} is not public, and no rule allows it", given.address);
            Err(Refused::existing(&why))
        });
        self.settle(asked, "was answered for", judged)?;
        self.learn(asked.name, answers, now);
        Ok(())
    }

    /// Logs a refusal, and turns it into an admission in an audit.
    fn settle(&mut self, asked: &Asked<'_>, what: &str, judged: Result<(), Refused>) -> Result<(), Refused> {
        let (Some(rules), Err(refused)) = (&self.rules, judged) else { return Ok(()) };
        self.refused += 1;
        let Asked { client, name, kind, .. } = asked;
        log::warn!("{}: DNS {client} {what} {name} {kind} ({})", rules.refused(), refused.text);
        if rules.audit { Ok(()) } else { Err(refused) }
    }

    fn judge_name(
        &self,
        rules: &Rules,
        asked: &Asked<'_>,
        is_local: impl FnOnce(IpAddr) -> bool,
        now: Instant,
    ) -> Result<(), Refused> {
        let (reason, names_below) = match self.allows_name(rules, asked.name, now) {
            NameVerdict::Allow(_) if self.recent.has_searched(asked.name, asked.search, now) => {
                return Err(Refused::existing("a refused name and a search domain"));
            }
            NameVerdict::Allow(_) => return Ok(()),
            NameVerdict::Deny { reason, names_below } => (reason, names_below),
        };
        // A client that checks signatures asks for the keys of all zones above a name.
        let is_above_allowed = names_below && matches!(asked.kind, Type::DS | Type::DNSKEY);
        let is_of_known_address = asked.kind == Type::PTR
            && reverse_address(asked.name).is_some_and(|address| {
                let named = || self.names.iter().any(|names| names.lookup(address, now).next().is_some());
                rules.policy.may_reach(address, false) || named() || is_local(address)
            });
        if is_above_allowed || is_of_known_address {
            return Ok(());
        }
        Err(Refused { name_exists: names_below, text: rules.policy.text(reason).to_string() })
    }

    /// Whether a name may be asked for: itself, as the name of a service, or as a name that an allowed name leads to. A rule
    /// about the name itself comes first.
    fn allows_name(&self, rules: &Rules, name: &str, now: Instant) -> NameVerdict {
        let by_rule =
            |verdict| matches!(verdict, NameVerdict::Deny { reason, .. } if rules.is_by_name(reason));
        let verdict = rules.policy.name_verdict(name);
        let service = rules.policy.name_verdict(without_service(name));
        if by_rule(verdict) || matches!(verdict, NameVerdict::Allow(_)) && !by_rule(service) {
            return verdict;
        }
        if by_rule(service) || matches!(service, NameVerdict::Allow(_)) {
            return service;
        }
        let names = self.names.iter().flat_map(|names| names.lookup_target(name, now));
        let mut verdicts = names.map(|name| rules.policy.name_verdict(name));
        verdicts.find(|verdict| matches!(verdict, NameVerdict::Allow(_))).unwrap_or(verdict)
    }

    /// Notes the addresses and targets of an answer, for the names that the question's name stands for. Names that no rule
    /// is about matter only for the log of an audit.
    fn learn(&mut self, asked: &str, answers: &Answers, now: Instant) {
        let (Some(rules), Some(names)) = (&self.rules, &mut self.names) else { return };
        let stands_for: Vec<String> = [asked, without_service(asked)]
            .into_iter()
            .chain(names.lookup_target(asked, now))
            .filter(|name| rules.audit || rules.policy.has_rule_about(name))
            .map(String::from)
            .collect();
        let mut complete = true;
        for name in &stands_for {
            for given in &answers.addresses {
                complete &= names.learn(given.address, name, given.ttl, now);
            }
            for target in &answers.targets {
                complete &= names.learn_target(&target.name, name, target.ttl, now);
            }
        }
        if !complete {
            log::warn!("The table of names is full: flows to some addresses of {asked} will be refused");
        }
    }
}

impl Rules {
    fn is_by_name(&self, reason: Reason) -> bool {
        match reason {
            Reason::Rule(index) => self.policy.rules().get(index).is_some_and(super::Rule::is_by_name),
            Reason::Default | Reason::NameService => false,
        }
    }
}

#[cfg(test)]
mod tests;
